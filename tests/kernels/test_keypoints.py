"""fastmask::decode_keypoints against its specification: shapes, boxes, ties, values that are not finite; its search."""

import pytest
import torch
from helpers.inputs import FLOATS, INF, NAN
from torch import Tensor

from fastmask.kernels import reference_layers
from fastmask.kernels.fallback import keypoints as keypoints_fallback
from fastmask.kernels.keypoints import decode_keypoints_op
from fastmask.kernels.launch import INTERPRET

LIMITS = (300, 300)  # of boxes' height and width
SHAPES = {  # detections, keypoints, heatmaps' height and width
    "usual": (2, 2, 56, 56),
    "five": (5, 2, 20, 24),
    "small": (3, 2, 3, 4),
    "narrow": (4, 1, 2, 7),
    "none": (0, 17, 56, 56),
}
SIDES = {  # of boxes, in pixels
    "larger": (57.0, 200.0),
    "smaller": (1.5, 55.0),
    "a pixel": (0.0, 1.0),
}


def draw(shape: str, sides: str = "larger", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Heatmaps that a bilinear upsampling made smooth, as a predictor's, but for noise; boxes in float32 at least."""
    number, points, height, width = SHAPES[shape]
    coarse = torch.randn(max(number, 1), points, -(-height // 2), -(-width // 2)) * 3
    heatmaps = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[:number]
    heatmaps = heatmaps + 0.3 * torch.randn_like(heatmaps)  # no plateau, whose maximum is anywhere
    least, most = SIDES[sides]
    low = torch.rand(number, 2) * 60
    boxes = torch.cat((low, low + least + torch.rand(number, 2) * (most - least)), 1)
    return heatmaps.to(dtype), boxes.to(torch.promote_types(dtype, torch.float32))


def check(device: torch.device, heatmaps: Tensor, boxes: Tensor, limits: tuple[int, int] = LIMITS) -> None:
    """Exact in float64. In float32 a sample that is chosen is the largest one but for rounding."""
    keypoints, scores = (each.cpu() for each in decode_keypoints_op(heatmaps.to(device), boxes.to(device), *limits))
    wanted_keypoints, wanted_scores = reference_layers.decode_keypoints(heatmaps, boxes, *limits)
    wide = torch.promote_types(heatmaps.dtype, torch.float32)
    assert keypoints.dtype == scores.dtype == wide
    exact = wide == torch.float64
    scale = float(heatmaps[heatmaps.isfinite()].abs().max()) if heatmaps.numel() else 0.0
    tolerance = 1e-12 if exact else 3e-6
    torch.testing.assert_close(scores.double(), wanted_scores, rtol=0, atol=tolerance * scale, equal_nan=True)
    if exact:
        torch.testing.assert_close(keypoints, wanted_keypoints, rtol=0, atol=1e-9)
        return
    for n, box in enumerate(boxes.double()):
        sides = (box[2:] - box[:2]).clamp(min=1)
        width, height = sides.ceil().long().tolist()
        x, y = ((keypoints[n, :, :2] - box[:2]) / sides * sides.ceil() - 0.5).round().long().unbind(1)
        resized = torch.nn.functional.interpolate(heatmaps[n, None].double(), (height, width), mode="bicubic")[0]
        chosen = resized[torch.arange(len(x)), y, x]
        torch.testing.assert_close(chosen, resized.amax((1, 2)), rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_meets_the_specification(dtype: torch.dtype, shape: str, sides: str, device: torch.device) -> None:
    check(device, *draw(shape, sides, dtype))


def test_any_layout(device: torch.device) -> None:
    heatmaps, boxes = (each.to(device) for each in draw("usual"))
    expected = decode_keypoints_op(heatmaps, boxes, *LIMITS)
    last = heatmaps.contiguous(memory_format=torch.channels_last)
    strided = torch.stack((boxes, boxes), 2)[..., 0]
    for actual, wanted in zip(decode_keypoints_op(last, strided, *LIMITS), expected, strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
def test_heatmaps_that_are_not_finite(value: float, device: torch.device) -> None:
    """NaN is the largest, as in argmax; infinity next to a weight that is negative makes some.

    Sides are odd, so that no sample lies on a pixel of heatmaps of even sides: the last bit of its place would decide
    whether a weight is 0, and 0 times infinity NaN.
    """
    heatmaps, boxes = draw("five", dtype=torch.float64)
    boxes[:, 2:] = boxes[:, :2] + ((boxes[:, 2:] - boxes[:, :2]) / 2).floor() * 2 + 0.5
    heatmaps[0, 0, 7, 9] = value
    heatmaps[1, 1, 0, 0] = value
    heatmaps[2, 0, 19] = value
    heatmaps[3] = value
    check(device, heatmaps, boxes)
    if value != value:
        assert decode_keypoints_op(heatmaps, boxes, *LIMITS)[1].isnan().sum() == 5


def test_first_of_equal_samples(device: torch.device) -> None:
    """In rows; a box as large as the heatmap has its pixels for samples."""
    heatmaps = torch.zeros(3, 2, 8, 8)
    heatmaps[1, 0, 3, 4] = heatmaps[1, 0, 3, 7] = heatmaps[1, 0, 5, 2] = 1
    heatmaps[1, 1, 6, 2] = heatmaps[1, 1, 6, 5] = heatmaps[1, 1, 7, 0] = 1
    boxes = torch.tensor([[10.0, 20, 30, 29], [0, 0, 8, 8], [5, 5, 9, 9]])
    keypoints, scores = decode_keypoints_op(heatmaps.to(device), boxes.to(device), *LIMITS)
    expected = [[[10.5, 20.5]] * 2, [[4.5, 3.5], [2.5, 6.5]], [[5.5, 5.5]] * 2]
    assert keypoints[..., :2].tolist() == expected
    assert scores.tolist() == [[0, 0], [1, 1], [0, 0]]


def test_boxes_that_give_zeros(device: torch.device) -> None:
    """NaN, infinity, and sides above the limits when they are rounded up; a box inside out has sides of one pixel."""
    heatmaps, _ = draw("five")
    boxes = torch.tensor([[0.0, 0, NAN, 9], [0, -INF, 9, 9], [0, 0, 100.1, 9], [0, 0, 9, 50.5], [9, 9, 3, 3]])
    keypoints, scores = decode_keypoints_op(heatmaps.to(device), boxes.to(device), 50, 100)
    assert not keypoints[:4].any()
    assert not scores[:4].any()
    assert keypoints[4].tolist() == [[9.5, 9.5, 1.0]] * 2


def test_many_heatmaps_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = decode_keypoints_op(*(inputs := draw("usual")), *LIMITS)
    monkeypatch.setattr(keypoints_fallback, "MOST_VALUES", 8000)
    actual = keypoints_fallback.decode_keypoints(*inputs, *LIMITS)
    if not INTERPRET:
        assert all(map(torch.equal, actual, expected))


def test_few_samples_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a heatmap with one peak, those of a few cells out of 57 x 57."""
    cells = []
    original = keypoints_fallback.sample_cells
    monkeypatch.setattr(
        keypoints_fallback,
        "sample_cells",
        lambda maps, part, *rest: (cells.append(part), original(maps, part, *rest))[1],
    )
    place = torch.arange(56.0)
    away = (place - 20.3) ** 2 + (place[:, None] - 31.8) ** 2
    keypoints, _ = keypoints_fallback.decode_keypoints(
        10 * torch.exp(-away / 8)[None, None], torch.tensor([[0.0, 0, 224, 112]]), *LIMITS
    )
    torch.testing.assert_close(keypoints[0, 0], torch.tensor([83.5, 64.5, 1]), rtol=0, atol=1.01)
    assert sum(map(len, cells)) < 20


def test_opcheck(device: torch.device) -> None:
    heatmaps, boxes = (each.to(device) for each in draw("narrow"))
    torch.library.opcheck(decode_keypoints_op, (heatmaps, boxes, *LIMITS))
