"""Non-maximum suppression and box operations against torchvision."""

import pytest
import torch
import torchvision
import torchvision.ops as tv
from helpers.inputs import NAN, adversarial_boxes, draw_boxes
from torch import Tensor

from fastmask import ops

ROTATED_IOU = tuple(int(part) for part in torchvision.__version__.split(".")[:2]) >= (0, 27)  # torchvision's own
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]


def boxes_of(num: int, dtype: torch.dtype) -> Tensor:
    boxes = draw_boxes(num)
    return (boxes if dtype.is_floating_point else boxes.round()).to(dtype)


@pytest.mark.parametrize("num", [0, 1, 63, 64, 65, 500], ids="N{}".format)
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0], ids="iou{}".format)
def test_nms(num: int, threshold: float) -> None:
    boxes, scores = draw_boxes(num, largest=80), torch.rand(num)
    assert torch.equal(ops.nms(boxes, scores, threshold), tv.nms(boxes, scores, threshold))


def test_nms_ties_and_special_values() -> None:
    """torchvision's CPU kernel sorts stably too, so equal scores and NaN come out in the same order."""
    boxes = torch.cat([adversarial_boxes(), draw_boxes(8, largest=40)[torch.randint(8, (200,))], adversarial_boxes()])
    scores = torch.randint(4, (len(boxes),)).float()
    scores[::9], scores[1::9], scores[2::9] = NAN, float("inf"), float("-inf")
    for threshold in (0.0, 0.5, 1.0):
        assert torch.equal(ops.nms(boxes, scores, threshold), tv.nms(boxes, scores, threshold))


@pytest.mark.parametrize("iou", [(3, 5), (3, 10), (1, 5), (4, 5), (1, 10), (2, 5)], ids="{0[0]}/{0[1]}".format)
def test_nms_at_exact_fractions(iou: tuple[int, int]) -> None:
    part, whole = iou
    boxes = torch.tensor([[0.0, 0, whole, 1], [0, 0, part, 1]])
    scores, threshold = torch.tensor([0.9, 0.8]), part / whole
    kept = ops.nms(boxes, scores, threshold)
    assert kept.tolist() == [0]
    assert torch.equal(kept, tv.nms(boxes, scores, threshold))


def away_from_threshold(boxes: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Whether boxes are outside the boundary band: no other of their group has an IoU within 1e-4 of the threshold."""
    iou = tv.box_iou(boxes.double(), boxes.double())
    near = ((iou - threshold).abs() < 1e-4) & (groups[:, None] == groups)
    return ~near.any(1)


@pytest.mark.parametrize("num", [0, 1, 300, 1200], ids="N{}".format)  # torchvision changes its algorithm at 1000
@pytest.mark.parametrize("clustered", [False, True], ids=["random", "clustered"])
def test_batched_nms(num: int, clustered: bool) -> None:
    boxes = draw_boxes(num, largest=80)
    if clustered and num:
        boxes = draw_boxes(20, largest=80)[torch.randint(20, (num,))] + torch.randn(num, 4)
    scores, groups = torch.rand(num), torch.randint(-2, 5, (num,))
    clear = away_from_threshold(boxes, groups, 0.5)
    boxes, scores, groups = boxes[clear], scores[clear], groups[clear]
    actual, expected = (module.batched_nms(boxes, scores, groups, 0.5) for module in (ops, tv))
    assert set(actual.tolist()) == set(expected.tolist())
    assert torch.equal(scores[actual], scores[expected])


def test_batched_nms_takes_any_category_type() -> None:
    boxes, scores, groups = draw_boxes(200, largest=80), torch.rand(200), torch.randint(-3, 4, (200,))
    expected = ops.batched_nms(boxes, scores, groups, 0.5)
    for dtype in (torch.int8, torch.int32, torch.float16, torch.float32, torch.float64):
        assert torch.equal(ops.batched_nms(boxes, scores, groups.to(dtype), 0.5), expected)
    negative_zero = torch.where(groups == 0, -0.0, groups.float())
    negative_zero[::2] = groups[::2].float()
    assert torch.equal(ops.batched_nms(boxes, scores, negative_zero, 0.5), expected)
    halves = ops.batched_nms(boxes, scores, groups / 2, 0.5)  # 0.5 and 0 are two categories
    assert torch.equal(halves, expected)


def test_nms_padded_is_nms_of_each_image() -> None:
    boxes, scores = torch.stack([draw_boxes(100, largest=80) for _ in range(3)]), torch.rand(3, 100)
    groups, valid = torch.randint(3, (3, 100)).int(), torch.rand(3, 100) < 0.8
    indices, count = ops.nms_padded(boxes, scores, groups, valid, iou_threshold=0.4)
    assert indices.shape == (3, 100)
    for b in range(3):
        rows = valid[b].nonzero().squeeze(1)
        expected = rows[ops.batched_nms(boxes[b, rows], scores[b, rows], groups[b, rows], 0.4)]
        assert torch.equal(indices[b, : count[b]], expected)
        assert (indices[b, count[b] :] == -1).all()


def test_nms_takes_no_gradient() -> None:
    boxes, scores = draw_boxes(20).requires_grad_(), torch.rand(20, requires_grad=True)
    assert not ops.nms(boxes, scores, 0.5).requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [(), (3,)], ids=["one set", "batch"])
def test_pairwise(dtype: torch.dtype, batch: tuple[int, ...]) -> None:
    a, b = (boxes_of(n, dtype).expand(*batch, n, 4) for n in (7, 5))
    for name in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"):
        actual, expected = (getattr(module, name)(a, b) for module in (ops, tv))
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, equal_nan=True)  # two without an area
    for fmt in ("xywh", "cxcywh"):
        actual, expected = (module.box_iou(a, b, fmt) for module in (ops, tv))
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_pairwise_adversarial_and_empty() -> None:
    boxes = adversarial_boxes().double()
    for name in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"):
        for a, b in ((boxes, boxes), (boxes[:0], boxes), (boxes, boxes[:0])):
            actual, expected = (getattr(module, name)(a, b) for module in (ops, tv))
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_area_clip_and_small(dtype: torch.dtype) -> None:
    boxes = boxes_of(50, dtype)
    for fmt in ("xyxy", "xywh", "cxcywh"):
        assert torch.equal(ops.box_area(boxes, fmt), tv.box_area(boxes, fmt))
    assert torch.equal(ops.clip_boxes_to_image(boxes, (90, 120)), tv.clip_boxes_to_image(boxes, (90, 120)))
    for size in (0, 3, 20.5):
        assert torch.equal(ops.remove_small_boxes(boxes, size), tv.remove_small_boxes(boxes, size))


def test_clip_and_small_adversarial() -> None:
    boxes = adversarial_boxes()
    clipped = ops.clip_boxes_to_image(boxes.view(2, -1, 4), (90, 120))
    expected = tv.clip_boxes_to_image(boxes.view(2, -1, 4), (90, 120))
    torch.testing.assert_close(clipped, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(ops.remove_small_boxes(boxes, 1.0), tv.remove_small_boxes(boxes, 1.0))


AXIS_ALIGNED = ("xyxy", "xywh", "cxcywh")
ROTATED = ("xywhr", "cxcywhr", "xyxyxyxy")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int64], ids=str)
@pytest.mark.parametrize("formats", [AXIS_ALIGNED, ROTATED], ids=["axis-aligned", "rotated"])
def test_box_convert(formats: tuple[str, ...], dtype: torch.dtype) -> None:
    for in_fmt in formats:
        sides = {"xyxyxyxy": 8, "xywhr": 5, "cxcywhr": 5}.get(in_fmt, 4)
        boxes = (torch.rand(2, 9, sides) * 100).to(dtype)
        for out_fmt in formats:
            actual, expected = (module.box_convert(boxes, in_fmt, out_fmt) for module in (ops, tv))
            tolerance = 1e-5 if dtype != torch.float16 else 5e-3  # a few roundings of coordinates of about 100
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=100 * tolerance)
            assert actual.data_ptr() != boxes.data_ptr()


def test_box_convert_refuses_what_torchvision_does() -> None:
    with pytest.raises(ValueError, match=r"in_fmt must be one of xyxy, .*, got 'yxyx'"):
        ops.box_convert(torch.zeros(1, 4), "yxyx", "xyxy")
    with pytest.raises(NotImplementedError, match="from xyxy to xywhr"):
        ops.box_convert(torch.zeros(1, 4), "xyxy", "xywhr")


def rotated_boxes(num: int, far: float = 0.0) -> Tensor:
    """(cx, cy, w, h, degrees) near each other, ``far`` pixels from the origin."""
    place = torch.rand(num, 2, dtype=torch.float64) * 30 + far
    sides = 1 + torch.rand(num, 2, dtype=torch.float64) * 30
    return torch.cat([place, sides, torch.rand(num, 1, dtype=torch.float64) * 720 - 360], 1)


def sampled_iou(a: Tensor, b: Tensor, side: int = 1500) -> float:
    """IoU of two rotated boxes by counting sample points: a reference that shares nothing with polygon clipping."""
    y, x = torch.meshgrid(torch.linspace(-30, 80, side), torch.linspace(-30, 80, side), indexing="ij")
    inside = []
    for cx, cy, w, h, degrees in (a.tolist(), b.tolist()):
        cos, sin = (f(torch.deg2rad(torch.tensor(degrees))) for f in (torch.cos, torch.sin))
        along, down = (x - cx) * cos - (y - cy) * sin, (x - cx) * sin + (y - cy) * cos
        inside.append((along.abs() <= w / 2) & (down.abs() <= h / 2))
    return float((inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum())


def test_rotated_iou_is_the_sampled_one() -> None:
    boxes = rotated_boxes(4)
    iou = ops.box_iou(boxes, boxes, "cxcywhr")
    for i in range(4):
        assert iou[i, i] == pytest.approx(1)
        for j in range(i):
            assert iou[i, j] == pytest.approx(sampled_iou(boxes[i], boxes[j]), abs=5e-3)


@pytest.mark.parametrize("fmt", ROTATED)
@pytest.mark.parametrize("far", [0.0, 1e4, 1e6], ids="{:g}px".format)
def test_rotated_iou_far_from_the_origin(fmt: str, far: float) -> None:
    """float32 loses no more than its coordinates' own rounding."""
    a, b = (tv.box_convert(rotated_boxes(n, far), "cxcywhr", fmt).float() for n in (40, 30))
    expected = ops.box_iou(a.double(), b.double(), fmt)
    torch.testing.assert_close(ops.box_iou(a, b, fmt).double(), expected, rtol=0, atol=max(1e-4, 3e-7 * far))


@pytest.mark.skipif(not ROTATED_IOU, reason="this torchvision has no rotated IoU to compare with")
@pytest.mark.parametrize("fmt", ROTATED)
def test_rotated_iou_is_torchvisions(fmt: str) -> None:
    """Almost all pairs match: torchvision is off by up to 0.13 for a few whose edges nearly coincide."""
    a, b = (tv.box_convert(rotated_boxes(n), "cxcywhr", fmt).float() for n in (40, 30))
    equal = (ops.box_iou(a, b, fmt) - tv.box_iou(a, b, fmt)).abs() < 2e-3
    assert equal.sum() >= equal.numel() - 5


def test_rotated_iou_without_area() -> None:
    point = torch.tensor([[5.0, 5, 0, 0, 30]])
    box = torch.tensor([[5.0, 5, 10, 4, 30]])
    assert ops.box_iou(torch.cat([point, box]), torch.cat([point, box]), "cxcywhr").tolist() == [[0, 0], [0, 1]]
    assert ops.box_iou(point[:0], box, "cxcywhr").shape == (0, 1)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32], ids=str)
def test_masks_to_boxes(dtype: torch.dtype) -> None:
    masks = torch.zeros(6, 20, 30)
    masks[0, 3:9, 4:11] = masks[1, 5, 7] = masks[2, 0, :] = masks[3, :, 29] = masks[5] = 1
    actual, expected = (module.masks_to_boxes(masks.to(dtype)) for module in (ops, tv))
    assert torch.equal(actual, expected)
    assert ops.masks_to_boxes(masks[:0]).shape == (0, 4)


def test_masks_to_boxes_keeps_masks_without_pixels() -> None:
    """torchvision loses the number of masks here."""
    assert torch.equal(ops.masks_to_boxes(torch.zeros(3, 0, 5)), torch.zeros(3, 4))
