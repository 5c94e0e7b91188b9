"""Box coding and what builders share; torchvision.models.detection._utils' names."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmask.ops._utils import upcast
from fastmask.ops.misc import FrozenBatchNorm2d

LOG_RATIO_CLIP = math.log(1000.0 / 16)  # no box grows more than this in one step; exp would overflow


class BoxCoder:
    """Boxes as regression deltas to reference boxes (Fast R-CNN, appendix C).

    Args:
        weights: what (dx, dy, dw, dh) are multiplied by.
        bbox_xform_clip: the largest dw and dh, after division by their weights.

    Source: torchvision/models/detection/_utils.py.
    """

    def __init__(self, weights: tuple[float, float, float, float], bbox_xform_clip: float = LOG_RATIO_CLIP) -> None:
        self.weights = weights
        self.bbox_xform_clip = bbox_xform_clip

    def encode(self, reference_boxes: Sequence[Tensor], proposals: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """:meth:`encode_single` for each image."""
        return tuple(map(self.encode_single, reference_boxes, proposals))

    def encode_single(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        """The deltas [..., 4] that turn ``proposals`` [..., 4] into ``reference_boxes`` [..., 4]."""
        weights = reference_boxes.new_tensor(self.weights)
        size = proposals[..., 2:] - proposals[..., :2]
        center = proposals[..., :2] + 0.5 * size
        target_size = reference_boxes[..., 2:] - reference_boxes[..., :2]
        target_center = reference_boxes[..., :2] + 0.5 * target_size
        shift = weights[:2] * (target_center - center) / size
        growth = weights[2:] * torch.log(target_size / size)
        return torch.cat((shift, growth), dim=-1)

    def decode(self, rel_codes: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Deltas [N, C * 4] or [N, C, 4] on the boxes [N_i, 4] of each image, N in all -> boxes [N, C, 4]."""
        together = torch.cat(tuple(boxes), dim=0)
        if len(together) > 0:
            rel_codes = rel_codes.reshape(len(together), -1)
        decoded = self.decode_single(rel_codes, together)
        return decoded.reshape(len(together), -1, 4) if len(together) > 0 else decoded

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Deltas [N, C * 4] on boxes [N, 4] -> boxes [N, C * 4]."""
        return self.decode_boxes(rel_codes.unflatten(-1, (-1, 4)), boxes[:, None]).flatten(1)

    def decode_boxes(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Deltas [..., 4] on boxes [..., 4] (broadcast) -> boxes [..., 4], in the deltas' dtype or float32."""
        deltas = upcast(deltas)  # bfloat16 cannot tell pixels apart from 256 on
        boxes = boxes.to(deltas.dtype)
        wx, wy, ww, wh = self.weights
        size = boxes[..., 2:] - boxes[..., :2]
        center = boxes[..., :2] + 0.5 * size
        shift = torch.stack((deltas[..., 0] / wx, deltas[..., 1] / wy), dim=-1)
        growth = torch.stack((deltas[..., 2] / ww, deltas[..., 3] / wh), dim=-1).clamp(max=self.bbox_xform_clip)
        center = shift * size + center
        half = 0.5 * (torch.exp(growth) * size)
        return torch.cat((center - half, center + half), dim=-1)


def clip_to_sizes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes [B, ..., 4] to the image sizes [B, 2] (height, width), which may lie on the device."""
    limit = sizes.flip(1).repeat(1, 2).to(boxes.dtype)  # [B, 4] (w, h, w, h)
    limit = limit.view(limit.shape[0], *[1] * (boxes.ndim - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limit)


def rois_of(boxes: Tensor) -> Tensor:
    """Boxes [B, N, 4] -> RoIs [B * N, 5], each with its image's index before it."""
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
    return torch.cat((image[:, None, None].expand(-1, boxes.shape[1], 1), boxes), dim=2).flatten(0, 1)


def take_rows(values: Tensor, indices: Tensor) -> Tensor:
    """Rows of [B, N, ...] at [B, M] -> [B, M, ...]; at -1, zeros."""
    safe = indices.clamp(min=0).view(*indices.shape, *[1] * (values.ndim - 2))
    rows = values.gather(1, safe.expand(*indices.shape, *values.shape[2:]))
    return rows.masked_fill((indices < 0).view(safe.shape), 0)


def overwrite_eps(model: nn.Module, eps: float) -> None:
    """Set the eps of every FrozenBatchNorm2d: COCO_V1 of the first models was trained with 0."""
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = eps
