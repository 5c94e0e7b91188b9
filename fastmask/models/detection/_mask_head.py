"""The mask head after pooling: its convolutions, its predictor, and the masks of the predicted classes alone."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastmask.checks import NotScriptable, is_autocast, upcast
from fastmask.kernels.class_masks import class_masks_op
from fastmask.models._plain import is_plain
from fastmask.ops.misc import Conv2dNormActivation
from fastmask.structures import valid_mask


class MaskRCNNHeads(NotScriptable, nn.Sequential):
    """3x3 convolutions of the given widths on RoI features [N, in_channels, 14, 14]."""

    _kind = "fcn"  # the models' mask_head
    _version = 2  # 1 named its convolutions mask_fcn1, mask_fcn2, ...

    def __init__(
        self, in_channels: int, layers: Sequence[int], dilation: int, norm_layer: Callable[..., nn.Module] | None = None
    ) -> None:
        blocks = []
        for channels in layers:
            blocks.append(
                Conv2dNormActivation(in_channels, channels, padding=dilation, dilation=dilation, norm_layer=norm_layer)
            )
            in_channels = channels
        super().__init__(*blocks)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if (local_metadata.get("version") or 1) < 2:
            for i in range(len(self)):
                for kind in ("weight", "bias"):
                    old = f"{prefix}mask_fcn{i + 1}.{kind}"
                    if old in state_dict:
                        state_dict[f"{prefix}{i}.0.{kind}"] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class MaskRCNNPredictor(NotScriptable, nn.Sequential):
    """Mask features [N, in_channels, h, w], 14 x 14 of a pyramid -> mask logits of each class [N, C, 2h, 2w].

    With one class it is agnostic: all labels read its only mask (Mask R-CNN, section 4.2: "nearly as effective").
    """

    def __init__(self, in_channels: int, dim_reduced: int, num_classes: int) -> None:
        super().__init__(
            OrderedDict(
                conv5_mask=nn.ConvTranspose2d(in_channels, dim_reduced, 2, 2),
                relu=nn.ReLU(inplace=True),
                mask_fcn_logits=nn.Conv2d(dim_reduced, num_classes, 1),
            )
        )
        for name, parameter in self.named_parameters():
            if "weight" in name:
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")

    @property
    def _classes(self) -> str:  # the models' mask_classes
        layers: Any = self
        return "agnostic" if layers.mask_fcn_logits.out_channels == 1 else "per_class"


def index_masks(labels: Tensor, outputs: int) -> Tensor:
    """Which of a predictor's ``outputs`` masks a label reads: its own, or the only one."""
    return torch.zeros_like(labels) if outputs == 1 else labels


def predict_mask_probs(predictor: nn.Module, hidden: Tensor, labels: Tensor, count: Tensor) -> Tensor:
    """Mask probabilities [B, D, 2h, 2w] of each detection's class, zeros in padding; one op without gradients.

    From hidden [B * D, C, h, w], labels [B, D] and count [B].
    """
    if can_replace(predictor, hidden):
        layers: Any = predictor
        deconv, _, last = layers
        weights = deconv.weight, deconv.bias, last.weight.flatten(1), last.bias
        plain: Tensor = class_masks_op(hidden, *weights, index_masks(labels.flatten(), len(last.weight)), count)
        return plain.view(*labels.shape, *plain.shape[1:])
    logits = predict_mask_logits(predictor, hidden, labels.flatten())
    masks = upcast(logits).sigmoid().view(*labels.shape, *logits.shape[1:])
    return masks.masked_fill(~valid_mask(count, labels.shape[1])[:, :, None, None], 0)


def can_replace(predictor: nn.Module, hidden: Tensor) -> bool:
    """Whether ``fastmask::class_masks`` can replace a predictor: unchanged layers, no gradient, no export."""
    if torch.compiler.is_exporting() or not ends_plainly(predictor):
        return False
    layers: Any = predictor
    deconv, relu, last = layers
    plain = is_plain(deconv, nn.ConvTranspose2d) and is_plain(relu, nn.ReLU)
    if not plain or deconv.bias is None or last.bias is None:
        return False
    sizes = deconv.kernel_size, deconv.stride, deconv.padding, deconv.output_padding
    usual = sizes == ((2, 2), (2, 2), (0, 0), (0, 0)) and deconv.groups == 1
    parameters = (deconv.weight, deconv.bias, last.weight, last.bias)
    same = all(parameter.dtype == hidden.dtype for parameter in parameters)
    gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (hidden, *parameters))
    return bool(usual and same) and not gradient and not is_autocast(hidden)


def ends_plainly(predictor: nn.Module) -> bool:
    """Whether a predictor is a MaskRCNNPredictor whose last layer is a plain 1x1 convolution."""
    if not is_plain(predictor, MaskRCNNPredictor) or len(predictor) != 3 or not is_plain(predictor[2], nn.Conv2d):
        return False
    last = predictor[2]
    geometry = last.kernel_size, last.stride, last.padding, last.groups
    return geometry == ((1, 1), (1, 1), (0, 0), 1)


def predict_mask_logits(predictor: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    """Mask logits [N, 2h, 2w] of each row's class, from hidden [N, C, h, w] and labels [N]."""
    if not ends_plainly(predictor):  # a user's own: all classes, then the predicted one
        every: Tensor = predictor(hidden)
        labels = index_masks(labels, every.shape[1])
        return every.gather(1, labels[:, None, None, None].expand(-1, 1, *every.shape[2:])).squeeze(1)
    layers: Any = predictor
    deconv, relu, last = layers
    labels = index_masks(labels, len(last.weight))
    up = relu(deconv(hidden))  # [N, D, 2h, 2w]
    weight = last.weight.flatten(1)[labels]  # [N, D]: one dot product a pixel instead of one for every class
    logits = torch.einsum("nd,ndhw->nhw", weight, up)
    return logits if last.bias is None else logits + last.bias[labels, None, None]
