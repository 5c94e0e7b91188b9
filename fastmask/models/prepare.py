"""Preparation of a model for inference, done once: norms folded in, channels last, another dtype.

Predictions are the model's, to the rounding of a sum in another order; the model itself stays as it is. Users'
modules in it keep their memory format.
"""

import collections
import copy
import itertools
import platform
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from fastmask.models._fold import can_fold, fold_norm
from fastmask.models._fuse import fuse_epilogues
from fastmask.models._layout import lay_out
from fastmask.models._plain import is_untouched
from fastmask.models._utils import IntermediateLayerGetter
from fastmask.models.detection._overrides import check_static
from fastmask.models.detection.anchor_utils import AnchorGenerator
from fastmask.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.models.detection.timm_backbone import (
    TimmBackboneWithFPN,
    freeze_norms,
    padded_convolutions,
    split_activations,
)
from fastmask.models.efficientnet_lite import Block, EfficientNetLite0
from fastmask.models.fused_mkldnn import has_mkldnn
from fastmask.models.resnet import BasicBlock, Bottleneck, ResNet

Fuse = Literal["off", "kernel", "cudnn", "mkldnn"]  # forms of convolutions' epilogues
FUSE_MODES: tuple[Fuse, ...] = ("off", "kernel", "cudnn", "mkldnn")


def prepare_for_inference(model: GeneralizedRCNN, dtype: torch.dtype, fuse: Fuse = "off") -> GeneralizedRCNN:
    """A copy of the model in eval mode, without gradients, for inference in ``dtype``.

    Args:
        model: stays as it is.
        dtype: of weights and feature maps.
        fuse: "off" leaves convolutions as they are. "kernel": 1x1 convolutions become matrix products with bias and
            ReLU in their epilogue, and after others one kernel adds bias and residual and clamps. "cudnn": the same,
            and where cuDNN has a fused convolution, that. "mkldnn" (CPUs, float32 and bfloat16): oneDNN's fused
            convolutions and matrix products. See :mod:`fastmask.models.fused` and
            :mod:`fastmask.models.fused_mkldnn`.

    Raises:
        ValueError: a weight is NaN or infinite, the user has replaced what a static program would not call, or "mkldnn"
            does not run on the model's device in ``dtype``.
    """
    device = next(model.parameters()).device
    if fuse == "mkldnn" and not has_mkldnn(device, dtype):
        raise ValueError(f"fuse must be 'off' or 'kernel' where oneDNN has no fused {dtype} layers, got 'mkldnn'")
    check_static(model, training=False, transform=True)
    _check_finite(model)
    model = copy.deepcopy(model, _detached(model)).eval().requires_grad_(False)
    subclasses: tuple[type[nn.Conv2d], ...] = ()
    for backbone in (module for module in model.modules() if type(module) is TimmBackboneWithFPN):
        freeze_norms(backbone.body)
        split_activations(backbone.body)
        subclasses = padded_convolutions()
    for parent, conv_name, norm_name in list(_pairs(model)):
        conv, norm = parent.get_submodule(conv_name), parent.get_submodule(norm_name)
        if can_fold(conv, norm, *subclasses):
            weight, bias = fold_norm(conv, norm)
            conv.weight, conv.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
            parent.set_submodule(norm_name, nn.Identity())
    size = model.roi_heads.box_roi_pool.output_size
    model.roi_heads.box_head = _flatten_pixels_first(model.roi_heads.box_head, size[0] * size[1])
    model.rpn.anchor_generator = CachedAnchors(model.rpn.anchor_generator)
    if fuse != "off":
        fuse_epilogues(model, fuse, dtype)
    model = model.to(dtype)
    lay_out(model.backbone, *model.rpn.children(), *model.roi_heads.children())
    _check_finite(model)
    return model


def choose_fuse(device: torch.device, dtype: torch.dtype, compile: bool = False) -> Fuse:
    """What "auto" stands for; on CPUs ``compile`` leaves all layers to inductor, which does not trace oneDNN's."""
    if device.type != "cuda":
        x86 = platform.machine().lower() in ("x86_64", "amd64")  # not measured on others
        return "mkldnn" if x86 and not compile and has_mkldnn(device, dtype) else "off"
    return "cudnn" if torch.version.hip is None and torch.backends.cudnn.is_available() else "kernel"


def _detached(model: nn.Module) -> dict[int, Tensor]:
    """Copies of weights that hooks computed in the last forward, which deepcopy refuses; hooks compute them anew."""
    values = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return {id(value): value.detach().clone() for value in values if not value.is_leaf}


def _check_finite(model: nn.Module) -> None:
    """Called before and after the conversion: a half type holds fewer numbers."""
    for name, values in itertools.chain(model.named_parameters(), model.named_buffers()):
        if values.is_floating_point() and not bool(values.isfinite().all()):
            raise ValueError(f"weights must be finite in {values.dtype}, got NaN or infinity in {name}")


def _pairs(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Convolutions and the norms that are known to follow them: (parent, conv's name, norm's name).

    Each is used in one place alone: folding a shared one would change its other uses.
    """
    uses = collections.Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    for parent, conv, norm in _neighbors(model):
        if uses[id(parent.get_submodule(conv))] == uses[id(parent.get_submodule(norm))] == 1:
            yield parent, conv, norm


def _neighbors(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    for parent in model.modules():
        if "forward" in vars(parent):  # it may use its layers apart
            continue
        if type(parent) is TimmBackboneWithFPN:
            yield from ((parent, *names) for names in parent.list_foldable())
        elif isinstance(parent, EfficientNetLite0 | Block):
            yield from ((parent, *names) for names in parent.pairs)
        elif type(parent) in (BasicBlock, Bottleneck, ResNet):
            children = dict(parent.named_children())
            for name in children:
                norm = name.replace("conv", "bn")
                if name.startswith("conv") and norm in children:
                    yield parent, name, norm
        elif type(parent).forward in (nn.Sequential.forward, IntermediateLayerGetter.forward):
            taken_out = getattr(parent, "return_layers", ())
            for (name, _), (following, _) in itertools.pairwise(parent.named_children()):
                if name not in taken_out:
                    yield parent, name, following


def _flatten_pixels_first(head: nn.Module, pixels: int) -> nn.Module:
    """Let the first linear layer of a box head read RoI features in their memory order, channels last."""
    if not all(map(is_untouched, head.modules())):
        return head
    if type(head) is TwoMLPHead:
        layers: list[nn.Module] = [nn.Flatten(), head.fc6, nn.ReLU(inplace=True), head.fc7, nn.ReLU(inplace=True)]
    elif type(head) is FastRCNNConvFCHead:
        layers = list(head)
    else:
        return head
    for i, (layer, linear) in enumerate(itertools.pairwise(layers)):
        if type(layer) is nn.Flatten and type(linear) is nn.Linear and linear.in_features % pixels == 0:
            weight = linear.weight.unflatten(1, (-1, pixels)).transpose(1, 2).flatten(1)
            linear.weight = nn.Parameter(weight.contiguous(), False)
            layers[i] = FlattenPixels()
    return nn.Sequential(*layers)


class FlattenPixels(nn.Module):
    """[N, C, h, w] -> [N, h * w * C]; a view where channels are last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


class CachedAnchors(AnchorGenerator):
    """An anchor generator that computes the anchors of each shape once."""

    def __init__(self, generator: AnchorGenerator) -> None:
        nn.Module.__init__(self)  # the generator has all attributes of its class
        self.generator = generator
        self.cache: dict[tuple[object, ...], Tensor] = {}

    def anchors(self, image_size: Sequence[int], maps: Sequence[Tensor]) -> list[Tensor]:
        """See :meth:`AnchorGenerator.anchors`."""
        return self.generator.anchors(image_size, maps)

    def all_anchors(self, image_size: Sequence[int], maps: Sequence[Tensor]) -> Tensor:
        """See :meth:`AnchorGenerator.all_anchors`."""
        key = (*image_size, *((*feature.shape[2:], feature.dtype, feature.device) for feature in maps))
        if key not in self.cache:
            self.cache[key] = self.generator.all_anchors(image_size, maps)
        return self.cache[key]

    def evict(self, image_size: Sequence[int]) -> None:
        """Drop the anchors of padded images of a (height, width)."""
        self.cache = {key: anchors for key, anchors in self.cache.items() if key[:2] != tuple(image_size)}
