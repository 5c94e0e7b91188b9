"""Gradients reach the images, as saliency maps and adversarial examples need them: torchvision's, in float64."""

import pytest
import torch
from helpers.images import draw_image
from helpers.slim import slim_pair
from helpers.training import draw_batch, train_pair
from torch import Tensor

from fastmask.preprocess import pad

Images = list[Tensor]


def check_gradients(theirs: Tensor, theirs_of: Images, ours: Tensor, ours_of: Images) -> None:
    """The same gradients of both scalars, and none that are all zeros."""
    expected, actual = torch.autograd.grad(theirs, theirs_of), torch.autograd.grad(ours, ours_of)
    for mine, other in zip(actual, expected, strict=True):
        assert other.any()
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


def draw_images(*sizes: tuple[int, int]) -> tuple[Images, Images]:
    """The same leaves twice, one for each library."""
    images = [draw_image(*size)[0].double() for size in sizes]
    return tuple([image.clone().requires_grad_() for image in images] for _ in range(2))


@pytest.mark.parametrize("output", ["scores", "boxes", "masks"])
@pytest.mark.parametrize("sizes", [[(100, 140)], [(100, 140), (150, 90)]], ids=["one", "several"])
def test_of_detections(output: str, sizes: list[tuple[int, int]]) -> None:
    models = [model.double() for model in slim_pair()]
    batches = draw_images(*sizes)
    sums = []
    for model, images in zip(models, batches, strict=True):
        found = model(images)
        assert all(len(prediction["boxes"]) for prediction in found)
        sums.append(torch.stack([prediction[output].square().sum() for prediction in found]).sum())
    check_gradients(sums[0], batches[0], sums[1], batches[1])


@pytest.mark.parametrize("frozen", [False, True], ids=["trained weights", "frozen weights"])
def test_of_losses(frozen: bool) -> None:
    """Frozen weights: only the images ask for a gradient, as in an attack."""
    models = train_pair()
    _, targets = draw_batch()
    batches = draw_images(*[tuple(target["masks"].shape[1:]) for target in targets])
    sums = []
    for model, images in zip(models, batches, strict=True):
        model.requires_grad_(not frozen)
        sums.append(torch.stack(list(model(images, targets).values())).sum())
    check_gradients(sums[0], batches[0], sums[1], batches[1])


def test_of_losses_in_eval_mode() -> None:
    _, ours = slim_pair()
    images, targets = draw_batch(torch.float32)
    for image in images:
        image.requires_grad_()
    losses = ours.requires_grad_(False).losses_of(images, targets)
    for gradient in torch.autograd.grad(losses["loss_classifier"], images):
        assert gradient.any()


def test_of_one_image_alone() -> None:
    """The others of its batch ask for none; the steps of an attack go on from the image that the last one made."""
    _, ours = slim_pair()
    attacked, other = draw_image(100, 140)[0].requires_grad_(), draw_image(150, 90)[0]
    for _ in range(2):
        (gradient,) = torch.autograd.grad(ours([other, attacked])[1]["scores"].sum(), attacked)
        assert gradient.any()
        attacked = (attacked - 0.01 * gradient.sign()).clamp(0, 1)


def test_nothing_is_recorded_where_none_is_wanted() -> None:
    images = [torch.rand(3, 4, 6), torch.rand(3, 5, 2)]
    padded = pad(images, (8, 8))
    assert padded.grad_fn is None
    assert padded._version == len(images)  # one copy each, in place
    assert pad([image.requires_grad_() for image in images], (8, 8)).grad_fn is not None
