"""Mask R-CNN as matterport's Mask_RCNN (Keras, TensorFlow) has it, for weights that were trained with that.

``fastmask.models.converters`` reads its .h5 files. What differs from torchvision's models: images are on a
square canvas, in the middle, with black around them; norms have an eps of 1e-3; a bottleneck has its stride in the
first 1x1 convolution, and the first pooling pads at the end alone; anchors, boxes and crops are those of
_matterport_stages.py. Source: github.com/matterport/Mask_RCNN 2.1, mrcnn/model.py, with the defaults of
mrcnn/config.py.
"""

import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from fastmask.checks import ArgumentError
from fastmask.models._api import NoWeights, register_model
from fastmask.models._state import load_state, num_classes_error
from fastmask.models.detection._channels import check_pixels
from fastmask.models.detection._matterport_stages import (
    DIVISIBLE,
    STRIDES,
    MatterportAnchors,
    MatterportRoIHeads,
    MatterportRPN,
    center_images,
    to_corners,
)
from fastmask.models.detection._overrides import check_static
from fastmask.models.detection._utils import BoxCoder
from fastmask.models.detection._weights import find_weights
from fastmask.models.detection.backbone_utils import BackboneWithFPN, _validate_trainable_layers
from fastmask.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from fastmask.models.detection.generalized_rcnn import Trim, drop_padding
from fastmask.models.detection.losses import Losses, Normalizer, roi_losses, rpn_losses
from fastmask.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from fastmask.models.detection.rpn import RPNHead
from fastmask.models.resnet import Bottleneck
from fastmask.ops.misc import Conv2dNormActivation, FrozenBatchNorm2d
from fastmask.ops.poolers import MultiScaleRoIAlign
from fastmask.structures import Candidates, Features, Targets

EPS = 1e-3  # Keras's, of all norms
COCO_CLASSES = 81  # matterport numbers COCO's classes without gaps
SETTINGS: dict[str, Any] = {  # mrcnn/config.py's
    "min_size": 800,
    "max_size": 1024,
    "image_mean": [value / 255 for value in (123.7, 116.8, 103.9)],
    "image_std": [1 / 255] * 3,
    "rpn_pre_nms_top_n_train": 6000,
    "rpn_pre_nms_top_n_test": 6000,
    "box_score_thresh": 0.7,
    "box_nms_thresh": 0.3,
    "box_batch_size_per_image": 200,
    "box_positive_fraction": 0.33,
}
RPN_WEIGHTS = 10.0, 10.0, 5.0, 5.0  # one over RPN_BBOX_STD_DEV; those of the box head, over BBOX_STD_DEV, are as usual
ANCHOR_SIZES, ANCHOR_RATIOS = (32, 64, 128, 256, 512), (0.5, 1, 2)


class Layout(NamedTuple):
    """Numbers of layers and channels, by default those of ``mask_rcnn_coco.h5``."""

    channels: int = 3  # of images
    stem: int = 64
    planes: tuple[int, ...] = (64, 128, 256, 512)  # of the 3x3 convolutions of each stage
    blocks: tuple[int, ...] = (3, 4, 23, 3)
    pyramid: int = 256
    rpn: int = 512
    anchors: int = 3  # of a cell
    box_bins: int = 7
    box_hidden: int = 1024
    mask_layers: tuple[int, ...] = (256, 256, 256, 256)
    mask_deconv: int = 256
    num_classes: int = COCO_CLASSES  # with background


def read_layout(state: Mapping[str, Tensor]) -> Layout:
    """The layout of a state dict of :class:`MatterportMaskRCNN`; the default one of any other's."""
    try:
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        stages = [f"backbone.body.layer{i}." for i in range(1, 5)]
        firsts = [key for key in shapes if key.endswith(".conv1.weight")]
        blocks = tuple(sum(key.startswith(stage) for key in firsts) for stage in stages)
        masks = sum(key.startswith("roi_heads.mask_head.") and key.endswith(".weight") for key in shapes)
        stem, channels, *_ = shapes["backbone.body.conv1.weight"]
        pyramid, *_ = shapes["backbone.fpn.inner_blocks.0.0.weight"]
        box_hidden, box_inputs = shapes["roi_heads.box_head.fc6.weight"]
        return Layout(
            channels,
            stem,
            tuple(shapes[f"{stage}0.conv1.weight"][0] for stage in stages),
            blocks,
            pyramid,
            shapes["rpn.head.conv.0.0.weight"][0],
            shapes["rpn.head.cls_logits.weight"][0],
            round((box_inputs / pyramid) ** 0.5),
            box_hidden,
            tuple(shapes[f"roi_heads.mask_head.{i}.0.weight"][0] for i in range(masks)),
            shapes["roi_heads.mask_predictor.conv5_mask.weight"][1],
            shapes["roi_heads.box_predictor.cls_score.weight"][0],
        )
    except (KeyError, IndexError, ValueError):
        return Layout()  # loading names what is missing


class MatterportMaskRCNN(MaskRCNN):
    """Mask R-CNN whose predictions are those of matterport's Mask_RCNN.

    Args:
        layout: numbers of layers and channels.
        norm_layer: norms of the ResNet.
        anchor_sizes, anchor_ratios: RPN_ANCHOR_SCALES and RPN_ANCHOR_RATIOS (width / height).
        **options: :class:`MaskRCNN`'s; ``min_size`` is IMAGE_MIN_DIM and ``max_size`` IMAGE_MAX_DIM, rounded up to a
            multiple of 64 the side of the canvas. Images are enlarged to ``min_size``, never shrunk to it.

    :meth:`infer` takes images of at most ``max_size`` pixels, padded to any size. Methods of its parts on lists are
    torchvision's, not matterport's: what would call these raises an error.

    Raises:
        ValueError: an argument does not fit the layout.
    """

    _rpn_type, _roi_heads_type = MatterportRPN, MatterportRoIHeads
    fill: Tensor  # [C], black as the transform normalizes it; of image_mean and image_std when it is built

    def __init__(
        self,
        layout: Layout,
        norm_layer: Callable[..., nn.Module],
        anchor_sizes: Sequence[float] = ANCHOR_SIZES,
        anchor_ratios: Sequence[float] = ANCHOR_RATIOS,
        **options: Any,
    ) -> None:
        if len(anchor_sizes) != len(STRIDES) + 1:
            raise ValueError(f"anchor_sizes must be one of each of {len(STRIDES) + 1} levels, got {list(anchor_sizes)}")
        if len(anchor_ratios) != layout.anchors:
            raise ValueError(f"anchor_ratios must be {layout.anchors}, as the weights have, got {list(anchor_ratios)}")
        settings = SETTINGS | options
        for name in ("image_mean", "image_std"):
            if len(settings[name]) != layout.channels:
                raise ValueError(f"{name} must be given for images of {layout.channels} channels, got {settings[name]}")
        side = -(-int(settings["max_size"]) // DIVISIBLE) * DIVISIBLE
        anchors = MatterportAnchors(anchor_sizes, anchor_ratios)
        levels = [str(i) for i in range(len(STRIDES))]
        parts = {
            "rpn_anchor_generator": anchors,
            "rpn_head": build_rpn_head(layout),
            "box_roi_pool": CropAndResize(levels, layout.box_bins, 1),
            "box_head": TwoMLPHead(layout.pyramid * layout.box_bins**2, layout.box_hidden),
            "box_predictor": FastRCNNPredictor(layout.box_hidden, layout.num_classes),
            "mask_roi_pool": CropAndResize(levels, 14, 1),
            "mask_head": MaskRCNNHeads(layout.pyramid, layout.mask_layers, 1),
            "mask_predictor": MaskRCNNPredictor(layout.mask_layers[-1], layout.mask_deconv, layout.num_classes),
        }
        super().__init__(build_backbone(layout, norm_layer), **{"size_divisible": side} | settings | parts)
        self.rpn.box_coder = BoxCoder(RPN_WEIGHTS)
        self.rpn.min_size = self.roi_heads.min_size = 0.0
        self.transform._enlarge_only = True
        dtype = torch.get_default_dtype()
        mean, std = (torch.as_tensor(settings[name], dtype=dtype) for name in ("image_mean", "image_std"))
        self.register_buffer("fill", -mean / std, persistent=False)

    @property
    def side(self) -> int:
        """Pixels of the canvas along an axis."""
        return -(-int(self.transform.max_size) // DIVISIBLE) * DIVISIBLE

    def read_images(self, pixels: Tensor, sizes: Tensor) -> Features:
        """Padded images and their sizes as :meth:`infer` takes them -> feature maps of their canvases."""
        check_pixels(pixels, self)
        canvas, offset = center_images(pixels, sizes, self.side, self.fill)
        features = self.extract_features(canvas)
        return Features(features.maps, features.scales, offset)

    def detect_candidates(self, pixels: Tensor, sizes: Tensor, *, trim: Trim = False) -> tuple[Features, Candidates]:
        """See :meth:`GeneralizedRCNN.detect_candidates`; boxes end at their last pixel."""
        features = self.read_images(pixels, sizes)
        proposals = self.rpn.propose(self.rpn.predict(features, (self.side, self.side)), sizes)
        proposals = drop_padding(proposals, trim)
        logits, deltas = self.roi_heads.classify(features, proposals.boxes)
        return features, self.roi_heads.select_candidates(logits, deltas, proposals, sizes)

    def losses(
        self, pixels: Tensor, sizes: Tensor, targets: Targets, normalizer: Normalizer = lambda number: number
    ) -> Losses:
        """See :meth:`GeneralizedRCNN.losses`: the losses are torchvision's, of matterport's anchors, boxes and crops.

        Boxes of targets are at least half a pixel beyond their first pixel's center: none has no area.
        """
        check_static(self, training=True)
        if max(pixels.shape[2:]) > self.side:
            raise ArgumentError(f"images must be at most {self.side} pixels, as max_size, got {tuple(pixels.shape)}")
        features = self.read_images(pixels, sizes)
        assert features.offset is not None
        outputs = self.rpn.predict(features, (self.side, self.side))
        proposals = drop_padding(self.rpn.propose(outputs, sizes))
        first, past = targets.boxes.split(2, dim=2)
        boxes = torch.cat((first, torch.maximum(past - 1, first + 0.5)), dim=2)
        on_canvas = boxes + to_corners(features.offset).to(boxes.dtype)
        _, labels, masks, count, has_mask, keypoints = targets  # PyTorch 2.11 does not compile _replace
        inner, outer = (Targets(each, labels, masks, count, has_mask, keypoints) for each in (boxes, on_canvas))
        losses = roi_losses(self.roi_heads, features, proposals, sizes, inner, normalizer)
        return losses | rpn_losses(self.rpn, outputs, outer, normalizer)

    def _call_parts(self, *_: Any) -> NoReturn:
        check_static(self, self.training)
        raise ArgumentError(
            "model must be in one mode and without hooks: matterport's conventions are in the static program alone"
        )


class CropAndResize(MultiScaleRoIAlign):
    """Names and bins of :meth:`MatterportRoIHeads.pool_rois`."""

    _pooling = "crop_and_resize"


def build_rpn_head(layout: Layout) -> RPNHead:
    """An RPN's head with a hidden width of its own."""
    head = RPNHead(layout.pyramid, layout.anchors)
    head.conv = nn.Sequential(Conv2dNormActivation(layout.pyramid, layout.rpn, kernel_size=3, norm_layer=None))
    head.cls_logits = nn.Conv2d(layout.rpn, layout.anchors, kernel_size=1)
    head.bbox_pred = nn.Conv2d(layout.rpn, layout.anchors * 4, kernel_size=1)
    for layer in (head.conv[0][0], head.cls_logits, head.bbox_pred):  # type: ignore[index]
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return head


def build_backbone(layout: Layout, norm_layer: Callable[..., nn.Module]) -> BackboneWithFPN:
    """The ResNet and its pyramid."""
    body: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(layout.channels, layout.stem, 7, 2, 3, bias=False),
        bn1=norm_layer(layout.stem),
        relu=nn.ReLU(inplace=True),
        maxpool=nn.MaxPool2d(3, 2, ceil_mode=True),  # TensorFlow's "same" on even sides: it pads at the end
    )
    inplanes = layout.stem
    for i, (planes, number) in enumerate(zip(layout.planes, layout.blocks, strict=True)):
        blocks = []
        for j in range(number):
            stride, down = 1 if i == 0 or j else 2, None
            if j == 0:
                out = planes * Bottleneck.expansion
                down = nn.Sequential(nn.Conv2d(inplanes, out, 1, stride, bias=False), norm_layer(out))
            block = Bottleneck(inplanes, planes, stride, down, norm_layer=norm_layer)
            block.conv1.stride, block.conv2.stride = (stride, stride), (1, 1)
            blocks.append(block)
            inplanes = planes * Bottleneck.expansion
        body[f"layer{i + 1}"] = nn.Sequential(*blocks)
    for module in body.values():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    names = {f"layer{i + 1}": str(i) for i in range(len(STRIDES))}
    channels = [planes * Bottleneck.expansion for planes in layout.planes]
    backbone = BackboneWithFPN(nn.Sequential(body), names, channels, layout.pyramid)
    backbone.strides = {str(i): stride for i, stride in enumerate(STRIDES)}
    return backbone


@register_model(NoWeights)
def maskrcnn_matterport(
    *,
    weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
    num_classes: int | None = None,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> MatterportMaskRCNN:
    """Mask R-CNN as matterport's Mask_RCNN has it, of the weights' layout, or with a ResNet-101; not in torchvision.

    Args:
        weights: matterport's .h5 file, or one of a model that is converted already (see
            :class:`fastmask.models.Checkpoint`), or None.
        progress: no effect, as nothing is downloaded.
        num_classes: number of classes with background; None for the weights', or 81, matterport's of COCO.
        trainable_backbone_layers: how many of layer4, layer3, layer2, layer1, conv1 are trained; None for 3, or all
            without weights.
        new_predictors: load all of ``weights`` but the predictors, to fine-tune on other classes.
        **kwargs: :class:`MatterportMaskRCNN`'s.

    Norms are frozen if trained weights are loaded, unless these were trained with norms that were not.
    """
    source = find_weights(NoWeights, weights)
    state = None if source is None else source.get_state_dict(progress=progress)
    kwargs |= {"trainable_backbone_layers": trainable_backbone_layers, "new_predictors": new_predictors}
    return build_model(state, repr(source), num_classes=num_classes, **kwargs)


def build_model(
    state: Mapping[str, Tensor] | None,
    source: str,
    *,
    num_classes: int | None = None,
    trainable_backbone_layers: int | None = None,
    new_predictors: bool = False,
    **kwargs: Any,
) -> MatterportMaskRCNN:
    """A model of a state dict, which is of ``source``; arguments as :func:`maskrcnn_matterport`'s."""
    layers = _validate_trainable_layers(state is not None, trainable_backbone_layers, 5, 3)
    layout = Layout() if state is None else read_layout(state)
    if num_classes is not None:
        if state is not None and num_classes != layout.num_classes and not new_predictors:
            raise num_classes_error(layout.num_classes, source, num_classes)
        layout = layout._replace(num_classes=num_classes)
    frozen = state is not None and not any(key.endswith("num_batches_tracked") for key in state)
    norm_layer = functools.partial(FrozenBatchNorm2d if frozen else nn.BatchNorm2d, eps=EPS)
    model = MatterportMaskRCNN(layout, norm_layer, **kwargs)
    trained = ["layer4", "layer3", "layer2", "layer1", "conv1", "bn1"][: layers + (layers == 5)]
    for name, parameter in model.backbone.body.named_parameters():  # type: ignore[operator, union-attr]
        parameter.requires_grad_(name.startswith(tuple(trained)))
    if state is not None:
        load_state(model, state, source, new_predictors)
    return model
