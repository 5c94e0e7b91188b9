"""A program that torchrun starts: the gradients of four synthetic images, half of them on each rank, or all here.

Usage: gradients.py OUT SEED. float64; every candidate is a sample, as ranks would draw others.
"""

import sys

import torch
from torch.nn.parallel import DistributedDataParallel

import fastmask
from fastmask.data.augment import Augmentation
from fastmask.data.loading import training_loader
from fastmask.demo import synthetic_dataset
from fastmask.distributed import Ranks, ranks
from fastmask.training.loss_module import Learner
from fastmask.training.trainer import mean_over
from helpers.slim import slim_model


def compute(own: Ranks, out: str, seed: int) -> None:
    everything = {"box_batch_size_per_image": 10**4, "rpn_batch_size_per_image": 10**5}
    torch.manual_seed(seed)
    model = slim_model(fastmask, rpn_post_nms_top_n_train=60, **everything).double().train()
    dataset = synthetic_dataset(4, seed, (64, 96))
    augmentation = Augmentation(min_size=(64,), flip=0.0)
    loader = training_loader(dataset, 4 // own.world, augmentation, seed=seed, rank=own.rank, world=own.world)
    learner = Learner(model, mean_over(own.world) if own.world > 1 else None)
    parallel = DistributedDataParallel(learner) if own.world > 1 else learner
    (batch,) = loader
    losses = parallel(batch.pixels, batch.sizes, batch.targets)
    torch.stack(list(losses.values())).sum().backward()
    records = own.gather(batch.indices.tolist())
    total = {name: sum(own.gather(float(loss))) / own.world for name, loss in losses.items()}
    if own.rank == 0:
        gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
        numbers = [one for each in records for one in each]
        torch.save({"gradients": gradients, "records": numbers, "losses": total}, out)


if __name__ == "__main__":
    with ranks() as own:
        compute(own, sys.argv[1], int(sys.argv[2]))
