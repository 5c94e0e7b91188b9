"""A slim C4 Mask R-CNN: ours as the builders make it, and torchvision's classes put together to the same."""

from collections import OrderedDict
from types import ModuleType
from typing import Any

import pytest
import torchvision
from torch import Tensor, nn

import fastmask
from fastmask.models.detection import c4
from fastmask.models.detection.c4 import ANCHORS, assemble_c4
from helpers.slim import NUM_CLASSES, calibrate_on_images, slim_model

WIDTH = 128  # channels of res5
MASK_CHANNELS = 16
SMALL = {"min_size": 96, "max_size": 160, "box_detections_per_img": 20, "rpn_post_nms_top_n_test": 40}


def slim_resnet(library: ModuleType, norm: str = "FrozenBatchNorm2d") -> Any:
    """Stages that know what a ResNet knows; res5 is of two blocks, of which the first one is of stride 2."""
    stages: Any = nn.Sequential(OrderedDict(slim_model(library, norm).backbone.body.named_children()))
    norm_layer = type(stages.bn1)
    last = library.models.resnet.Bottleneck(WIDTH, WIDTH // 4, norm_layer=norm_layer)
    stages.layer4.append(last)
    stages.inplanes, stages.strides = WIDTH, [4, 8, 16, 32]
    return stages


def ours_c4(norm: str = "FrozenBatchNorm2d", kind: Any = fastmask.models.detection.MaskRCNN, **options: Any) -> Any:
    masked = issubclass(kind, fastmask.models.detection.MaskRCNN)
    predictor = fastmask.models.detection.mask_rcnn.MaskRCNNPredictor
    own = {"mask_predictor": predictor(WIDTH, MASK_CHANNELS, NUM_CLASSES)} if masked else {}
    return assemble_c4(kind, slim_resnet(fastmask, norm), NUM_CLASSES, **SMALL | own | options).eval()


def build_slim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let maskrcnn_resnet50_c4 build slim models, of stages as wide as these; all else is its own."""

    def build(weights: object, progress: bool, norm_layer: type) -> Any:
        return slim_resnet(fastmask, norm_layer.__name__)

    monkeypatch.setattr(c4, "resnet50", build)
    for name, number in {"box_batch_size_per_image": 32, "rpn_post_nms_top_n_test": 40}.items():
        monkeypatch.setitem(c4.PROPOSALS, name, number)


class Trunk(nn.Module):
    """A ResNet up to C4, for torchvision."""

    def __init__(self, resnet: Any) -> None:
        super().__init__()
        self.body = torchvision.models._utils.IntermediateLayerGetter(resnet, {"layer3": "0"})
        self.out_channels = WIDTH // 2

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = self.body(x)
        return maps


def theirs_c4(norm: str = "FrozenBatchNorm2d", masked: bool = True, **options: Any) -> Any:
    """torchvision's, whose box head and mask head are one module with two names."""
    detection, ops = torchvision.models.detection, torchvision.ops
    resnet = slim_resnet(torchvision, norm)
    settings: dict[str, Any] = {
        "rpn_anchor_generator": detection.anchor_utils.AnchorGenerator(*ANCHORS),
        "rpn_pre_nms_top_n_train": 12000,
        "rpn_pre_nms_top_n_test": 6000,
        "box_roi_pool": ops.MultiScaleRoIAlign(["0"], 14, 2),
        "box_head": nn.Sequential(resnet.layer4, nn.AdaptiveAvgPool2d(1)),
        "box_predictor": detection.faster_rcnn.FastRCNNPredictor(WIDTH, NUM_CLASSES),
    }
    if masked:
        settings |= {
            "mask_roi_pool": ops.MultiScaleRoIAlign(["0"], 14, 2),
            "mask_head": resnet.layer4,
            "mask_predictor": detection.mask_rcnn.MaskRCNNPredictor(WIDTH, MASK_CHANNELS, NUM_CLASSES),
        }
    kind = detection.MaskRCNN if masked else detection.FasterRCNN
    return kind(Trunk(resnet), **settings | SMALL | options).eval()


def names_of(name: str) -> list[str]:
    """torchvision's names for one of ours."""
    if ".res5." not in name:
        return [name]
    return [name.replace(".res5.", ".box_head.0."), name.replace(".res5.", ".mask_head.")]


def c4_pair(norm: str = "FrozenBatchNorm2d", masked: bool = True, **options: Any) -> tuple[Any, Any]:
    """torchvision's and ours, with the same calibrated weights, in eval mode."""
    kind = fastmask.models.detection.MaskRCNN if masked else fastmask.models.detection.FasterRCNN
    theirs, ours = theirs_c4(norm, masked, **options), ours_c4(norm, kind, **options)
    calibrate_on_images(theirs)
    state = theirs.state_dict()
    ours.load_state_dict({name: state[names_of(name)[0]] for name in ours.state_dict()})
    return theirs, ours
