"""detectron2 by the book: the layout of its published files, and its models' forward in plain PyTorch.

Written from its documentation and configurations (Base-RCNN-FPN.yaml, Base-RCNN-C4.yaml, COCO-*), not from our
converter: keys and shapes of each model, and what it computes of BGR images in [0, 255].
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

import fastmask
from fastmask.models.detection import backbone_utils, keypoint_rcnn
from fastmask.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from fastmask.models.resnet import ResNet

PIXEL_MEAN = (103.530, 116.280, 123.675)
SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
SLIM = 8
DEPTHS = {"R50": (3, 4, 6, 3), "R101": (3, 4, 23, 3), "X101": (3, 4, 23, 3)}


class SlimResNet(ResNet):
    """A ResNet whose stages are an eighth as wide; its stem is not."""

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> Any:
        return super()._make_layer(block, planes // SLIM, *args, **kwargs)


def build_slim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the builders build models whose stages, pyramids and keypoint heads are an eighth as wide; else the same."""
    monkeypatch.setattr(fastmask.models.resnet, "ResNet", SlimResNet)
    pyramid, heads, predictor = backbone_utils.BackboneWithFPN, KeypointRCNNHeads, KeypointRCNNPredictor
    monkeypatch.setattr(
        backbone_utils,
        "BackboneWithFPN",
        lambda body, layers, channels, out, *rest: pyramid(body, layers, channels, out // SLIM, *rest),
    )
    monkeypatch.setattr(
        keypoint_rcnn, "KeypointRCNNHeads", lambda channels, layers: heads(channels, [n // SLIM for n in layers])
    )
    monkeypatch.setattr(
        keypoint_rcnn, "KeypointRCNNPredictor", lambda channels, number: predictor(channels // SLIM, number)
    )


def list_shapes(
    body: str, c4: bool = False, branch: str = "mask", classes: int = 80, slim: int = 1, anchors: bool = False
) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a published model.

    Args:
        body: R50, R101 or X101 (32x8d).
        c4: without a pyramid.
        branch: "mask", "keypoint" or none.
        classes: without background.
        slim: divisor of the channels of stages, pyramid and keypoint head, as :func:`build_slim` has it.
        anchors: with the buffers that files of older versions have.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    groups, width, out = (32, 8 // slim, 256 // slim) if body == "X101" else (1, 64 // slim, 256 // slim)
    pyramid, points = 256 // slim, 512 // slim

    def add(name: str, *shape: int, norm: bool = False, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        for kind in ("weight", "bias", "running_mean", "running_var") if norm else ():
            shapes[f"{name}.norm.{kind}"] = shape[:1]
        if bias and not norm:
            shapes[f"{name}.bias"] = shape[:1]

    prefix = "backbone." if c4 else "backbone.bottom_up."
    add(f"{prefix}stem.conv1", 64, 3, 7, 7, norm=True)
    channels = 64
    for stage, blocks in zip((2, 3, 4, 5), DEPTHS[body], strict=True):
        name = f"roi_heads.res{stage}" if c4 and stage == 5 else f"{prefix}res{stage}"
        for block in range(blocks):
            inner, outer = groups * width << (stage - 2), out << (stage - 2)
            if block == 0:
                add(f"{name}.0.shortcut", outer, channels, 1, 1, norm=True)
            add(f"{name}.{block}.conv1", inner, channels, 1, 1, norm=True)
            add(f"{name}.{block}.conv2", inner, inner // groups, 3, 3, norm=True)
            add(f"{name}.{block}.conv3", outer, inner, 1, 1, norm=True)
            channels = outer
        if not c4:
            add(f"backbone.fpn_lateral{stage}", pyramid, channels, 1, 1)
            add(f"backbone.fpn_output{stage}", pyramid, pyramid, 3, 3)
    number, map_channels, hidden = (15, channels // 2, channels) if c4 else (3, pyramid, 1024)
    add("proposal_generator.rpn_head.conv", map_channels, map_channels, 3, 3)
    add("proposal_generator.rpn_head.objectness_logits", number, map_channels, 1, 1)
    add("proposal_generator.rpn_head.anchor_deltas", 4 * number, map_channels, 1, 1)
    for level in range(1 if c4 else 5) if anchors else ():
        shapes[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = (number, 4)
    if not c4:
        add("roi_heads.box_head.fc1", 1024, pyramid * 7 * 7)
        add("roi_heads.box_head.fc2", 1024, 1024)
    add("roi_heads.box_predictor.cls_score", classes + 1, hidden)
    add("roi_heads.box_predictor.bbox_pred", classes * 4, hidden)
    if branch == "mask":
        for i in range(0 if c4 else 4):
            add(f"roi_heads.mask_head.mask_fcn{i + 1}", 256, 256 if i else pyramid, 3, 3)
        add("roi_heads.mask_head.deconv", channels if c4 else 256, 256, 2, 2)
        shapes["roi_heads.mask_head.deconv.bias"] = (256,)
        add("roi_heads.mask_head.predictor", classes, 256, 1, 1)
    if branch == "keypoint":
        for i in range(8):
            add(f"roi_heads.keypoint_head.conv_fcn{i + 1}", points, points if i else pyramid, 3, 3)
        add("roi_heads.keypoint_head.score_lowres", points, 17, 4, 4)
        shapes["roi_heads.keypoint_head.score_lowres.bias"] = (17,)
    return shapes


def draw_state(shapes: Mapping[str, tuple[int, ...]], scale: float) -> dict[str, Tensor]:
    """Random float32 weights of these shapes, for images of a deviation of ``scale`` after normalization."""
    state = {}
    for key, shape in shapes.items():
        value = torch.randn(shape)
        if ".cell_anchors." in key:
            level = int(key[-1])
            value = make_cell_anchors(SIZES if shape[0] == 15 else SIZES[level : level + 1])
        elif key.endswith(("norm.weight", "norm.running_var")):
            value = torch.rand(shape) + 0.5
            if key.endswith("conv3.norm.weight"):
                value *= 0.2
            if key.endswith("stem.conv1.norm.running_var"):
                value *= scale**2
        elif key.endswith(".weight"):
            value *= math.sqrt((1 if "predictor" in key or "fpn" in key else 2) / math.prod(shape[1:]))
            if any(part in key for part in ("objectness", "anchor_deltas", "bbox_pred", "cls_score")):
                value *= 0.1  # a softmax that reaches 1 in float64 would tie scores
        else:
            value *= 0.1
        state[key] = value
    return state


def make_cell_anchors(sizes: Sequence[int]) -> Tensor:
    """Anchors of a cell [len(sizes) * 3, 4], float32: all ratios (height / width) of a size, then of the next."""
    anchors = []
    for size in sizes:
        for ratio in RATIOS:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(anchors)


class Oracle:
    """detectron2's inference of a state dict of its own, in float64.

    Args:
        state: in its keys.
        pixel_std: of BGR.
        stride_in_1x1: RESNETS.STRIDE_IN_1X1.
        groups: RESNETS.NUM_GROUPS.
        post_nms_topk, detections: proposals and detections of an image.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
        stride_in_1x1: bool = True,
        groups: int = 1,
        post_nms_topk: int = 1000,
        detections: int = 100,
    ) -> None:
        self.state = {key: value.double() for key, value in state.items()}
        self.c4 = not any("fpn" in key for key in state)
        self.prefix = "backbone." if self.c4 else "backbone.bottom_up."
        self.pixel_std, self.stride_in_1x1, self.groups = pixel_std, stride_in_1x1, groups
        self.pre_nms_topk, self.post_nms_topk, self.detections = 6000 if self.c4 else 1000, post_nms_topk, detections

    def __call__(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """BGR images [3, h, w] in [0, 255] -> boxes, scores, classes and masks or keypoint heatmaps of each."""
        mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (PIXEL_MEAN, self.pixel_std))
        divisor = 1 if self.c4 else 32
        height, width = (-(-max(i.shape[axis] for i in images) // divisor) * divisor for axis in (1, 2))
        batch = torch.zeros(len(images), 3, height, width, dtype=torch.float64)
        for pixels, image in zip(batch, images, strict=True):
            pixels[:, : image.shape[1], : image.shape[2]] = (image - mean) / std
        maps = self.extract(batch)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        proposals = self.propose(maps, sizes)
        return [
            self.detect({s: m[i : i + 1] for s, m in maps.items()}, proposals[i], sizes[i]) for i in range(len(sizes))
        ]

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
        x = F.conv2d(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"), stride, padding, 1, groups)
        norm = [self.state.get(f"{name}.norm.{kind}") for kind in ("running_mean", "running_var", "weight", "bias")]
        return x if norm[0] is None else F.batch_norm(x, *norm, eps=1e-5)

    def stage(self, name: str, x: Tensor, stride: int) -> Tensor:
        block = 0
        while f"{name}.{block}.conv1.weight" in self.state:
            part, step = f"{name}.{block}", stride if block == 0 else 1
            first, second = (step, 1) if self.stride_in_1x1 else (1, step)
            y = self.conv(f"{part}.conv1", x, first).relu()
            y = self.conv(f"{part}.conv2", y, second, 1, self.groups).relu()
            y = self.conv(f"{part}.conv3", y)
            x = (y + (self.conv(f"{part}.shortcut", x, step) if block == 0 else x)).relu()
            block += 1
        return x

    def extract(self, x: Tensor) -> dict[int, Tensor]:
        """Feature maps by stride."""
        x = F.max_pool2d(self.conv(f"{self.prefix}stem.conv1", x, 2, 3).relu(), 3, 2, 1)
        stages = {}
        for stage in (2, 3, 4) if self.c4 else (2, 3, 4, 5):
            x = stages[stage] = self.stage(f"{self.prefix}res{stage}", x, 1 if stage == 2 else 2)
        if self.c4:
            return {16: x}
        maps, top = {}, None
        for stage in (5, 4, 3, 2):
            lateral = self.conv(f"backbone.fpn_lateral{stage}", stages[stage])
            top = lateral if top is None else lateral + F.interpolate(top, scale_factor=2.0, mode="nearest")
            maps[2**stage] = self.conv(f"backbone.fpn_output{stage}", top, 1, 1)
        maps[64] = F.max_pool2d(maps[32], 1, 2)
        return dict(sorted(maps.items()))

    def propose(self, maps: Mapping[int, Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        parts = []
        for level, (stride, feature) in enumerate(maps.items()):
            hidden = self.conv("proposal_generator.rpn_head.conv", feature, 1, 1).relu()
            logits = self.conv("proposal_generator.rpn_head.objectness_logits", hidden)
            deltas = self.conv("proposal_generator.rpn_head.anchor_deltas", hidden)
            number, count, height, width = logits.shape
            logits = logits.permute(0, 2, 3, 1).flatten(1)
            deltas = deltas.view(number, count, 4, height, width).permute(0, 3, 4, 1, 2).flatten(1, 3)
            y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
            shifts = torch.stack((x, y, x, y), 2).double()
            cell = make_cell_anchors(SIZES if self.c4 else SIZES[level : level + 1]).double()
            anchors = (shifts[:, :, None] + cell).flatten(0, 2)
            parts.append((logits, decode(deltas, anchors, (1.0, 1.0, 1.0, 1.0)), level))
        proposals = []
        for i, size in enumerate(sizes):
            boxes, scores, levels = [], [], []
            for logits, decoded, level in parts:
                best = logits[i].topk(min(self.pre_nms_topk, logits.shape[1])).indices
                boxes.append(clip(decoded[i, best], size))
                scores.append(logits[i, best])
                levels.append(torch.full((len(best),), level))
            box, score, level_of = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
            some = (box[:, 2:] > box[:, :2]).all(1)
            proposals.append(keep_best(box[some], score[some], level_of[some], 0.7)[0][: self.post_nms_topk])
        return proposals

    def pool(self, maps: Mapping[int, Tensor], boxes: Tensor, bins: int) -> Tensor:
        rois = F.pad(boxes, (1, 0))
        strides = [stride for stride in maps if stride < 64]
        size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = (4 + torch.log2(size / 224 + 1e-8)).floor().clamp(2, 5)
        out = boxes.new_zeros(len(boxes), maps[strides[0]].shape[1], bins, bins)
        for stride in strides:
            own = (level == math.log2(stride)) | (len(strides) == 1)
            out[own] = torchvision.ops.roi_align(maps[stride], rois[own], bins, 1 / stride, 0, aligned=True)
        return out

    def detect(self, maps: Mapping[int, Tensor], proposals: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        def linear(name: str, x: Tensor) -> Tensor:
            return F.linear(x, self.state[f"roi_heads.{name}.weight"], self.state[f"roi_heads.{name}.bias"])

        if self.c4:
            hidden = self.stage("roi_heads.res5", self.pool(maps, proposals, 14), 2).mean((2, 3))
        else:
            hidden = linear("box_head.fc1", self.pool(maps, proposals, 7).flatten(1)).relu()
            hidden = linear("box_head.fc2", hidden).relu()
        scores = linear("box_predictor.cls_score", hidden).softmax(1)[:, :-1]
        deltas = linear("box_predictor.bbox_pred", hidden).unflatten(1, (-1, 4))
        boxes = clip(decode(deltas, proposals[:, None], (10.0, 10.0, 5.0, 5.0)), size)
        row, kind = (scores > 0).nonzero().unbind(1)
        boxes, score, kind = keep_best(boxes[row, kind], scores[row, kind], kind, 0.5)
        boxes, score, kind = (values[: self.detections] for values in (boxes, score, kind))
        found = {"boxes": boxes, "scores": score, "classes": kind}
        if "roi_heads.mask_head.predictor.weight" in self.state:
            x = self.pool(maps, boxes, 14)
            x = self.stage("roi_heads.res5", x, 2) if self.c4 else x
            for i in range(0 if self.c4 else 4):
                x = self.conv(f"roi_heads.mask_head.mask_fcn{i + 1}", x, 1, 1).relu()
            deconv = [self.state[f"roi_heads.mask_head.deconv.{each}"] for each in ("weight", "bias")]
            x = self.conv("roi_heads.mask_head.predictor", F.conv_transpose2d(x, *deconv, stride=2).relu())
            found["masks"] = x[torch.arange(len(kind)), kind].sigmoid()
        if "roi_heads.keypoint_head.score_lowres.weight" in self.state:
            x = self.pool(maps, boxes, 14)
            for i in range(8):
                x = self.conv(f"roi_heads.keypoint_head.conv_fcn{i + 1}", x, 1, 1).relu()
            deconv = [self.state[f"roi_heads.keypoint_head.score_lowres.{each}"] for each in ("weight", "bias")]
            x = F.conv_transpose2d(x, *deconv, stride=2, padding=1)
            found["heatmaps"] = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return found


def decode(deltas: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """Box2BoxTransform.apply_deltas."""
    size, corner = boxes[..., 2:] - boxes[..., :2], boxes[..., :2]
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.unbind(-1), weights, strict=True))
    center = torch.stack((dx, dy), -1) * size + corner + 0.5 * size
    half = torch.stack((dw, dh), -1).clamp(max=math.log(1000.0 / 16)).exp() * size / 2
    return torch.cat((center - half, center + half), -1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor((width, height, width, height)))


def keep_best(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """NMS inside each group, best first."""
    kept = [
        rows[torchvision.ops.nms(boxes[rows], scores[rows], threshold)]
        for group in groups.unique()
        for rows in [(groups == group).nonzero()[:, 0]]
    ]
    rows = torch.cat(kept)
    rows = rows[scores[rows].argsort(descending=True, stable=True)]
    return boxes[rows], scores[rows], groups[rows]
