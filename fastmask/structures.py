"""Typed values of a model: padded tensors of fixed shape. B images; P proposals, D detections, G instances in each."""

from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor


def valid_mask(count: Tensor, rows: int) -> Tensor:
    """Which of so many padded rows are valid, from counts [B] -> bool [B, rows]."""
    return torch.arange(rows, device=count.device) < count[:, None]


class Features(NamedTuple):
    """Feature maps of a batch, finest first."""

    maps: dict[str, Tensor]  # [B, C, H_l, W_l] by name
    scales: dict[str, float]  # feature pixels per image pixel, of those maps that RoIs are pooled from
    offset: Tensor | None = None  # [B, 2] (y, x) of each image on a larger canvas; None: in the batch's corner


class RPNOutputs(NamedTuple):
    """Outputs of an RPN's head and the anchors that they refer to; A anchors at each cell of level l."""

    logits: list[Tensor]  # [B, A, H_l, W_l] objectness
    deltas: list[Tensor]  # [B, A * 4, H_l, W_l]
    anchors: Tensor  # [sum of H_l * W_l * A, 4] (x1, y1, x2, y2) in pixels of the batch


class Proposals(NamedTuple):
    """Proposals of the RPN, best first; rows from count on are zeros."""

    boxes: Tensor  # [B, P, 4] (x1, y1, x2, y2) in pixels of the batch
    scores: Tensor  # [B, P] objectness in [0, 1]
    count: Tensor  # type: ignore[assignment] # [B] int64; hides tuple's own count, which nobody needs here
    rois: Tensor | None = None  # [B, P, 5] (image index, x1, y1, x2, y2), where they are at hand

    @property
    def valid(self) -> Tensor:
        """Rows below count: bool [B, P]."""
        return valid_mask(self.count, self.boxes.shape[1])


class Candidates(NamedTuple):
    """N scored boxes of each of B images with a label each, before NMS."""

    boxes: Tensor  # [B, N, 4] (x1, y1, x2, y2) in pixels of the batch
    labels: Tensor  # [B, N] int64
    scores: Tensor  # [B, N]
    valid: Tensor  # [B, N] bool; NMS ignores the others
    num_classes: int = 0  # labels are below it; 0 where that is not known


class Detections(NamedTuple):
    """Detections, best first; rows from count on are zeros."""

    boxes: Tensor  # [B, D, 4] (x1, y1, x2, y2) in pixels of the batch
    labels: Tensor  # [B, D] int64, 1 and up
    scores: Tensor  # [B, D]
    masks: Tensor | None  # [B, D, M, M] probabilities over the box; None without a mask branch
    count: Tensor  # type: ignore[assignment] # [B] int64; hides tuple's own count, which nobody needs here
    rois: Tensor | None = None  # [B, D, 5] (image index, x1, y1, x2, y2), where they are at hand
    keypoints: Tensor | None = None  # [B, D, K, 3] (x, y, 1) in pixels of the batch; None without a keypoint branch
    keypoints_scores: Tensor | None = None  # [B, D, K], each the maximum of a heatmap: a logit, not a probability

    @property
    def valid(self) -> Tensor:
        """Rows below count: bool [B, D]."""
        return valid_mask(self.count, self.boxes.shape[1])


class Targets(NamedTuple):
    """Ground-truth instances of a batch; rows from count on are zeros. G is at least 1.

    Masks are not padded: one image with thousands of instances would make each of the others as large.
    """

    boxes: Tensor  # [B, G, 4] (x1, y1, x2, y2) in pixels of the batch
    labels: Tensor  # [B, G] int64, 1 and up
    masks: Tensor | None  # [N, H, W] uint8 over the padded image, image after image; None without a mask branch
    count: Tensor  # type: ignore[assignment] # [B] int64; N is their sum, but at least B
    has_mask: Tensor | None = None  # [B, G] bool, False where a box alone is annotated; None: all have masks
    keypoints: Tensor | None = None  # [B, G, K, 3] (x, y, visibility) in pixels of the batch, 0 where not annotated

    @property
    def valid(self) -> Tensor:
        """Rows below count: bool [B, G]."""
        return valid_mask(self.count, self.boxes.shape[1])

    @property
    def first_mask(self) -> Tensor:
        """Index of each image's first mask: int64 [B]."""
        return self.count.cumsum(0) - self.count


class Batch(NamedTuple):
    """Images and their targets, as the training loader yields them."""

    pixels: Tensor  # [B, C, H, W] uint8, zeros at the right and the bottom
    sizes: Tensor  # [B, 2] int64 (height, width) of the images inside
    targets: Targets  # boxes in pixels of the batch
    indices: Tensor  # [B] int64, each image's place among the data set's records
    problems: tuple[str, ...]  # messages of images that could not be read; other images are in their place


class Prediction(TypedDict):
    """Detections of one image, best first, as torchvision's models return them."""

    boxes: Tensor  # [n, 4] float32 (x1, y1, x2, y2) in pixels of the image
    labels: Tensor  # [n] int64, 1 and up
    scores: Tensor  # [n] in [0, 1], descending
    masks: NotRequired[Any]  # [n, 1, h, w], or in the requested form; missing without a mask branch
    keypoints: NotRequired[Tensor]  # [n, K, 3] float32 (x, y, 1) in pixels of the image; missing without that branch
    keypoints_scores: NotRequired[Tensor]  # [n, K], each the maximum of a heatmap: a logit, not a probability


class CocoResult(TypedDict):
    """One detection in COCO's results format."""

    image_id: Any
    file_name: NotRequired[str]  # of the image; where it is given, it tells the image
    category_id: int
    bbox: NotRequired[list[float]]  # [x, y, width, height] in pixels of the image
    score: float
    segmentation: NotRequired[Any]  # RLE with text counts, or polygons
    keypoints: NotRequired[list[float]]  # x, y and a score, K times; COCO's evaluation does not read the third


def pad_targets(targets: list[dict[str, Tensor]], pixels: Tensor, masks: bool, keypoints: bool = False) -> Targets:
    """Pad boxes and labels, in pixels of the batch [B, C, H, W], to the most instances of an image (at least one).

    A target may have a has_mask [n] of its own: see :class:`Targets`. Masks and keypoints [n, K, 3] only if asked for.
    """
    batch, _, height, width = pixels.shape
    numbers = [len(target["labels"]) for target in targets]
    most, total = max(1, *numbers), max(batch, sum(numbers))
    dtype = pixels.dtype if pixels.is_floating_point() else torch.float32
    boxes = torch.zeros(batch, most, 4, dtype=dtype, device=pixels.device)
    labels = torch.zeros(batch, most, dtype=torch.int64, device=pixels.device)
    joined = torch.zeros(total, height, width, dtype=torch.uint8, device=pixels.device) if masks else None
    alone = masks and any("has_mask" in target for target in targets)
    has_mask = torch.ones(batch, most, dtype=torch.bool, device=pixels.device) if alone else None
    points = None
    if keypoints:
        points = torch.zeros(batch, most, *targets[0]["keypoints"].shape[1:], dtype=dtype, device=pixels.device)
    first = 0
    for i, (target, num) in enumerate(zip(targets, numbers, strict=True)):
        boxes[i, :num] = target["boxes"]
        labels[i, :num] = target["labels"]
        if joined is not None:
            place_masks(joined[first : first + num], target["masks"])
        if has_mask is not None and "has_mask" in target:
            has_mask[i, :num] = target["has_mask"]
        if points is not None:
            points[i, :num] = target["keypoints"]
        first += num
    return Targets(boxes, labels, joined, torch.tensor(numbers, device=pixels.device), has_mask, points)


def place_masks(padded: Tensor, masks: Tensor) -> None:
    """Copy masks [N, h, w] into zeros [N, H, W], the last row and column once more where there is room for it.

    RoIAlign at the image's border then reads the same values as at the border of an unpadded mask.
    """
    height, width = masks.shape[1:]
    padded[:, :height, :width] = masks
    padded[:, :height, width : width + 1] = masks[:, :, -1:]
    padded[:, height : height + 1, : width + 1] = padded[:, height - 1 : height, : width + 1]
