"""Dispatch of ops: to the Triton kernel or the eager fallback."""

import importlib
from collections.abc import Callable

import pytest
import torch
from helpers.inputs import draw_boxes, draw_masks, draw_pyramid, pyramid_scales, with_images

from fastmask.kernels.class_masks import class_masks_op
from fastmask.kernels.decode import decode_boxes_op, decode_levels_op, select_candidates_op
from fastmask.kernels.keypoints import decode_keypoints_op
from fastmask.kernels.launch import HAS_TRITON, INTERPRET, on_device
from fastmask.kernels.nms import nms_padded_op
from fastmask.kernels.paste import paste_masks_op
from fastmask.kernels.preprocess import preprocess_op
from fastmask.kernels.rle import encode_masks_op
from fastmask.kernels.roi_align import multilevel_roi_align_op
from fastmask.kernels.roi_pool import roi_pool_op
from fastmask.kernels.soft_nms import soft_nms_padded_op
from fastmask.kernels.take import scale_boxes_op, take_kept_op
from fastmask.kernels.top_anchors import top_anchors_op
from fastmask.ops.roi_align import level_limits

Run = Callable[[torch.device, torch.dtype], object]
SCALES = pyramid_scales(2)


def roi_align(device: torch.device, dtype: torch.dtype) -> None:
    maps = [feature.to(device, dtype).requires_grad_() for feature in draw_pyramid(2)]
    rois = with_images(draw_boxes(3), 2).to(device)
    multilevel_roi_align_op(maps, rois, SCALES, level_limits(SCALES, 224, 4), 2, 2, 2, False).sum().backward()


def roi_pool(device: torch.device, dtype: torch.dtype) -> None:
    features = torch.randn(2, 4, 25, 38, device=device, dtype=dtype, requires_grad=True)
    roi_pool_op(features, with_images(draw_boxes(2, (25, 38), 20), 2).to(device), 1.0, 3, 2)[0].sum().backward()


def nms(device: torch.device, dtype: torch.dtype) -> None:
    nms_padded_op(draw_boxes(9)[None].to(device, dtype), torch.rand(1, 9, device=device), None, None, 0.5, 9)


def soft_nms(device: torch.device, dtype: torch.dtype) -> None:
    scores = torch.rand(1, 9, device=device)
    soft_nms_padded_op(draw_boxes(9)[None].to(device, dtype), scores, None, None, 0.3, 0.5, True, 0.001, 9)


def paste(device: torch.device, dtype: torch.dtype) -> None:
    masks = draw_masks(2, 5).to(device, dtype).requires_grad_()
    boxes = draw_boxes(2, (20, 30), 20).to(device)
    paste_masks_op(masks, boxes, 20, 30, "float", 0.5, False, False, 1).sum().backward()


def rle(device: torch.device, dtype: torch.dtype) -> None:
    boxes, sizes = draw_boxes(2, (20, 30), 20).to(device), torch.tensor([[20, 30]] * 2, device=device)
    encode_masks_op(draw_masks(2).to(device, dtype), boxes, sizes, 100, 0.5, False, False, 1)


def decode(device: torch.device, dtype: torch.dtype) -> None:
    boxes, scores = draw_boxes(9)[None].to(device, dtype), torch.rand(1, 9, device=device)
    sizes = torch.tensor([[20, 30]], device=device)
    decode_boxes_op(boxes, boxes.clone(), sizes, scores, None, [1.0, 1.0, 1.0, 1.0], 4.0, 0.01, 0.5, False)


def decode_levels(device: torch.device, dtype: torch.dtype) -> None:
    deltas = [torch.randn(1, 12, 2, 3, device=device).to(dtype)]
    index, sizes = torch.zeros(1, 4, dtype=torch.int64, device=device), torch.tensor([[20, 30]], device=device)
    logits, anchors = torch.rand(1, 4, device=device).to(dtype), draw_boxes(18).to(device)
    decode_levels_op(logits, index, [4], deltas, anchors, sizes, [1.0, 1.0, 1.0, 1.0], 4.0, 0.01, 0.5)


def select_candidates(device: torch.device, dtype: torch.dtype) -> None:
    boxes, count = draw_boxes(2)[None].to(device), torch.tensor([2], device=device)
    logits, deltas = (torch.randn(shape, device=device).to(dtype) for shape in ((2, 3), (2, 3, 4)))
    sizes = torch.tensor([[20, 30]], device=device)
    select_candidates_op(logits, deltas, boxes, sizes, count, 2, [1.0, 1.0, 1.0, 1.0], 4.0, 0.01, 0.5)


def take_kept(device: torch.device, dtype: torch.dtype) -> None:
    boxes, kept = draw_boxes(3)[None].to(device, dtype), torch.tensor([[2, -1]], device=device)
    take_kept_op(kept, boxes, boxes[..., 0], kept.new_zeros(1, 3))


def scale_boxes(device: torch.device, dtype: torch.dtype) -> None:
    sizes = torch.tensor([[20, 30]], device=device)
    scale_boxes_op(draw_boxes(3)[None].to(device, dtype), 2 * sizes, sizes)


def top_anchors(device: torch.device, dtype: torch.dtype) -> None:
    top_anchors_op([torch.randn(1, 3, 4, 5, device=device, dtype=dtype)], 9)


def class_masks(device: torch.device, dtype: torch.dtype) -> None:
    shapes = ((2, 8, 12, 11), (8, 8, 2, 2), (8,), (3, 8), (3,))
    tensors = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
    class_masks_op(*tensors, torch.tensor([0, 1], device=device), torch.tensor([2], device=device))


def decode_keypoints(device: torch.device, dtype: torch.dtype) -> None:
    decode_keypoints_op(torch.randn(1, 2, 5, 6, device=device).to(dtype), draw_boxes(1).to(device, dtype), 2000, 2000)


def preprocess(device: torch.device, dtype: torch.dtype) -> None:
    """The kernel runs for every type of the buffer; images of float64 become float32."""
    pixels, values = torch.empty(1, 3, 9, 9, device=device, dtype=dtype), torch.ones(3, device=device)
    preprocess_op([torch.rand(3, 4, 5, device=device).to(dtype)], [8], [9], values, values, pixels)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is for Linux only: elsewhere there is one path")
@pytest.mark.parametrize(
    ("run", "launchers"),
    [
        (roi_align, ["triton.roi_align", "triton.roi_align_backward"]),
        (roi_pool, ["triton.roi_pool", "triton.roi_pool"]),
        (nms, ["triton.nms"]),
        (soft_nms, ["triton.soft_nms"]),
        (paste, ["triton.paste", "triton.paste_backward"]),
        (rle, ["triton.rle"]),
        (decode, ["triton.decode"]),
        (decode_levels, ["triton.decode_levels"]),
        (select_candidates, ["triton.candidates"]),
        (take_kept, ["triton.take"]),
        (scale_boxes, ["triton.take"]),
        (top_anchors, ["triton.top_anchors"]),
        (class_masks, ["triton.class_masks"]),
        (decode_keypoints, ["triton.keypoints"]),
        (preprocess, ["triton.preprocess"]),
    ],
    ids=[
        "RoIAlign",
        "RoIPool",
        "NMS",
        "soft-NMS",
        "paste",
        "RLE",
        "decode",
        "levels",
        "candidates",
        "kept",
        "scaled",
        "top anchors",
        "masks",
        "keypoints",
        "pixels",
    ],
)
def test_the_kernel_is_what_runs(
    run: Run, launchers: list[str], monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """On CUDA tensors, and on CPU tensors in the interpreter, forward and backward; float64 falls back."""
    launched: list[str] = []
    for name in set(launchers):
        module = importlib.import_module(f"fastmask.kernels.{name}")
        monkeypatch.setattr(module, "on_device", lambda t, name=name: launched.append(name) or on_device(t))
    run(device, torch.float32)
    assert launched == (launchers if device.type == "cuda" or INTERPRET else [])
    launched.clear()
    run(device, torch.float64)
    assert launched == (launchers if run is preprocess and (device.type == "cuda" or INTERPRET) else [])
