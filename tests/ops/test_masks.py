"""Mask functions: pasting is bitwise torchvision's or detectron2's algorithm, and RLE dicts are pycocotools'."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.inputs import FLOATS, adversarial_boxes, draw_boxes, draw_masks
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image as torchvision_paste

from fastmask import ops
from fastmask.cocoapi import mask as coco

SIZE = (120, 170)


def inside_boxes(num: int) -> Tensor:
    """Boxes clipped to the image, as torchvision's models paste them."""
    return ops.clip_boxes_to_image(draw_boxes(num, SIZE, 120), SIZE)


@pytest.mark.parametrize("padding", [0, 1, 3], ids="padding{}".format)
@pytest.mark.parametrize("num", [0, 1, 40], ids="N{}".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_paste_is_torchvisions_bitwise(dtype: torch.dtype, num: int, padding: int) -> None:
    masks, boxes = draw_masks(num)[:, None].to(dtype), inside_boxes(num).to(dtype)
    actual = ops.paste_masks_in_image(masks, boxes, SIZE, padding)
    assert torch.equal(actual, torchvision_paste(masks, boxes, SIZE, padding))


def test_paste_is_torchvisions_bitwise_on_degenerate_boxes() -> None:
    """Boxes without area, of the whole image and beyond it; torchvision raises for boxes outside the image."""
    boxes = adversarial_boxes(SIZE)[[0, 1, 2, 3, 4, 7, 10, 11, 12]]
    masks = draw_masks(len(boxes))[:, None]
    assert torch.equal(ops.paste_masks_in_image(masks, boxes, SIZE), torchvision_paste(masks, boxes, SIZE))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_paste_dtypes(dtype: torch.dtype) -> None:
    masks, boxes = draw_masks(9)[:, None].to(dtype), inside_boxes(9)
    actual = ops.paste_masks_in_image(masks, boxes, SIZE)
    assert actual.dtype == dtype
    expected = torchvision_paste(masks.double(), boxes, SIZE)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-4 + torch.finfo(dtype).eps)


def test_paste_gradient_is_torchvisions() -> None:
    masks, boxes = draw_masks(5)[:, None].double(), inside_boxes(5).double()
    grads = []
    for paste in (ops.paste_masks_in_image, torchvision_paste):
        leaf = masks.clone().requires_grad_()
        (paste(leaf, boxes, SIZE) ** 2).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


def detectron2_paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The algorithm of detectron2/layers/mask_ops.py: grid_sample at pixel centers, in float64 -> [N, H, W]."""
    height, width = size
    x0, y0, x1, y1 = (corner[:, None] for corner in boxes.double().unbind(1))
    y = (torch.arange(height).double() + 0.5 - y0) / (y1 - y0) * 2 - 1  # [N, H]
    x = (torch.arange(width).double() + 0.5 - x0) / (x1 - x0) * 2 - 1  # [N, W]
    grid = torch.stack([x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], 3)
    return F.grid_sample(masks.double()[:, None], grid, align_corners=False)[:, 0]


def test_continuous_mode_is_detectron2s() -> None:
    masks, boxes = draw_masks(30), draw_boxes(30, SIZE, 120)
    expected = detectron2_paste(masks, boxes, SIZE)
    values = ops.paste_masks(masks, boxes, SIZE, mode="continuous", output="float")
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=1e-5)
    clear = (expected - 0.5).abs() > 1e-5  # the boundary band of the threshold
    actual = ops.paste_masks(masks, boxes, SIZE, mode="continuous")
    assert torch.equal(actual[clear], (expected >= 0.5)[clear])


@pytest.mark.parametrize("mode", ["torchvision", "continuous"])
def test_outputs_agree(mode: str) -> None:
    masks, boxes = draw_masks(20), torch.cat([draw_boxes(10, SIZE), adversarial_boxes(SIZE)[:10]])
    logits = masks.logit(1e-4)
    inside = ops.paste_masks(masks, boxes, SIZE, mode=mode, threshold=0.3)
    values = ops.paste_masks(masks[:, None], boxes, SIZE, mode=mode, output="float")
    assert torch.equal(inside, values >= 0.3 if mode == "continuous" else values > 0.3)
    packed = ops.paste_masks(masks, boxes, SIZE, mode=mode, threshold=0.3, output="packed").numpy()
    assert np.array_equal(np.unpackbits(packed, axis=-1, count=SIZE[1]).astype(bool), inside.numpy())
    from_logits = ops.paste_masks(logits, boxes, SIZE, mode=mode, output="float", logits=True)
    torch.testing.assert_close(from_logits, values, rtol=0, atol=2e-4)
    encoded = ops.encode_masks(masks, boxes, SIZE, mode=mode, threshold=0.3)
    assert encoded == [coco.encode(np.asfortranarray(mask.numpy().view(np.uint8))) for mask in inside]


def test_encode_masks_is_torchvisions_paste_then_pycocotools() -> None:
    masks, boxes = draw_masks(30), inside_boxes(30)
    pasted = torchvision_paste(masks[:, None], boxes, SIZE)[:, 0] > 0.5
    expected = [coco.encode(np.asfortranarray(mask.numpy().view(np.uint8))) for mask in pasted]
    encoded = ops.encode_masks(masks, boxes, SIZE)
    assert encoded == expected
    assert coco.area(encoded).tolist() == pasted.sum((1, 2)).tolist()
    assert ops.encode_masks(masks[:0], boxes[:0], SIZE) == []


def test_encode_masks_of_several_image_sizes() -> None:
    masks, boxes = draw_masks(3), inside_boxes(3)
    sizes = [(120, 170), (60, 200), (300, 40)]
    together = ops.encode_masks(masks, boxes, torch.tensor(sizes))
    alone = [ops.encode_masks(masks[i : i + 1], boxes[i : i + 1], size)[0] for i, size in enumerate(sizes)]
    assert together == alone
    assert [rle["size"] for rle in together] == [list(size) for size in sizes]


def test_encode_masks_that_need_more_room() -> None:
    """Noise over a tall image takes more bytes than usual masks."""
    masks, boxes = torch.rand(2, 28, 28), torch.tensor([[0.0, 0, 300, 2000]] * 2)
    encoded = ops.encode_masks(masks, boxes, (2000, 300), threshold=0.5)
    assert min(len(rle["counts"]) for rle in encoded) > ops.masks.CAPACITY
    inside = ops.paste_masks(masks, boxes, (2000, 300))
    assert encoded == [coco.encode(np.asfortranarray(mask.numpy().view(np.uint8))) for mask in inside]
