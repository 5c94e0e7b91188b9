"""Mask and Keypoint R-CNNs of three million parameters, for small images, small data and CPUs."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

from torch import nn

from fastmask.models._api import Weights, WeightsEnum, register_model
from fastmask.models._packaged import PackagedWeights
from fastmask.models._presets import ObjectDetection
from fastmask.models.detection._parts import make_mask_head, make_mask_predictor
from fastmask.models.detection._weights import (
    choose_num_classes,
    choose_num_keypoints,
    find_weights,
    load_weights,
)
from fastmask.models.detection.anchor_utils import AnchorGenerator
from fastmask.models.detection.backbone_utils import BackboneWithFPN
from fastmask.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from fastmask.models.detection.keypoint_rcnn import KeypointRCNN, KeypointRCNNHeads, KeypointRCNNPredictor
from fastmask.models.detection.mask_rcnn import MaskRCNN
from fastmask.models.resnet import BasicBlock
from fastmask.skeletons import PERSON

WIDTHS = (32, 64, 128, 256)  # of the stages; half of ResNet-18's, with one block each
CHANNELS = 64  # of the pyramid


WEIGHTS_FILE = (
    Path(__file__).parent / "shapes_v1" / "weights.safetensors"
)  # README.md beside them tells how they were made


class MaskRCNN_Slim_FPN_Weights(PackagedWeights):  # noqa: N801 -- as torchvision names them
    """Weights of :func:`maskrcnn_slim_fpn`, which come with the package."""

    SHAPES_V1 = Weights(
        WEIGHTS_FILE.as_uri(),
        ObjectDetection,
        {
            "categories": ["__background__", "ellipse", "triangle", "quadrilateral"],
            "num_classes": 4,
            "min_size": (32, 32),
            "num_params": 2_448_327,
            "options": {"min_size": 192, "max_size": 320},
            "recipe": "fastmask/models/detection/shapes_v1/README.md",
            "_metrics": {"synthetic-shapes": {"box_map": 87.8, "mask_map": 83.5}},
        },
    )
    DEFAULT = SHAPES_V1


@register_model(MaskRCNN_Slim_FPN_Weights, pretrained=MaskRCNN_Slim_FPN_Weights.SHAPES_V1)
def maskrcnn_slim_fpn(
    *,
    weights: MaskRCNN_Slim_FPN_Weights | str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> MaskRCNN:
    """Mask R-CNN with half a ResNet-10, its norms trained, and a pyramid of 64 channels; not in torchvision.

    Args:
        weights: "SHAPES_V1" (trained on synthetic images, see :func:`fastmask.demo.draw_scene`), a file, or None.
        progress: no effect, as nothing is downloaded.
        num_classes: number of classes with background; None: the weights', or else COCO's 91.
        new_predictors: load all but the predictors.
        kwargs: see :class:`MaskRCNN`; images are resized to 192 pixels by default.
    """
    trained = find_weights(MaskRCNN_Slim_FPN_Weights, weights)
    classes = choose_num_classes(num_classes, trained, new_predictors)
    heads: dict[str, Any] = {"mask_head": make_mask_head(kwargs.pop("mask_head", None), CHANNELS, (CHANNELS,) * 3)}
    if "mask_predictor" not in kwargs:
        masks = kwargs.pop("mask_classes", "per_class")
        heads["mask_predictor"] = make_mask_predictor(masks, CHANNELS, CHANNELS, classes)
    model = MaskRCNN(_build_backbone(), **(_choose_settings(classes) | heads | kwargs))
    load_weights(model, trained, progress, new_predictors)
    return model


class KeypointRCNN_Slim_FPN_Weights(WeightsEnum):  # noqa: N801 -- as torchvision names them
    """Weights of :func:`keypointrcnn_slim_fpn`: none are published, files are loaded."""


@register_model(KeypointRCNN_Slim_FPN_Weights)
def keypointrcnn_slim_fpn(
    *,
    weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    num_keypoints: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> KeypointRCNN:
    """Keypoint R-CNN with the backbone of :func:`maskrcnn_slim_fpn`; not in torchvision.

    Args:
        weights: a file, or None.
        progress: no effect, as nothing is downloaded.
        num_classes: number of classes with background; None: the weights', or else 2.
        num_keypoints: of an instance; None: the weights', or else COCO's 17.
        new_predictors: load all but the predictors.
        kwargs: see :class:`KeypointRCNN`; images are resized to 192 pixels by default.
    """
    trained = find_weights(KeypointRCNN_Slim_FPN_Weights, weights)
    classes = choose_num_classes(num_classes, trained, new_predictors, 2)
    number = choose_num_keypoints(num_keypoints, trained, new_predictors, PERSON.number)
    heads: dict[str, Any] = {
        "keypoint_head": KeypointRCNNHeads(CHANNELS, (2 * CHANNELS,) * 4),
        "keypoint_predictor": KeypointRCNNPredictor(2 * CHANNELS, number),
    }
    model = KeypointRCNN(_build_backbone(), **(_choose_settings(classes) | heads | kwargs))
    load_weights(model, trained, progress, new_predictors)
    return model


def _choose_settings(classes: int) -> dict[str, Any]:
    """Arguments of both models."""
    return {
        "min_size": 192,
        "max_size": 320,
        "rpn_anchor_generator": AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5),
        "rpn_pre_nms_top_n_train": 600,
        "rpn_post_nms_top_n_train": 300,
        "rpn_post_nms_top_n_test": 300,
        "box_batch_size_per_image": 64,
        "box_head": TwoMLPHead(CHANNELS * 7**2, 256),
        "box_predictor": FastRCNNPredictor(256, classes),
    }


def _build_backbone() -> BackboneWithFPN:
    """Stages of strides 4 to 32, and the pyramid, whose coarsest level has 64."""
    body: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, WIDTHS[0], 7, 2, 3, bias=False),
        bn1=nn.BatchNorm2d(WIDTHS[0]),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(3, 2, 1),
    )
    inplanes = WIDTHS[0]
    for i, planes in enumerate(WIDTHS):
        down = None
        if planes != inplanes:
            down = nn.Sequential(nn.Conv2d(inplanes, planes, 1, 2, bias=False), nn.BatchNorm2d(planes))
        body[f"layer{i + 1}"] = nn.Sequential(BasicBlock(inplanes, planes, 1 if i == 0 else 2, down))
        inplanes = planes
    for module in body.values():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    layers = {f"layer{i + 1}": str(i) for i in range(len(WIDTHS))}
    backbone = BackboneWithFPN(nn.Sequential(body), layers, list(WIDTHS), CHANNELS)
    backbone.strides = {str(i): 4 << i for i in range(len(WIDTHS))}
    return backbone
