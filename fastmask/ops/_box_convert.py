"""Box formats: conversion to and from corners, and between the rotated forms.

Rotated boxes: w and h are the sides, r is in degrees counter-clockwise on the screen (y points down); their
corner (x1, y1) is the one at the top left before the rotation. Source: torchvision/ops/_box_convert.py.
"""

import torch
from torch import Tensor

AXIS_ALIGNED = ("xyxy", "xywh", "cxcywh")
ROTATED = ("xywhr", "cxcywhr", "xyxyxyxy")
COORDINATES = {"xyxy": 4, "xywh": 4, "cxcywh": 4, "xywhr": 5, "cxcywhr": 5, "xyxyxyxy": 8}


def to_corners(boxes: Tensor, fmt: str) -> Tensor:
    """Boxes xywh or cxcywh [..., 4] -> xyxy."""
    a, b, w, h = boxes.unbind(-1)
    if fmt == "xywh":
        return torch.stack((a, b, a + w, b + h), dim=-1)
    return torch.stack((a - 0.5 * w, b - 0.5 * h, a + 0.5 * w, b + 0.5 * h), dim=-1)


def from_corners(boxes: Tensor, fmt: str) -> Tensor:
    """Boxes xyxy [..., 4] -> xywh or cxcywh."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    if fmt == "xywh":
        return torch.stack((x1, y1, x2 - x1, y2 - y1), dim=-1)
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), dim=-1)


def convert_rotated(boxes: Tensor, in_fmt: str, out_fmt: str) -> Tensor:
    """Convert between the rotated formats; integer boxes are rounded after each step, as in torchvision."""
    if in_fmt == "xyxyxyxy":
        boxes = _restore_dtype(boxes, _quad_to_xywhr(boxes))
    elif in_fmt == "cxcywhr":
        boxes = _restore_dtype(boxes, _center_to_corner(boxes))
    if out_fmt == "xyxyxyxy":
        return _restore_dtype(boxes, _xywhr_to_quad(boxes))
    return _restore_dtype(boxes, _corner_to_center(boxes)) if out_fmt == "cxcywhr" else boxes


def _restore_dtype(boxes: Tensor, converted: Tensor) -> Tensor:
    return converted if boxes.is_floating_point() else converted.round().to(boxes.dtype)


def _center_to_corner(boxes: Tensor) -> Tensor:
    """(cx, cy, w, h, r) -> (x1, y1, w, h, r); this order of operations decides integer boxes' ties."""
    cx, cy, w, h, r = boxes.unbind(-1)
    cos, sin = torch.cos(r * torch.pi / 180), torch.sin(r * torch.pi / 180)
    x, y = cx - w / 2 * cos - h / 2 * sin, cy - h / 2 * cos + w / 2 * sin
    return torch.stack((x, y, *(side.to(x.dtype) for side in (w, h, r))), dim=-1)


def _corner_to_center(boxes: Tensor) -> Tensor:
    """(x1, y1, w, h, r) -> (cx, cy, w, h, r)."""
    x, y, w, h, r = boxes.unbind(-1)
    cos, sin = torch.cos(r * torch.pi / 180), torch.sin(r * torch.pi / 180)
    cx, cy = x + w / 2 * cos + h / 2 * sin, y - w / 2 * sin + h / 2 * cos
    return torch.stack((cx, cy, *(side.to(cx.dtype) for side in (w, h, r))), dim=-1)


def _xywhr_to_quad(boxes: Tensor) -> Tensor:
    """(x1, y1, w, h, r) -> the four corners, clockwise from the first."""
    x, y, w, h, r = boxes.unbind(-1)
    cos, sin = torch.cos(r * torch.pi / 180), torch.sin(r * torch.pi / 180)
    along_x, along_y = w * cos, -w * sin
    down_x, down_y = h * sin, h * cos
    corners = (x, y, x + along_x, y + along_y, x + along_x + down_x, y + along_y + down_y, x + down_x, y + down_y)
    return torch.stack([corner.to(cos.dtype) for corner in corners], dim=-1)


def _quad_to_xywhr(boxes: Tensor) -> Tensor:
    x1, y1, x2, y2, x3, y3, _, _ = boxes.unbind(-1)
    angle = torch.atan2(y1 - y2, x2 - x1) * 180 / torch.pi
    w = ((x2 - x1) ** 2 + (y1 - y2) ** 2).sqrt()
    h = ((x3 - x2) ** 2 + (y3 - y2) ** 2).sqrt()
    return torch.stack((x1.to(w.dtype), y1.to(w.dtype), w, h, angle), dim=-1)
