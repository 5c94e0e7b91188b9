"""Box coding, and helpers of the builders; torchvision.models.detection._utils' names."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastmask.kernels.decode import decode_boxes_op, decode_levels_op, select_candidates_op
from fastmask.kernels.fallback.decode import decode, decode_boxes, decode_levels
from fastmask.kernels.fallback.take import take_rows_of, with_image
from fastmask.kernels.take import take_kept_op
from fastmask.models.detection.sampling import (
    BalancedPositiveNegativeSampler as BalancedPositiveNegativeSampler,
    Matcher as Matcher,
)
from fastmask.ops.misc import FrozenBatchNorm2d

LOG_RATIO_CLIP = math.log(1000.0 / 16)  # no box grows more than this in one step; exp would overflow


class BoxCoder:
    """Boxes as regression deltas to reference boxes (Fast R-CNN, appendix C).

    Args:
        weights: factors of (dx, dy, dw, dh).
        bbox_xform_clip: largest dw and dh, after division by their weights.

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
        decoded: Tensor = self.decode_single(rel_codes.flatten(1), torch.cat(tuple(boxes))).unflatten(1, (-1, 4))
        return decoded

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Deltas [N, C * 4] on boxes [N, 4] -> boxes [N, C * 4]."""
        return self.decode_boxes(rel_codes.unflatten(-1, (-1, 4)), boxes[:, None]).flatten(1)

    def decode_boxes(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Deltas [..., 4] on boxes [..., 4] (broadcast) -> boxes [..., 4], in the deltas' dtype or float32."""
        return decode(deltas, boxes, self.weights, self.bbox_xform_clip)

    def decode_candidates(
        self,
        deltas: Tensor,
        references: Tensor,
        sizes: Tensor,
        scores: Tensor,
        count: Tensor | None = None,
        *,
        min_size: float,
        min_score: float,
        above: bool,
    ) -> tuple[Tensor, Tensor]:
        """Boxes of candidates [B, N, 4], clipped to the image sizes, and which of them are valid [B, N].

        On a GPU in one launch, but where PyTorch is to see the steps: for gradients, to compile or export them.
        Args and shapes: see :func:`fastmask.kernels.fallback.decode.decode_boxes`.
        """
        limits = (self.bbox_xform_clip, min_size, min_score, above)
        return (decode_boxes_op if runs_as_kernel(deltas) else decode_boxes)(
            deltas, references, sizes, scores, count, list(self.weights), *limits
        )

    def decode_levels(
        self,
        logits: Tensor,
        index: Tensor,
        lengths: list[int],
        deltas: list[Tensor],
        anchors: Tensor,
        sizes: Tensor,
        *,
        min_size: float,
        min_score: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Candidates of an RPN, from its best logits: boxes [B, N, 4], scores and which are valid [B, N].

        Where it is one launch: see :meth:`decode_candidates`. Args and shapes: see
        :func:`fastmask.kernels.fallback.decode.decode_levels`.
        """
        limits = (self.bbox_xform_clip, min_size, min_score)
        return (decode_levels_op if runs_as_kernel(logits, *deltas) else decode_levels)(
            logits, index, lengths, deltas, anchors, sizes, list(self.weights), *limits
        )

    def select_candidates(
        self,
        logits: Tensor,
        deltas: Tensor,
        references: Tensor,
        sizes: Tensor,
        count: Tensor,
        slots: int,
        *,
        min_size: float,
        min_score: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Candidates of a box head in one launch: boxes [B, N, 4], labels, scores and which are valid [B, N].

        Args and shapes: see :func:`fastmask.kernels.fallback.decode.select_candidates`.
        """
        limits = (self.bbox_xform_clip, min_size, min_score)
        candidates: tuple[Tensor, Tensor, Tensor, Tensor] = select_candidates_op(
            logits, deltas, references, sizes, count, slots, list(self.weights), *limits
        )
        return candidates


def runs_as_kernel(*tensors: Tensor) -> bool:
    """Whether an op that is not differentiable may be called: on a GPU, but where PyTorch is to see the steps."""
    return tensors[0].is_cuda and not (any(tensor.requires_grad for tensor in tensors) or torch.compiler.is_compiling())


def boxes_to_rois(boxes: Tensor) -> Tensor:
    """Boxes [B, N, 4] -> RoIs [B * N, 5] (image index, x1, y1, x2, y2)."""
    return with_image(boxes).flatten(0, 1)


def take_kept(
    kept: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Boxes, scores and labels at the indices that NMS keeps [B, M], and RoIs [B, M, 5] if the launch gives them."""
    if runs_as_kernel(boxes, scores):
        rows: tuple[Tensor, Tensor, Tensor, Tensor] = take_kept_op(kept, boxes, scores, labels)
        return rows
    taken = take_rows_of((boxes, scores) if labels is None else (boxes, scores, labels), kept)
    return taken[0], taken[1], taken[-1], None


def take_rows(values: Tensor, indices: Tensor) -> Tensor:
    """Rows of [B, N, ...] at [B, M] -> [B, M, ...]; at -1, zeros."""
    return take_rows_of((values,), indices)[0]


def overwrite_eps(model: nn.Module, eps: float) -> None:
    """Set the eps of every FrozenBatchNorm2d: COCO_V1 of the first models was trained with 0."""
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = eps
