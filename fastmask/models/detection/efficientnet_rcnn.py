"""Mask R-CNN on EfficientNet-Lite0: four million parameters, for photos on CPUs; not in torchvision."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastmask.checks import NotScriptable
from fastmask.models._api import Weights, register_model
from fastmask.models._packaged import PackagedWeights
from fastmask.models._presets import ObjectDetection
from fastmask.models.checkpoint import Checkpoint
from fastmask.models.converters.efficientnet_lite import is_package_file, rename_to_timm
from fastmask.models.detection._parts import make_mask_head, make_mask_predictor
from fastmask.models.detection._weights import choose_num_classes, find_weights, has_frozen_norms, load_weights
from fastmask.models.detection.anchor_utils import AnchorGenerator
from fastmask.models.detection.backbone_utils import _validate_trainable_layers
from fastmask.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from fastmask.models.detection.mask_rcnn import MaskRCNN
from fastmask.models.efficientnet_lite import EPS, EfficientNet_Lite0_Weights, EfficientNetLite0
from fastmask.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
from fastmask.ops.misc import FrozenBatchNorm2d

CHANNELS = 64  # of the pyramid
MEAN_STD = [0.5, 0.5, 0.5]  # of the backbone's images
WEIGHTS_FILE = Path(__file__).parent / "balloon_v1" / "weights.safetensors"  # README.md beside it tells how it was made


class EfficientNetWithFPN(NotScriptable, nn.Module):
    """EfficientNet-Lite0 and a pyramid on its maps of strides 4 to 32.

    Attributes:
        body, fpn: the two.
        out_channels: channels of every level.
        strides: image pixels per feature pixel of each map, by name.
    """

    def __init__(self, body: EfficientNetLite0, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(list(body.channels), out_channels, LastLevelMaxPool())
        self.out_channels = out_channels
        self.strides = {str(i): 4 << i for i in range(len(body.channels))}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] -> the pyramid by name, finest first."""
        pyramid: dict[str, Tensor] = self.fpn(self.body(x))
        return pyramid


class MaskRCNN_EfficientNet_Lite0_FPN_Weights(PackagedWeights):  # noqa: N801 -- as torchvision names them
    """Weights of :func:`maskrcnn_efficientnet_lite0_fpn`, which come with the package."""

    BALLOON_V1 = Weights(
        WEIGHTS_FILE.as_uri(),
        ObjectDetection,
        {
            "categories": ["__background__", "balloon"],
            "num_classes": 2,
            "min_size": (32, 32),
            "num_params": 4_172_731,
            "recipe": "fastmask/models/detection/balloon_v1/README.md",
            "_metrics": {"balloon-val": {"box_map": 59.7, "mask_map": 66.2}},
        },
    )
    DEFAULT = BALLOON_V1


@register_model(MaskRCNN_EfficientNet_Lite0_FPN_Weights, pretrained=MaskRCNN_EfficientNet_Lite0_FPN_Weights.BALLOON_V1)
def maskrcnn_efficientnet_lite0_fpn(
    *,
    weights: MaskRCNN_EfficientNet_Lite0_FPN_Weights | str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    weights_backbone: EfficientNet_Lite0_Weights | str | os.PathLike[str] | None = None,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> MaskRCNN:
    """Mask R-CNN with EfficientNet-Lite0 and a pyramid of 64 channels; not in torchvision.

    Its keys are those of :func:`maskrcnn_timm` with "tf_efficientnet_lite0".

    Args:
        weights: "BALLOON_V1" (trained on 61 photos of balloons), a file, or None.
        progress: no effect, as nothing is downloaded.
        num_classes: number of classes with background; None: the weights', or else COCO's 91.
        weights_backbone: "IMAGENET1K_V1", which the extra ``efficientnet`` has; a file of the classifier with the keys
            of that package or of timm; or None.
        trainable_backbone_layers: how many of the stages of strides 32, 16, 8, 4 and 2 are trained; 3 with trained
            weights, else all.
        new_predictors: load all but the predictors.
        kwargs: see :class:`MaskRCNN`; by default images are resized to 640 pixels, and training takes 1000 proposals
            before and after NMS, and 256 RoIs of an image.

    Raises:
        ImportError: the extra is not installed.
        ValueError: a file is of another model, or an argument does not fit.
    """
    source = find_weights(MaskRCNN_EfficientNet_Lite0_FPN_Weights, weights)
    state = None if source is not None else _read_backbone(weights_backbone)
    is_trained = source is not None or state is not None
    frozen = has_frozen_norms(source, None) if source is not None else is_trained
    layers = _validate_trainable_layers(is_trained, trainable_backbone_layers, 5, 3)
    body = EfficientNetLite0(partial(FrozenBatchNorm2d, eps=EPS) if frozen else None)
    if state is not None:
        body.load_state_dict(state)
    body.freeze(layers)
    classes = choose_num_classes(num_classes, source, new_predictors)
    heads: dict[str, Any] = {"mask_head": make_mask_head(kwargs.pop("mask_head", None), CHANNELS, (CHANNELS,) * 4)}
    if "mask_predictor" not in kwargs:
        masks = kwargs.pop("mask_classes", "per_class")
        heads["mask_predictor"] = make_mask_predictor(masks, CHANNELS, CHANNELS, classes)
    settings: dict[str, Any] = {
        "min_size": 640,
        "max_size": 1024,
        "image_mean": MEAN_STD,
        "image_std": MEAN_STD,
        "rpn_pre_nms_top_n_train": 1000,
        "rpn_post_nms_top_n_train": 1000,
        "box_batch_size_per_image": 256,
        "rpn_anchor_generator": AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5),
        "box_head": TwoMLPHead(CHANNELS * 7**2, 256),
        "box_predictor": FastRCNNPredictor(256, classes),
    }
    model = MaskRCNN(EfficientNetWithFPN(body, CHANNELS), **(settings | heads | kwargs))
    load_weights(model, source, progress, new_predictors)
    return model


def _read_backbone(weights: EfficientNet_Lite0_Weights | str | os.PathLike[str] | None) -> dict[str, Tensor] | None:
    """The state of the layers before the classifier; ValueError if a file is of another model."""
    name = "" if isinstance(weights, EfficientNet_Lite0_Weights | None) else os.fspath(weights)
    if not name or name.rpartition(".")[2] in EfficientNet_Lite0_Weights.__members__:
        known = EfficientNet_Lite0_Weights.verify(weights)
        if known is None:
            return None
        state = known.get_state_dict()
    else:
        state = Checkpoint(name).get_state_dict()
        state = rename_to_timm(state) if is_package_file(state) else state
    own = EfficientNetLite0().state_dict()
    for key, value in own.items():
        got = state[key].shape if key in state else None
        if got != value.shape and not key.endswith("num_batches_tracked"):
            shown = "none" if got is None else list(got)
            raise ValueError(f"{name} must be of EfficientNet-Lite0, {list(value.shape)} for {key}, got {shown}")
    return {key: state[key] for key in own if key in state}
