"""Inputs that tests draw: boxes, RoIs, pyramids and masks, ordinary and adversarial."""

import torch
from torch import Tensor

from fastmask.selftest.inputs import (
    INF,
    NAN,
    adversarial_boxes,
    away_from_limits,
    draw_boxes,
    draw_masks,
    draw_pyramid,
    pyramid_scales,
    with_images,
)

__all__ = [
    "FLOATS",
    "HALF",
    "INF",
    "LAYOUTS",
    "NAN",
    "adversarial_boxes",
    "away_from_limits",
    "draw_boxes",
    "draw_masks",
    "draw_pyramid",
    "finite",
    "pyramid_scales",
    "strided",
    "with_images",
]

HALF = (torch.float16, torch.bfloat16)
FLOATS = (torch.float64, torch.float32, *HALF)


def finite(boxes: Tensor) -> Tensor:
    """Those that torchvision's CPU kernels survive (it lists every sample of an adaptive grid): a mask [N]."""
    return (boxes.abs() < 1e4).all(1)


def strided(tensor: Tensor, layout: str) -> Tensor:
    """The same values in other strides."""
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "permuted":  # every axis elsewhere, and every second element of a wider tensor
        wide = tensor.permute(3, 1, 0, 2).repeat_interleave(2, dim=3).contiguous()
        return wide[..., ::2].permute(2, 1, 3, 0)
    if layout == "expanded":  # one image and one channel, seen many times
        return tensor[:1, :1].expand_as(tensor)
    return tensor.contiguous()


LAYOUTS = ("contiguous", "channels_last", "permuted", "expanded")
