"""Region Proposal Network (Faster R-CNN, section 3.1); torchvision.models.detection.rpn's names.

A model's ``infer`` and ``losses`` run the stages of :class:`RPNStages`. The methods here take and return lists, as
torchvision's: for code that calls or overrides them, which a model called on lists of images honors.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmask.checks import ArgumentError, NotScriptable, upcast
from fastmask.kernels.fallback.decode import clip
from fastmask.models.detection._named_losses import BETA, objectness_error
from fastmask.models.detection._rpn_stages import RPNStages, flatten_anchors
from fastmask.models.detection._unpad import keep_best
from fastmask.models.detection._utils import take_rows
from fastmask.models.detection.anchor_utils import AnchorGenerator as AnchorGenerator  # for users' imports
from fastmask.models.detection.image_list import ImageList
from fastmask.ops.misc import Conv2dNormActivation

Target = dict[str, Tensor]


class RPNHead(NotScriptable, nn.Module):
    """3x3 convolutions, then objectness logits and box deltas of each anchor.

    Args:
        in_channels: channels of every feature map.
        num_anchors: anchors at each cell.
        conv_depth: number of 3x3 convolutions.
    """

    _version = 2  # 1 had one bare convolution

    def __init__(self, in_channels: int, num_anchors: int, conv_depth: int = 1) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(Conv2dNormActivation(in_channels, in_channels, kernel_size=3, norm_layer=None) for _ in range(conv_depth))
        )
        self.cls_logits = nn.Conv2d(in_channels, num_anchors, kernel_size=1)
        self.bbox_pred = nn.Conv2d(in_channels, num_anchors * 4, kernel_size=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if (local_metadata.get("version") or 1) < 2:
            for kind in ("weight", "bias"):
                if f"{prefix}conv.{kind}" in state_dict:
                    state_dict[f"{prefix}conv.0.0.{kind}"] = state_dict.pop(f"{prefix}conv.{kind}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Feature maps [B, C, H_l, W_l] -> logits [B, A, H_l, W_l] and deltas [B, A * 4, H_l, W_l] of each."""
        logits, deltas = [], []
        for feature in x:
            hidden = self.conv(feature)
            logits.append(self.cls_logits(hidden))
            deltas.append(self.bbox_pred(hidden))
        return logits, deltas


class RegionProposalNetwork(RPNStages):
    """Proposals from feature maps; arguments as :class:`RPNStages`."""

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[Target] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals [P, 4] of each image, best first, and in training loss_objectness and loss_rpn_box_reg.

        Args:
            images: the padded batch.
            features: its feature maps [B, C, H_l, W_l] by name, finest first.
            targets: in training, the boxes [G, 4] of each image.
        """
        maps = list(features.values())
        logits, deltas = self.head(maps)
        anchors = self.anchor_generator(images, maps)
        lengths = [level[0].numel() for level in logits]
        objectness, delta = concat_box_prediction_layers(logits, deltas)
        proposals = self.box_coder.decode(delta.detach(), anchors).view(len(anchors), -1, 4)
        boxes, _ = self.filter_proposals(proposals, objectness, images.image_sizes, lengths)
        if not self.training:
            return boxes, {}
        if targets is None:
            raise ArgumentError("targets must be one dict an image in training, got None")
        labels, matched = self.assign_targets_to_anchors(anchors, targets)
        encoded = self.box_coder.encode(matched, anchors)
        loss_objectness, loss_box = self.compute_loss(objectness, delta, labels, list(encoded))
        return boxes, {"loss_objectness": loss_objectness, "loss_rpn_box_reg": loss_box}

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[Target]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Match the anchors [A, 4] of each image -> labels (1 match, 0 background, -1 neither) and matched boxes."""
        labels, matched = [], []
        for anchor, target in zip(anchors, targets, strict=True):
            boxes = target["boxes"]
            if len(boxes) == 0:
                labels.append(anchor.new_zeros(len(anchor), dtype=torch.float32))
                matched.append(torch.zeros_like(anchor))
                continue
            index = self.proposal_matcher(self.box_similarity(boxes, anchor))
            label = (index >= 0).to(torch.float32)
            labels.append(label.masked_fill(index == self.proposal_matcher.BETWEEN_THRESHOLDS, -1))
            matched.append(boxes[index.clamp(min=0)])
        return labels, matched

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Choose the best decoded anchors: top-k and NMS inside each level, then the best of all.

        Args:
            proposals (Tensor[B, A, 4]): the anchors of all levels, decoded.
            objectness (Tensor[B * A, 1]): their logits.
            image_shapes: (height, width) of each image.
            num_anchors_per_level: their sum is A.

        Returns:
            boxes [P, 4] and scores [P] of each image, best first.
        """
        logits = objectness.detach().reshape(len(proposals), -1)
        index = self._get_top_n_idx(logits, num_anchors_per_level)
        scores = upcast(logits.gather(1, index)).sigmoid()
        boxes = clip(take_rows(proposals, index), torch.tensor(image_shapes, device=proposals.device))
        valid = (boxes[..., 2:] - boxes[..., :2] >= self.min_size).all(2) & (scores >= self.score_thresh)
        ends = torch.tensor(num_anchors_per_level, device=index.device).cumsum(0)
        levels = torch.bucketize(index, ends, right=True)
        limits = self.nms_thresh, self.post_nms_top_n(), len(num_anchors_per_level)
        rows = keep_best(boxes, scores, levels, valid, *limits)
        boxes_of, scores_of = ([each[row] for each, row in zip(v, rows, strict=True)] for v in (boxes, scores))
        return boxes_of, scores_of

    def _get_top_n_idx(self, objectness: Tensor, num_anchors_per_level: list[int]) -> Tensor:
        """The best logits of each level, or all of a level that has fewer, from [B, A] -> indices [B, N]."""
        best, start = [], 0
        for level in objectness.split(num_anchors_per_level, 1):
            best.append(start + level.topk(min(self.pre_nms_top_n(), level.shape[1]), dim=1).indices)
            start += level.shape[1]
        return torch.cat(best, 1)

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Sample anchors -> mean ``rpn_loss`` of their objectness, smooth L1 of the positive ones' deltas.

        Args:
            objectness (Tensor[B * A, 1]), pred_bbox_deltas (Tensor[B * A, 4]): outputs of the head.
            labels, regression_targets: [A] and [A, 4] of each image.
        """
        positive, negative = (torch.cat(masks).nonzero()[:, 0] for masks in self.fg_bg_sampler(labels))
        sampled = torch.cat((positive, negative))
        wanted = torch.cat(regression_targets)[positive]
        error = F.smooth_l1_loss(pred_bbox_deltas[positive], wanted, beta=BETA, reduction="sum")
        logits, label = objectness.flatten()[sampled], torch.cat(labels)[sampled]
        return objectness_error(self.rpn_loss, logits, label).mean(), error / sampled.numel()


def concat_box_prediction_layers(box_cls: list[Tensor], box_regression: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Outputs of a head [B, A * C, H_l, W_l] and [B, A * 4, H_l, W_l] -> [N, C] and [N, 4], image by image."""
    classes, boxes = [], []
    for logits, deltas in zip(box_cls, box_regression, strict=True):
        batch, _, *grid = logits.shape
        anchors = deltas.shape[1] // 4
        classes.append(permute_and_flatten(logits, batch, anchors, logits.shape[1] // anchors, *grid))
        boxes.append(permute_and_flatten(deltas, batch, anchors, 4, *grid))
    return torch.cat(classes, 1).flatten(0, 1), torch.cat(boxes, 1).flatten(0, 1)


def permute_and_flatten(layer: Tensor, N: int, A: int, C: int, H: int, W: int) -> Tensor:  # noqa: N803
    """Output of a head [N, A * C, H, W] -> [N, H * W * A, C], in the order of the anchors."""
    return flatten_anchors(layer.reshape(N, A * C, H, W), C)
