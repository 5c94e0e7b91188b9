"""The number of channels of the images that a model takes: three of RGB, or any other."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastmask.checks import ArgumentError, check_shape
from fastmask.models._plain import is_untouched
from fastmask.models._utils import IntermediateLayerGetter
from fastmask.models.detection._c4_backbone import C4Backbone
from fastmask.models.detection.backbone_utils import BackboneWithFPN
from fastmask.models.fused import FusedConv2d


def count_channels(model: Any) -> int:
    """The number of channels of a model's images: that of ``image_mean``, or of one value the backbone's.

    Raises:
        ArgumentError: the transform and the backbone, as far as it is known, do not fit.
    """
    values = count_values(model.transform.image_mean, model.transform.image_std)
    stem = stem_channels(model.backbone)
    if stem is None or values == stem:
        return values
    if values == 1:  # for all channels
        return stem
    raise ArgumentError(f"image_mean must have a value for each of the backbone's {stem} channels, got {values}")


def count_values(mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> int:
    """The number of channels that a mean and a standard deviation are of; one value may be for all."""
    if len(mean) != len(std) and 1 not in (len(mean), len(std)):
        raise ArgumentError(f"image_std must have as many values as image_mean ({len(mean)}), got {len(std)}")
    return max(len(mean), len(std))


def stem_channels(backbone: nn.Module) -> int | None:
    """Input channels of a backbone that begins with a convolution; None of any other, and where a hook may add some."""
    ours = type(backbone) in (BackboneWithFPN, C4Backbone) and is_untouched(backbone)
    module: nn.Module = backbone.body if ours else backbone  # type: ignore[assignment]
    while is_untouched(module) and len(module._modules):
        if type(module).forward not in (nn.Sequential.forward, IntermediateLayerGetter.forward):
            return None
        module = next(iter(module.children()))
    known = type(module).forward is nn.Conv2d.forward or isinstance(module, FusedConv2d)
    return module.in_channels if known and is_untouched(module) else None  # type: ignore[return-value]


def check_pixels(pixels: Tensor, model: Any) -> None:
    """Raise an ArgumentError unless a batch [B, C, H, W] has as many channels as the model's backbone takes."""
    check_shape("pixels", pixels, "B", "C", "H", "W")
    stem = stem_channels(model.backbone)
    if stem is not None and pixels.shape[1] != stem:
        count_channels(model)
        raise ArgumentError(f"images must have {stem} channels, as the backbone's convolution, got {pixels.shape[1]}")
