"""The audit's variants of the kernels of a ResNet's stem: its convolution and its max pooling."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastmask.kernels.fallback import stem as stem_fallback
from fastmask.kernels.triton import max_pool2d as max_pool2d_triton, stem_conv as stem_conv_triton

POOLS = {  # kernel, stride, padding; channels; whether bias and ReLU follow
    "stem's": ((3, 2, 1), 64, True),
    "3 x 3": ((3, 2, 1), 64, False),
    "3 x 3, odd channels": ((3, 2, 1), 24, True),
    "1 x 1": ((1, 2, 0), 256, False),
    "2 x 2": ((2, 2, 0), 64, False),
}


def variants(dtypes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """See Variant."""
    for dtype in dtypes:
        for kernel_size, padding, outputs in ((7, 3, 64), (3, 1, 64), (3, 1, 32), (5, 2, 24)):
            if dtype == "fp32":
                continue
            even = outputs % 16 == 0
            yield (
                f"stem's convolution, {dtype}, {kernel_size} x {kernel_size} to {outputs}",
                stem_conv_triton._stem_conv_kernel,
                {f"{name}_ptr": f"*{dtype}" for name in ("x", "weight", "out")},
                {"KERNEL": kernel_size, "PADDING": padding, "DEPTH": stem_fallback.row_depth(kernel_size, padding)}
                | {"CHANNELS": stem_fallback.CHANNELS, "PIXEL": stem_fallback.PIXEL, "PAIR": stem_conv_triton.PAIR}
                | {"WIDE": False}
                | {"ROWS": stem_conv_triton.ROWS, "COLUMNS": stem_conv_triton.COLUMNS}
                | {"OUTPUTS": min(1 << (outputs - 1).bit_length(), stem_conv_triton.OUTPUTS)},
                {"num_warps": stem_conv_triton.NUM_WARPS},
                ("outputs",) if even else (),
                kernel_size == 7,
                ("LDG", "STG") if outputs == stem_conv_triton.OUTPUTS else (),
            )
        for name, (geometry, channels, bias) in POOLS.items():
            even, block = channels % 16 == 0, min(1 << (channels - 1).bit_length(), max_pool2d_triton.CHANNELS)
            yield (
                f"max pooling, {dtype}, {name}",
                max_pool2d_triton._max_pool2d_kernel,
                {f"{pointer}_ptr": f"*{dtype}" for pointer in ("x", "bias", "out")},
                dict(zip(("KERNEL", "STRIDE", "PADDING"), geometry, strict=True))
                | {"BIAS": bias, "ROWS": max_pool2d_triton.ROWS}
                | {"COLUMNS": max_pool2d_triton.ELEMENTS // block, "CHANNELS": block},
                {"num_warps": max_pool2d_triton.NUM_WARPS},
                ("channels",) if even else (),
                name == "stem's",
                ("LDG", "STG") if even else (),
            )
