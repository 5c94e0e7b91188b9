"""Matrix product with bias, residual and ReLU in its epilogue, in Triton, for half types.

A program computes PIXELS x OUTPUTS of the product, DEPTH columns of x at a time, sums in float32, and applies the
epilogue in registers. Neighboring programs share their pixels, which the L2 cache then has.

    x [P, K]          weight [N, K]            out [P, N]
    +--DEPTH-->       +--DEPTH-->              tile (i, j) = relu(x tile i . weight tile j + bias + residual tile)
    PIXELS            OUTPUTS

Cost in bytes: x, the residual and the output once each; a separate epilogue writes and reads the output once more. At a
bottleneck's shapes that takes the time, not the product.
Speed on an H200, bfloat16, eight images of 200 x 336, 64 -> 256 channels (151 us at copy bandwidth): 257 us
with tiles of 128 x 64 and three stages; 223 with 64 x 128 and two; 218 with 128 x 128, which spills; 284 and more with
eight warps. cuDNN's (conv_relu.py) takes 189.
"""

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from fastmask.kernels.fallback import bias_act as bias_act_fallback
from fastmask.kernels.jit import jit
from fastmask.kernels.launch import INTERPRET, on_device
from fastmask.kernels.variant import Variant, pointers

PIXELS, OUTPUTS, DEPTH = 64, 128, 64
NUM_WARPS, NUM_STAGES = 4, 2
LARGEST = 2**31 - 2 * PIXELS  # pixels: beyond it, the eager fallback


@jit(do_not_specialize=["pixels"])
def _linear_add_relu_kernel(
    # tensors
    x_ptr,  # [pixels, depth]
    weight_ptr,  # [outputs, depth]
    bias_ptr,  # [outputs]
    residual_ptr,  # [pixels, outputs]
    out_ptr,  # [pixels, outputs] out
    # sizes
    pixels,
    outputs,
    depth,
    # constants
    WIDE: tl.constexpr,  # products of float32
    PIXELS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    # which tile
    tiles = tl.cdiv(outputs, OUTPUTS)
    first = (tl.program_id(0) // tiles).to(tl.int64) * PIXELS
    offs_pixel = tl.arange(0, PIXELS)
    offs_out = tl.program_id(0) % tiles * OUTPUTS + tl.arange(0, OUTPUTS)
    mask_pixel = offs_pixel < pixels - first
    mask_out = offs_out < outputs

    # the product
    offs_k = tl.arange(0, DEPTH)
    ptrs_x = x_ptr + first * depth + ((offs_pixel * depth)[:, None] + offs_k[None, :])
    ptrs_weight = weight_ptr + ((offs_out * depth)[None, :] + offs_k[:, None])
    acc = tl.zeros([PIXELS, OUTPUTS], tl.float32)
    for start in range(0, depth, DEPTH):
        mask_k = offs_k < depth - start
        x = tl.load(ptrs_x + start, mask=mask_pixel[:, None] & mask_k[None, :], other=0)
        weight = tl.load(ptrs_weight + start, mask=mask_k[:, None] & mask_out[None, :], other=0)
        if WIDE:
            x, weight = x.to(tl.float32), weight.to(tl.float32)
        acc = tl.dot(x, weight, acc)

    # its epilogue
    offs = (offs_pixel * outputs)[:, None] + offs_out[None, :]
    mask = mask_pixel[:, None] & mask_out[None, :]
    acc += tl.load(bias_ptr + offs_out[None, :], mask=mask_out[None, :], other=0).to(tl.float32)
    acc += tl.load(residual_ptr + first * outputs + offs, mask=mask, other=0).to(tl.float32)
    acc = tl.where(acc < 0, 0.0, acc)  # NaN stays
    tl.store(out_ptr + first * outputs + offs, acc.to(out_ptr.dtype.element_ty), mask=mask)


def linear_add_relu(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """Shapes as in fallback.bias_act.linear_add_relu. float32 and float64 take the eager fallback."""
    pixels, outputs = residual.shape
    if x.dtype.itemsize > 2 or max(pixels, PIXELS * outputs, PIXELS * x.shape[1]) > LARGEST:
        return bias_act_fallback.linear_add_relu(x, weight, bias, residual)
    out = x.new_empty(pixels, outputs)
    if out.numel() == 0:
        return out
    with on_device(x):
        _linear_add_relu_kernel[(triton.cdiv(pixels, PIXELS) * triton.cdiv(outputs, OUTPUTS),)](
            # tensors
            x_ptr=x.contiguous(),
            weight_ptr=weight.contiguous(),
            bias_ptr=bias.contiguous(),
            residual_ptr=residual.contiguous(),
            out_ptr=out,
            # sizes
            pixels=pixels,
            outputs=outputs,
            depth=x.shape[1],
            # constants
            WIDE=INTERPRET,  # which has no product of bfloat16
            PIXELS=PIXELS,
            OUTPUTS=OUTPUTS,
            DEPTH=DEPTH,
            num_warps=NUM_WARPS,
            num_stages=NUM_STAGES,
        )
    return out


def variants() -> Iterator[Variant]:
    """Yield the audit's variants: half types."""
    for dtype in ("fp16", "bf16"):
        yield Variant(
            f"product with residual, {dtype}",
            _linear_add_relu_kernel,
            pointers(dtype, "x", "weight", "bias", "residual", "out"),
            {"WIDE": False, "PIXELS": PIXELS, "OUTPUTS": OUTPUTS, "DEPTH": DEPTH},
            {"num_warps": NUM_WARPS, "num_stages": NUM_STAGES},
            multiples=("outputs", "depth"),
            default=dtype == "bf16",
            wide=("STG",),
        )
