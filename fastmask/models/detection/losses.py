"""Losses of Mask R-CNN (sections 3 and 5; Faster R-CNN, section 3.1.2), on padded targets and samples of fixed size.

Sums run over all rows, valid ones weighted 1 and padding 0, and are divided by the number of valid rows. Which loss a
model takes of objectness, boxes and masks, it names: see _named_losses.py.
Source: torchvision/models/detection/rpn.py and roi_heads.py.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask.checks import is_readable
from fastmask.models._layout import as_read
from fastmask.models.detection._keypoint_head import check_square, keypoints_to_heatmap, predict_heatmaps
from fastmask.models.detection._mask_head import predict_mask_logits
from fastmask.models.detection._named_losses import box_error, mask_error, objectness_error
from fastmask.models.detection._roi_stages import RoIStages
from fastmask.models.detection._rpn_stages import RPNStages, flatten_anchors
from fastmask.models.detection._utils import take_rows
from fastmask.models.detection.sampling import Sample, count_parts, match_boxes
from fastmask.ops.roi_align import roi_align
from fastmask.structures import Features, Proposals, RPNOutputs, Targets

IGNORED = -100  # a label that cross entropy leaves out
MOST_PIXELS = 2**27  # of masks that are floating point at once: 512 MB in float32

Losses = dict[str, Tensor]
Normalizer = Callable[[Tensor], Tensor]  # number of samples here -> divisor of sums; other ranks may have a say


def rpn_losses(rpn: RPNStages, outputs: RPNOutputs, targets: Targets, normalizer: Normalizer) -> Losses:
    """Outputs of the head and padded targets -> loss_objectness, loss_rpn_box_reg."""
    anchor = outputs.anchors[None]
    objectness = torch.cat([flatten_anchors(logit, 1) for logit in outputs.logits], dim=1).squeeze(2)  # [B, A]
    delta = torch.cat([flatten_anchors(d, 4) for d in outputs.deltas], dim=1)  # [B, A, 4]
    with torch.no_grad():
        matched, state = match_boxes(rpn.proposal_matcher, targets.boxes, anchor, targets.valid)
        sample = rpn.fg_bg_sampler.sample(state)
    error = objectness_error(rpn.rpn_loss, objectness.gather(1, sample.indices), sample.positive)
    total = normalizer(sample.valid.sum())
    regression = box_error(
        "smooth_l1",
        rpn.box_coder,
        take_rows(delta, sample.indices),
        take_rows(anchor.expand(len(matched), -1, -1), sample.indices),
        take_rows(targets.boxes, matched.gather(1, sample.indices)),
        sample.positive,
    )
    return {"loss_objectness": (error * sample.valid).sum() / total, "loss_rpn_box_reg": regression / total}


def roi_losses(
    heads: RoIStages,
    features: Features,
    proposals: Proposals,
    sizes: Tensor,
    targets: Targets,
    normalizer: Normalizer,
) -> Losses:
    """Proposals -> loss_classifier, loss_box_reg and, with such a branch, loss_mask or loss_keypoint.

    ``sizes`` [B, 2]: int64 (height, width) of the images.
    """
    with torch.no_grad():
        boxes, matched, labels, sample = sample_proposals(heads, proposals, targets)
    rows, counts = select_rows(sample.valid)
    pooled = heads.pool_rois(heads.box_roi_pool, features, boxes, rows)
    logits, deltas = heads.predict_boxes(heads.embed_boxes(pooled))
    total = normalizer(sample.valid.sum())
    label = labels.flatten()[rows]
    error = F.cross_entropy(logits, torch.where(counts, label, IGNORED), ignore_index=IGNORED, reduction="sum")
    own = deltas.gather(1, label[:, None, None].expand(-1, 1, 4)).squeeze(1)  # [R, 4]
    reference, target = (b.flatten(0, 1)[rows] for b in (boxes, take_rows(targets.boxes, matched)))
    positive = sample.positive.flatten()[rows] & counts
    area = sizes.prod(1)[rows // boxes.shape[1]] if heads.box_loss == "weighted_smooth_l1" else None
    regression = box_error(heads.box_loss, heads.box_coder, own, reference, target, positive, area)
    losses = {"loss_classifier": error / total, "loss_box_reg": regression / total}
    most = heads.fg_bg_sampler.max_positives()  # positives come first
    boxes, matched, labels, positive = (rows[:, :most] for rows in (boxes, matched, labels, sample.positive))
    if heads.has_mask():
        known = (pooled, sample.valid) if heads.shares_rois() else None
        losses["loss_mask"] = mask_loss(heads, features, targets, normalizer, boxes, matched, labels, positive, known)
    if heads.has_keypoint():
        losses["loss_keypoint"] = keypoint_loss(heads, features, targets, normalizer, boxes, matched, positive)
    return losses


def sample_proposals(heads: RoIStages, proposals: Proposals, targets: Targets) -> tuple[Tensor, Tensor, Tensor, Sample]:
    """Draw S of the proposals and ground-truth boxes -> boxes [B, S, 4], matched instances and labels [B, S]."""
    candidates = torch.cat((proposals.boxes, targets.boxes.to(proposals.boxes.dtype)), dim=1)
    valid = torch.cat((proposals.valid, targets.valid), dim=1)
    matched, state = match_boxes(heads.proposal_matcher, targets.boxes, candidates, targets.valid)
    sample = heads.fg_bg_sampler.sample(torch.where(valid, state, -1))
    matched = matched.gather(1, sample.indices)
    labels = torch.where(sample.positive, targets.labels.gather(1, matched), 0)
    return take_rows(candidates, sample.indices), matched, labels, sample


def select_rows(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the rows of B * S that a head computes -> indices [R], and which of these count [R], each valid row once.

    On the CPU only the valid rows; elsewhere, and when compiled, as many as there are.
    """
    if is_readable(valid):
        rows = valid.flatten().nonzero().squeeze(1)
        return rows, torch.ones_like(rows, dtype=torch.bool)
    return repeat_valid_rows(valid)


def repeat_valid_rows(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat the valid rows until there are B * S, so that norms in a head see no padding.

    Each comes as often as the others, or once more: batch statistics are those of the valid rows, but for that.
    """
    flat = valid.flatten()
    order = torch.sort((~flat).to(torch.int8), stable=True).indices  # valid ones first
    place, number = torch.arange(flat.shape[0], device=flat.device), flat.sum()
    return order[place % number.clamp(min=1)], place < number


def mask_loss(
    heads: RoIStages,
    features: Features,
    targets: Targets,
    normalizer: Normalizer,
    boxes: Tensor,
    matched: Tensor,
    labels: Tensor,
    positive: Tensor,
    known: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The model's ``mask_loss`` of the true class's masks, over boxes [B, S, 4] of which some are positive [B, S].

    Boxes that match an instance without a mask do not count. ``known``: what the mask head reads of all samples, of
    which these boxes are the first, and which samples [B, all] are valid: their rows, see :func:`select_rows`.
    """
    assert heads.mask_roi_pool is not None
    assert heads.mask_head is not None
    assert heads.mask_predictor is not None
    assert targets.masks is not None
    if targets.has_mask is not None:
        positive = positive & targets.has_mask.gather(1, matched)
    rows, counts = select_rows(positive)
    if known is None:
        pooled = heads.pool_rois(heads.mask_roi_pool, features, boxes, rows)
    else:
        every, valid = known
        places = valid.flatten().cumsum(0).view_as(valid)[:, : boxes.shape[1]] - 1  # the row of each valid sample
        pooled = every[places.flatten()[rows].clamp(min=0)]
    hidden = as_read(heads.mask_head(as_read(pooled, heads.mask_head)), heads.mask_predictor)
    logits = predict_mask_logits(heads.mask_predictor, hidden, labels.flatten()[rows])  # [R, M, M]
    with torch.no_grad():
        index = targets.first_mask[:, None] + matched
        rois = torch.cat((index[:, :, None].to(boxes.dtype), boxes), dim=2).flatten(0, 1)[rows]
        wanted = crop_masks(targets.masks, rois, logits.shape[-2:]).to(logits.dtype)
    error = mask_error(heads.mask_loss, logits, wanted)
    return (error * counts).sum() / normalizer(counts.sum()).clamp(min=1e-6)  # 0 without any positive


def keypoint_loss(
    heads: RoIStages,
    features: Features,
    targets: Targets,
    normalizer: Normalizer,
    boxes: Tensor,
    matched: Tensor,
    positive: Tensor,
) -> Tensor:
    """Cross entropy over heatmaps' pixels of keypoints that are visible and inside the positive boxes [B, S, 4]."""
    assert heads.keypoint_roi_pool is not None
    assert heads.keypoint_head is not None
    assert heads.keypoint_predictor is not None
    assert targets.keypoints is not None
    rows, counts = select_rows(positive)
    pooled = heads.pool_rois(heads.keypoint_roi_pool, features, boxes, rows)
    hidden = as_read(heads.keypoint_head(as_read(pooled, heads.keypoint_head)), heads.keypoint_predictor)
    logits = predict_heatmaps(heads.keypoint_predictor, hidden)  # [R, K, M, M]
    check_square(logits)
    with torch.no_grad():
        keypoints = take_rows(targets.keypoints.flatten(2), matched).flatten(0, 1)[rows].unflatten(1, (-1, 3))
        pixel, valid = keypoints_to_heatmap(keypoints, boxes.flatten(0, 1)[rows], logits.shape[-1])
        inside = (valid > 0) & counts[:, None]
        wanted = pixel.masked_fill(~inside, IGNORED).flatten()
    error = F.cross_entropy(logits.flatten(2).flatten(0, 1), wanted, ignore_index=IGNORED, reduction="sum")
    return error / normalizer(inside.sum()).clamp(min=1e-6)  # 0 without any keypoint


def crop_masks(masks: Tensor, rois: Tensor, size: Sequence[int]) -> Tensor:
    """RoIAlign of RoIs [R, 5] (index of a mask, x1, y1, x2, y2) on masks [N, H, W] uint8 -> [R, *size].

    Masks become floating point before, on the CPU those of the RoIs alone; many of them in parts, where a RoI whose
    mask is in another part gives zeros.
    """
    if is_readable(rois):
        used, index = rois[:, 0].to(torch.int64).unique(return_inverse=True)
        masks, rois = masks[used], torch.cat((index[:, None].to(rois.dtype), rois[:, 1:]), dim=1)
    num = masks.shape[0]
    parts = count_parts(num, masks.numel(), MOST_PIXELS)
    if parts == 1:
        return roi_align(masks[:, None].to(rois.dtype), rois, size)[:, 0]
    cropped = []
    for i in range(parts):
        first, end = i * num // parts, (i + 1) * num // parts
        shifted = torch.cat((rois[:, :1] - first, rois[:, 1:]), dim=1)
        cropped.append(roi_align(masks[first:end, None].to(rois.dtype), shifted, size)[:, 0])
    return torch.stack(cropped).sum(0)
