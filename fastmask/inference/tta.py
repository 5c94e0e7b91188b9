"""Test-time augmentation: one program predicts an image mirrored and in several sizes, and merges what it finds.

The candidates of all views, in pixels of the first one, pass one NMS of classes, so that a single view, not mirrored,
gives what the model gives. The mask branch then reads the merged boxes in each view's features; the probabilities are
mirrored back and averaged, as in detectron2's modeling/test_time_augmentation.py, which merges each view's detections
instead of candidates.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmask.inference.program import Buffers, Inputs, Packed, Program, capture_graph
from fastmask.models.detection.generalized_rcnn import drop_padding
from fastmask.models.detection.transform import GeneralizedRCNNTransform
from fastmask.preprocess import Resizer
from fastmask.sizes import Size
from fastmask.structures import Candidates, Detections, Features


class View(NamedTuple):
    """A batch in one size, mirrored or not."""

    features: Features
    sizes: Tensor  # [B, 2] int64 (height, width) of each image
    flipped: bool
    padded_size: Size


class TTAProgram(Program):
    """A :class:`Program` of the same images in several sizes, each also mirrored if ``flip`` is set."""

    def __init__(self, *args: Any, flip: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self.flip = flip

    def forward(self, inputs: Sequence[Inputs]) -> Packed:  # type: ignore[override]
        """Predict all views of the images, and merge them: no host sync, and nothing depends on what is in images."""
        heads = self.model.roi_heads
        views: list[View] = []
        found: list[Candidates] = []
        for pixels, sizes, _ in inputs:
            for flipped in (False, True) if self.flip else (False,):
                seen = self._flip(pixels, sizes) if flipped else pixels
                features, candidates = self.model.detect_candidates(seen, sizes, trim=self.trim)
                views.append(View(features, sizes, flipped, (pixels.shape[2], pixels.shape[3])))
                boxes, labels, scores, valid, number = candidates
                found.append(Candidates(map_boxes(boxes, views[-1], views[0]), labels, scores, valid, number))
        detections = heads.suppress(join_candidates(found))
        detections = drop_padding(detections) if self.trim else detections
        if heads.has_mask():
            boxes, labels, scores, _, count, rois, *_ = detections
            masks = self._average_masks(views, detections)
            detections = Detections(boxes, labels, scores, masks, count, rois)
        return self.pack(inputs[0], detections)

    def _average_masks(self, views: Sequence[View], detections: Detections) -> Tensor:
        """Mask probabilities [B, D, M, M] of detections in pixels of the first view, averaged over all views."""
        total: Any = 0
        for i, view in enumerate(views):
            own = detections
            if i:
                boxes = map_boxes(detections.boxes, views[0], view)
                own = Detections(boxes, detections.labels, detections.scores, None, detections.count)
            masks = self.model.roi_heads.complete(view.features, own, view.padded_size).masks
            assert masks is not None
            total = total + (masks.flip(-1) if view.flipped else masks) if i else masks
        averaged: Tensor = total / len(views)
        return averaged

    def _flip(self, pixels: Tensor, sizes: Tensor) -> Tensor:
        """Each image mirrored in its own width, from the left; zeros beyond it."""
        column = sizes[:, 1, None] - 1 - torch.arange(pixels.shape[3], device=pixels.device)  # [B, W] to read from
        column = column[:, None, None]
        mirrored = torch.where(column >= 0, pixels.gather(3, column.clamp(min=0).expand_as(pixels)), 0)
        batch, size = pixels.shape[0], (pixels.shape[2], pixels.shape[3])
        return self.empty_pixels(batch, size, pixels.dtype, pixels.device).copy_(mirrored)


def join_candidates(found: Sequence[Candidates]) -> Candidates:
    """All candidates of several views of the same images."""
    boxes, labels, scores, valid = (torch.cat(values, dim=1) for values in list(zip(*found, strict=True))[:4])
    return Candidates(boxes, labels, scores, valid, found[0].num_classes)


def map_boxes(boxes: Tensor, source: View, target: View) -> Tensor:
    """Boxes [B, N, 4] in pixels of one view -> in those of another one of the same images."""
    if source.flipped:
        boxes = flip_boxes(boxes, source.sizes)
    if source.sizes is not target.sizes:
        ratio = (target.sizes.to(boxes.dtype) / source.sizes.to(boxes.dtype)).flip(1)  # of x and y
        boxes = boxes * torch.cat([ratio, ratio], 1)[:, None]
    return flip_boxes(boxes, target.sizes) if target.flipped else boxes


def flip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B, N, 4] mirrored in images of sizes [B, 2] (height, width)."""
    x1, y1, x2, y2 = boxes.unbind(2)
    width = sizes[:, 1, None].to(boxes.dtype)
    return torch.stack([width - x2, y1, width - x1, y2], 2)


class TTARunner:
    """A :class:`TTAProgram` on one padded size a test size; arguments as :class:`Runner`."""

    def __init__(
        self,
        program: TTAProgram,
        batch: int,
        sizes: Sequence[Size],
        dtype: torch.dtype,
        device: torch.device,
        pool: Any,
        stream: "torch.cuda.Stream | None",
    ) -> None:
        self.buffers = [Buffers(program, batch, size, dtype, device) for size in sizes]
        inputs = [each.inputs for each in self.buffers]
        self.run = functools.partial(capture_graph(program.forward, pool, stream, inputs), inputs)


def make_resizers(
    transform: GeneralizedRCNNTransform, padded_size: Size | None, test_sizes: Sequence[int] | None
) -> list[Resizer]:
    """One resizer for each test size, or the model's own.

    The longer side's limit, and a padded size, grow and shrink with the shorter side, so that each resizer keeps images
    as complete as the model's own.
    """
    fixed = None if transform.fixed_size is None else (transform.fixed_size[1], transform.fixed_size[0])
    own, resizers = transform.min_size[-1], []
    for shorter in test_sizes or [own]:
        max_size, size = transform.max_size, padded_size
        if shorter != own:
            max_size = round(max_size * shorter / own)
            size = None if size is None else (round(size[0] * shorter / own), round(size[1] * shorter / own))
        rule: dict[str, Any] = {"fixed_size": fixed, "transpose": True, "enlarge_only": transform._enlarge_only}
        resizers.append(Resizer(shorter, max_size, transform.size_divisible, padded_size=size, **rule))
    return resizers
