"""A user's function in augmentation: what it gets, that it is reproducible, and what it may return."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmask.data import Dataset
from fastmask.data.augment import Augmentation
from fastmask.data.loading import Key, training_loader
from fastmask.data.user_transform import TransformError
from fastmask.demo import synthetic_dataset
from fastmask.structures import Batch

Target = dict[str, Tensor]
PLAIN = {"min_size": (64,), "max_size": 96, "flip": 0.0}


def load(data: Dataset, transform: Any, workers: int = 0, **how: Any) -> list[Batch]:
    return list(training_loader(data, 2, Augmentation(**PLAIN, transform=transform), workers=workers, **how))


def draw_everywhere(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Numbers of all three generators in the image's first pixels, and half of the instances."""
    image[0, 0, 0], image[0, 0, 1] = int(torch.randint(256, ())), random.randrange(256)
    image[0, 0, 2] = int(np.random.randint(256))
    return image, {name: value[::2] for name, value in target.items()}


def test_each_sample_has_its_own_seed(seed: int) -> None:
    """The same with workers as without, whatever was drawn before; the caller's generators go on as they were."""
    data = synthetic_dataset(6, seed, (64, 80))
    first = load(data, draw_everywhere, seed=seed)
    for other in (load(data, draw_everywhere, seed=seed), load(data, draw_everywhere, workers=1, seed=seed)):
        for mine, theirs in zip(first, other, strict=True):
            assert torch.equal(mine.pixels, theirs.pixels)
            for a, b in zip(mine.targets, theirs.targets, strict=True):
                assert (a is None and b is None) or torch.equal(a, b)
    samples = training_loader(data, 2, Augmentation(**PLAIN, transform=draw_everywhere)).dataset
    states = [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]
    samples[Key(0, 0)]
    assert [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()] == states
    drawn = {tuple(pixels[0, 0, :3].tolist()) for batch in first for pixels in batch.pixels}
    assert len(drawn) == 6
    other = load(data, draw_everywhere, seed=seed + 1)
    assert drawn.isdisjoint(tuple(pixels[0, 0, :3].tolist()) for batch in other for pixels in batch.pixels)


def test_what_it_gets_and_returns(seed: int) -> None:
    """Pixels and targets are those of the same seed without it; a crop drops and clips instances."""
    data = synthetic_dataset(4, seed, (64, 80))
    seen: list[tuple[Tensor, Target]] = []

    def crop(image: Tensor, target: Target) -> tuple[Tensor, Target]:
        seen.append((image.clone(), {name: value.clone() for name, value in target.items()}))
        return image[:, :, :40], target | {"masks": target["masks"][:, :, :40]}

    plain, cropped = load(data, None, seed=seed), load(data, crop, seed=seed)
    places = iter(seen)
    for before, after in zip(plain, cropped, strict=True):
        assert torch.equal(before.pixels[:, :, :64, :40], after.pixels[:, :, :64, :40])
        assert after.sizes.tolist() == [[64, 40]] * 2
        for i in range(2):
            image, target = next(places)
            assert (image.dtype, list(target)) == (torch.uint8, ["boxes", "labels", "masks"])
            assert torch.equal(image, before.pixels[i, :, :64, :80])
            boxes = target["boxes"].clamp(max=torch.tensor([40.0, 64, 40, 64]))
            kept = ((boxes[:, 2:] - boxes[:, :2]).min(1).values >= 1) & target["masks"][:, :, :40].flatten(1).any(1)
            number = int(kept.sum())
            assert torch.equal(after.targets.boxes[i, :number], boxes[kept])
            assert after.targets.labels[i, :number].tolist() == target["labels"][kept].tolist()
            assert not after.targets.labels[i, number:].any()


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        (lambda image, target: image, r"an image and a target, got \[3, 64, 80\] of uint8"),
        (
            lambda image, target: (image / 255, target),
            r"of uint8, with h up to 64 and w up to 80, got \[3, 64, 80\] of f",
        ),
        (lambda image, target: (image.mT, target), r"\[3, h, w\] of uint8, .* got \[3, 80, 64\] of uint8"),
        (lambda image, target: (image[:1], target), r"got \[1, 64, 80\] of uint8"),
        (lambda image, target: (image, {"boxes": target["boxes"]}), "a target of boxes, labels, masks, got boxes"),
        (lambda image, target: (image, None), "a target of boxes, labels, masks, got NoneType"),
        (
            lambda image, target: (image, target | {"boxes": target["boxes"][:, :3]}),
            r"boxes \[\d+, 4\] of float32, got",
        ),
        (lambda image, target: (image, target | {"boxes": target["boxes"][:0]}), r"labels \[0\] of int64, got \[\d+\]"),
        (lambda image, target: (image[:, :9], target), r"masks \[\d+, 9, 80\] of bool, got \[\d+, 64, 80\] of bool"),
        (lambda image, target: (image, target | {"labels": target["labels"] * 9}), r"labels in \[1, 3\], got \["),
        (lambda image, target: (image, target | {"labels": target["labels"] / 2}), r"of int64, got \[\d+\] of float32"),
        (lambda image, target: (image, target | {"boxes": target["boxes"] / 0}), "finite boxes, got NaN or infinity"),
    ],
)
def test_what_it_returns_is_checked(returns: Callable[..., Any], message: str, seed: int) -> None:
    with pytest.raises(TransformError, match=f"^transform must return .*{message}"):
        load(synthetic_dataset(2, seed, (64, 80)), returns)


def test_settings_name_it() -> None:
    assert Augmentation().settings()["transform"] is None
    assert (
        Augmentation(transform=draw_everywhere).settings()["transform"].endswith("test_user_transform.draw_everywhere")
    )
    assert Augmentation(transform=torch.nn.ReLU()).settings()["transform"] == "torch.nn.modules.activation.ReLU"
    with pytest.raises(ValueError, match="transform must be a function, got 3"):
        Augmentation(transform=3)
