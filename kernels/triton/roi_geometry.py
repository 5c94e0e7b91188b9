"""Geometry of RoIs on a feature pyramid, shared by the Triton kernels of RoIAlign and RoIPool."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.jit import jit
from fastmask.kernels.reference import COORDINATE_LIMIT
from fastmask.kernels.variant import Variant, pointers

MAX_LEVELS = 5
KEYS = 256  # RoIs that a program finds the map of
_LIMIT = tl.constexpr(COORDINATE_LIMIT)
RATIO_BITS = 6  # of a level's sampling ratio, where levels have their own
_RATIO_BITS = tl.constexpr(RATIO_BITS)
_OF_LEVELS = ("height", "width", "stride_b", "stride_c", "stride_y", "stride_x")
# change from call to call: never part of a compiled variant's key, as members of a tuple would be (roi_align.py)
VARYING = ["batch", "num_rois", *(f"{name}{level}" for name in _OF_LEVELS for level in range(MAX_LEVELS))]
# of arguments that kernels of RoIs share, for their variants
TYPES = {f"{name}{level}": "fp32" for name in ("scale", "limit") for level in range(MAX_LEVELS)} | pointers(
    "fp32", "rois"
)

# the values of all levels stand on one line
# fmt: off


@triton.jit
def of_level(level, v0, v1, v2, v3, v4, LEVELS: tl.constexpr):
    """Select the value of a level, which is known on the device only."""
    value = v0
    if LEVELS > 1:
        value = tl.where(level == 1, v1, value)
    if LEVELS > 2:
        value = tl.where(level == 2, v2, value)
    if LEVELS > 3:
        value = tl.where(level == 3, v3, value)
    if LEVELS > 4:
        value = tl.where(level == 4, v4, value)
    return value


@triton.jit
def locate_exactly(
    rois_ptr,
    roi,
    mask,
    batch,
    scale0, scale1, scale2, scale3, scale4,
    limit0, limit1, limit2, limit3,
    LEVELS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """RoIs -> image, level, float64 (x, y, width, height) on that level's map, and whether they are valid."""
    ptrs = rois_ptr + roi.to(tl.int64) * 5
    image = tl.load(ptrs, mask=mask, other=-1).to(tl.float32)
    x1 = tl.load(ptrs + 1, mask=mask, other=0).to(tl.float32)
    y1 = tl.load(ptrs + 2, mask=mask, other=0).to(tl.float32)
    x2 = tl.load(ptrs + 3, mask=mask, other=0).to(tl.float32)
    y2 = tl.load(ptrs + 4, mask=mask, other=0).to(tl.float32)
    valid = (image > -1) & (image < batch)  # NaN compares false
    area = (x2 - x1) * (y2 - y1)
    level = tl.full([], 0, tl.int32)
    if LEVELS > 1:
        valid = valid & (area >= 0)
        size = tl.sqrt_rn(area)
        level = (size >= limit0).to(tl.int32)
        if LEVELS > 2:
            level += (size >= limit1).to(tl.int32)
        if LEVELS > 3:
            level += (size >= limit2).to(tl.int32)
        if LEVELS > 4:
            level += (size >= limit3).to(tl.int32)
    scale = of_level(level, scale0, scale1, scale2, scale3, scale4, LEVELS).to(tl.float64)
    offset = 0.5 if ALIGNED else 0.0
    # products of two float32 are exact in float64: a fused multiply-add changes nothing
    x1, y1 = x1.to(tl.float64) * scale - offset, y1.to(tl.float64) * scale - offset
    x2, y2 = x2.to(tl.float64) * scale - offset, y2.to(tl.float64) * scale - offset
    valid = valid & (tl.abs(x1) <= _LIMIT) & (tl.abs(y1) <= _LIMIT) & (tl.abs(x2) <= _LIMIT) & (tl.abs(y2) <= _LIMIT)
    width, height = x2 - x1, y2 - y1
    if not ALIGNED:
        width, height = tl.maximum(width, 1.0), tl.maximum(height, 1.0)
    image = tl.where(valid, image, 0).to(tl.int64)
    return (
        image,
        level,
        tl.where(valid, x1, 0),
        tl.where(valid, y1, 0),
        tl.where(valid, width, 0),
        tl.where(valid, height, 0),
        valid,
    )


@triton.jit
def locate(
    rois_ptr,
    roi,
    mask,
    batch,
    scale0, scale1, scale2, scale3, scale4,
    limit0, limit1, limit2, limit3,
    LEVELS: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Locate RoIs in float32, for uses that decide no border."""
    image, level, x, y, width, height, valid = locate_exactly(
        rois_ptr, roi, mask, batch, scale0, scale1, scale2, scale3, scale4,
        limit0, limit1, limit2, limit3, LEVELS, ALIGNED,
    )
    return (
        image,
        level,
        x.to(tl.float32),
        y.to(tl.float32),
        width.to(tl.float32),
        height.to(tl.float32),
        valid,
    )


@triton.jit
def is_sampled(start, extent, sample, samples, size):
    """Whether a sample lies on the map or at most a pixel off it along one axis: the border rule of roi_align.py.

    ``start`` and ``extent``: the RoI's, from locate_exactly; ``sample``: which of its ``samples`` (float64) there.
    """
    place = (2.0 * sample.to(tl.float64) + 1.0) * extent
    low, high = (-1.0 - start) * (2.0 * samples), (size - start) * (2.0 * samples)
    return (place >= low) & (place <= high)


@triton.jit
def ratio_of(level, RATIO: tl.constexpr):
    """Samples a bin and axis on a level, 0 for adaptive, of a RATIO that pack_ratios made."""
    return (level * 0 + (-1 - RATIO)) >> (level * _RATIO_BITS) & (2**_RATIO_BITS - 1)


@triton.jit
def samples_of(extent, level, BINS: tl.constexpr, RATIO: tl.constexpr):
    """Samples a bin of a RoI takes along one axis; adaptive ones are counted in float32 (reference.count_samples)."""
    if RATIO > 0:
        return tl.zeros_like(extent) + RATIO
    else:
        number = tl.maximum(tl.ceil(tl.div_rn(extent.to(tl.float32), BINS * 1.0)), 0.0).to(extent.dtype)
        if RATIO < 0:
            ratio = ratio_of(level, RATIO)
            number = tl.where(ratio > 0, ratio.to(extent.dtype), number)
        return number


@triton.jit
def count_walked(number, size, RATIO: tl.constexpr):
    """How many of a bin's samples are walked along an axis: all, but of a huge adaptive grid those that may count."""
    most = 2 * size + 6
    if RATIO < 0 or RATIO > 8:
        most = tl.maximum(most, RATIO if RATIO > 2**_RATIO_BITS else 2**_RATIO_BITS)
    return tl.minimum(number, most.to(tl.float32))


@triton.jit
def first_sample(edge, length, grid, most):
    """The first sample of each adaptive bin that can fall on a map, on which at most ``most`` in a row can."""
    first = tl.floor((-1 - edge) * grid / length - 2)
    first = tl.where(length > 0, first, 0.0)
    return tl.minimum(tl.maximum(first, 0.0), tl.maximum(grid - most, 0.0))


@triton.jit
def neighbors(position, size):
    """Taps of a sample along one axis: the pixel before it, the pixel after it, and the weight of the latter."""
    position = tl.minimum(tl.maximum(position, 0.0), (size - 1).to(tl.float32))
    before = position.to(tl.int32)
    return before, tl.minimum(before + 1, size - 1), position - before


@jit(do_not_specialize=VARYING)
def _keys_kernel(
    # tensors
    rois_ptr,  # [K, 5]
    keys_ptr,  # [K] out: level * batch + image; LEVELS * batch for RoIs that do not count
    # sizes
    num_rois,
    batch,
    # level geometry
    scale0, scale1, scale2, scale3, scale4,
    limit0, limit1, limit2, limit3,
    # constants
    LEVELS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offs_k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask_k = offs_k < num_rois
    image, level, _, _, _, _, valid = locate(
        rois_ptr, offs_k, mask_k, batch, scale0, scale1, scale2, scale3, scale4,
        limit0, limit1, limit2, limit3, LEVELS, ALIGNED,
    )
    key = tl.where(valid, level * batch + image, LEVELS * batch)
    tl.store(keys_ptr + offs_k, key.to(keys_ptr.dtype.element_ty), mask=mask_k)


# fmt: on


def pack_ratios(sampling_ratio: int, level_ratios: Sequence[int] | None) -> int:
    """The kernels' RATIO: samples a bin and axis, 0 for adaptive; below 0 it holds those of each level, in digits.

    Ratios of levels must be below 2^RATIO_BITS: see fits_digits.
    """
    ratios = [max(ratio, 0) for ratio in level_ratios or (sampling_ratio,)]
    if len(set(ratios)) == 1:
        return ratios[0]
    return -1 - sum(ratio << (RATIO_BITS * level) for level, ratio in enumerate(ratios))


def fits_digits(level_ratios: Sequence[int] | None) -> bool:
    """Whether levels have no sampling ratio that pack_ratios cannot pack."""
    return level_ratios is None or len({*level_ratios}) == 1 or max(level_ratios) < 2**RATIO_BITS


MIXED = pack_ratios(0, (3, 0, 1, 2))  # for variants


def name_ratio(ratio: int) -> str:
    """A RATIO in a variant's name."""
    return "of each level" if ratio < 0 else str(ratio)


class Layout(NamedTuple):
    """Facts of a map that a launch depends on: in the map's place where a launch is prepared, and as a cache key."""

    shape: torch.Size
    strides: tuple[int, ...]
    misaligned: int  # bytes of its address beyond a multiple of 16

    def stride(self) -> tuple[int, ...]:
        return self.strides

    def data_ptr(self) -> int:
        return self.misaligned


def layouts_of(features: Sequence[Tensor]) -> tuple[Layout, ...]:
    return tuple([Layout(feature.shape, feature.stride(), feature.data_ptr() % 16) for feature in features])


def pad_levels(features: Sequence[Tensor]) -> list[Tensor]:
    """Kernel arguments of each level; missing levels repeat the last."""
    return [*features, *[features[-1]] * (MAX_LEVELS - len(features))]


def by_level(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Kernel arguments of each level by their names, such as "height{}"."""
    return {name.format(i): values[min(i, len(values) - 1)] for i in range(MAX_LEVELS)}


def level_numbers(features: Sequence[Layout], axes: str, unit: int = 1) -> dict[str, int]:
    """Kernel arguments of each level: sizes, and strides of some of the axes "bcyx", in units of so many elements."""
    numbers = by_level("height{}", [feature.shape[2] for feature in features])
    numbers |= by_level("width{}", [feature.shape[3] for feature in features])
    strides = [strides_of(feature) for feature in features]
    for axis in axes:
        numbers |= by_level(f"stride_{axis}{{}}", [stride["bcyx".index(axis)] // unit for stride in strides])
    return numbers


def strides_of(feature: Tensor | Layout) -> list[int]:
    """Strides, 0 along axes of one element: whatever stands there is never used, and must not cost the wide loads."""
    return [0 if size == 1 else stride for size, stride in zip(feature.shape, feature.stride(), strict=True)]


def is_channels_last(features: Sequence[Tensor]) -> bool:
    return all(feature.shape[1] == 1 or feature.stride(1) == 1 for feature in features)


def is_wide(features: Sequence[Tensor | Layout]) -> bool:
    """Whether pixels of channels-last maps begin at multiples of 16 bytes and of 16 elements."""
    return all(
        feature.data_ptr() % 16 == 0 and all(strides_of(feature)[axis] % 16 == 0 for axis in (0, 2, 3))
        for feature in features
    )


def offset_type(features: Sequence[Tensor | Layout]) -> Any:
    """Type of the offsets within one image's map."""
    furthest = (
        sum((size - 1) * stride for size, stride in zip(feature.shape[1:], feature.stride()[1:], strict=True))
        for feature in features
    )
    return tl.int32 if max(furthest) < 2**31 else tl.int64


def level_geometry(scales: Sequence[float], level_limits: Sequence[float]) -> dict[str, Any]:
    """Kernel arguments for the scales and the limits between levels; see reference.multilevel_roi_align."""
    limits = [float(limit) for limit in level_limits[:-1]] or [0.0]
    last = [limits[min(i, len(limits) - 1)] for i in range(MAX_LEVELS - 1)]
    return by_level("scale{}", [float(scale) for scale in scales]) | {
        f"limit{i}": last[i] for i in range(MAX_LEVELS - 1)
    }


def keys_of(rois: Tensor, batch: int, geometry: dict[str, Any]) -> Tensor:
    """Each RoI's level * batch + image [K], LEVELS * batch for those that do not count.

    ``geometry``: level_geometry's arguments with LEVELS and ALIGNED. Bytes where they suffice: a sort of one pass.
    """
    num_rois = rois.shape[0]
    few = geometry["LEVELS"] * batch < 256
    keys = rois.new_empty(num_rois, dtype=torch.uint8 if few else torch.int32)
    if num_rois > 0:
        _keys_kernel[(triton.cdiv(num_rois, KEYS),)](
            rois_ptr=rois, keys_ptr=keys, num_rois=num_rois, batch=batch, BLOCK=KEYS, **geometry
        )
    return keys


def sort_by_map(rois: Tensor, batch: int, geometry: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """RoIs by keys_of, and where each (level, image) begins there, int64 [levels * batch + 1]."""
    keys, order = keys_of(rois, batch, geometry).sort(stable=True)
    ends = torch.arange(geometry["LEVELS"] * batch + 1, dtype=keys.dtype, device=rois.device)
    return order, torch.searchsorted(keys, ends)


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: numbers of levels, types of the keys."""
    for levels, keys in itertools.product((4, 1), ("u8", "i32")):
        yield Variant(
            f"RoIs' maps, {levels} levels, {keys}",
            _keys_kernel,
            TYPES | pointers(keys, "keys"),
            {"LEVELS": levels, "ALIGNED": False, "BLOCK": KEYS},
            {"num_warps": 4},
            default=(levels, keys) == (4, "u8"),
        )
