"""What flows through a model: padded tensors of fixed shape. B images; P proposals, D detections, G objects in each."""

from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor


class Proposals(NamedTuple):
    """What the RPN proposes, best first; rows from count on are zeros."""

    boxes: Tensor  # [B, P, 4] (x1, y1, x2, y2) in pixels of the batch
    scores: Tensor  # [B, P] objectness in [0, 1]
    count: Tensor  # type: ignore[assignment] # [B] int64; hides tuple's own count, which nobody needs here
    rois: Tensor | None = None  # [B, P, 5] the boxes, each with its image's index before it, where they are at hand


class Candidates(NamedTuple):
    """N boxes of each of B images with a label each, before NMS."""

    boxes: Tensor  # [B, N, 4] (x1, y1, x2, y2) in pixels of the batch
    labels: Tensor  # [B, N] int64
    scores: Tensor  # [B, N]
    valid: Tensor  # [B, N] bool: which of them count


class Detections(NamedTuple):
    """What was found, best first; rows from count on are zeros."""

    boxes: Tensor  # [B, D, 4] (x1, y1, x2, y2) in pixels of the batch
    labels: Tensor  # [B, D] int64, 1 and up
    scores: Tensor  # [B, D]
    masks: Tensor | None  # [B, D, M, M] probabilities over the box; None without a mask branch
    count: Tensor  # type: ignore[assignment] # [B] int64; hides tuple's own count, which nobody needs here
    rois: Tensor | None = None  # [B, D, 5] the boxes, each with its image's index before it, where they are at hand


class Targets(NamedTuple):
    """The objects of a batch; rows from count on are zeros. G is at least 1."""

    boxes: Tensor  # [B, G, 4] (x1, y1, x2, y2) in pixels of the batch
    labels: Tensor  # [B, G] int64, 1 and up
    masks: Tensor | None  # [B, G, H, W] uint8 over the padded image; None without a mask branch
    count: Tensor  # type: ignore[assignment] # [B] int64


class Batch(NamedTuple):
    """Images and their objects, as training's loader gives them."""

    pixels: Tensor  # [B, 3, H, W] uint8, zeros at the right and the bottom
    sizes: Tensor  # [B, 2] int64 (height, width) of the images inside
    targets: Targets  # boxes in pixels of the batch
    indices: Tensor  # [B] int64, of the images among the data set's records
    problems: tuple[str, ...]  # images that could not be looked at; others are in their place


class Prediction(TypedDict):
    """Detections of one image, best first, as torchvision's models return them."""

    boxes: Tensor  # [n, 4] float32 (x1, y1, x2, y2) in pixels of the image
    labels: Tensor  # [n] int64, 1 and up
    scores: Tensor  # [n] in [0, 1], descending
    masks: NotRequired[Any]  # [n, 1, h, w] or another form that was asked for; missing without a mask branch


class CocoResult(TypedDict):
    """One detection in COCO's results format."""

    image_id: Any
    category_id: int
    bbox: NotRequired[list[float]]  # [x, y, width, height] in pixels of the image
    score: float
    segmentation: NotRequired[Any]  # RLE with text counts, or polygons


def padded_targets(targets: list[dict[str, Tensor]], pixels: Tensor, masks: bool) -> Targets:
    """Targets in pixels of the batch [B, 3, H, W], padded to the longest (at least one object)."""
    batch, _, height, width = pixels.shape
    most = max(1, *(len(target["labels"]) for target in targets))
    dtype = pixels.dtype if pixels.is_floating_point() else torch.float32
    boxes = torch.zeros(batch, most, 4, dtype=dtype, device=pixels.device)
    labels = torch.zeros(batch, most, dtype=torch.int64, device=pixels.device)
    painted = torch.zeros(batch, most, height, width, dtype=torch.uint8, device=pixels.device) if masks else None
    for i, target in enumerate(targets):
        num = len(target["labels"])
        boxes[i, :num] = target["boxes"]
        labels[i, :num] = target["labels"]
        if painted is not None:
            mask = with_border(target["masks"], height, width)
            painted[i, :num, : mask.shape[1], : mask.shape[2]] = mask
    count = torch.tensor([len(target["labels"]) for target in targets], device=pixels.device)
    return Targets(boxes, labels, painted, count)


def with_border(masks: Tensor, height: int, width: int) -> Tensor:
    """Masks [N, h, w] with their last row and column repeated once, where the padded (height, width) has room for it.

    RoIAlign at the image's border then reads what it reads at the border of an unpadded mask.
    """
    rows, columns = (
        torch.arange(min(size + 1, room), device=masks.device).clamp(max=size - 1)
        for size, room in ((masks.shape[1], height), (masks.shape[2], width))
    )
    return masks[:, rows][:, :, columns]
