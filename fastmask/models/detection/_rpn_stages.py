"""Proposals from feature maps in fixed shapes: the static program's stages of an RPN."""

import itertools

import torch
from torch import Tensor, nn

from fastmask.checks import NotScriptable
from fastmask.kernels.top_anchors import top_anchors_op
from fastmask.models.detection._utils import BoxCoder, take_kept
from fastmask.models.detection.anchor_utils import AnchorGenerator
from fastmask.models.detection.sampling import BalancedPositiveNegativeSampler, Matcher
from fastmask.ops.boxes import box_iou, nms_padded
from fastmask.structures import Features, Proposals, RPNOutputs


class RPNStages(NotScriptable, nn.Module):
    """Proposals from feature maps, without torchvision's methods on lists.

    Args:
        anchor_generator: feature maps -> anchors.
        head: feature maps -> objectness logits and box deltas of the anchors.
        fg_iou_thresh, bg_iou_thresh, batch_size_per_image, positive_fraction: of the anchors sampled in training.
        pre_nms_top_n, post_nms_top_n: {"training": n, "testing": n}; candidates of a level, proposals of an image.
        nms_thresh: IoU above which a proposal is suppressed by a better one of its level.
        score_thresh: minimum objectness of a proposal.

    Attributes:
        rpn_loss: "bce" or "focal": the loss of objectness, see _named_losses.py.

    Source: torchvision/models/detection/rpn.py.
    """

    rpn_loss = "bce"

    def __init__(
        self,
        anchor_generator: AnchorGenerator,
        head: nn.Module,
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        batch_size_per_image: int,
        positive_fraction: float,
        pre_nms_top_n: dict[str, int],
        post_nms_top_n: dict[str, int],
        nms_thresh: float,
        score_thresh: float = 0.0,
    ) -> None:
        super().__init__()
        self.anchor_generator = anchor_generator
        self.head = head
        self.box_coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
        self.box_similarity = box_iou
        self.proposal_matcher = Matcher(fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches=True)
        self.fg_bg_sampler = BalancedPositiveNegativeSampler(batch_size_per_image, positive_fraction)
        self._pre_nms_top_n = pre_nms_top_n
        self._post_nms_top_n = post_nms_top_n
        self.nms_thresh = nms_thresh
        self.score_thresh = score_thresh
        self.min_size = 1e-3

    def pre_nms_top_n(self) -> int:
        """Candidates of each level, in the current mode."""
        return self._pre_nms_top_n["training" if self.training else "testing"]

    def post_nms_top_n(self) -> int:
        """Proposals of an image, in the current mode."""
        return self._post_nms_top_n["training" if self.training else "testing"]

    def predict(self, features: Features, image_size: tuple[int, int]) -> RPNOutputs:
        """Feature maps of padded images of (height, width) -> logits, deltas and anchors of each level."""
        maps = list(features.maps.values())
        logits, deltas = self.head(maps)
        return RPNOutputs(logits, deltas, self.anchor_generator.all_anchors(image_size, maps))

    def propose(self, outputs: RPNOutputs, sizes: Tensor) -> Proposals:
        """Outputs of :meth:`predict` and image sizes [B, 2] -> proposals.

        The best candidates of each level are chosen by logit and only they are decoded; then NMS inside each level.
        """
        best, index, lengths = top_k_of_levels([logit.detach() for logit in outputs.logits], self.pre_nms_top_n())
        candidates, score, valid = self.box_coder.decode_levels(
            best,
            index,
            lengths,
            [delta.detach() for delta in outputs.deltas],
            outputs.anchors,
            sizes,
            min_size=self.min_size,
            min_score=self.score_thresh,
        )
        fixed = all(isinstance(length, int) for length in lengths)  # torch.export of any size has symbols instead
        parts = [] if fixed else score.split(lengths, 1)
        levels = [torch.full_like(level, i, dtype=torch.int64) for i, level in enumerate(parts)]
        kept, count = nms_padded(
            candidates,
            score,
            None if fixed else torch.cat(levels, 1),
            valid,
            iou_threshold=self.nms_thresh,
            max_output=self.post_nms_top_n(),
            num_groups=len(lengths),
            presorted=lengths if fixed else None,  # the order of logits, top-k's, is that of their sigmoids
        )
        boxes, scores, _, rois = take_kept(kept, candidates, score, None)
        return Proposals(boxes, scores, count, rois)


def top_k_of_levels(logits: list[Tensor], k: int) -> tuple[Tensor, Tensor, list[int]]:
    """The best k logits of each level, or all of a level that has fewer, from logits [B, A, H, W] of each.

    Returns:
        logits [B, N], level by level, best first; their indices among the anchors of all levels [B, N]; and how many
        each level has.
    """
    sides = [logit.shape[1] * logit.shape[2] * logit.shape[3] for logit in logits]
    lengths = [sym_min(k, side) for side in sides]
    if logits[0].is_cuda and all(isinstance(side, int) for side in sides):
        if not torch.compiler.is_compiling():  # nor exporting: PyTorch is to see the steps then
            return *top_anchors_op(logits, k), lengths
        best, indices = _top_k_padded(logits, k)
    else:
        best, indices = _top_k_each(logits, lengths)
    for i, start in enumerate(itertools.accumulate(sides[:-1]), 1):
        indices[i] = indices[i] + start
    return torch.cat(best, 1), torch.cat(indices, 1), lengths


Parts = tuple[list[Tensor], list[Tensor]]  # values and indices of each level


def _top_k_each(logits: list[Tensor], lengths: list[int]) -> Parts:
    rows = [flatten_anchors(logit, 1).squeeze(2) for logit in logits]  # [B, H * W * A]
    best = [row.topk(length, dim=1) for row, length in zip(rows, lengths, strict=True)]
    return [level.values for level in best], [level.indices for level in best]


def _top_k_padded(logits: list[Tensor], k: int) -> Parts:
    """One top-k for all levels, padded to the largest with values that are never better.

    For compiled and exported programs. A top-k of 201,600 logits is 16 launches, whose time is nearly all launching,
    and one of 12,600 is a single block's work; five levels of a frame at once took 80 us on an H200.
    """
    rows = [pixel_rows(logit) for logit in logits]  # [B, H * W, A]
    most = max(row.shape[1] for row in rows)
    batch, _, anchors = rows[0].shape
    filler = rows[0].new_full((batch, most - min(row.shape[1] for row in rows), anchors), -torch.inf)
    padded = torch.cat([part for row in rows for part in (row, filler[:, : most - row.shape[1]])], 1)
    padded = padded.view(batch, len(rows), most * anchors)
    best = padded.topk(min(k, most * anchors), dim=2)
    lengths = [min(k, row.shape[1] * anchors) for row in rows]
    last = rows[-1].shape[1] * anchors - 1  # none may lie beyond it, not even where logits are -inf as the filler is
    values, indices = (
        [part[:, i, :length] for i, length in enumerate(lengths)] for part in (best.values, best.indices)
    )
    indices[-1] = indices[-1].clamp(max=last)
    return values, indices


def sym_min(k: int, length: int) -> int:
    """The smaller of two numbers, of which the second may be symbolic (torch.export without strict)."""
    if isinstance(length, int):
        return min(k, length)
    smaller: int = torch.sym_min(k, length)
    return smaller


def pixel_rows(values: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H * W, C]; a view where channels are last, of whatever pitch."""
    return values.permute(0, 2, 3, 1).flatten(1, 2)


def flatten_anchors(values: Tensor, channels: int) -> Tensor:
    """Outputs of a head [B, A * channels, H, W] -> [B, H * W * A, channels], in the order of the anchors."""
    rows = pixel_rows(values)
    return rows.reshape(rows.shape[0], -1, channels)
