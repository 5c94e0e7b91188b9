"""Layers of detection backbones; torchvision.ops.misc's names and state-dict keys."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fastmask.checks import NotScriptable, attribute_error


class FrozenBatchNorm2d(NotScriptable, nn.Module):
    """BatchNorm2d whose statistics and affine parameters are buffers: nothing in it is trained.

    Args:
        num_features: channels C of the input [N, C, H, W].
        eps: added to the variance.

    Source: torchvision/ops/misc.py.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # a trained BatchNorm2d's checkpoint has it
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.weight.shape[0]}, eps={self.eps})"


class Conv2dNormActivation(NotScriptable, nn.Sequential):
    """Convolution, then norm, then activation, each of the last two if given.

    Args:
        in_channels, out_channels, kernel_size, stride, groups, dilation: see :class:`torch.nn.Conv2d`.
        padding: None keeps the size at stride 1: ``(kernel_size - 1) // 2 * dilation`` per axis.
        norm_layer: called with ``out_channels``.
        activation_layer: called with ``inplace`` unless that is None.
        bias: whether the convolution has a bias; None: only without a norm.

    Source: torchvision/ops/misc.py.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str | None = None,
        groups: int = 1,
        norm_layer: Callable[..., nn.Module] | None = nn.BatchNorm2d,
        activation_layer: Callable[..., nn.Module] | None = nn.ReLU,
        dilation: int | tuple[int, int] = 1,
        inplace: bool | None = True,
        bias: bool | None = None,
    ) -> None:
        if padding is None:
            kernels, dilations = _pair(kernel_size), _pair(dilation)
            padding = ((kernels[0] - 1) // 2 * dilations[0], (kernels[1] - 1) // 2 * dilations[1])
        if bias is None:
            bias = norm_layer is None
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        ]
        if norm_layer is not None:
            layers.append(norm_layer(out_channels))
        if activation_layer is not None:
            layers.append(activation_layer() if inplace is None else activation_layer(inplace=inplace))
        super().__init__(*layers)
        self.out_channels = out_channels


class SqueezeExcitation(NotScriptable, nn.Module):
    """Scale each channel by a gate that two 1x1 convolutions compute from all channels' means (arXiv 1709.01507).

    Means are over the whole map, so that padding around an image counts in them.

    Args:
        input_channels: channels of the input.
        squeeze_channels: channels between the two convolutions.
        activation, scale_activation: called without arguments; after the first convolution and after the second.

    Source: torchvision/ops/misc.py.
    """

    def __init__(
        self,
        input_channels: int,
        squeeze_channels: int,
        activation: Callable[..., nn.Module] = nn.ReLU,
        scale_activation: Callable[..., nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(input_channels, squeeze_channels, 1)
        self.fc2 = nn.Conv2d(squeeze_channels, input_channels, 1)
        self.activation = activation()
        self.scale_activation = scale_activation()

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        return self._scale(input) * input

    def _scale(self, input: Tensor) -> Tensor:  # torchvision's name, which subclasses override
        squeezed = self.activation(self.fc1(self.avgpool(input)))
        gate: Tensor = self.scale_activation(self.fc2(squeezed))
        return gate


def _pair(value: int | Sequence[int]) -> Sequence[int]:
    return (value, value) if isinstance(value, int) else value


def __getattr__(name: str) -> NoReturn:
    raise attribute_error(__name__, name)
