"""Stages of matterport's Mask_RCNN in the static program: images on a square canvas, anchors, crops and decisions.

Boxes between the stages are (x1, y1, x2, y2) in pixels of the image, where x2 and y2 are of the last pixel inside:
matterport's normalized boxes, times side - 1 and shifted to the image's corner. Only anchors and targets of the RPN
are in pixels of the canvas, and :meth:`MatterportRoIHeads.complete` adds the last pixel's side, so that detections are
as those of all models. Source: github.com/matterport/Mask_RCNN 2.1, mrcnn/model.py and mrcnn/utils.py.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastmask.checks import upcast
from fastmask.models.detection._rpn_stages import flatten_anchors, sym_min
from fastmask.models.detection._utils import boxes_to_rois, take_kept
from fastmask.models.detection.anchor_utils import DEFAULT_DEVICE, AnchorGenerator
from fastmask.models.detection.roi_heads import RoIHeads
from fastmask.models.detection.rpn import RegionProposalNetwork
from fastmask.ops.boxes import nms_padded
from fastmask.ops.poolers import MultiScaleRoIAlign
from fastmask.ops.roi_align import level_limits, multilevel_roi_align
from fastmask.structures import Candidates, Detections, Features, Proposals, RPNOutputs, valid_mask

STRIDES = (4, 8, 16, 32)  # of the levels that RoIs are pooled from
DIVISIBLE = 64  # of the canvas: every level, the RPN's too, has whole pixels
CANONICAL = 224, 4  # a square of so many pixels of the canvas is pooled from this level


def center_images(pixels: Tensor, sizes: Tensor, side: int, fill: Tensor) -> tuple[Tensor, Tensor]:
    """Move images from the corners of a batch [B, C, H, W] to the middle of square canvases, filled around them.

    Args:
        pixels: normalized images, of ``sizes`` [B, 2] (height, width) of at most ``side``.
        side: of the canvas.
        fill: value of each channel [C] around the images.

    Returns:
        [B, C, side, side], channels-last, and (y, x) of each image's corner there, int64 [B, 2].
    """
    offset = torch.div(side - sizes, 2, rounding_mode="floor")
    place = torch.arange(side, device=pixels.device)
    index, within = [], []
    for axis, length in enumerate(pixels.shape[2:]):
        at = place - offset[:, axis, None]  # [B, side], in the batch
        within.append((at >= 0) & (at < sizes[:, axis, None]) & (at < length))
        index.append(torch.where(within[axis], at, 0))
    inside, (rows, columns) = within[0][:, :, None] & within[1][:, None, :], index
    image = torch.arange(pixels.shape[0], device=pixels.device)[:, None, None]
    taken = pixels.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]  # [B, side, side, C]
    return torch.where(inside[..., None], taken, fill.to(taken.dtype)).permute(0, 3, 1, 2), offset


class MatterportAnchors(AnchorGenerator):
    """Anchors around the corner of each cell, not rounded, of one size a level.

    Args:
        anchor_sizes: RPN_ANCHOR_SCALES, a size in pixels for each level.
        anchor_ratios: RPN_ANCHOR_RATIOS, width / height (torchvision's are height / width).
    """

    def __init__(self, anchor_sizes: Sequence[float], anchor_ratios: Sequence[float]) -> None:
        self.anchor_sizes, self.anchor_ratios = tuple(anchor_sizes), tuple(anchor_ratios)
        sizes = tuple((size,) for size in self.anchor_sizes)
        super().__init__(sizes, (self.anchor_ratios,) * len(sizes))  # type: ignore[arg-type]

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float64,
        device: torch.device = DEFAULT_DEVICE,
    ) -> Tensor:
        """The anchors of a cell whose corner is (0, 0), up to their last pixel -> [ratios * scales, 4]."""
        scale = torch.as_tensor(scales, dtype=dtype, device=device)
        ratio = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        widths, heights = (ratio[:, None] * scale).flatten() / 2, (scale / ratio[:, None]).flatten() / 2
        return torch.stack((-widths, -heights, widths - 1, heights - 1), dim=1)


class MatterportRPN(RegionProposalNetwork):
    """Proposals whose levels compete: the best anchors of all levels together, and one NMS of all of them."""

    def propose(self, outputs: RPNOutputs, sizes: Tensor) -> Proposals:
        """Outputs of :meth:`predict` on a canvas, and image sizes [B, 2] -> proposals, clipped to the canvas."""
        side = outputs.logits[0].shape[2] * STRIDES[0]
        every = torch.cat([flatten_anchors(logit.detach(), 1).squeeze(2) for logit in outputs.logits], 1)
        best, index = every.topk(sym_min(self.pre_nms_top_n(), every.shape[1]), dim=1)
        deltas = torch.cat([flatten_anchors(delta.detach(), 4) for delta in outputs.deltas], 1)
        scores = upcast(best).sigmoid()
        candidates, valid = self.box_coder.decode_candidates(
            deltas.gather(1, index[:, :, None].expand(-1, -1, 4)),
            outputs.anchors[index],
            torch.full_like(sizes, side - 1),
            scores,
            min_size=self.min_size,
            min_score=self.score_thresh,
            above=False,
        )
        kept, count = nms_padded(
            candidates,
            scores,
            None,
            valid,
            iou_threshold=self.nms_thresh,
            max_output=self.post_nms_top_n(),
            num_groups=1,
            presorted=[best.shape[1]],
        )
        boxes, scores, *_ = take_kept(kept, candidates, scores, None)
        offset = torch.div(side - sizes, 2, rounding_mode="floor")
        boxes = boxes - to_corners(offset).to(boxes.dtype)
        return Proposals(boxes.masked_fill(~valid_mask(count, boxes.shape[1])[:, :, None], 0), scores, count)


class MatterportRoIHeads(RoIHeads):
    """Heads on crops of bilinear samples, each RoI of its best class alone."""

    def pool_rois(
        self,
        pooler: MultiScaleRoIAlign,
        features: Features,
        boxes: Tensor,
        rows: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> Tensor:
        """tf.image.crop_and_resize of boxes [B, N, 4], all or the given rows, by RoIAlign -> [R, C, n, n].

        Its n samples along an axis are equally spaced from the first pixel's center to the last one's. They are the
        centers of n bins of a RoI that is longer by half a bin at both ends. ``rois`` are not read: they lack offsets.
        """
        assert features.offset is not None
        names = [name for name in features.maps if name in pooler.featmap_names]
        maps = [features.maps[name] for name in names]
        side = maps[0].shape[2] * STRIDES[0]
        scales = [(feature.shape[2] - 1) / (side - 1) for feature in maps]
        on_canvas = boxes_to_rois(boxes + to_corners(features.offset).to(boxes.dtype))
        on_canvas = on_canvas if rows is None else on_canvas[rows]
        between = pooler.output_size[0] - 1
        half = (on_canvas[:, 3:] - on_canvas[:, 1:3]) * (0.5 / between)
        low, high = on_canvas[:, 1:3] - half, on_canvas[:, 3:] + half
        # the level of the RoI as it was, to the nearest: sqrt(2) smaller than FPN's, which rounds down
        canonical = CANONICAL[0] * (side - 1) / side * (between + 1) / between / math.sqrt(2) * 2**1e-6
        limits = level_limits(scales, canonical, CANONICAL[1])
        span = high - low
        size = (span[:, 0] * span[:, 1]).sqrt()[:, None]
        shift = torch.full_like(size, 0.5 / scales[0])  # the half pixel that ``aligned`` takes off
        for limit, scale in zip(limits[:-1], scales[1:], strict=True):
            shift = torch.where(size >= limit, 0.5 / scale, shift)
        longer = torch.cat((on_canvas[:, :1], low + shift, high + shift), dim=1)
        levels = {"canonical_scale": canonical, "canonical_level": CANONICAL[1]}
        return multilevel_roi_align(maps, longer, pooler.output_size, scales, 1, True, **levels)

    def select_candidates(self, logits: Tensor, deltas: Tensor, proposals: Proposals, sizes: Tensor) -> Candidates:
        """Class logits and deltas of all proposals, and image sizes [B, 2] -> one candidate of each proposal."""
        num_classes = logits.shape[1]
        logits, deltas = (values.unflatten(0, proposals.boxes.shape[:2]) for values in (logits, deltas))
        wide = torch.promote_types(logits.dtype, torch.float32)
        best = logits.softmax(2, dtype=wide).topk(1, dim=2)  # TensorRT's table has no ArgMax
        scores, labels = best.values.squeeze(2), best.indices.squeeze(2)
        boxes, valid = self.box_coder.decode_candidates(
            deltas.gather(2, labels[:, :, None, None].expand(-1, -1, 1, 4)).squeeze(2),
            proposals.boxes,
            sizes - 1,
            scores,
            proposals.count,
            min_size=self.min_size,
            min_score=self.score_thresh,
            above=False,
        )
        return Candidates(boxes, labels, scores, valid & (labels > 0), num_classes)

    def complete(self, features: Features, detections: Detections, size: tuple[int, int]) -> Detections:
        """The same detections with masks, and boxes that end behind their last pixel."""
        boxes, labels, scores, masks, count, *_ = super().complete(features, detections, size)
        valid = valid_mask(count, boxes.shape[1])[:, :, None]
        ends = torch.cat((boxes[:, :, :2], boxes[:, :, 2:] + valid.to(boxes.dtype)), dim=2)
        return Detections(ends, labels, scores, masks, count)


def to_corners(offset: Tensor) -> Tensor:
    """(y, x) of each image [B, 2] -> what is added to its boxes, [B, 1, 4]."""
    return offset.flip(1).repeat(1, 2)[:, None]
