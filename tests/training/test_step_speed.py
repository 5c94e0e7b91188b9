"""The slim model's step beside torchvision's, in the same loop."""

import statistics
import time

import pytest
import torch
from helpers.slim import slim_pair
from torch import Tensor, nn

from fastmask.data.augment import Augmentation
from fastmask.data.loading import training_loader
from fastmask.demo import synthetic_dataset

ROUNDS = 12


def as_lists(seed: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    (batch,) = training_loader(synthetic_dataset(8, seed), 8, Augmentation(min_size=(192,)), seed=seed)
    images, targets, counts = [], [], batch.targets.count.tolist()
    for i, (count, masks) in enumerate(zip(counts, batch.targets.masks.split(counts), strict=True)):
        images.append(batch.pixels[i].float() / 255)
        fields = {"boxes": batch.targets.boxes, "labels": batch.targets.labels}
        targets.append({name: value[i, :count] for name, value in fields.items()} | {"masks": masks})
    return images, targets


@pytest.mark.slow
def test_step_is_faster_than_torchvisions(seed: int) -> None:
    """Eight synthetic images of 192 pixels, SGD; rounds in turns; medians."""
    models = slim_pair("BatchNorm2d", min_size=192, max_size=320)
    images, targets = as_lists(seed)
    seconds: list[list[float]] = [[], []]
    optimizers = [torch.optim.SGD(model.train().parameters(), lr=1e-4, momentum=0.9) for model in models]

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        start = time.perf_counter()
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - start

    for number in range(ROUNDS + 2):
        for model, optimizer, times in zip(models, optimizers, seconds, strict=True):
            spent = step(model, optimizer)
            if number >= 2:
                times.append(spent)
    theirs, ours = (statistics.median(times) for times in seconds)
    print(f"\nslim step: torchvision {1000 * theirs:.0f} ms, fastmask {1000 * ours:.0f} ms, {theirs / ours:.2f} times")
    assert theirs / ours >= 1.2
