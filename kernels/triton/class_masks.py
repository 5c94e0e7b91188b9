"""The mask branch's last layers in Triton: deconvolution, bias, ReLU and one class's dot product in one launch.

Source and differences: class_masks.py. Specification: reference_layers.class_masks.
A deconvolution of stride 2 with a 2 x 2 kernel gives each pixel four, one a quarter (i, j) of the kernel, each of them
a matrix product of its own. A program owns ROWS consecutive pixels of the detections and QUARTERS of the four: it
multiplies COLUMNS of the layer's D channels at a time, and keeps one number a pixel.

                        quarter 0: D channels     quarter 1
                      +-------------------------+-----------
     ROWS pixels of   | COLUMNS | COLUMNS | ... |              bias, ReLU, dot product with the class's row:
     one detection    |         |         |     |      ...     logit [ROWS, QUARTERS] += sum over COLUMNS
     or of two        +-------------------------+-----------

Programs whose detections are all padding read no pixel and no weight. Sums are float32, products those of the inputs'
type, and TF32 for float32 where cuDNN's convolutions may use it (torch.backends.cudnn). From 64 rows on, sm_90
compiles wgmma, which the PTX interpreter does not execute: see tests/kernels/ptx/cases_heads.py.
Cost in bytes: pixels once for each half of the quarters, weights once for every ROWS pixels, from the L2 cache.
Speed on an H200 (bc309f8): 38 us for 100 detections, 256 channels, bfloat16, and 230 for 8 x 100. Predicted (README.md)
for them, on an H100:
- layer by layer 240 MB of passes over 40 MB, 72 us at 3.35 TB/s, nine launches, 22, and the product, 10 to 20.
- 25 us now, where 21 are twice the product at the tensor cores' peak; of 8 x 100 detections 185, where 166 are.
- what binds is the L2 cache: 101 MB, of which 81 are weights read 154 times. 256 rows would halve those, but need 160
  KB of shared memory and three detections a program. Of 100 rows with 30 detections it is 15 us, with none 6.
- float32 takes 149 us by TF32, of the L2 cache too. Exact it would take 459, without tensor cores: cuDNN's layers, of
  which 330 are expected, stay.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.fallback import class_masks as class_masks_fallback
from fastmask.kernels.jit import jit
from fastmask.kernels.launch import INTERPRET, on_device
from fastmask.kernels.triton.mask_geometry import sigmoid
from fastmask.kernels.variant import DTYPES, Variant, pointers

QUARTERS = 2  # of the deconvolution's kernel that a program computes
# Pixels and channels of a program. The channels that it sums over are read at once, and the pixels' only once ...
AT_ONCE = {"ROWS": 128, "COLUMNS": 64, "num_warps": 8, "num_stages": 1}
MAX_DEPTH = 256  # ... if they are no more than these, of a half type, and a program may have so much shared memory;
SHARED = 98_304  # bytes
# or DEPTH at a time, the pixels' again for each of the COLUMNS.
IN_STEPS = {"ROWS": 64, "COLUMNS": 64, "DEPTH": 32, "num_warps": 4, "num_stages": 1}
MIN_PIXELS = 128  # of a detection, at least ROWS: a program's rows then belong to two detections at most
LARGEST = 2**31 - 2**10  # pixels of all detections, and weights: beyond it, the eager fallback


@triton.jit
def _find_class(labels_ptr, count_ptr, number, num, rows_per_image, classes):
    """Whether a detection is valid, and its class."""
    number = tl.minimum(number, num - 1)
    image = number // rows_per_image
    label = tl.load(labels_ptr + number)
    counts = (number - image * rows_per_image < tl.load(count_ptr + image)) & (label >= 0) & (label < classes)
    return counts, tl.where(counts, label, 0)


@triton.jit
def _multiply(hidden, weight, acc, PRECISION: tl.constexpr):
    """acc + hidden @ weight, with sums in float32."""
    if PRECISION == "half":
        return tl.dot(hidden, weight, acc)
    else:
        return tl.dot(hidden.to(tl.float32), weight.to(tl.float32), acc, input_precision=PRECISION)


@jit(do_not_specialize=["num", "rows_per_image", "height", "width", "classes"])
def _class_masks_kernel(
    # tensors
    hidden_ptr,  # [N, h, w, C]
    weight_ptr,  # [C, 2, 2, D]
    bias_ptr,  # [D]
    last_weight_ptr,  # [K, D]
    last_bias_ptr,  # [K]
    labels_ptr,  # [N]
    count_ptr,  # [B]
    out_ptr,  # [N, 2h, 2w] float32 out
    # sizes
    num,  # N
    rows_per_image,  # N / B
    height,
    width,
    channels,  # C
    middle,  # D
    classes,  # K
    # constants
    PRECISION: tl.constexpr,  # of the products: see precision
    EVEN: tl.constexpr,  # whether D is a multiple of COLUMNS
    AT_ONCE: tl.constexpr,  # whether C is at most DEPTH
    QUARTERS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    # --- 1. locate the pixels: of one detection, or of it and the next one
    pixels = height * width
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    number = tl.program_id(0) * ROWS // pixels
    counts0, label0 = _find_class(labels_ptr, count_ptr, number, num, rows_per_image, classes)
    counts1, label1 = _find_class(labels_ptr, count_ptr, number + 1, num, rows_per_image, classes)
    pixel = row - number * pixels
    later = pixel >= pixels
    pixel = tl.where(later, pixel - pixels, pixel)
    inside = row < num * pixels
    counts = tl.where(later, counts1, counts0) & inside

    quarter = tl.program_id(1) * QUARTERS
    logit = tl.zeros([ROWS, QUARTERS], dtype=tl.float32)
    if counts0 | counts1:
        offs_k = tl.arange(0, DEPTH)
        ptrs_hidden = hidden_ptr + row.to(tl.int64)[:, None] * channels + offs_k[None, :]
        if AT_ONCE:
            hidden = tl.load(ptrs_hidden, mask=counts[:, None] & (offs_k < channels)[None, :], other=0)
        blocks = tl.cdiv(middle, COLUMNS)
        for block in range(QUARTERS * blocks):
            # --- 2. one quarter's matrix product, COLUMNS channels of it
            own = block // blocks
            offs_d = (block - own * blocks) * COLUMNS + tl.arange(0, COLUMNS)
            mask_d = offs_d < middle
            offs_w = offs_k[:, None] * (4 * middle) + ((quarter + own) * middle + offs_d)[None, :]
            acc = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
            if AT_ONCE:
                mask_w = (offs_k < channels)[:, None] & mask_d[None, :]
                acc = _multiply(hidden, tl.load(weight_ptr + offs_w, mask=mask_w, other=0), acc, PRECISION)
            else:
                for k in range(0, channels, DEPTH):
                    mask_k = offs_k < channels - k
                    some = tl.load(ptrs_hidden + k, mask=counts[:, None] & mask_k[None, :], other=0)
                    ptrs_w = weight_ptr + k * (4 * middle) + offs_w
                    weight = tl.load(ptrs_w, mask=mask_k[:, None] & mask_d[None, :], other=0)
                    acc = _multiply(some, weight, acc, PRECISION)

            # --- 3. bias, ReLU and the dot product with the class's row
            bias = tl.load(bias_ptr + offs_d, mask=mask_d, other=0).to(tl.float32)
            last0 = tl.load(last_weight_ptr + label0 * middle + offs_d, mask=mask_d, other=0).to(tl.float32)
            last1 = tl.load(last_weight_ptr + label1 * middle + offs_d, mask=mask_d, other=0).to(tl.float32)
            value = tl.maximum(acc + bias[None, :], 0, propagate_nan=tl.PropagateNan.ALL)
            value *= tl.where(later[:, None], last1[None, :], last0[None, :])
            if not EVEN:  # an infinite pixel times a weight of 0 that stands beyond the last channel is NaN
                value = tl.where(mask_d[None, :], value, 0)
            total = tl.sum(value, 1)
            logit += tl.where(tl.arange(0, QUARTERS)[None, :] == own, total[:, None], 0)
        bias0 = tl.load(last_bias_ptr + label0).to(tl.float32)
        bias1 = tl.load(last_bias_ptr + label1).to(tl.float32)
        logit += tl.where(later, bias1, bias0)[:, None]

    # --- 4. store each quarter at its pixel of the upsampled mask
    out = tl.where(counts[:, None], sigmoid(logit), 0)
    quarters = quarter + tl.arange(0, QUARTERS)
    y, x = pixel // width, pixel % width
    offs_y, offs_x = 2 * y[:, None] + (quarters // 2)[None, :], 2 * x[:, None] + (quarters % 2)[None, :]
    ptrs_out = out_ptr + (row - pixel).to(tl.int64)[:, None] * 4 + offs_y * (2 * width) + offs_x
    tl.store(ptrs_out, out, mask=inside[:, None])


def class_masks(
    hidden: Tensor, weight: Tensor, bias: Tensor, last_weight: Tensor, last_bias: Tensor, labels: Tensor, count: Tensor
) -> Tensor:
    """Shapes as in fallback.class_masks.class_masks. The eager fallback takes float64, float32 where convolutions
    may not take TF32, and detections of fewer pixels than MIN_PIXELS, such as a C4 model's 7 x 7."""
    number, channels, height, width = hidden.shape
    middle, pixels = weight.shape[1], height * width
    large = max(number * pixels, weight.numel()) > LARGEST
    products = precision(hidden.dtype)
    if hidden.dtype == torch.float64 or not products or pixels < MIN_PIXELS or large or number == 0:
        return class_masks_fallback.class_masks(hidden, weight, bias, last_weight, last_bias, labels, count)
    out = hidden.new_empty((number, 2 * height, 2 * width), dtype=torch.float32)
    tile = tile_of(hidden.dtype, channels, shared_memory(hidden.device))
    with on_device(hidden):
        _class_masks_kernel[(triton.cdiv(number * pixels, tile["ROWS"]), 4 // QUARTERS)](
            # tensors
            hidden_ptr=hidden.permute(0, 2, 3, 1).contiguous(),
            weight_ptr=weight.permute(0, 2, 3, 1).contiguous(),
            bias_ptr=bias.contiguous(),
            last_weight_ptr=last_weight.contiguous(),
            last_bias_ptr=last_bias.contiguous(),
            labels_ptr=labels.contiguous(),
            count_ptr=count.contiguous(),
            out_ptr=out,
            # sizes
            num=number,
            rows_per_image=number // len(count),
            height=height,
            width=width,
            channels=channels,
            middle=middle,
            classes=len(last_bias),
            # constants
            PRECISION=products,
            EVEN=middle % tile["COLUMNS"] == 0,
            QUARTERS=QUARTERS,
            **tile,
        )
    return out


def tile_of(dtype: torch.dtype, channels: int, shared: float) -> dict[str, int]:
    """A program's constants, for a device with so many bytes of shared memory a program."""
    depth = max(triton.next_power_of_2(channels), 16)
    at_once = dtype != torch.float32 and depth <= MAX_DEPTH and shared >= SHARED
    return (AT_ONCE | {"DEPTH": depth} if at_once else IN_STEPS) | {"AT_ONCE": at_once}


def shared_memory(device: torch.device) -> float:
    """Bytes of shared memory that one program may have: 227 KB on an H100, 99 on a GeForce, 64 on AMD's."""
    if device.type != "cuda":  # Triton's interpreter
        return float("inf")
    properties: Any = torch.cuda.get_device_properties(device)
    return float(properties.shared_memory_per_block_optin)


def precision(dtype: torch.dtype) -> str:
    """Precision of _multiply; "" where cuDNN is faster: float32 without TF32 has no tensor cores, except AMD's.

    Triton's interpreter has no products of half types.
    """
    if INTERPRET or (dtype == torch.float32 and torch.version.hip):
        return "ieee"
    convolutions: Any = torch.backends.cudnn
    return "half" if dtype != torch.float32 else "tf32" if convolutions.conv.fp32_precision == "tf32" else ""


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: dtypes, channels, sizes of shared memory."""
    h100, geforce, amd = 232_448, 101_376, 65_536  # bytes of shared memory that a program may have
    shapes = {  # channels in and in the middle
        "C=256": (256, 256, h100),
        "C=64": (64, 64, h100),
        "C=3 to 80": (3, 80, h100),
        "C=512": (512, 256, h100),
        "C=256, GeForce": (256, 256, geforce),
        "C=256, little shared memory": (256, 256, amd),
        "C=40 to 70": (40, 70, h100),
    }
    for dtype, (name, (channels, middle, shared)) in itertools.product(DTYPES, shapes.items()):
        precision = "tf32" if dtype == "fp32" else "half"
        tile, amd_tile = (tile_of(DTYPES[dtype], channels, size) for size in (shared, amd))
        tile, amd_tile = ({**t, "EVEN": middle % t["COLUMNS"] == 0} for t in (tile, amd_tile))
        yield Variant(
            f"mask branch, {dtype}, {precision}, {name}",
            _class_masks_kernel,
            pointers(dtype, "hidden", "weight", "bias", "last_weight", "last_bias")
            | pointers("i64", "labels", "count")
            | pointers("fp32", "out"),
            {"PRECISION": precision, "QUARTERS": QUARTERS}
            | {key: value for key, value in tile.items() if not key.startswith("num_")},
            {key: value for key, value in tile.items() if key.startswith("num_")},
            multiples=tuple(key for key, size in (("channels", channels), ("middle", middle)) if size % 16 == 0),
            default=name == "C=256",
            amd=amd_tile | ({"PRECISION": "ieee"} if dtype == "fp32" else {}),
        )
