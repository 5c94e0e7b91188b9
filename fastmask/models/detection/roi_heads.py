"""Box head and mask head on proposals; torchvision.models.detection.roi_heads' names.

A model's ``infer`` and ``losses`` run the stages of :class:`RoIStages`. The methods and functions here take and return
lists, as torchvision's: for code that calls, overrides or replaces them, which a model called on images honors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask.checks import ArgumentError
from fastmask.models.detection._roi_stages import RoIStages
from fastmask.models.detection._unpad import keep_best
from fastmask.models.detection.losses import BETA
from fastmask.ops.boxes import clip_boxes_to_image
from fastmask.ops.masks import paste_masks_in_image as paste_masks_in_image
from fastmask.ops.roi_align import roi_align
from fastmask.structures import Prediction

Target = dict[str, Tensor]
Sizes = list[tuple[int, int]]  # (height, width) of each image


class RoIHeads(RoIStages):
    """Box head and mask head: classes, boxes and masks of proposals; arguments as :class:`RoIStages`."""

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
            targets: in training, boxes [G, 4], labels [G] and, with a mask branch, masks [G, H, W] of each image.

        Returns:
            For each image boxes, labels, scores and, with a mask branch, masks [D, 1, M, M], probabilities over the
            box; and loss_classifier, loss_box_reg and loss_mask.
        """
        for i, target in enumerate(targets or ()):
            if not target["boxes"].is_floating_point():
                raise TypeError(f"targets[{i}]['boxes'] must be floating point, got {target['boxes'].dtype}")
            if target["labels"].dtype != torch.int64:
                raise TypeError(f"targets[{i}]['labels'] must be int64, got {target['labels'].dtype}")
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
        return predictions, {}

    def _compute_losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Sizes, targets: list[Target] | None
    ) -> dict[str, Tensor]:
        boxes, matched, labels, regression_targets = self.select_training_samples(proposals, targets)
        assert targets is not None
        pooled = self.run_res5(self.box_roi_pool(features, boxes, image_shapes))
        logits, deltas = self.box_predictor(self.box_head(pooled))
        loss_classifier, loss_box = fastrcnn_loss(logits, deltas, labels, regression_targets)
        losses = {"loss_classifier": loss_classifier, "loss_box_reg": loss_box}
        if self.has_mask():
            positive = [label > 0 for label in labels]
            boxes = [box[rows] for box, rows in zip(boxes, positive, strict=True)]
            matched = [index[rows] for index, rows in zip(matched, positive, strict=True)]
            shared = pooled[torch.cat(positive)] if self.shares_rois() else None
            mask_logits = self._mask_logits(
                self._pool_masks(features, boxes, image_shapes) if shared is None else shared
            )
            gt_masks, gt_labels = ([target[key] for target in targets] for key in ("masks", "labels"))
            losses["loss_mask"] = maskrcnn_loss(mask_logits, boxes, gt_masks, gt_labels, matched)
        return losses

    def _pool_masks(self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: Sizes) -> Tensor:
        assert self.mask_roi_pool is not None
        return self.run_res5(self.mask_roi_pool(features, boxes, image_shapes))

    def _mask_logits(self, pooled: Tensor) -> Tensor:
        assert self.mask_head is not None
        assert self.mask_predictor is not None
        logits: Tensor = self.mask_predictor(self.mask_head(pooled))
        return logits

    def check_targets(self, targets: list[Target] | None) -> None:
        """Raise an ArgumentError unless every target has boxes, labels and, with a mask branch, masks."""
        if targets is None:
            raise ArgumentError("targets must be one dict an image in training, got None")
        for key in ("boxes", "labels", "masks") if self.has_mask() else ("boxes", "labels"):
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
            (rows,) = keep_best(box[None], score[None], label[None], valid[None], *limits)
            for values, every in zip(detections, (box, score, label), strict=True):
                values.append(every[rows])
        return detections


def fastrcnn_loss(
    class_logits: Tensor, box_regression: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Cross entropy of class logits [N, C], and smooth L1 of the true class's deltas [N, C * 4] in positive samples.

    Args:
        labels, regression_targets: [S] and [S, 4] of each image, N in all.
    """
    label, wanted = torch.cat(labels), torch.cat(regression_targets)
    positive = (label > 0).nonzero()[:, 0]
    deltas = box_regression.unflatten(1, (-1, 4))[positive, label[positive]]
    loss_box = F.smooth_l1_loss(deltas, wanted[positive], beta=BETA, reduction="sum") / label.numel()
    return F.cross_entropy(class_logits, label), loss_box


def maskrcnn_inference(x: Tensor, labels: list[Tensor]) -> list[Tensor]:
    """Mask logits [N, C, M, M] and labels [D] of each image, N in all -> these classes' probabilities [D, 1, M, M]."""
    label = torch.cat(labels)
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
) -> Tensor:
    """Binary cross entropy of the true class's masks, from logits [N, C, M, M]; 0 without any sample.

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
    own = mask_logits[torch.arange(len(label), device=label.device), label]
    return F.binary_cross_entropy_with_logits(own, wanted.to(own.dtype))
