"""fastmask::multilevel_roi_align against its specification: dtypes, layouts, levels, adversarial RoIs, gradients."""

import pytest
import torch
from helpers.inputs import (
    FLOATS,
    INF,
    LAYOUTS,
    NAN,
    adversarial_boxes,
    away_from_limits,
    draw_boxes,
    draw_pyramid,
    pyramid_scales,
    strided,
    with_images,
)
from torch import Tensor

from fastmask.kernels import reference
from fastmask.kernels.fallback import roi as roi_fallback
from fastmask.kernels.launch import HAS_TRITON, INTERPRET
from fastmask.kernels.roi_align import multilevel_roi_align_backward_op, multilevel_roi_align_op
from fastmask.ops.roi_align import NO_LIMIT, level_limits

if HAS_TRITON:
    from fastmask.kernels.triton import roi_align as roi_align_triton, roi_geometry as roi_geometry_triton

# float32 positions of up to 75 pixels, between values that differ by up to 8; then one rounding of the output
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}


RATIOS = pytest.mark.parametrize("ratio", [0, 1, 2, 3, (3, 0, 1, 2)], ids="ratio{}".format)  # one, or each level's


def order(ratio: int | tuple[int, ...], aligned: bool) -> tuple[object, ...]:
    """The last arguments of both ops: sampling_ratio, aligned, level_ratios."""
    return (2, aligned, ratio) if isinstance(ratio, tuple) else (ratio, aligned)


def needs_small(ratio: int | tuple[int, ...]) -> bool:
    """Whether the specification walks huge adaptive grids, sample by sample; these have a test of their own."""
    return ratio == 0 or isinstance(ratio, tuple)


def draw_case(
    levels: int, num_rois: int = 8 if INTERPRET else 12, batch: int = 2, adversarial: bool = True
) -> tuple[list[Tensor], Tensor, list[float], list[float]]:
    boxes = draw_boxes(num_rois)
    if adversarial:
        boxes = torch.cat([boxes, adversarial_boxes()])
    scales = pyramid_scales(levels)
    limits = level_limits(scales, 56, 4)  # of 224 / 4: so that the boxes drawn reach all levels
    rois = away_from_limits(with_images(boxes, batch), limits)
    return draw_pyramid(levels, batch), rois, scales, limits


def align_exactly(features: list[Tensor], rois: Tensor, *rest: object) -> Tensor:
    return reference.multilevel_roi_align([f.double().cpu() for f in features], rois.double().cpu(), *rest)


@pytest.mark.parametrize("aligned", [False, True], ids=["legacy", "aligned"])
@RATIOS
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_meets_the_specification(dtype: torch.dtype, ratio: object, aligned: bool, device: torch.device) -> None:
    features, rois, scales, limits = draw_case(levels=4)
    if needs_small(ratio):
        rois = rois[~((rois[:, 1:].abs() > 1e4) & rois[:, 1:].isfinite()).any(1)]
    features, options = [f.to(device, dtype) for f in features], (scales, limits, 3, 2, *order(ratio, aligned))
    actual = multilevel_roi_align_op(features, rois.to(device), *options)
    assert actual.dtype == dtype
    expected = align_exactly(features, rois, *options)
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5], ids="L{}".format)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_and_levels(levels: int, layout: str, dtype: torch.dtype, device: torch.device) -> None:
    features, rois, scales, limits = draw_case(levels, adversarial=False)
    features = [strided(f.to(device, dtype), layout) for f in features]
    actual = multilevel_roi_align_op(features, rois.to(device), scales, limits, 2, 3, 2, True)
    expected = align_exactly(features, rois, scales, limits, 2, 3, 2, True)
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert actual.stride() == (30, 1, 15, 5)  # channels-last, whatever went in


@pytest.mark.parametrize("aligned", [False, True], ids=["legacy", "aligned"])
@RATIOS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gradients_meet_the_specification(
    dtype: torch.dtype, ratio: object, aligned: bool, device: torch.device
) -> None:
    """Against those in float64, which gradcheck checks below; 70 channels are more than one block of a kernel's."""
    _, rois, scales, limits = draw_case(levels=4)
    if needs_small(ratio):
        rois = rois[~((rois[:, 1:].abs() > 1e4) & rois[:, 1:].isfinite()).any(1)]
    shrink = 2 if INTERPRET else 1  # fewer tiles, each of which takes long there
    heights, widths = ([f.shape[axis] // shrink for f in draw_pyramid(4)] for axis in (2, 3))
    grad = torch.randn(len(rois), 70, 3, 2).to(dtype)
    options = (2, heights, widths, scales, limits, *order(ratio, aligned))
    actual = multilevel_roi_align_backward_op(grad.to(device), rois.to(device), *options)
    expected = roi_fallback.multilevel_roi_align_backward(grad.double(), rois.double(), *options)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == dtype
        assert one.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(one.double().cpu(), other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_nan_gradients_stay_where_they_came_from(device: torch.device) -> None:
    grad = torch.zeros(2, 3, 2, 2, device=device)
    grad[0] = NAN
    rois = torch.tensor([[0, 4.0, 4, 6, 6], [0, 20, 20, 30, 30]], device=device)
    (actual,) = multilevel_roi_align_backward_op(grad, rois, 1, [40], [40], [1.0], [INF], 2, True)
    touched = actual.isnan().any(1)[0]
    assert touched[4:6, 4:6].all()
    assert int(touched.sum()) <= 16


def test_images_one_after_the_other(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Levels too large to copy whole give what small ones give."""
    features, rois, scales, limits = draw_case(3, adversarial=False)
    features = [f.double().to(device) for f in features]
    together = multilevel_roi_align_op(features, rois.to(device), scales, limits, 2, 3, 2, True)
    monkeypatch.setattr(roi_fallback, "SMALL", 0)
    apart = multilevel_roi_align_op(features, rois.to(device), scales, limits, 2, 3, 2, True)
    assert torch.equal(together, apart)


@pytest.mark.parametrize("num_rois", [0, 1, 63, 64, 65], ids="K{}".format)
def test_numbers_of_rois(num_rois: int, device: torch.device) -> None:
    features, rois, scales, limits = draw_case(3, num_rois, adversarial=False)
    features = [f.double().to(device).requires_grad_() for f in features]
    actual = multilevel_roi_align_op(features, rois.to(device), scales, limits, 2, 2, 2, False)
    assert actual.shape == (num_rois, 5, 2, 2)
    expected = align_exactly(features, rois, scales, limits, 2, 2, 2, False)
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=1e-10)
    actual.sum().backward()
    assert [f.grad.shape for f in features] == [f.shape for f in features]


@pytest.mark.parametrize("shape", [(0, 5, 8, 8), (2, 0, 8, 8), (2, 5, 0, 8), (2, 5, 8, 0)], ids=str)
def test_maps_without_elements_give_zeros(shape: tuple[int, ...], device: torch.device) -> None:
    features = torch.zeros(shape, device=device, requires_grad=True)
    rois = with_images(draw_boxes(3), 1).to(device)
    actual = multilevel_roi_align_op([features], rois, [1.0], [INF], 2, 2, 2, False)
    assert actual.shape == (3, shape[1], 2, 2)
    assert not actual.any()
    actual.sum().backward()
    assert features.grad.shape == shape


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("ratio", [0, 2, 11], ids="ratio{}".format)
def test_tiny_maps(shape: tuple[int, int], ratio: int, device: torch.device) -> None:
    """Also with more samples than pixels, in both layouts; float32 is the kernels', float64 the fallback's."""
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        features = torch.randn(1, 3, *shape, dtype=dtype, device=device)
        rois = with_images(draw_boxes(2 if INTERPRET else 20, (9, 9), 12), 1).to(dtype)
        expected = align_exactly([features], rois, [1.0], [INF], 2, 2, ratio, True)
        for layout in LAYOUTS[:2]:
            maps = [strided(features, layout)]
            actual = multilevel_roi_align_op(maps, rois.to(device), [1.0], [INF], 2, 2, ratio, True)
            torch.testing.assert_close(actual.cpu().double(), expected, rtol=0, atol=tolerance)


def test_ratios_of_levels(device: torch.device) -> None:
    """With one of all levels it is that; with one that no digit of a kernel's holds it is exact as well."""
    features, rois, scales, limits = draw_case(2, 3, adversarial=False)
    features, rois = [f.to(device) for f in features], rois.to(device)
    results = [
        multilevel_roi_align_op(features, rois, scales, limits, 1, 1, *order(ratio, True))
        for ratio in ((2, 2), 2, (70, 0))
    ]
    assert torch.equal(results[0], results[1])
    expected = align_exactly(features, rois.cpu(), scales, limits, 1, 1, 2, True, (70, 0))
    torch.testing.assert_close(results[2].double().cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ratio", [0, 2], ids="ratio{}".format)
@pytest.mark.parametrize("image", [-1, -7, 2, 1e9, NAN, INF, -INF], ids=str)
def test_a_wrong_image_index_gives_zeros(image: float, ratio: int, device: torch.device) -> None:
    features, rois, scales, limits = draw_case(2, num_rois=3, adversarial=False)
    features = [f.to(device).requires_grad_() for f in features]
    rois[1, 0] = image
    pooled = multilevel_roi_align_op(features, rois.to(device), scales, limits, 2, 2, ratio, False)
    assert not pooled[1].any()
    assert pooled[0].any()
    assert pooled[2].any()
    pooled[1].sum().backward()
    assert not any(f.grad.any() for f in features)


def test_nan_features_stay_where_they_are_sampled(device: torch.device) -> None:
    features = torch.randn(1, 2, 16, 16, device=device)
    features[:, :, :3] = NAN
    rois = torch.tensor([[0, 2.0, 8, 12, 14], [0, 2, 0, 12, 6], [0, 2, 40, 12, 60], [0, NAN, 0, 12, 6]], device=device)
    for ratio in (0, 2):
        pooled = multilevel_roi_align_op([features], rois, [1.0], [INF], 2, 2, ratio, True)
        assert pooled[0].isfinite().all()
        assert pooled[1, :, 0].isnan().all()
        assert not pooled[2].any()  # below the map, and not 0 * NaN
        assert not pooled[3].any()


@pytest.mark.skipif(not HAS_TRITON, reason="of Triton's launchers")
def test_axes_of_one_element_have_no_stride() -> None:
    """What stands there costs no wide loads; an image's map may begin anywhere beyond int32, but not be larger."""
    maps = torch.zeros(2, 32, 6, 8).contiguous(memory_format=torch.channels_last)
    one = maps[:1].as_strided((1, 32, 6, 8), (7, *maps.stride()[1:]))
    row = maps[:, :, :1].as_strided((2, 32, 1, 8), (*maps.stride()[:2], 5, 32))
    assert roi_geometry_triton.is_wide([maps, one, row])
    assert roi_geometry_triton.is_channels_last([maps, one, row, torch.zeros(2, 1, 5, 5)])
    assert not roi_geometry_triton.is_channels_last([maps, maps.contiguous()])
    assert not roi_geometry_triton.is_wide([maps, maps[:, 1:]])
    assert not roi_geometry_triton.is_wide([maps[:, 3:]])
    far = torch.empty_strided((2, 32, 3, 4), (2**40, 1, 2**29, 32), device="meta")
    assert str(roi_geometry_triton.offset_type([maps, far])) == "int32"
    far = torch.empty_strided((1, 32, 3, 4), (1, 1, 2**30, 32), device="meta")
    assert str(roi_geometry_triton.offset_type([maps, far])) == "int64"


PATHS = {
    "copied": {"triton.channels_last.MAX_BYTES": 2**30},
    "apart": {"triton.channels_last.MAX_BYTES": 0},
    "split": {"triton.roi_align.PROGRAMS": 10**6},
    "looped": {},
    "int64": {"triton.roi_align.offset_type": lambda _: roi_align_triton.tl.int64},
}


@pytest.mark.skipif(not HAS_TRITON, reason="Triton's paths")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_paths(path: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """What the launcher decides by sizes, on small ones."""
    for name, value in PATHS[path].items():
        monkeypatch.setattr(f"fastmask.kernels.{name}", value)
    features, rois, scales, limits = draw_case(levels=3, num_rois=6, adversarial=path in ("copied", "apart"))
    ratio = 5 if path == "looped" else 2
    layout = torch.contiguous_format if path in ("copied", "apart") else torch.channels_last
    features = [f[:, :4].repeat(1, 4, 1, 1).to(device, dtype).contiguous(memory_format=layout) for f in features]
    actual = multilevel_roi_align_op(features, rois.to(device), scales, limits, 2, 9, ratio, False)
    expected = align_exactly(features, rois, scales, limits, 2, 9, ratio, False)
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("ratio", [0, 2], ids="ratio{}".format)
@pytest.mark.parametrize("layout", LAYOUTS[:3])
def test_gradients(ratio: int, layout: str, device: torch.device) -> None:
    features, rois, scales, limits = draw_case(2, num_rois=5)
    rois = rois[(rois.abs() < 1e3).all(1) | ~rois.isfinite().all(1)].to(device)
    features = [strided(f[:, :2, ::4, ::4].double().to(device), layout).requires_grad_() for f in features]
    scales = [s / 4 for s in scales]

    def pool(*features: Tensor) -> Tensor:
        return multilevel_roi_align_op(list(features), rois, scales, limits, 2, 2, ratio, False)

    torch.autograd.gradcheck(pool, features, fast_mode=True)


def test_expanded_gradients_and_half_types(device: torch.device) -> None:
    """``.sum()`` hands over a gradient of stride 0; half-typed features get half-typed gradients, rounded once."""
    features, rois, scales, limits = draw_case(3, adversarial=False)
    grads = {}
    for dtype in (torch.float64, torch.bfloat16):
        leaves = [f.to(device, dtype).requires_grad_() for f in features]
        multilevel_roi_align_op(leaves, rois.to(device), scales, limits, 3, 3, 2, True).sum().backward()
        grads[dtype] = [leaf.grad for leaf in leaves]
    for exact, half in zip(*grads.values(), strict=True):
        assert half.dtype == torch.bfloat16
        # float32 places a sample on a 75-pixel map to 1e-5 pixels, which is what its weights are off by; Triton's
        # interpreter truncates to bfloat16 instead of rounding
        torch.testing.assert_close(half.double(), exact, rtol=2**-7 if INTERPRET else 2**-8, atol=5e-5)


def test_runs_are_bitwise_equal(device: torch.device) -> None:
    features, rois, scales, limits = draw_case(3, num_rois=8 if INTERPRET else 200, adversarial=False)
    rois = rois.to(device)
    size = 2 if INTERPRET else 7
    outputs = []
    for _ in range(100 if device.type == "cuda" else 3):
        leaves = [f.to(device).requires_grad_() for f in features]
        pooled = multilevel_roi_align_op(leaves, rois, scales, limits, size, size, 2, True)
        pooled.backward(torch.linspace(-1, 1, pooled.numel(), device=device).view(pooled.shape))
        outputs.append([pooled, *(leaf.grad for leaf in leaves)])
    for other in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outputs[0], other, strict=True))


def test_boundary_band_level_limits() -> None:
    """A RoI of exactly 224 x 224 is of level 4; FPN's tolerance of 1e-6 in log2 takes a little less too."""
    limits = level_limits([0.25, 0.125, 0.0625, 0.03125], 224, 4)
    assert limits == [pytest.approx(56 * k, rel=1e-6) for k in (2, 4, 8)] + [NO_LIMIT]
    for size, level in ((111.9, 0), (112.0, 1), (223.9, 1), (224 * 2**-0.9e-6, 2), (224.0, 2), (448.0, 3), (9e3, 3)):
        assert reference.choose_level((0, 0, size, size), limits) == level


def test_over_two_to_the_31_elements(device: torch.device) -> None:
    """The last of 130 images begins beyond int32 (the others' memory is never touched; CPUs convert halves)."""
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    features = torch.empty(130, 200, 336, 256, dtype=dtype, device=device).permute(0, 3, 1, 2)
    assert features[129:].storage_offset() > 2**31
    image = torch.randn(1, 200, 336, 256, device=device).to(dtype).permute(0, 3, 1, 2)
    features[129:] = image
    rois = with_images(draw_boxes(4), 1).to(device)
    expected = multilevel_roi_align_op([image], rois, [0.25], [INF], 2, 2, 2, False)
    rois[:, 0] = 129
    actual = multilevel_roi_align_op([features], rois, [0.25], [INF], 2, 2, 2, False)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_registration_is_sound(device: torch.device) -> None:
    features, rois, scales, limits = draw_case(2, num_rois=4, adversarial=False)
    features = [f[..., :20, :20].contiguous() for f in features]  # a tile of the backward kernel each
    for grad in (False, True):
        leaves = [f.to(device).requires_grad_(grad) for f in features]
        torch.library.opcheck(multilevel_roi_align_op, (leaves, rois.to(device), scales, limits, 2, 3, 2, True))
