"""The audit's variants of the kernels of a ResNet's stem: its convolution and its max pooling."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastmask.kernels import cpu_stem, gpu_max_pool2d, gpu_stem_conv

POOLS = {  # kernel, stride, padding; channels; whether bias and ReLU follow
    "stem's": ((3, 2, 1), 64, True),
    "3 x 3": ((3, 2, 1), 64, False),
    "3 x 3, odd channels": ((3, 2, 1), 24, True),
    "1 x 1": ((1, 2, 0), 256, False),
    "2 x 2": ((2, 2, 0), 64, False),
}


def variants(dtypes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """See audit.Variant."""
    for dtype in dtypes:
        for kernel_size, padding, outputs in ((7, 3, 64), (3, 1, 64), (3, 1, 32), (5, 2, 24)):
            if dtype == "fp32":
                continue
            even = outputs % 16 == 0
            yield (
                f"stem's convolution, {dtype}, {kernel_size} x {kernel_size} to {outputs}",
                gpu_stem_conv._stem_conv_kernel,
                {f"{name}_ptr": f"*{dtype}" for name in ("x", "weight", "out")},
                {"KERNEL": kernel_size, "PADDING": padding, "DEPTH": cpu_stem.row_depth(kernel_size, padding)}
                | {"CHANNELS": cpu_stem.CHANNELS, "PIXEL": cpu_stem.PIXEL, "PAIR": gpu_stem_conv.PAIR}
                | {"WIDE": False}
                | {"ROWS": gpu_stem_conv.ROWS, "COLUMNS": gpu_stem_conv.COLUMNS}
                | {"OUTPUTS": min(1 << (outputs - 1).bit_length(), gpu_stem_conv.OUTPUTS)},
                {"num_warps": gpu_stem_conv.NUM_WARPS},
                ("outputs",) if even else (),
                kernel_size == 7,
                ("LDG", "STG") if outputs == gpu_stem_conv.OUTPUTS else (),
            )
        for name, (geometry, channels, bias) in POOLS.items():
            even, block = channels % 16 == 0, min(1 << (channels - 1).bit_length(), gpu_max_pool2d.CHANNELS)
            yield (
                f"max pooling, {dtype}, {name}",
                gpu_max_pool2d._max_pool2d_kernel,
                {f"{pointer}_ptr": f"*{dtype}" for pointer in ("x", "bias", "out")},
                dict(zip(("KERNEL", "STRIDE", "PADDING"), geometry, strict=True))
                | {"BIAS": bias, "ROWS": gpu_max_pool2d.ROWS}
                | {"COLUMNS": gpu_max_pool2d.ELEMENTS // block, "CHANNELS": block},
                {"num_warps": gpu_max_pool2d.NUM_WARPS},
                ("channels",) if even else (),
                name == "stem's",
                ("LDG", "STG") if even else (),
            )
