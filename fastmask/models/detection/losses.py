"""The five losses of Mask R-CNN (section 3; Faster R-CNN, section 3.1.2), on padded targets and samples of fixed size.

Sums run over all rows, those that count weighted 1 and padding 0, and are divided by how many counted.
Source: torchvision/models/detection/rpn.py and roi_heads.py.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask.models.detection._mask_head import class_masks
from fastmask.models.detection._utils import BoxCoder, take_rows
from fastmask.models.detection.roi_heads import RoIHeads, pool
from fastmask.models.detection.rpn import RegionProposalNetwork, flatten_anchors
from fastmask.models.detection.sampling import Sample, match
from fastmask.ops.boxes import box_iou
from fastmask.ops.roi_align import roi_align
from fastmask.structures import Proposals, Targets

BETA = 1 / 9  # where smooth L1 turns from a parabola into a line
IGNORED = -100  # a label that cross entropy leaves out

Losses = dict[str, Tensor]
Total = Callable[[Tensor], Tensor]  # how many count here -> what sums are divided by; other ranks may have a say


def rpn_losses(
    rpn: RegionProposalNetwork,
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Tensor,
    targets: Targets,
    over: Total,
) -> Losses:
    """The head's outputs of each level and all anchors [A, 4] -> loss_objectness, loss_rpn_box_reg."""
    anchor = anchors[None]
    objectness = torch.cat([flatten_anchors(logit, 1) for logit in logits], dim=1).squeeze(2)  # [B, A]
    delta = torch.cat([flatten_anchors(d, 4) for d in deltas], dim=1)  # [B, A, 4]
    with torch.no_grad():
        matched, state = match(rpn.proposal_matcher, box_iou(targets.boxes, anchor), targets.count)
        sample = rpn.fg_bg_sampler(state)
    chosen = objectness.gather(1, sample.indices)
    error = F.binary_cross_entropy_with_logits(chosen, sample.positive.to(chosen.dtype), reduction="none")
    total = over(sample.valid.sum())
    regression = box_loss(
        rpn.box_coder,
        take_rows(delta, sample.indices),
        take_rows(anchor.expand(len(matched), -1, -1), sample.indices),
        take_rows(targets.boxes, matched.gather(1, sample.indices)),
        sample.positive,
    )
    return {"loss_objectness": (error * sample.valid).sum() / total, "loss_rpn_box_reg": regression / total}


def box_loss(coder: BoxCoder, deltas: Tensor, boxes: Tensor, objects: Tensor, positive: Tensor) -> Tensor:
    """Smooth L1 of deltas [..., 4] on boxes that stand for objects [..., 4], summed over the positive [...]."""
    with torch.no_grad():
        wanted = torch.where(positive[..., None], coder.encode_single(objects, boxes), 0).to(deltas.dtype)
    error = F.smooth_l1_loss(deltas, wanted, beta=BETA, reduction="none")
    return (error * positive[..., None]).sum()


def roi_losses(
    heads: RoIHeads,
    features: dict[str, Tensor],
    scales: dict[str, float],
    proposals: Proposals,
    targets: Targets,
    over: Total,
) -> Losses:
    """Proposals -> loss_classifier, loss_box_reg and, with a mask branch, loss_mask."""
    with torch.no_grad():
        boxes, objects, labels, sample = draw_proposals(heads, proposals, targets)
    rows, counts = rows_to_compute(sample.valid)
    logits, deltas = heads.classify(features, scales, boxes, rows)
    total = over(sample.valid.sum())
    label = labels.flatten()[rows]
    error = F.cross_entropy(logits, torch.where(counts, label, IGNORED), ignore_index=IGNORED, reduction="sum")
    own = deltas.gather(1, label[:, None, None].expand(-1, 1, 4)).squeeze(1)  # [R, 4]
    reference, target = (b.flatten(0, 1)[rows] for b in (boxes, take_rows(targets.boxes, objects)))
    regression = box_loss(heads.box_coder, own, reference, target, sample.positive.flatten()[rows] & counts)
    losses = {"loss_classifier": error / total, "loss_box_reg": regression / total}
    if heads.has_mask():
        most = heads.fg_bg_sampler.most_positives()  # positives come first
        first = (boxes[:, :most], objects[:, :most], labels[:, :most], sample.positive[:, :most])
        losses["loss_mask"] = mask_loss(heads, features, scales, targets, over, *first)
    return losses


def draw_proposals(heads: RoIHeads, proposals: Proposals, targets: Targets) -> tuple[Tensor, Tensor, Tensor, Sample]:
    """The proposals and the objects themselves, of which S are drawn -> boxes [B, S, 4], objects, labels [B, S]."""
    candidates = torch.cat((proposals.boxes, targets.boxes.to(proposals.boxes.dtype)), dim=1)
    lengths = ((proposals.boxes.shape[1], proposals.count), (targets.boxes.shape[1], targets.count))
    real = [torch.arange(n, device=candidates.device) < count[:, None] for n, count in lengths]
    matched, state = match(heads.proposal_matcher, box_iou(targets.boxes, candidates), targets.count)
    sample = heads.fg_bg_sampler(torch.where(torch.cat(real, dim=1), state, -1))
    objects = matched.gather(1, sample.indices)
    labels = torch.where(sample.positive, targets.labels.gather(1, objects), 0)
    return take_rows(candidates, sample.indices), objects, labels, sample


def rows_to_compute(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the B * S rows a head sees -> indices [R], and which of these count [R], each valid row once.

    On the CPU only the valid rows; elsewhere, and when compiled, as many as there are.
    """
    if valid.device.type == "cpu" and not torch.compiler.is_compiling():
        rows = valid.flatten().nonzero().squeeze(1)
        return rows, torch.ones_like(rows, dtype=torch.bool)
    return valid_rows_in_turn(valid)


def valid_rows_in_turn(valid: Tensor) -> tuple[Tensor, Tensor]:
    """The valid rows again and again until there are B * S, so that norms in a head see no padding.

    Each comes as often as the others, or once more: batch statistics are those of the valid rows, but for that.
    """
    flat = valid.flatten()
    order = torch.sort((~flat).to(torch.int8), stable=True).indices  # valid ones first
    place, number = torch.arange(flat.shape[0], device=flat.device), flat.sum()
    return order[place % number.clamp(min=1)], place < number


def mask_loss(
    heads: RoIHeads,
    features: dict[str, Tensor],
    scales: dict[str, float],
    targets: Targets,
    over: Total,
    boxes: Tensor,
    objects: Tensor,
    labels: Tensor,
    positive: Tensor,
) -> Tensor:
    """Binary cross entropy of the true class's masks, over boxes [B, S, 4] of which some are positive [B, S]."""
    assert heads.mask_roi_pool is not None
    assert heads.mask_head is not None
    assert heads.mask_predictor is not None
    assert targets.masks is not None
    rows, counts = rows_to_compute(positive)
    hidden = heads.mask_head(pool(heads.mask_roi_pool, features, scales, boxes, rows))
    logits = class_masks(heads.mask_predictor, hidden, labels.flatten()[rows])  # [R, M, M]
    with torch.no_grad():
        batch, num = targets.labels.shape
        first = torch.arange(batch, device=boxes.device)[:, None] * num  # of each image, among all masks
        rois = torch.cat(((first + objects)[:, :, None].to(boxes.dtype), boxes), dim=2).flatten(0, 1)[rows]
        masks = targets.masks.flatten(0, 1)[:, None].to(boxes.dtype)
        wanted = roi_align(masks, rois, logits.shape[-2:])[:, 0].to(logits.dtype)
    error = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean((1, 2))
    return (error * counts).sum() / over(counts.sum()).clamp(min=1e-6)  # of no positives at all it is 0
