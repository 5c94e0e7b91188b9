"""Box, mask and keypoint heads on proposals; torchvision.models.detection.roi_heads' names.

A model's ``infer`` and ``losses`` run the stages of :class:`RoIStages`. The methods and functions here take and return
lists, as torchvision's: for code that calls, overrides or replaces them, which a model called on images honors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask.checks import ArgumentError, check_shape
from fastmask.kernels.keypoints import MOST_PIXELS, decode_keypoints_op
from fastmask.models.detection._keypoint_head import check_square, keypoints_to_heatmap as keypoints_to_heatmap
from fastmask.models.detection._mask_head import index_masks
from fastmask.models.detection._named_losses import BETA, Regression, make_regression, mask_error
from fastmask.models.detection._roi_stages import RoIStages
from fastmask.models.detection._unpad import keep_best, split_valid
from fastmask.ops.boxes import clip_boxes_to_image
from fastmask.ops.masks import paste_masks_in_image as paste_masks_in_image
from fastmask.ops.roi_align import roi_align
from fastmask.structures import Prediction

Target = dict[str, Tensor]
Sizes = list[tuple[int, int]]  # (height, width) of each image


class RoIHeads(RoIStages):
    """Box, mask and keypoint heads: what detections of proposals have; arguments as :class:`RoIStages`."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: Sizes,
        targets: list[Target] | None = None,
    ) -> tuple[list[Prediction], dict[str, Tensor]]:
        """Predictions of each image in eval mode, losses in training; the other of the two is empty.

        Args:
            features: feature maps [B, C, H_l, W_l] by name, finest first.
            proposals: [P, 4] of each image.
            image_shapes: (height, width) of each image inside the batch.
            targets: in training, boxes [G, 4], labels [G] and, with such a branch, masks [G, H, W] or keypoints
                [G, K, 3] of each image.

        Returns:
            For each image boxes, labels, scores and, with such a branch, masks [D, 1, M, M], probabilities over the
            box, or keypoints [D, K, 3] and keypoints_scores [D, K]; and loss_classifier, loss_box_reg, loss_mask and
            loss_keypoint.
        """
        for i, target in enumerate(targets or ()):
            if not target["boxes"].is_floating_point():
                raise TypeError(f"targets[{i}]['boxes'] must be floating point, got {target['boxes'].dtype}")
            if target["labels"].dtype != torch.int64:
                raise TypeError(f"targets[{i}]['labels'] must be int64, got {target['labels'].dtype}")
            if self.has_keypoint() and not target["keypoints"].is_floating_point():
                raise TypeError(f"targets[{i}]['keypoints'] must be floating point, got {target['keypoints'].dtype}")
        if self.training:
            return [], self._compute_losses(features, proposals, image_shapes, targets)
        pooled = self.run_res5(self.box_roi_pool(features, proposals, image_shapes))
        logits, deltas = self.box_predictor(self.box_head(pooled))
        detections = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        predictions: list[Prediction] = [
            {"boxes": boxes, "labels": labels, "scores": scores}
            for boxes, scores, labels in zip(*detections, strict=True)
        ]
        if self.has_mask():
            mask_logits = self._mask_logits(
                self._pool_masks(features, [each["boxes"] for each in predictions], image_shapes)
            )
            masks = maskrcnn_inference(mask_logits, [each["labels"] for each in predictions])
            for prediction, mask in zip(predictions, masks, strict=True):
                prediction["masks"] = mask
        if self.has_keypoint():
            own = [each["boxes"] for each in predictions]
            found = keypointrcnn_inference(self._keypoint_logits(features, own, image_shapes), own)
            for prediction, keypoints, keypoints_scores in zip(predictions, *found, strict=True):
                prediction["keypoints"], prediction["keypoints_scores"] = keypoints, keypoints_scores
        return predictions, {}

    def _compute_losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Sizes, targets: list[Target] | None
    ) -> dict[str, Tensor]:
        boxes, matched, labels, regression_targets = self.select_training_samples(proposals, targets)
        assert targets is not None
        pooled = self.run_res5(self.box_roi_pool(features, boxes, image_shapes))
        logits, deltas = self.box_predictor(self.box_head(pooled))
        options = {}
        if self.box_loss != RoIStages.box_loss:
            gt_boxes = [target["boxes"] for target in targets]
            options["regression"] = make_regression(
                self.box_loss, self.box_coder, boxes, gt_boxes, matched, image_shapes
            )
        loss_classifier, loss_box = fastrcnn_loss(logits, deltas, labels, regression_targets, **options)
        losses = {"loss_classifier": loss_classifier, "loss_box_reg": loss_box}
        positive = [label > 0 for label in labels]
        boxes = [box[rows] for box, rows in zip(boxes, positive, strict=True)]
        matched = [index[rows] for index, rows in zip(matched, positive, strict=True)]
        if self.has_mask():
            shared = pooled[torch.cat(positive)] if self.shares_rois() else None
            mask_logits = self._mask_logits(
                self._pool_masks(features, boxes, image_shapes) if shared is None else shared
            )
            gt_masks, gt_labels = ([target[key] for target in targets] for key in ("masks", "labels"))
            named = {} if self.mask_loss == RoIStages.mask_loss else {"mask_loss": self.mask_loss}
            losses["loss_mask"] = maskrcnn_loss(mask_logits, boxes, gt_masks, gt_labels, matched, **named)
        if self.has_keypoint():
            keypoint_logits = self._keypoint_logits(features, boxes, image_shapes)
            gt_keypoints = [target["keypoints"] for target in targets]
            losses["loss_keypoint"] = keypointrcnn_loss(keypoint_logits, boxes, gt_keypoints, matched)
        return losses

    def _pool_masks(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: Sizes) -> Tensor:
        assert self.mask_roi_pool is not None
        return self.run_res5(self.mask_roi_pool(features, boxes, image_shapes))

    def _mask_logits(self, pooled: Tensor) -> Tensor:
        assert self.mask_head is not None
        assert self.mask_predictor is not None
        logits: Tensor = self.mask_predictor(self.mask_head(pooled))
        return logits

    def _keypoint_logits(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: Sizes) -> Tensor:
        assert self.keypoint_roi_pool is not None
        assert self.keypoint_head is not None
        assert self.keypoint_predictor is not None
        pooled = self.run_res5(self.keypoint_roi_pool(features, boxes, image_shapes))
        logits: Tensor = self.keypoint_predictor(self.keypoint_head(pooled))
        return logits

    def check_targets(self, targets: list[Target] | None) -> None:
        """Raise an ArgumentError unless every target has boxes, labels and, with such a branch, masks or keypoints."""
        if targets is None:
            raise ArgumentError("targets must be one dict an image in training, got None")
        for key in ("boxes", "labels", *["masks"] * self.has_mask(), *["keypoints"] * self.has_keypoint()):
            if not all(key in target for target in targets):
                raise ArgumentError(f"Every element of targets should have a {key} key")

    def select_training_samples(
        self, proposals: list[Tensor], targets: list[Target] | None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Sample the proposals and ground-truth boxes of each image.

        Returns:
            boxes [S, 4], indices [S] of the instances that they match, labels [S] (0 is background) and regression
            targets [S, 4] of each image.
        """
        self.check_targets(targets)
        assert targets is not None
        gt_boxes = [target["boxes"].to(proposals[0].dtype) for target in targets]
        candidates = self.add_gt_proposals(proposals, gt_boxes)
        matched, labels = self.assign_targets_to_proposals(candidates, gt_boxes, [t["labels"] for t in targets])
        rows = self.subsample(labels)
        boxes, matched, labels = (
            [value[row] for value, row in zip(values, rows, strict=True)] for values in (candidates, matched, labels)
        )
        matched_boxes = [
            gt[index] if len(gt) > 0 else gt.new_zeros(len(index), 4)
            for gt, index in zip(gt_boxes, matched, strict=True)
        ]
        return boxes, matched, labels, list(self.box_coder.encode(matched_boxes, boxes))

    def add_gt_proposals(self, proposals: list[Tensor], gt_boxes: list[Tensor]) -> list[Tensor]:
        """Proposals [P, 4] and ground-truth boxes [G, 4] of each image -> both [P + G, 4]."""
        return [torch.cat(pair) for pair in zip(proposals, gt_boxes, strict=True)]

    def assign_targets_to_proposals(
        self, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Match the proposals [P, 4] of each image -> indices of instances [P] and their labels, 0 for background.

        The label is -1 where a proposal is neither; the index is 0 where there is no match.
        """
        matched, labels = [], []
        for boxes, gt, gt_label in zip(proposals, gt_boxes, gt_labels, strict=True):
            if len(gt) == 0:
                matched.append(torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device))
                labels.append(torch.zeros_like(matched[-1]))
                continue
            state = self.proposal_matcher(self.box_similarity(gt, boxes))
            index = state.clamp(min=0)
            label = gt_label[index].masked_fill(state == self.proposal_matcher.BELOW_LOW_THRESHOLD, 0)
            matched.append(index)
            labels.append(label.masked_fill(state == self.proposal_matcher.BETWEEN_THRESHOLDS, -1))
        return matched, labels

    def subsample(self, labels: list[Tensor]) -> list[Tensor]:
        """Labels [P] of each image -> the indices [S] of those that are drawn."""
        return [
            (positive | negative).nonzero()[:, 0]
            for positive, negative in zip(*self.fg_bg_sampler(labels), strict=True)
        ]

    def postprocess_detections(
        self, class_logits: Tensor, box_regression: Tensor, proposals: list[Tensor], image_shapes: Sizes
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Outputs of the box head -> detections, by non-maximum suppression within each class.

        Args:
            class_logits (Tensor[N, C]), box_regression (Tensor[N, C * 4]): of all proposals.
            proposals: [P, 4] of each image, N in all.
            image_shapes: (height, width) of each image.

        Returns:
            boxes [D, 4], scores [D] and labels [D] of each image, best first.
        """
        numbers = [boxes.shape[0] for boxes in proposals]
        decoded = self.box_coder.decode(box_regression, proposals).split(numbers)
        scores = class_logits.softmax(-1).split(numbers)
        classes = torch.arange(1, class_logits.shape[-1], device=class_logits.device)
        detections: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for box, score, shape in zip(decoded, scores, image_shapes, strict=True):
            box = clip_boxes_to_image(box, shape)[:, 1:].flatten(0, 1)  # without background
            score, label = score[:, 1:].flatten(), classes.expand(score.shape[0], -1).flatten()
            valid = (score > self.score_thresh) & (box[:, 2:] - box[:, :2] >= self.min_size).all(1)
            limits = self.nms_thresh, self.detections_per_img, class_logits.shape[-1]
            if self.box_nms == "hard":
                (rows,) = keep_best(box[None], score[None], label[None], valid[None], *limits)
                score = score[rows]
            else:
                kept, decayed, count = self.soften(box[None], score[None], label[None], valid[None])
                (rows,), (score,) = split_valid(count, kept, decayed)
            for values, every in zip(detections, (box[rows], score, label[rows]), strict=True):
                values.append(every)
        return detections


def fastrcnn_loss(
    class_logits: Tensor,
    box_regression: Tensor,
    labels: list[Tensor],
    regression_targets: list[Tensor],
    *,
    regression: Regression | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of class logits [N, C], and smooth L1 of the true class's deltas [N, C * 4] in positive samples.

    Args:
        labels, regression_targets: [S] and [S, 4] of each image, N in all.
        regression: the true class's deltas [P, 4] of rows [P] of the N -> their summed loss, in place of smooth L1.
    """
    label, wanted = torch.cat(labels), torch.cat(regression_targets)
    positive = (label > 0).nonzero()[:, 0]
    deltas = box_regression.unflatten(1, (-1, 4))[positive, label[positive]]
    if regression is None:
        loss_box = F.smooth_l1_loss(deltas, wanted[positive], beta=BETA, reduction="sum")
    else:
        loss_box = regression(deltas, positive)
    return F.cross_entropy(class_logits, label), loss_box / label.numel()


def maskrcnn_inference(x: Tensor, labels: list[Tensor]) -> list[Tensor]:
    """Mask logits [N, C, M, M] and labels [D] of each image, N in all -> these classes' probabilities [D, 1, M, M].

    With one class, all labels read its mask; likewise in :func:`maskrcnn_loss`.
    """
    label = index_masks(torch.cat(labels), x.shape[1])
    own = x.sigmoid().gather(1, label[:, None, None, None].expand(-1, 1, *x.shape[2:]))
    return list(own.split([each.shape[0] for each in labels]))


def project_masks_on_boxes(gt_masks: Tensor, boxes: Tensor, matched_idxs: Tensor, M: int) -> Tensor:  # noqa: N803
    """Masks [G, H, W] of the matched instances [N] inside boxes [N, 4] -> [N, M, M]."""
    rois = torch.cat((matched_idxs[:, None].to(boxes), boxes), 1)
    return roi_align(gt_masks[:, None].to(rois), rois, (M, M))[:, 0]


def maskrcnn_loss(
    mask_logits: Tensor,
    proposals: list[Tensor],
    gt_masks: list[Tensor],
    gt_labels: list[Tensor],
    mask_matched_idxs: list[Tensor],
    *,
    mask_loss: str = "bce",
) -> Tensor:
    """The mean ``mask_loss`` of the true class's masks, from logits [N, C, M, M]; 0 without any sample.

    Args:
        proposals, mask_matched_idxs: [S, 4] and [S] of each image, N in all.
        gt_masks, gt_labels: [G, H, W] and [G] of each image.
    """
    size = mask_logits.shape[-1]
    label = torch.cat([labels[index] for labels, index in zip(gt_labels, mask_matched_idxs, strict=True)])
    wanted = torch.cat(
        [
            project_masks_on_boxes(masks, boxes, index, size)
            for masks, boxes, index in zip(gt_masks, proposals, mask_matched_idxs, strict=True)
        ]
    )
    if wanted.numel() == 0:  # a mean of nothing is NaN
        return mask_logits.sum() * 0
    own = mask_logits[torch.arange(len(label), device=label.device), index_masks(label, mask_logits.shape[1])]
    if mask_loss != "bce":
        return mask_error(mask_loss, own, wanted.to(own.dtype)).mean()
    return F.binary_cross_entropy_with_logits(own, wanted.to(own.dtype))


def heatmaps_to_keypoints(maps: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
    """Where heatmaps [N, K, h, w], resized to their boxes [N, 4] by bicubic interpolation, are largest.

    Without gradients, and with zeros for boxes that are not finite or larger than 32,768 pixels.

    Returns:
        float32 [N, K, 3] (x, y, 1) in pixels of the boxes, and the values there, float32 [N, K].
    """
    check_shape("maps", maps, "N", "K", "h", "w")
    check_shape("rois", rois, maps.shape[0], 4)
    keypoints, scores = decode_keypoints_op(maps.detach(), rois.detach(), MOST_PIXELS, MOST_PIXELS)
    return keypoints.float(), scores.float()


def keypointrcnn_loss(
    keypoint_logits: Tensor, proposals: list[Tensor], gt_keypoints: list[Tensor], keypoint_matched_idxs: list[Tensor]
) -> Tensor:
    """Cross entropy over the pixels of heatmaps [N, K, M, M], of keypoints that are visible and inside; 0 without any.

    Args:
        proposals, keypoint_matched_idxs: [S, 4] and [S] of each image, N in all.
        gt_keypoints: [G, K, 3] of each image.
    """
    check_square(keypoint_logits)
    matched = torch.cat([points[index] for points, index in zip(gt_keypoints, keypoint_matched_idxs, strict=True)])
    pixel, valid = keypoints_to_heatmap(matched, torch.cat(proposals), keypoint_logits.shape[-1])
    rows = valid.flatten().nonzero()[:, 0]
    if rows.numel() == 0:  # a mean of nothing is NaN
        return keypoint_logits.sum() * 0
    return F.cross_entropy(keypoint_logits.flatten(2).flatten(0, 1)[rows], pixel.flatten()[rows])


def keypointrcnn_inference(x: Tensor, boxes: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Heatmaps [N, K, M, M], and boxes [D, 4] of each image -> keypoints [D, K, 3] and scores [D, K] of each."""
    numbers = [box.shape[0] for box in boxes]
    keypoints, scores = heatmaps_to_keypoints(x, torch.cat(boxes))
    return list(keypoints.split(numbers)), list(scores.split(numbers))
