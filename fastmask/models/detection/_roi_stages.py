"""Box, mask and keypoint heads on proposals in fixed shapes: the static program's stages of the second half."""

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastmask.checks import NotScriptable
from fastmask.kernels.keypoints import decode_keypoints_op
from fastmask.models._layout import as_read
from fastmask.models.detection._keypoint_head import predict_heatmaps
from fastmask.models.detection._mask_head import predict_mask_probs
from fastmask.models.detection._utils import BoxCoder, boxes_to_rois, runs_as_kernel, take_kept
from fastmask.models.detection.sampling import BalancedPositiveNegativeSampler, Matcher
from fastmask.ops._soft_nms import soft_nms_padded
from fastmask.ops.boxes import box_iou, nms_padded
from fastmask.ops.poolers import MultiScaleRoIAlign, pool_levels
from fastmask.structures import Candidates, Detections, Features, Proposals

BoxNms = Literal["hard", "soft_linear", "soft_gaussian"]
BOX_NMS: tuple[BoxNms, ...] = get_args(BoxNms)
SOFT_MIN_SCORE = 0.001  # of a detection after decay; or score_thresh, if that is more
MAX_ROIS = 256  # that res5 reads at once in inference


class RoIStages(NotScriptable, nn.Module):
    """Classes, boxes, masks and keypoints of proposals, without torchvision's methods on lists.

    Args:
        box_roi_pool, box_head, box_predictor: 7x7 features of a proposal -> class logits and box deltas.
        fg_iou_thresh, bg_iou_thresh, batch_size_per_image, positive_fraction: of the proposals sampled in training.
        bbox_reg_weights: weights of the box coder; None for (10, 10, 5, 5).
        score_thresh: detections score more than this.
        nms_thresh: IoU above which a detection is suppressed by a better one of its class.
        detections_per_img: maximum number of detections in an image.
        mask_roi_pool, mask_head, mask_predictor: 14x14 features of a detection -> its mask logits for each class.
        keypoint_roi_pool, keypoint_head, keypoint_predictor: 14x14 features -> heatmaps of keypoints.

    Attributes:
        box_loss, mask_loss: the names of both branches' losses, see _named_losses.py.

    Source: torchvision/models/detection/roi_heads.py.
    """

    box_loss, mask_loss = "smooth_l1", "bce"
    box_nms: BoxNms = "hard"  # see FasterRCNN

    def __init__(
        self,
        box_roi_pool: MultiScaleRoIAlign,
        box_head: nn.Module,
        box_predictor: nn.Module,
        fg_iou_thresh: float,
        bg_iou_thresh: float,
        batch_size_per_image: int,
        positive_fraction: float,
        bbox_reg_weights: tuple[float, float, float, float] | None,
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
        mask_roi_pool: MultiScaleRoIAlign | None = None,
        mask_head: nn.Module | None = None,
        mask_predictor: nn.Module | None = None,
        keypoint_roi_pool: MultiScaleRoIAlign | None = None,
        keypoint_head: nn.Module | None = None,
        keypoint_predictor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.box_similarity = box_iou
        self.proposal_matcher = Matcher(fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches=False)
        self.fg_bg_sampler = BalancedPositiveNegativeSampler(batch_size_per_image, positive_fraction)
        self.box_coder = BoxCoder(bbox_reg_weights or (10.0, 10.0, 5.0, 5.0))
        self.box_roi_pool = box_roi_pool
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img
        self.mask_roi_pool = mask_roi_pool
        self.mask_head = mask_head
        self.mask_predictor = mask_predictor
        self.keypoint_roi_pool = keypoint_roi_pool
        self.keypoint_head = keypoint_head
        self.keypoint_predictor = keypoint_predictor
        self.res5: nn.Module | None = None  # of the C4 models: between RoIAlign and both heads
        self.min_size = 1e-2

    def has_mask(self) -> bool:
        """Whether there is a mask branch."""
        return None not in (self.mask_roi_pool, self.mask_head, self.mask_predictor)

    def has_keypoint(self) -> bool:
        """Whether there is a keypoint branch."""
        return None not in (self.keypoint_roi_pool, self.keypoint_head, self.keypoint_predictor)

    def num_keypoints(self) -> int | None:
        """Number of keypoints of an instance, 0 without a keypoint branch; None of a predictor that does not tell."""
        if not self.has_keypoint():
            return 0
        number = getattr(self.keypoint_predictor, "out_channels", None)
        return number if isinstance(number, int) else None

    def shares_rois(self) -> bool:
        """Whether, of the same boxes, the mask head reads what the box head reads: in C4 models whose poolers agree."""
        if self.res5 is None or self.mask_roi_pool is None:
            return False
        first, second = (
            [getattr(pooler, name) for name in ("featmap_names", "output_size", "sampling_ratio", "aligned")]
            for pooler in (self.box_roi_pool, self.mask_roi_pool)
        )
        return first == second

    def num_classes(self) -> int | None:
        """Number of classes with background, of a predictor like FastRCNNPredictor; None of any other."""
        layer = getattr(self.box_predictor, "cls_score", None)
        return layer.out_features if isinstance(layer, nn.Linear) else None

    def classify(
        self, features: Features, boxes: Tensor, rows: Tensor | None = None, rois: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Boxes [B, P, 4], all R = B * P of them or the given rows -> class logits [R, C] and box deltas [R, C, 4].

        ``rois`` [B, P, 5]: the same boxes, where they are at hand.
        """
        parts = [rois] if self.res5 is None or rows is not None else split_rois(boxes, rois)
        hidden = [self.embed_boxes(self.pool_rois(self.box_roi_pool, features, boxes, rows, part)) for part in parts]
        return self.predict_boxes(hidden[0] if len(hidden) == 1 else torch.cat(hidden))

    def embed_boxes(self, pooled: Tensor) -> Tensor:
        """Features of :meth:`pool_rois` -> what the box predictor reads."""
        hidden: Tensor = self.box_head(as_read(pooled, self.box_head))
        return hidden

    def predict_boxes(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`embed_boxes` returns -> class logits [R, C] and box deltas [R, C, 4]."""
        logits, deltas = self.box_predictor(as_read(hidden, self.box_predictor))
        return logits, deltas.unflatten(1, (-1, 4))

    def pool_rois(
        self,
        pooler: MultiScaleRoIAlign,
        features: Features,
        boxes: Tensor,
        rows: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> Tensor:
        """What the heads read of RoIs: :func:`pool`'s features and, in a C4 model, ``res5`` of them."""
        return self.run_res5(pool(pooler, features, boxes, rows, rois))

    def run_res5(self, pooled: Tensor) -> Tensor:
        """RoI features through ``res5``, where there is one."""
        return pooled if self.res5 is None else self.res5(as_read(pooled, self.res5))

    def select_candidates(self, logits: Tensor, deltas: Tensor, proposals: Proposals, sizes: Tensor) -> Candidates:
        """Class logits and deltas of all proposals, and image sizes [B, 2] -> the candidates of NMS.

        A softmax can put at most ceil(1 / t) - 1 classes above a threshold t, so the best that many of each proposal,
        put back in class order, hold all that torchvision would take; only these are decoded. On a GPU those that are
        not above it are left out, as NMS ignores them.
        """
        num_classes = logits.shape[1]
        most = num_classes - 1
        if self.score_thresh > 0:
            most = min(most, max(math.ceil(1 / self.score_thresh) - 1, 1))
        if runs_as_kernel(logits, deltas):
            limits = {"min_size": self.min_size, "min_score": self.score_thresh}
            boxes, labels, scores, valid = self.box_coder.select_candidates(
                logits, deltas, proposals.boxes, sizes, proposals.count, most, **limits
            )
            return Candidates(boxes, labels, scores, valid, num_classes)
        logits, deltas = (values.unflatten(0, proposals.boxes.shape[:2]) for values in (logits, deltas))
        wide = torch.promote_types(logits.dtype, torch.float32)
        scores = logits.softmax(2, dtype=wide)[:, :, 1:]  # without background
        classes = scores.topk(most, dim=2, sorted=False).indices
        classes = classes.topk(most, dim=2, largest=False).values  # [B, P, K] ascending: on a GPU two launches less
        scores = scores.gather(2, classes).flatten(1)
        chosen = deltas[:, :, 1:].gather(2, classes[..., None].expand(-1, -1, -1, 4))
        boxes, valid = self.box_coder.decode_candidates(
            chosen.flatten(1, 2),
            proposals.boxes,
            sizes,
            scores,
            proposals.count,
            min_size=self.min_size,
            min_score=self.score_thresh,
            above=True,
        )
        return Candidates(boxes, (classes + 1).flatten(1), scores, valid, num_classes)

    def suppress(self, candidates: Candidates) -> Detections:
        """Hard or soft NMS within each class -> the best of the remaining candidates, without masks."""
        boxes, labels, scores, valid, num_classes = candidates
        if self.box_nms != "hard":
            kept, decayed, count = self.soften(boxes, scores, labels, valid)
            boxes, _, labels, rois = take_kept(kept, boxes, scores, labels)
            return Detections(boxes, labels, decayed, None, count, rois)
        kept, count = nms_padded(
            boxes,
            scores,
            labels,
            valid,
            iou_threshold=self.nms_thresh,
            max_output=self.detections_per_img,
            num_groups=num_classes,
        )
        boxes, scores, labels, rois = take_kept(kept, boxes, scores, labels)
        return Detections(boxes, labels, scores, None, count, rois)

    def soften(self, boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Soft-NMS of candidates, as ``box_nms`` names it -> indices and decayed scores [B, D], and counts [B]."""
        method: Any = self.box_nms.removeprefix("soft_")
        return soft_nms_padded(
            boxes,
            scores,
            labels,
            valid,
            iou_threshold=self.nms_thresh,
            method=method,
            score_threshold=max(self.score_thresh, SOFT_MIN_SCORE),
            max_output=self.detections_per_img,
        )

    def complete(self, features: Features, detections: Detections, size: tuple[int, int]) -> Detections:
        """The same detections with masks and keypoints, as far as there are such branches; size: see below."""
        if self.has_mask():
            detections = self.predict_masks(features, detections)
        return self.predict_keypoints(features, detections, size) if self.has_keypoint() else detections

    def predict_masks(self, features: Features, detections: Detections) -> Detections:
        """The same detections with the mask of each one's class; zeros in padding."""
        assert self.mask_roi_pool is not None
        assert self.mask_head is not None
        assert self.mask_predictor is not None
        pooled = self.pool_rois(self.mask_roi_pool, features, detections.boxes, rois=detections.rois)
        hidden = as_read(self.mask_head(as_read(pooled, self.mask_head)), self.mask_predictor)
        masks = predict_mask_probs(self.mask_predictor, hidden, detections.labels, detections.count)
        boxes, labels, scores, _, count, rois, *keypoints = detections  # PyTorch 2.11 does not compile _replace
        return Detections(boxes, labels, scores, masks, count, rois, *keypoints)

    def predict_keypoints(self, features: Features, detections: Detections, size: tuple[int, int]) -> Detections:
        """The same detections with keypoints and their scores; zeros in padding.

        ``size``: (height, width) of the batch, in which all boxes are.
        """
        assert self.keypoint_roi_pool is not None
        assert self.keypoint_head is not None
        assert self.keypoint_predictor is not None
        pooled = self.pool_rois(self.keypoint_roi_pool, features, detections.boxes, rois=detections.rois)
        hidden = as_read(self.keypoint_head(as_read(pooled, self.keypoint_head)), self.keypoint_predictor)
        heatmaps = predict_heatmaps(self.keypoint_predictor, hidden).detach()
        keypoints, scores = decode_keypoints_op(heatmaps, detections.boxes.detach().flatten(0, 1), *size)
        shape, padding = detections.labels.shape, ~detections.valid[:, :, None]
        keypoints = keypoints.unflatten(0, shape).masked_fill(padding[..., None], 0)
        scores = scores.unflatten(0, shape).masked_fill(padding, 0)
        boxes, labels, probabilities, masks, count, rois, *_ = detections
        return Detections(boxes, labels, probabilities, masks, count, rois, keypoints, scores)


def split_rois(boxes: Tensor, rois: Tensor | None) -> list[Tensor | None]:
    """Split boxes [B, P, 4] into parts of equal numbers of RoIs, [1, n, 5] each, without gradients; else one part.

    ``rois`` [B, P, 5]: the same boxes, where they are at hand.
    """
    number = boxes.shape[0] * boxes.shape[1]
    if torch.is_grad_enabled() or torch.compiler.is_exporting() or number <= MAX_ROIS:
        return [rois]
    whole = boxes_to_rois(boxes) if rois is None else rois.flatten(0, 1)
    return [part[None] for part in whole.chunk(-(-number // MAX_ROIS))]


def pool(
    pooler: MultiScaleRoIAlign,
    features: Features,
    boxes: Tensor,
    rows: Tensor | None = None,
    rois: Tensor | None = None,
) -> Tensor:
    """The pooler's RoI features of boxes [B, N, 4], all or the given rows -> [R, C, h, w], by the model's own scales.

    ``rois`` [B, N, 5]: the same boxes, where they are at hand.
    """
    rois = boxes_to_rois(boxes) if rois is None else rois.flatten(0, 1)
    names = [name for name in features.maps if name in pooler.featmap_names]
    return pool_levels(
        [features.maps[name] for name in names],
        rois if rows is None else rois[rows],
        pooler.output_size,
        [features.scales[name] for name in names],
        pooler.sampling_ratio,
        pooler.canonical_scale,
        pooler.canonical_level,
        pooler.aligned,
    )
