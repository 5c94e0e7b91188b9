"""Faster, Mask and Keypoint R-CNN with pyramids on ResNets of any depth and a ResNeXt, not in torchvision.

Each model is torchvision's ``MaskRCNN(resnet_fpn_backbone(backbone_name=...), num_classes)``, keys included. There are
no published weights of detectors, but of each ResNet.
"""

import os
from typing import Any, Protocol, TypeVar

from fastmask.models import resnet
from fastmask.models._api import NoWeights, WeightsEnum, get_model_weights, register_model
from fastmask.models._meta import COCO_PERSON_CATEGORIES, COCO_PERSON_KEYPOINT_NAMES
from fastmask.models.detection._parts import make_v1_backbone
from fastmask.models.detection._weights import choose_num_classes, choose_num_keypoints, find_weights, load_weights
from fastmask.models.detection.faster_rcnn import FasterRCNN
from fastmask.models.detection.keypoint_rcnn import KeypointRCNN
from fastmask.models.detection.mask_rcnn import MaskRCNN

Model = TypeVar("Model", bound=FasterRCNN, covariant=True)


class Builder(Protocol[Model]):
    """A builder of this file."""

    def __call__(
        self,
        *,
        weights: str | os.PathLike[str] | None = None,
        progress: bool = True,
        num_classes: int | None = None,
        weights_backbone: WeightsEnum | str | None = ...,
        trainable_backbone_layers: int | None = None,
        new_predictors: bool = False,
        **kwargs: Any,
    ) -> Model: ...


def _make_builder(kind: type[Model], name: str) -> Builder[Model]:
    """The registered builder of a model of one of the two kinds on the ResNet of that name."""
    build_body = getattr(resnet, name)
    backbones = get_model_weights(build_body)

    def build(
        *,
        weights: str | os.PathLike[str] | None = None,
        progress: bool = True,
        num_classes: int | None = None,
        weights_backbone: WeightsEnum | str | None = backbones["IMAGENET1K_V1"],
        trainable_backbone_layers: int | None = None,
        new_predictors: bool = False,
        **kwargs: Any,
    ) -> Model:
        source = find_weights(NoWeights, weights)
        body_weights = backbones.verify(weights_backbone)
        backbone = make_v1_backbone(source, body_weights, progress, trainable_backbone_layers, build_body)
        model = kind(backbone, num_classes=choose_num_classes(num_classes, source, new_predictors), **kwargs)
        load_weights(model, source, progress, new_predictors)
        return model

    build.__name__ = build.__qualname__ = f"{kind.__name__.lower()}_{name}_fpn"
    build.__doc__ = f"""{kind.__name__} with the ``{name}`` of ``fastmask.models`` and a pyramid; not in torchvision.

    Arguments as :func:`fasterrcnn_resnet50_fpn`, and {kind.__name__}'s; ``weights`` is a file or None, and
    ``weights_backbone`` a member of ``{backbones.__name__}``, its name or None.
    """
    build.__annotations__["return"] = kind
    return register_model(NoWeights)(build)


class KeypointBuilder(Protocol):
    """A builder of this file of models with keypoints."""

    def __call__(
        self,
        *,
        weights: str | os.PathLike[str] | None = None,
        progress: bool = True,
        num_classes: int | None = None,
        num_keypoints: int | None = None,
        weights_backbone: WeightsEnum | str | None = ...,
        trainable_backbone_layers: int | None = None,
        new_predictors: bool = False,
        **kwargs: Any,
    ) -> KeypointRCNN: ...


def _make_keypoint_builder(name: str) -> KeypointBuilder:
    """The registered builder of a Keypoint R-CNN on the ResNet of that name."""
    build_body = getattr(resnet, name)
    backbones = get_model_weights(build_body)

    def build(
        *,
        weights: str | os.PathLike[str] | None = None,
        progress: bool = True,
        num_classes: int | None = None,
        num_keypoints: int | None = None,
        weights_backbone: WeightsEnum | str | None = backbones["IMAGENET1K_V1"],
        trainable_backbone_layers: int | None = None,
        new_predictors: bool = False,
        **kwargs: Any,
    ) -> KeypointRCNN:
        source = find_weights(NoWeights, weights)
        body_weights = backbones.verify(weights_backbone)
        backbone = make_v1_backbone(source, body_weights, progress, trainable_backbone_layers, build_body)
        classes = choose_num_classes(num_classes, source, new_predictors, len(COCO_PERSON_CATEGORIES))
        if kwargs.get("keypoint_predictor") is None or num_keypoints is not None:
            points = len(COCO_PERSON_KEYPOINT_NAMES)
            kwargs["num_keypoints"] = choose_num_keypoints(num_keypoints, source, new_predictors, points)
        model = KeypointRCNN(backbone, num_classes=classes, **kwargs)
        load_weights(model, source, progress, new_predictors)
        return model

    build.__name__ = build.__qualname__ = f"keypointrcnn_{name}_fpn"
    build.__doc__ = f"""KeypointRCNN with the ``{name}`` of ``fastmask.models`` and a pyramid; not in torchvision.

    Arguments as :func:`keypointrcnn_resnet50_fpn`; ``weights`` is a file or None, and ``weights_backbone`` a member of
    ``{backbones.__name__}``, its name or None.
    """
    return register_model(NoWeights)(build)


fasterrcnn_resnet18_fpn = _make_builder(FasterRCNN, "resnet18")
fasterrcnn_resnet34_fpn = _make_builder(FasterRCNN, "resnet34")
fasterrcnn_resnet101_fpn = _make_builder(FasterRCNN, "resnet101")
fasterrcnn_resnet152_fpn = _make_builder(FasterRCNN, "resnet152")
fasterrcnn_resnext101_32x8d_fpn = _make_builder(FasterRCNN, "resnext101_32x8d")
maskrcnn_resnet18_fpn = _make_builder(MaskRCNN, "resnet18")
maskrcnn_resnet34_fpn = _make_builder(MaskRCNN, "resnet34")
maskrcnn_resnet101_fpn = _make_builder(MaskRCNN, "resnet101")
maskrcnn_resnet152_fpn = _make_builder(MaskRCNN, "resnet152")
maskrcnn_resnext101_32x8d_fpn = _make_builder(MaskRCNN, "resnext101_32x8d")
keypointrcnn_resnet101_fpn = _make_keypoint_builder("resnet101")
keypointrcnn_resnext101_32x8d_fpn = _make_keypoint_builder("resnext101_32x8d")
