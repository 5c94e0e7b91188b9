"""What flows through a model: padded tensors of fixed shape. B images; P proposals, D detections, G objects in each."""

from typing import NamedTuple

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
    """Pictures and their objects, as training's loader gives them."""

    pixels: Tensor  # [B, 3, H, W] uint8, zeros at the right and the bottom
    sizes: Tensor  # [B, 2] int64 (height, width) of the pictures inside
    targets: Targets  # boxes in pixels of the batch
    indices: Tensor  # [B] int64, of the pictures among the data set's records
    problems: tuple[str, ...]  # pictures that could not be looked at; others are in their place
