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
from fastmask.distributed import Ranks, join_ranks
from fastmask.training.loss_module import LossModule, mean_over_ranks
from helpers.slim import slim_model


def compute(ranks: Ranks, out: str, seed: int) -> None:
    everything = {"box_batch_size_per_image": 10**4, "rpn_batch_size_per_image": 10**5}
    torch.manual_seed(seed)
    model = slim_model(fastmask, rpn_post_nms_top_n_train=60, **everything).double().train()
    dataset = synthetic_dataset(4, seed, (64, 96))
    augmentation = Augmentation(min_size=(64,), flip=0.0)
    loader = training_loader(
        dataset, 4 // ranks.world_size, augmentation, seed=seed, rank=ranks.rank, world_size=ranks.world_size
    )
    loss_module = LossModule(model, mean_over_ranks(ranks.world_size) if ranks.world_size > 1 else None)
    parallel = DistributedDataParallel(loss_module) if ranks.world_size > 1 else loss_module
    (batch,) = loader
    losses = parallel(batch.pixels, batch.sizes, batch.targets)
    torch.stack(list(losses.values())).sum().backward()
    records = ranks.all_gather(batch.indices.tolist())
    total = {name: sum(ranks.all_gather(float(loss.detach()))) / ranks.world_size for name, loss in losses.items()}
    if ranks.rank == 0:
        gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        numbers = [number for share in records for number in share]
        torch.save({"gradients": gradients, "records": numbers, "losses": total}, out)


if __name__ == "__main__":
    with join_ranks() as ranks:
        compute(ranks, sys.argv[1], int(sys.argv[2]))
