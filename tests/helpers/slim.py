"""The slim model of all tests: an R-CNN of width 16 and 32 FPN channels, in torchvision and in fastmask, alike."""

from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor, nn

import fastmask.models
import fastmask.ops
from fastmask.benchmarks.calibrate import calibrate
from fastmask.models.detection._parts import make_mask_head
from fastmask.models.detection._weights import load_weights
from helpers.images import draw_image

NUM_CLASSES = 5
CHANNELS = 32
MOBILENET = [  # channels in, kernel, expanded, out, squeeze and excitation, activation, stride
    (16, 3, 16, 16, True, "RE", 2),
    (16, 3, 40, 24, False, "RE", 2),
    (24, 5, 64, 24, True, "HS", 2),
    (24, 5, 72, 24, True, "HS", 1),
    (24, 3, 72, 40, False, "HS", 2),
]
MASK_VARIANTS = {"mask_head": "unet", "mask_classes": "agnostic"}
MOBILENET_ROI_POOL = {"body": "mobilenet", "box_pooling": "roi_pool"}  # one model for tests of both


def slim_model(
    library: ModuleType,
    norm: str = "FrozenBatchNorm2d",
    channels: int = 3,
    body: str = "resnet",
    keypoints: int = 0,
    masks: bool = True,
    **options: Any,
) -> nn.Module:
    """A slim model of a library.

    Args:
        library: torchvision or fastmask.
        norm: of the backbone, FrozenBatchNorm2d or BatchNorm2d.
        channels: of images; of other than three, the mean is 0.4, 0.5, 0.6, 0.4, ... and the deviation 0.25.
        body: "resnet", or "mobilenet": a MobileNetV3 of five blocks, with the pyramid of torchvision's Faster R-CNN.
        keypoints: a Keypoint R-CNN with so many, unless they are 0.
        masks: whether there is a mask branch, which torchvision's RoI heads may have beside the other.
        options: the model's; with ``box_pooling="roi_pool"`` torchvision's gets a reference of that, with ``mask_head``
            and ``mask_classes`` our head, and a predictor that repeats one mask; its losses stay its own.
    """
    detection, resnet, ops = library.models.detection, library.models.resnet, library.ops
    if library is not fastmask:
        options = {name: value for name, value in options.items() if not name.endswith("_loss")}
    norm_layer = ops.FrozenBatchNorm2d if norm == "FrozenBatchNorm2d" else nn.BatchNorm2d
    ratio = options.get("sampling_ratio")
    if library is not fastmask and options.pop("sampling_ratio", None) is not None:
        for name, bins in (("box", 7), ("mask", 14)):
            options[f"{name}_roi_pool"] = ops.MultiScaleRoIAlign(["0", "1", "2", "3"], bins, ratio)
    if library is not fastmask and options.pop("box_pooling", "roi_align") == "roi_pool":
        from helpers.poolers import ReferenceRoIPool  # of torchvision, too

        names = ["0", "1", "2", "3"]
        options |= {"box_roi_pool": ReferenceRoIPool(names, 7), "mask_roi_pool": ReferenceRoIPool(names, 14)}
    if body == "mobilenet":
        kind = library.models.mobilenetv3
        blocks = [kind.InvertedResidualConfig(*block, 1, 1.0) for block in MOBILENET]
        mobilenet = kind.MobileNetV3(blocks, 8, norm_layer=norm_layer)
        backbone = detection.backbone_utils._mobilenet_extractor(mobilenet, True, 6)
        anchors = detection.anchor_utils.AnchorGenerator(((16, 32, 64, 128),) * 3, ((0.5, 1.0, 2.0),) * 3)
        options = {"rpn_anchor_generator": anchors} | options
        return _put_heads(library, backbone, 256, keypoints, masks, options)
    stages, inplanes = OrderedDict(), 16
    for i, planes in enumerate((16, 32, 64, 128)):
        downsample = None
        if planes != inplanes:
            downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, 2, bias=False), norm_layer(planes))
        stages[f"layer{i + 1}"] = nn.Sequential(
            resnet.BasicBlock(inplanes, planes, 1 if i == 0 else 2, downsample, norm_layer=norm_layer)
        )
        inplanes = planes
    body = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 16, 7, 2, 3, bias=False),
            bn1=norm_layer(16),
            relu=nn.ReLU(),
            maxpool=nn.MaxPool2d(3, 2, 1),
            **stages,
        )
    )
    names = {f"layer{i + 1}": str(i) for i in range(4)}
    backbone = detection.backbone_utils.BackboneWithFPN(body, names, [16, 32, 64, 128], CHANNELS)
    backbone.strides = {str(i): 4 << i for i in range(4)}  # which torchvision does not look at
    mean, std = [0.4 + 0.1 * (i % 3) for i in range(channels)], [0.25] * channels
    settings = {} if channels == 3 else {"image_mean": mean, "image_std": std}
    return _put_heads(library, backbone, CHANNELS, keypoints, masks, settings | options)


def _put_heads(
    library: ModuleType, backbone: nn.Module, channels: int, keypoints: int, masks: bool, options: dict[str, Any]
) -> nn.Module:
    detection = library.models.detection
    settings = {
        "min_size": 128,
        "max_size": 200,
        "box_detections_per_img": 30,
        "rpn_post_nms_top_n_test": 200,
    } | options
    settings |= {
        "box_head": detection.faster_rcnn.TwoMLPHead(channels * 49, 64),
        "box_predictor": detection.faster_rcnn.FastRCNNPredictor(64, NUM_CLASSES),
    }
    mask_head = detection.mask_rcnn.MaskRCNNHeads(channels, (CHANNELS, CHANNELS), 1)
    if settings.pop("mask_head", "fcn") == "unet":
        mask_head = make_mask_head("unet", channels, (CHANNELS, CHANNELS))
    mask_predictor = detection.mask_rcnn.MaskRCNNPredictor(CHANNELS, CHANNELS, NUM_CLASSES)
    if settings.pop("mask_classes", "per_class") == "agnostic":
        kind = detection.mask_rcnn.MaskRCNNPredictor
        mask_predictor = (kind if library is fastmask else _repeat_mask(kind))(CHANNELS, CHANNELS, 1)
    if not keypoints:
        return detection.mask_rcnn.MaskRCNN(backbone, mask_head=mask_head, mask_predictor=mask_predictor, **settings)
    model = detection.keypoint_rcnn.KeypointRCNN(
        backbone,
        keypoint_head=detection.keypoint_rcnn.KeypointRCNNHeads(channels, (CHANNELS, CHANNELS)),
        keypoint_predictor=detection.keypoint_rcnn.KeypointRCNNPredictor(CHANNELS, keypoints),
        **settings,
    )
    if masks:
        model.roi_heads.mask_roi_pool = library.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2)
        model.roi_heads.mask_head, model.roi_heads.mask_predictor = mask_head, mask_predictor
    return model


def _repeat_mask(kind: Any) -> Any:
    """A mask predictor whose only mask is that of each class."""

    class Repeated(kind):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).expand(-1, NUM_CLASSES, -1, -1)

    return Repeated


def calibrate_on_images(model: nn.Module, channels: int = 3) -> None:
    """See :func:`calibrate`."""
    calibrate(model, [with_channels(draw_image(128, 160)[0], channels) for _ in range(4)])


def with_channels(image: Tensor, channels: int) -> Tensor:
    """An image [channels, h, w] of the red, green and blue of one [3, h, w], in turn."""
    return image[[c % 3 for c in range(channels)]]


def slim_pair(norm: str = "FrozenBatchNorm2d", channels: int = 3, **options: Any) -> tuple[nn.Module, nn.Module]:
    """torchvision's and ours, with the same calibrated weights, in eval mode."""
    import torchvision  # seconds that programs which need ours alone are spared

    theirs, ours = (slim_model(library, norm, channels, **options).eval() for library in (torchvision, fastmask))
    calibrate_on_images(theirs, channels)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def builder() -> Callable[..., nn.Module]:
    """What builds ours under the name slim, as fastmask.models' own builders do."""

    def build(weights: Any = None, num_classes: int = NUM_CLASSES, **options: Any) -> nn.Module:
        assert num_classes == NUM_CLASSES
        options.pop("weights_backbone", None)
        new_predictors = options.pop("new_predictors", False)
        model = slim_model(fastmask, **options)
        load_weights(model, weights, progress=False, new_predictors=new_predictors)
        return model

    build.__name__, build.__module__ = "slim", fastmask.models.detection.mask_rcnn.__name__
    return build
