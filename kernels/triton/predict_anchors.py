"""End of an RPN's head in Triton: bias and ReLU of its hidden maps, and one matrix product for logits and deltas.

A program takes PIXELS pixels of one level and walks along their channels, CHANNELS at a time: bias and ReLU in
registers, rounded to the maps' dtype as PyTorch rounds them, then a product with the weights, summed in float32.

Cost in bytes: the hidden maps read once, 46 MB of bfloat16 for 800 x 1344; PyTorch's convolutions read and write them
once more for each of bias and ReLU, and read them for each of logits and deltas. Speed on an
H200 (bc309f8): 22 us, 130 for eight images, of 11 and 90 at copy bandwidth.
"""

import itertools
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.fallback import bias_act as bias_act_fallback
from fastmask.kernels.jit import jit
from fastmask.kernels.launch import INTERPRET, on_device
from fastmask.kernels.triton.roi_geometry import MAX_LEVELS, by_level, of_level
from fastmask.kernels.variant import DTYPES, Variant, pointers

CHANNELS = 32  # of a step
FEW = {"PIXELS": 64, "num_warps": 2, "num_stages": 4}  # for up to 16 outputs, a pyramid's three anchors
MANY = {"PIXELS": 32, "num_warps": 4, "num_stages": 3}  # a C4 model's 15 anchors; other tiles spill
LARGEST = 2**31 - 2 * FEW["PIXELS"]  # pixels of all levels: beyond it, the eager fallback


# the values of all levels stand on one line
# fmt: off


@jit(do_not_specialize=[f"pixels{level}" for level in range(MAX_LEVELS)])
def _predict_anchors_kernel(
    # tensors
    hidden0_ptr, hidden1_ptr, hidden2_ptr, hidden3_ptr, hidden4_ptr,  # [pixels0, channels]
    hidden_bias_ptr,  # [channels]
    weight_ptr,  # [5 * ANCHORS, channels]
    bias_ptr,  # [5 * ANCHORS]
    logits_ptr,  # [all levels' pixels, ANCHORS] out
    deltas_ptr,  # [all levels' pixels, 4 * ANCHORS] out
    # sizes
    pixels0, pixels1, pixels2, pixels3, pixels4,  # of all images
    channels,
    # constants
    LEVELS: tl.constexpr,
    ANCHORS: tl.constexpr,
    OUTPUTS: tl.constexpr,  # a power of two, at least 16 and 5 * ANCHORS
    WIDE: tl.constexpr,  # products of float32
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # --- 1. locate the pixels: level, and first of its rows
    tile = tl.program_id(0)
    level = tl.full([], 0, tl.int32)
    past = tl.cdiv(pixels0, PIXELS)  # tiles of this level and those before it
    first_tile, before = past * 0, past * 0  # tiles and pixels of those before it
    for i in tl.static_range(1, LEVELS):
        beyond = tile >= past
        level += beyond.to(tl.int32)
        first_tile = tl.where(beyond, past, first_tile)
        before += tl.where(beyond, of_level(i - 1, pixels0, pixels1, pixels2, pixels3, pixels4, LEVELS), 0)
        past += tl.cdiv(of_level(i, pixels0, pixels1, pixels2, pixels3, pixels4, LEVELS), PIXELS)
    pixels = of_level(level, pixels0, pixels1, pixels2, pixels3, pixels4, LEVELS)
    hidden_ptr = of_level(level, hidden0_ptr, hidden1_ptr, hidden2_ptr, hidden3_ptr, hidden4_ptr, LEVELS)
    first = (tile - first_tile) * PIXELS
    offs_pixel = tl.arange(0, PIXELS)
    mask_pixel = first + offs_pixel < pixels

    # --- 2. relu(hidden + bias) @ weight
    offs_out = tl.arange(0, OUTPUTS)
    mask_out = offs_out < 5 * ANCHORS
    ptrs_hidden = hidden_ptr + first.to(tl.int64) * channels + (offs_pixel * channels)[:, None]
    acc = tl.zeros([PIXELS, OUTPUTS], tl.float32)
    for start in range(0, channels, CHANNELS):
        offs_c = start + tl.arange(0, CHANNELS)
        mask_c = offs_c < channels
        value = tl.load(ptrs_hidden + offs_c[None, :], mask=mask_pixel[:, None] & mask_c[None, :], other=0)
        hidden_bias = tl.load(hidden_bias_ptr + offs_c[None, :], mask=mask_c[None, :], other=0)
        value = value.to(tl.float32) + hidden_bias.to(tl.float32)
        value = tl.where(value < 0, 0.0, value).to(weight_ptr.dtype.element_ty)
        ptrs_weight = weight_ptr + (offs_out * channels)[None, :] + offs_c[:, None]
        weight = tl.load(ptrs_weight, mask=mask_c[:, None] & mask_out[None, :], other=0)
        if WIDE:
            value, weight = value.to(tl.float32), weight.to(tl.float32)
        acc = tl.dot(value, weight, acc, input_precision="ieee")
    acc += tl.load(bias_ptr + offs_out, mask=mask_out, other=0).to(tl.float32)[None, :]

    # --- 3. store logits, then deltas
    out = acc.to(logits_ptr.dtype.element_ty)
    row = (before + first).to(tl.int64) + offs_pixel
    ptrs_logits = logits_ptr + (row * ANCHORS)[:, None] + offs_out[None, :]
    tl.store(ptrs_logits, out, mask=mask_pixel[:, None] & (offs_out < ANCHORS)[None, :])
    ptrs_deltas = deltas_ptr + (row * (4 * ANCHORS))[:, None] + (offs_out - ANCHORS)[None, :]
    tl.store(ptrs_deltas, out, mask=mask_pixel[:, None] & (mask_out & (offs_out >= ANCHORS))[None, :])


# fmt: on


def predict_anchors(
    hidden: Sequence[Tensor], hidden_bias: Tensor, weight: Tensor, bias: Tensor, anchors: int
) -> tuple[Tensor, Tensor]:
    """Shapes as in fallback.bias_act.predict_anchors. float64, many levels, other layouts: the eager fallback."""
    channels = weight.shape[1]
    pixels = [level.shape[0] * level.shape[2] * level.shape[3] for level in hidden]
    plain = len(hidden) > MAX_LEVELS or sum(pixels) > LARGEST or weight.dtype == torch.float64
    if plain or not all(level.permute(0, 2, 3, 1).is_contiguous() for level in hidden):
        return bias_act_fallback.predict_anchors(hidden, hidden_bias, weight, bias, anchors)
    logits, deltas = (weight.new_empty(sum(pixels), number * anchors) for number in (1, 4))
    if logits.numel() == 0:
        return logits, deltas
    tile = tile_of(anchors)
    with on_device(weight):
        _predict_anchors_kernel[(sum(triton.cdiv(number, tile["PIXELS"]) for number in pixels),)](
            # tensors
            **by_level("hidden{}_ptr", hidden),
            hidden_bias_ptr=hidden_bias.contiguous(),
            weight_ptr=weight.contiguous(),
            bias_ptr=bias.contiguous(),
            logits_ptr=logits,
            deltas_ptr=deltas,
            # sizes
            **by_level("pixels{}", pixels),
            channels=channels,
            # constants
            LEVELS=len(hidden),
            ANCHORS=anchors,
            WIDE=INTERPRET,  # which has no product of bfloat16
            CHANNELS=min(max(triton.next_power_of_2(channels), 16), CHANNELS),
            **tile,
        )
    return logits, deltas


def tile_of(anchors: int) -> dict[str, int]:
    """A program's constants for a number of anchors a pixel."""
    outputs = max(triton.next_power_of_2(5 * anchors), 16)
    return (FEW if outputs <= 16 else MANY) | {"OUTPUTS": outputs}


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes, numbers of levels and of anchors: few, a C4 model's, and more than most."""
    for dtype, (levels, anchors) in itertools.product(DTYPES, ((1, 3), (MAX_LEVELS, 3), (1, 6), (1, 15), (1, 30))):
        tile = tile_of(anchors)
        yield Variant(
            f"RPN's predictions, {dtype}, {levels} level{'s' if levels > 1 else ''}"
            f"{f', {anchors} anchors' if anchors != 3 else ''}",
            _predict_anchors_kernel,
            pointers(dtype, *(f"hidden{level}" for level in range(MAX_LEVELS)))
            | pointers(dtype, "hidden_bias", "weight", "bias", "logits", "deltas"),
            {"LEVELS": levels, "ANCHORS": anchors, "WIDE": False, "CHANNELS": CHANNELS}
            | {name: value for name, value in tile.items() if not name.startswith("num_")},
            {name: value for name, value in tile.items() if name.startswith("num_")},
            multiples=("channels",),
            default=levels > 1,
        )
