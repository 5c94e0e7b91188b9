"""Mask and Faster R-CNN on any backbone of timm's that has feature maps of strides 4 to 32; not in torchvision."""

import os
from collections.abc import Mapping
from typing import Any

from fastmask.models._api import NoWeights, register_family
from fastmask.models.checkpoint import Checkpoint
from fastmask.models.detection._weights import choose_num_classes, find_weights, load_weights
from fastmask.models.detection.backbone_utils import _validate_trainable_layers
from fastmask.models.detection.faster_rcnn import FasterRCNN
from fastmask.models.detection.mask_rcnn import MaskRCNN
from fastmask.models.detection.timm_backbone import import_timm, timm_fpn_backbone


@register_family(NoWeights)
def maskrcnn_timm(
    backbone: str,
    *,
    weights: NoWeights | str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    pretrained: bool = False,
    weights_backbone: str | os.PathLike[str] | None = None,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    fpn_channels: int = 256,
    **kwargs: Any,
) -> MaskRCNN:
    """Mask R-CNN on any backbone of timm's with feature maps of strides 4 to 32; the extra ``timm`` has it.

    Commands and checkpoints name such a model ``maskrcnn_timm:NAME``.

    Args:
        backbone: a model of timm's with its tag, if any: "resnet18", "tf_efficientnet_lite0.in1k".
        weights: a file of the whole detector, or None.
        progress: no effect; timm shows its own downloads.
        num_classes: number of classes with background; None: the weights', or else COCO's 91.
        pretrained: the backbone's own weights, which timm downloads.
        weights_backbone: a file of the backbone's weights, in timm's keys.
        trainable_backbone_layers: how many of the stages of strides 32, 16, 8, 4 and 2 are trained; 3 with trained
            weights, else all.
        new_predictors: load all but the predictors.
        fpn_channels: channels of the pyramid.
        kwargs: see :class:`MaskRCNN`; image_mean and image_std are the backbone's own by default, where images have
            three channels. Batch norms are frozen with trained weights.

    Raises:
        ImportError, ConnectionError, ValueError: see :func:`timm_fpn_backbone`.
    """
    trained, options = _make_parts(locals())
    model = MaskRCNN(**options)
    load_weights(model, trained, progress, new_predictors)
    return model


@register_family(NoWeights)
def fasterrcnn_timm(
    backbone: str,
    *,
    weights: NoWeights | str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    pretrained: bool = False,
    weights_backbone: str | os.PathLike[str] | None = None,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    fpn_channels: int = 256,
    **kwargs: Any,
) -> FasterRCNN:
    """Faster R-CNN on any such backbone; arguments as :func:`maskrcnn_timm`."""
    trained, options = _make_parts(locals())
    model = FasterRCNN(**options)
    load_weights(model, trained, progress, new_predictors)
    return model


def _make_parts(arguments: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The detector's weights and the R-CNN's arguments, from those of a builder."""
    options = dict(arguments["kwargs"])
    trained = find_weights(NoWeights, arguments["weights"])
    pretrained, file = arguments["pretrained"], arguments["weights_backbone"]
    if trained is not None:  # replaces them
        pretrained, file = False, None
    is_trained = trained is not None or pretrained or file is not None
    frozen = trained.has_frozen_norms if isinstance(trained, Checkpoint) else is_trained
    layers = _validate_trainable_layers(is_trained, arguments["trainable_backbone_layers"], 5, 3)
    backbone = timm_fpn_backbone(
        arguments["backbone"],
        pretrained=pretrained,
        weights_backbone=file,
        frozen_norms=frozen,
        trainable_layers=layers,
        fpn_channels=arguments["fpn_channels"],
        in_channels=len(options["image_mean"]) if options.get("image_mean") else 3,
    )
    config = import_timm().data.resolve_model_data_config(backbone.body)
    defaults: dict[str, Any] = {"image_mean": list(config["mean"]), "image_std": list(config["std"])}
    options = defaults | options | {"backbone": backbone}
    options["num_classes"] = choose_num_classes(arguments["num_classes"], trained, arguments["new_predictors"])
    return trained, options
