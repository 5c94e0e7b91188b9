"""Replacement of layers of a prepared model by fused ones (fused.py): those that are known, plain, and without hooks.

Layers are replaced in their parents; a parent of a known type is replaced as a whole. All others stay as they are:
layers with hooks, layers that are used twice, subclasses, other activations, other padding modes.
"""

import collections
import itertools
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastmask.kernels.fallback import stem as stem_fallback
from fastmask.models._plain import is_plain, is_untouched
from fastmask.models._utils import IntermediateLayerGetter
from fastmask.models.detection.faster_rcnn import FastRCNNPredictor
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.models.detection.mask_rcnn import MaskRCNNPredictor
from fastmask.models.detection.rpn import RPNHead
from fastmask.models.fused import (
    CudnnConv2d,
    EpilogueAfterPool,
    FusedBlock,
    FusedBoxPredictor,
    FusedConv2d,
    FusedLastLevelMaxPool,
    FusedLinear,
    FusedPyramid,
    FusedRPNHead,
    Pointwise,
    StemConv2d,
)
from fastmask.models.fused_mkldnn import MkldnnBlock, MkldnnBoxPredictor, MkldnnConv2d, MkldnnLinear, MkldnnRPNHead
from fastmask.models.resnet import BasicBlock, Bottleneck
from fastmask.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool
from fastmask.ops.misc import Conv2dNormActivation

Form = Literal["kernel", "cudnn", "mkldnn"]
CUDNN_CHANNELS = 8  # cuDNN's fused convolutions take multiples of it


def fuse_epilogues(model: GeneralizedRCNN, form: Form, dtype: torch.dtype) -> None:
    """Fuse the layers of a model in place, where they can be fused.

    Args:
        model: in eval mode, its norms folded.
        form: "kernel": our kernel follows a convolution that is no matrix product; "cudnn": cuDNN's fused convolution
            where it has one; "mkldnn": oneDNN's fused convolutions and matrix products.
        dtype: the dtype that the model will have.
    """
    before = list(model.modules())  # kept alive, so that no new module gets the id of an old one
    fuser = _Fuser(before, form, dtype)
    for parent in before:
        for name, child in parent.named_children():
            fused = fuser.fuse_whole(child)
            if fused is not None:
                setattr(parent, name, fused)
    for sequence in _sequences(model):
        fuser.fuse_sequence(sequence)
        if type(sequence) is nn.Sequential:
            for block, following in itertools.pairwise(sequence):
                if type(block) is type(following) is MkldnnBlock:
                    following.overwrites = True


def _sequences(model: GeneralizedRCNN) -> Iterator[nn.Module]:
    """Modules that run their children one after the other, and whose children no other module calls."""
    heads = (model.roi_heads.box_head, model.roi_heads.mask_head, model.roi_heads.keypoint_head)
    known = [m for m in model.modules() if type(m) in (Conv2dNormActivation, IntermediateLayerGetter)]
    pending = [*known, *(head for head in heads if head is not None)]
    while pending:
        module = pending.pop()
        known_forward = type(module).forward in (nn.Sequential.forward, IntermediateLayerGetter.forward)
        if known_forward and "forward" not in vars(module):
            pending += module.children()
            if type(module) is not MaskRCNNPredictor:  # predict_mask_logits calls its layers
                yield module


class _Fuser:
    def __init__(self, modules: list[nn.Module], form: Form, dtype: torch.dtype) -> None:
        self.form, self.mkldnn = form, form == "mkldnn"
        # by PyTorch's defaults a convolution of float32 may use TF32, and a matrix product may not
        self.products = dtype != torch.float32
        self.half = dtype in (torch.float16, torch.bfloat16)
        self.uses = collections.Counter(id(child) for m in modules for child in m._modules.values())

    def fuse_whole(self, module: nn.Module) -> nn.Module | None:
        """A fused module for one of a known type, or None."""
        if self.uses[id(module)] > 1 or not all(map(is_untouched, module.modules())):
            return None
        if type(module) in (BasicBlock, Bottleneck):
            return self._fuse_block(module)
        if type(module) is FeaturePyramidNetwork:
            return self._fuse_pyramid(module)
        if type(module) is FastRCNNPredictor:
            return self._fuse_predictor(module)
        return self._fuse_head(module) if type(module) is RPNHead else None

    def _fuse_block(self, block: Any) -> nn.Module | None:
        numbers = range(1, 4 if type(block) is Bottleneck else 3)
        convs, norms = ([getattr(block, f"{name}{i}") for i in numbers] for name in ("conv", "bn"))
        known = all(type(norm) is nn.Identity for norm in norms) and type(block.relu) is nn.ReLU
        if not known or not all(map(self._is_plain, convs)):
            return None
        *firsts, last = convs
        bias, downsample = last.bias, block.downsample
        shortcut = self._only(downsample)
        if shortcut is not None:  # (y + b) + (z + c) = (y + (b + c)) + z, to a rounding
            bias, downsample = bias + shortcut.bias, self._fuse_conv(shortcut, None, relu=False)
        fused = [self._fuse_conv(conv, conv.bias) for conv in firsts]
        return (MkldnnBlock if self.mkldnn else FusedBlock)(
            fused, self._fuse_conv(last, bias, residual=True), downsample
        )

    def _fuse_pyramid(self, pyramid: FeaturePyramidNetwork) -> nn.Module | None:
        convs = [[self._only(block) for block in blocks] for blocks in (pyramid.inner_blocks, pyramid.layer_blocks)]
        if None in convs[0] + convs[1]:
            return None
        inner, layers = ([self._fuse_conv(conv, conv.bias, relu=False) for conv in level] for level in convs)
        extra = FusedLastLevelMaxPool() if type(pyramid.extra_blocks) is LastLevelMaxPool else pyramid.extra_blocks
        return FusedPyramid(inner, layers, extra)

    def _fuse_head(self, head: Any) -> nn.Module | None:
        ends = [head.cls_logits, head.bbox_pred]
        convs = [self._only(block, nn.ReLU) for block in head.conv] if type(head.conv) is nn.Sequential else []
        anchors, deltas = (end.out_channels if self._is_plain(end) and _is_pointwise(end) else 0 for end in ends)
        if not convs or None in convs or anchors == 0 or deltas != 4 * anchors:
            return None
        if self.mkldnn:
            return MkldnnRPNHead([self._fuse_conv(conv, conv.bias) for conv in convs], *ends)
        *firsts, last = convs
        fused = [self._fuse_conv(conv, conv.bias) for conv in firsts]
        return FusedRPNHead([*fused, self._fuse_conv(last, None, relu=False)], last.bias, *ends)

    def _fuse_predictor(self, predictor: Any) -> nn.Module | None:
        layers = [predictor.cls_score, predictor.bbox_pred]
        plain = all(type(layer) is nn.Linear and layer.bias is not None and self._is_alone(layer) for layer in layers)
        if not plain or layers[0].in_features != layers[1].in_features:
            return None
        return (MkldnnBoxPredictor if self.mkldnn else FusedBoxPredictor)(*layers)

    def fuse_sequence(self, sequence: Any) -> None:
        """Fuse convolutions and linear layers, each with the ReLU, or the ReLU and the max pooling, behind it."""
        layers: dict[str, Any] = sequence._modules
        for name, layer in list(layers.items()):
            behind = _following(sequence, name)
            kinds = [type(layers[other]) for other in behind[:2] if is_untouched(layers[other])]
            relu = behind[0] if kinds[:1] == [nn.ReLU] else None
            pooled = kinds == [nn.ReLU, nn.MaxPool2d] and not self.mkldnn
            if type(layer) is nn.Linear and relu and self._is_alone(layer) and layer.bias is not None:
                layers[name] = (MkldnnLinear if self.mkldnn else FusedLinear)(layer)
                layers[relu] = nn.Identity()
            elif self._is_plain(layer) and pooled and not layers[behind[1]].return_indices:
                stem = self.half and _is_stem(layer)
                layers[name] = StemConv2d(layer) if stem else self._fuse_conv(layer, None, relu=False)
                layers[behind[0]] = nn.Identity()
                layers[behind[1]] = EpilogueAfterPool(layers[behind[1]], layer.bias)
            elif self._is_plain(layer):
                layers[name] = self._fuse_conv(layer, layer.bias, relu is not None)
                if relu:
                    layers[relu] = nn.Identity()

    def _fuse_conv(
        self, conv: nn.Conv2d, bias: Tensor | None, relu: bool = True, residual: bool = False
    ) -> FusedConv2d:
        if self.mkldnn:
            return MkldnnConv2d(conv, bias, relu)
        cudnn = self.form == "cudnn" and relu and bias is not None and _fits_cudnn(conv)
        if _is_pointwise(conv) and self.products and not (cudnn and residual):
            return Pointwise(conv, bias, relu)
        return (CudnnConv2d if cudnn else FusedConv2d)(conv, bias, relu)

    def _only(self, sequence: Any, *behind: type[nn.Module]) -> Any:
        """The only convolution of a sequence that ends with the types ``behind`` it, or None."""
        if type(sequence) not in (nn.Sequential, Conv2dNormActivation):
            return None
        conv, *others = (layer for layer in sequence if type(layer) is not nn.Identity)
        return conv if self._is_plain(conv) and [type(layer) for layer in others] == [*behind] else None

    def _is_plain(self, conv: nn.Module) -> bool:
        plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and conv.bias is not None
        return plain and not (self.mkldnn and isinstance(conv.padding, str)) and self._is_alone(conv)

    def _is_alone(self, layer: nn.Module) -> bool:
        return self.uses[id(layer)] == 1 and is_untouched(layer)


def _following(sequence: Any, name: str) -> list[str]:
    """Names of the layers behind one, up to the first whose output is taken out, without those that do nothing."""
    layers, taken_out = sequence._modules, getattr(sequence, "return_layers", ())
    names = list(layers)[list(layers).index(name) :]
    end = next((i for i, other in enumerate(names) if other in taken_out), len(names))
    return [other for other in names[1 : end + 1] if not is_plain(layers[other], nn.Identity)]


def _is_pointwise(conv: nn.Conv2d) -> bool:
    sizes = (conv.kernel_size, conv.stride, conv.groups)
    return sizes == ((1, 1), (1, 1), 1) and conv.padding in ((0, 0), "valid", "same")


def _is_stem(conv: nn.Conv2d) -> bool:
    square = all(not isinstance(side, str) and len(set(side)) == 1 for side in (conv.kernel_size, conv.padding))
    usual = (conv.in_channels, conv.stride, conv.dilation, conv.groups) == (stem_fallback.CHANNELS, (2, 2), (1, 1), 1)
    return (
        square
        and usual
        and stem_fallback.row_depth(conv.kernel_size[0], int(conv.padding[0])) <= stem_fallback.MAX_DEPTH
    )


def _fits_cudnn(conv: nn.Conv2d) -> bool:
    even = conv.in_channels % CUDNN_CHANNELS == conv.out_channels % CUDNN_CHANNELS == 0
    return even and conv.groups == 1 and conv.dilation == (1, 1) and not isinstance(conv.padding, str)
