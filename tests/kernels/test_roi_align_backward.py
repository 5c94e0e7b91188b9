"""fastmask::multilevel_roi_align_backward: its tiles, blocks and products; which bins reach a tile; NaN, inf, ties."""

import pytest
import torch
from helpers.inputs import INF, NAN, draw_boxes, with_images
from torch import Tensor

from fastmask.kernels.fallback import roi as roi_fallback
from fastmask.kernels.launch import HAS_TRITON, INTERPRET
from fastmask.kernels.roi_align import multilevel_roi_align_backward_op

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def compare(grad: Tensor, rois: Tensor, device: torch.device, *options: object) -> list[Tensor]:
    """Compare with the eager fallback in float64, relative to the largest sum of gradients."""
    actual = multilevel_roi_align_backward_op(grad.to(device), rois.to(device), *options)
    expected = roi_fallback.multilevel_roi_align_backward(grad.double(), rois.double(), *options)
    for one, other in zip(actual, expected, strict=True):
        largest = max(float(other.abs().nan_to_num(0, 0, 0).max()) if other.numel() else 0.0, 1.0)
        tolerance = TOLERANCE[grad.dtype]
        torch.testing.assert_close(one.double().cpu(), other, rtol=tolerance, atol=tolerance * largest, equal_nan=True)
    return actual


@pytest.fixture(params=[True, False], ids=["counted", "sorted"])
def counted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """RoIs are counted, as so few are, or sorted."""
    if HAS_TRITON and not request.param:
        from fastmask.kernels.triton import roi_bins as roi_bins_triton

        monkeypatch.setattr(roi_bins_triton, "COUNTED", 0)


@pytest.mark.parametrize("pooled", [(7, 7), (14, 14), (2, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("channels", [1, 7, 33, 256, 272], ids="C{}".format)
def test_channels_and_pooled_sizes(channels: int, pooled: tuple[int, int], device: torch.device) -> None:
    num = 3 if INTERPRET else 6
    rois = with_images(draw_boxes(num, (40, 60), 50), 2)
    dtype = torch.bfloat16 if channels % 2 == 0 else torch.float32
    grad = torch.randn(num, channels, *pooled).to(dtype)
    compare(grad, rois, device, 2, [23, 11], [35, 18], [0.5, 0.25], [20.0, INF], 2, True)


def test_gradients_of_any_strides(device: torch.device) -> None:
    """Channels-last; as a sum's, which is one number; as a slice of channels."""
    rois = with_images(draw_boxes(6, (40, 60), 50), 2)
    options = (2, [23, 11], [35, 18], [0.5, 0.25], [20.0, INF], 2, True)
    channels_last = torch.randn(6, 20, 3, 5).contiguous(memory_format=torch.channels_last)
    sliced = torch.randn(6, 5, 3, 40).permute(0, 3, 2, 1)[:, 4:24]
    for grad in (channels_last, torch.full((), 0.5).expand(6, 20, 3, 5), sliced):
        compare(grad, rois, device, *options)


@pytest.mark.parametrize("num_rois", [0, 1, 4], ids="K{}".format)
@pytest.mark.usefixtures("counted")
def test_few_rois(num_rois: int, device: torch.device) -> None:
    rois = with_images(draw_boxes(num_rois, (40, 60), 30), 2)
    grad = torch.randn(num_rois, 3, 2, 2)
    outs = compare(grad, rois, device, 2, [20, 0, 5], [30, 15, 8], [0.5, 0.25, 0.125], [10.0, 20.0, INF], 2, False)
    assert num_rois or not any(out.any() for out in outs)


@pytest.mark.parametrize("ratio", [0, 2], ids="ratio{}".format)
@pytest.mark.usefixtures("counted")
def test_more_rois_than_a_program_looks_at_together(
    ratio: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two maps' RoIs, of which one's begin in the middle of a block; each tile has several products' worth of bins."""
    num = 700
    if INTERPRET and device.type == "cpu":  # each RoI takes long there: fewer, in smaller blocks
        num = 175
        monkeypatch.setattr("fastmask.kernels.triton.roi_align_backward.ROIS", 128)
    rois = with_images(draw_boxes(num, (40, 60), 30), 2)
    compare(torch.randn(num, 3, 1, 2), rois, device, 2, [20], [30], [0.5], [INF], ratio, False)


@pytest.mark.usefixtures("counted")
def test_more_maps_than_a_byte_counts(device: torch.device) -> None:
    rois = with_images(draw_boxes(9, (8, 8), 8), 1)
    rois[:, 0] = torch.tensor([0, 255, 256, 128, 257, 256, 1, -1, 258])
    compare(torch.randn(9, 2, 2, 2), rois, device, 258, [2], [3], [0.25], [INF], 2, True)


@pytest.mark.parametrize("value", [NAN, INF, -INF, 3e38], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_finite_reaches_the_pixels_that_are_sampled(
    value: float, dtype: torch.dtype, device: torch.device
) -> None:
    """The tile's other pixels keep their sums, and the channel's neighbors theirs."""
    rois = with_images(draw_boxes(12, (24, 24), 16), 1)
    grad = torch.randn(12, 5, 3, 3).to(dtype)
    grad[3, 2, 1, 1] = grad[7, 4, 0, 2] = value
    (actual,) = multilevel_roi_align_backward_op(grad.to(device), rois.to(device), 1, [24], [24], [1.0], [INF], 2, True)
    (expected,) = roi_fallback.multilevel_roi_align_backward(
        grad.double(), rois.double(), 1, [24], [24], [1.0], [INF], 2, True
    )
    # a weight near 0 is known up to the tolerance, and so is what a huge gradient gives there
    huge = expected.abs().nan_to_num(0) > 1e20
    allowed = TOLERANCE[dtype] * torch.where(huge, 3e38, expected.abs().clamp(1))
    same = (actual.double().cpu() == expected) | (actual.isnan().cpu() & expected.isnan())
    assert (same | ((actual.double().cpu() - expected).abs() <= allowed)).all()
    assert expected[:, [0, 1, 3]].isfinite().all()


def test_more_bins_than_int32_counts_are_plain_pytorchs(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """And so is a RoI of 2^16 bins."""
    rois = with_images(draw_boxes(2, (8, 8), 8), 1)
    compare(torch.randn(2, 1, 1, 2**16).expand(-1, 2, -1, -1), rois, device, 1, [5], [7], [1.0], [INF], 1, True)
    if HAS_TRITON:
        from fastmask.kernels.triton import roi_align_backward as roi_align_backward_triton

        monkeypatch.setattr(roi_align_backward_triton, "LARGEST", 2**15)
        compare(torch.randn(2, 2, 1, 1), rois, device, 1, [5], [7], [1.0], [INF], 1, True)


def adversarial_axis(size: int) -> Tensor:
    """Where RoIs begin and end [K, 2]: on whole pixels and a last bit off them, tiny, huge, inverted, off the map."""
    starts = torch.cat([torch.tensor([-1.0, 0, 1, 3, 4, 5, 31.5, size - 1, size]), (size + 40) * torch.rand(12) - 20])
    lengths = torch.tensor([0, 1e-30, 1e-7, 1e-3, 0.5, 1, 7, 28, 1000 * float(torch.rand(())), size, -9, -0.1])
    starts, lengths = (grid.flatten() for grid in torch.meshgrid(starts, lengths, indexing="ij"))
    ends = starts + lengths
    starts = torch.cat([starts, starts.nextafter(torch.tensor(INF)), starts.nextafter(torch.tensor(-INF))])
    return torch.stack([starts, ends.repeat(3)], 1)


@pytest.mark.skipif(not INTERPRET, reason="reads the table that a kernel writes, in Triton's interpreter")
@pytest.mark.parametrize("ratio", [0, 1, 2, 3], ids="ratio{}".format)
@pytest.mark.parametrize("size", [37, 5000, 2**24], ids=str)
def test_every_weight_lies_in_bins_that_reach_its_tile(size: int, ratio: int) -> None:
    """By brute force: each pixel that a sample of the float64 reference gives a weight, for both sizes of tiles."""
    from fastmask.kernels.triton.roi_bins import FIRST, PAST, WORDS, table_by_map
    from fastmask.kernels.triton.roi_geometry import level_geometry

    ends = adversarial_axis(size)
    ends = ends[(ends.abs() <= 2**24).all(1) & ((ends[:, 1] - ends[:, 0]).abs() < (3000 if ratio == 0 else INF))]
    num, bins, tiles = len(ends), 7, (4, 8)
    rois = torch.stack([torch.zeros(num), ends[:, 0], ends[:, 0], ends[:, 1], ends[:, 1]], 1)
    geometry = {**level_geometry([1.0], [INF]), "LEVELS": 1, "ALIGNED": True}
    lines, words, starts = table_by_map(
        rois + torch.tensor([0, 0.5, 0.5, 0.5, 0.5]), 1, [size], [size], geometry, (bins, bins), ratio, tiles, 1
    )
    assert starts.tolist() == [0, num]
    rois = rois + torch.tensor([0, 0.5, 0.5, 0.5, 0.5])
    start, extent = rois[:, 1].double() - 0.5, rois[:, 3].double() - rois[:, 1].double()
    grid = torch.full_like(extent, ratio) if ratio else (extent.float() / bins).ceil().clamp(min=0).double()
    samples = torch.arange(int(grid.max()) * bins)  # [S]
    number = (grid * bins)[:, None]
    inside = roi_fallback.is_sampled(start[:, None], extent[:, None], samples.double(), number, size) & (
        samples < number
    )
    assert torch.equal(count(words.view(num_columns := len(words), WORDS.value), FIRST, PAST, num), inside.sum(1))
    position = (start[:, None] + (samples + 0.5) / number.clamp(min=1) * extent[:, None]).clamp(0, size - 1)
    for axis, tile in enumerate(tiles):
        scale, low, high = (line[:num, None] for line in lines[3 * axis : 3 * axis + 3])
        for pixel in (position.floor(), position.floor() + 1):
            weight = torch.where(inside, (1 - (position - pixel).abs()).clamp(min=0), 0)
            first_pixel = (pixel // tile * tile).float()
            for rounded in (first_pixel * scale, (first_pixel.double() * scale.double())):  # fused or not
                first = (rounded + low).float().ceil()
                last = (rounded + high).float().floor()
                number_of_bin = samples // grid.clamp(min=1)[:, None]
                assert not ((weight > 0) & ((number_of_bin < first) | (number_of_bin > last))).any()
    assert num_columns >= num


def count(words: Tensor, first: int, past: int, num: int) -> Tensor:
    """How many samples the table counts."""
    integers = words.view(torch.int32)
    return (integers[:num, int(past)] - integers[:num, int(first)]).long()


def test_registration_is_sound(device: torch.device) -> None:
    grad, rois = torch.randn(6, 3, 2, 3, device=device), with_images(draw_boxes(6, (20, 30), 25), 2).to(device)
    levels = ([20, 10], [30, 15], [1.0, 0.5], [10.0, INF])  # heights, widths, scales, limits
    torch.library.opcheck(multilevel_roi_align_backward_op, (grad, rois, 2, *levels, 2, True))
