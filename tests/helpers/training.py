"""What a training step is compared on: a batch, and the slim model of both libraries with the same samples."""

import types
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastmask.models.detection.sampling import BalancedPositiveNegativeSampler
from helpers.images import draw_image, draw_keypoints
from helpers.slim import slim_pair

Target = dict[str, Tensor]
SIZES = [(100, 140), (150, 90), (64, 128)]


def draw_batch(
    dtype: torch.dtype = torch.float64, empty: bool = False, keypoints: int = 0
) -> tuple[list[Tensor], list[Target]]:
    """Images and targets, the first of which may have no instances; with so many keypoints, always float32."""
    images, targets = [], []
    for i, (height, width) in enumerate(SIZES):
        image, target = draw_image(height, width)
        while len(target["labels"]) == 0:
            image, target = draw_image(height, width)
        if keypoints:
            target["keypoints"] = draw_keypoints(target, keypoints)
        if empty and i == 0:
            target = {key: value[:0] for key, value in target.items()}
        images.append(image.to(dtype))
        targets.append(target | {"boxes": target["boxes"].to(dtype)})
    return images, targets


def draw_first(model: nn.Module) -> None:
    """Let both libraries draw the first candidates, positive and negative, instead of random ones."""
    for part in (model.rpn, model.roi_heads):
        sampler = part.fg_bg_sampler
        if isinstance(sampler, BalancedPositiveNegativeSampler):
            sampler.keys = lambda labels: torch.linspace(1, 0.1, labels.shape[1], dtype=torch.float64).expand(
                labels.shape
            )
            continue

        def draw(self: object, matched: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            chosen = ([], [])
            for labels in matched:
                positive, negative = (labels >= 1).nonzero()[:, 0], (labels == 0).nonzero()[:, 0]
                positive = positive[: int(self.batch_size_per_image * self.positive_fraction)]
                negative = negative[: self.batch_size_per_image - len(positive)]
                for masks, index in zip(chosen, (positive, negative), strict=True):
                    masks.append(torch.zeros_like(labels, dtype=torch.uint8).index_fill_(0, index, 1))
            return chosen

        part.fg_bg_sampler = types.MethodType(draw, types.SimpleNamespace(**vars(sampler)))


def train_pair(
    pair: Callable[..., tuple[nn.Module, nn.Module]] = slim_pair, **options: object
) -> tuple[nn.Module, nn.Module]:
    """torchvision's and ours, made by ``pair``, in float64 and training mode, which draw the same samples."""
    small = {"rpn_post_nms_top_n_train": 100, "box_batch_size_per_image": 32, "rpn_batch_size_per_image": 64}
    theirs, ours = pair(**small | options)
    align_samples(theirs, ours)
    return theirs, ours


def align_samples(theirs: nn.Module, ours: nn.Module) -> None:
    """Make both ready for a comparison of losses in float64, on the same samples."""
    for model in (theirs, ours):
        model.double().train()
        draw_first(model)
    assign = theirs.rpn.assign_targets_to_anchors

    def in_double(*arguments: object) -> tuple[list[Tensor], list[Tensor]]:
        """float32 labels would round torchvision's objectness loss."""
        return tuple([value.double() for value in values] for values in assign(*arguments))

    theirs.rpn.assign_targets_to_anchors = in_double
