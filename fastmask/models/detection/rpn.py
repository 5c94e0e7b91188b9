"""Region Proposal Network (Faster R-CNN, section 3.1), in fixed shapes; torchvision.models.detection.rpn's names."""

from typing import Any

import torch
from torch import Tensor, nn

from fastmask.models.detection._utils import BoxCoder, clip_to_sizes, take_rows
from fastmask.models.detection.anchor_utils import AnchorGenerator
from fastmask.models.detection.sampling import BalancedPositiveNegativeSampler, Matcher
from fastmask.ops._utils import NotScriptable, upcast
from fastmask.ops.boxes import nms_padded
from fastmask.ops.misc import Conv2dNormActivation
from fastmask.structures import Proposals


class RPNHead(NotScriptable, nn.Module):
    """3x3 convolutions, then objectness logits and box deltas of each anchor.

    Args:
        in_channels: of every feature map.
        num_anchors: at each cell.
        conv_depth: 3x3 convolutions.
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
        """Maps [B, C, H_l, W_l] -> logits [B, A, H_l, W_l] and deltas [B, A * 4, H_l, W_l] of each."""
        hidden = [self.conv(feature) for feature in x]
        return [self.cls_logits(h) for h in hidden], [self.bbox_pred(h) for h in hidden]


class RegionProposalNetwork(NotScriptable, nn.Module):
    """Proposals from feature maps.

    Args:
        anchor_generator, head: what is scored, and by what.
        fg_iou_thresh, bg_iou_thresh, batch_size_per_image, positive_fraction: of the anchors sampled in training.
        pre_nms_top_n, post_nms_top_n: {"training": n, "testing": n}; candidates of a level, proposals of an image.
        nms_thresh: IoU.
        score_thresh: the least objectness.

    Source: torchvision/models/detection/rpn.py.
    """

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

    def propose(self, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], sizes: Tensor) -> Proposals:
        """The head's outputs, the anchors of each level and the image sizes [B, 2] -> proposals.

        The best candidates of each level are chosen by logit and only they are decoded; then NMS inside each level.
        """
        boxes, scores = [], []
        for logit, delta, anchor in zip(logits, deltas, anchors, strict=True):
            logit = flatten_anchors(logit.detach(), 1).squeeze(2)  # [B, H * W * A]
            best, index = logit.topk(at_most(self.pre_nms_top_n(), logit.shape[1]), dim=1)
            chosen = flatten_anchors(delta.detach(), 4).gather(1, index[:, :, None].expand(-1, -1, 4))
            boxes.append(clip_to_sizes(self.box_coder.decode_boxes(chosen, anchor[index]), sizes))
            scores.append(upcast(best).sigmoid())
        candidates, score = torch.cat(boxes, 1), torch.cat(scores, 1)
        large = (candidates[..., 2:] - candidates[..., :2] >= self.min_size).all(2)
        lengths = [level.shape[1] for level in scores]
        fixed = all(isinstance(length, int) for length in lengths)  # torch.export of any size has symbols instead
        levels = [torch.full_like(level, i, dtype=torch.int64) for i, level in enumerate([] if fixed else scores)]
        kept, count = nms_padded(
            candidates,
            score,
            None if fixed else torch.cat(levels, 1),
            large & (score >= self.score_thresh),
            iou_threshold=self.nms_thresh,
            max_output=self.post_nms_top_n(),
            num_groups=len(scores),
            presorted=lengths if fixed else None,  # the order of logits, top-k's, is that of their sigmoids
        )
        return Proposals(take_rows(candidates, kept), take_rows(score, kept), count)

    def look(
        self, features: list[Tensor], image_size: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Feature maps of padded images of (height, width) -> logits, deltas and anchors of each level."""
        logits, deltas = self.head(features)
        return logits, deltas, self.anchor_generator.anchors(image_size, features)


def at_most(wanted: int, there: int) -> int:
    """The smaller of two numbers, of which the second may be symbolic (torch.export without strict)."""
    if isinstance(there, int):
        return min(wanted, there)
    smaller: int = torch.sym_min(wanted, there)
    return smaller


def flatten_anchors(values: Tensor, channels: int) -> Tensor:
    """What a head says of its anchors, [B, A * channels, H, W] -> [B, H * W * A, channels], the anchors' order."""
    batch, _, height, width = values.shape
    return values.view(batch, -1, channels, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, channels)
