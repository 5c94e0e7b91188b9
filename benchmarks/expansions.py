"""The kernels of one traced operation on a GPU: how many, of which kind, and the bytes that they move.

A dispatch trace shows operations; some of them launch several kernels. Read from ATen's CUDA sources and from profiles,
torch 2.11 to 2.15; a memset in a graph counts as a kernel:

- convolution: cuDNN's kernel, and with a bias ``output.add_(bias)`` (Convolution.cpp). A linear layer's bias is in its
  matrix product (cublasLt's epilogue).
- topk: 9 + 3 a radix pass of 8 bits for rows that TensorTopK.cu spreads over several blocks, else one; and one more if
  the result is sorted.
- sort: up to 4096 elements a row, the indices (2), a copy of the keys, the sort; beyond that, see kernels/predict.
- masked_fill: a copy and the fill. Everything else: one kernel, or none where it is a view or allocates.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastmask.kernels.predict import torch_ops
from fastmask.kernels.predict.record import Shape, TorchOp

CONVOLUTION, PRODUCT, TRITON, OTHER = "convolution", "matrix product", "Triton", "other"
KINDS = (CONVOLUTION, PRODUCT, TRITON, OTHER)
PART = "part"  # of another kernel: bytes without a launch
RADIX_BITS = 8  # of a pass of topk over several blocks
BLOCK_BITS, BLOCK_THREADS = 2, 1024  # of one within a block
SORT_STEPS = 25  # of a block that sorts about a thousand pairs, in steps of that selection
# views are recognized by their schemas; these launch nothing either
FREE = ("_unsafe_view", "device", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_")
LOOKUPS = ("gather", "index", "index_select")  # which read as much of their input as they return
SYNCS = ("_local_scalar_dense", "nonzero", "equal")


class Kernel(NamedTuple):
    """One launch."""

    operation: str  # such as "aten::add"
    kind: str
    moved_bytes: float  # of its inputs and outputs, each once
    flops: float = 0
    steps: int = 0  # sequential steps of its longest block, of BLOCK_THREADS elements each, where they bound it


def expand(function: Any, args: Sequence[Any], out: Any) -> list[Kernel]:
    """The kernels of one ATen operation, in order."""
    packet = function._schema.name.split("::")[-1]
    if packet in FREE or _is_view(function):
        return []
    name, outputs = f"aten::{packet}", tensors_of(out)
    written = sum(map(extent, outputs))
    moved = written + sum(map(extent, tensors_of(args)))
    if packet in LOOKUPS:
        moved = 2 * written + sum(extent(tensor) for tensor in tensors_of(args) if tensor.dtype == torch.int64)
    if "convolution" in packet or packet == "conv2d":  # conv2d: in a fallback, below autograd
        return _convolution(name, args, outputs[0], moved)
    if packet in ("mm", "addmm", "bmm", "baddbmm", "_addmm_activation"):
        left = tensors_of(args)[-2]
        return [Kernel(name, PRODUCT, moved, 2 * outputs[0].numel() * left.shape[-1])]
    if packet == "topk":
        return _topk(name, args, moved)
    if packet == "sort" and args[0].shape[-1] <= torch_ops.SMALL_SORT:
        return [Kernel(name, OTHER, moved)] * 3 + [Kernel(name, OTHER, moved, steps=_sort_steps(args[0].shape[-1]))]
    if packet in ("sort", "cumsum"):
        number, _ = torch_ops.cost(TorchOp(name, (Shape(tuple(args[0].shape), args[0].dtype),), int(moved)))
        return [Kernel(name, OTHER, moved)] * number
    if packet == "masked_fill":
        return [Kernel("aten::clone", OTHER, 2 * written), Kernel("aten::masked_fill_", OTHER, moved)]
    return [Kernel(name, OTHER, moved)]


def extent(tensor: Tensor) -> int:
    """Bytes of a tensor's elements, those of an expanded axis once."""
    sides = (side for side, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0 or side == 0)
    return math.prod(sides) * tensor.element_size()


def tensors_of(values: Any) -> list[Tensor]:
    """All tensors in a nested value."""
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _is_view(function: Any) -> bool:
    aliases = [value.alias_info for value in function._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _convolution(name: str, args: Sequence[Any], out: Tensor, moved: float) -> list[Kernel]:
    """Kernels of an ATen convolution; only the generic one adds its bias in a separate kernel."""
    source, weight, bias = args[:3]
    generic = name == "aten::convolution"
    transposed = generic and args[6]
    name += ", transposed" if transposed else ""
    kernels = [Kernel(name, CONVOLUTION, moved, 2 * (source if transposed else out).numel() * weight[0].numel())]
    if generic and bias is not None:
        kernels.append(Kernel("aten::add_, a bias", OTHER, 2 * extent(out)))
    return kernels


def _topk(name: str, args: Sequence[Any], moved: float) -> list[Kernel]:
    """Kernels of topk; ``args`` are input, k, dim, largest, sorted."""
    values, number = args[0], args[1]
    row = values.shape[-1]
    bits = values.element_size() * 8
    if uses_several_blocks(values.numel() // max(row, 1), row):
        small, read = Kernel(name, OTHER, 0), Kernel(name, OTHER, extent(values))
        # memsets and a fill; counts, sums and what is within k of each pass; two scans of two kernels; the selection
        kernels = [small] * 3 + [read, small, small] * (bits // RADIX_BITS) + [small] * 5 + [read]
    else:
        kernels = [Kernel(name, OTHER, moved, steps=-(-row // BLOCK_THREADS) * (bits // BLOCK_BITS + 2))]
    if (args[4] if len(args) > 4 else True) and number > 1:
        kernels.append(Kernel(name, OTHER, 0, steps=_sort_steps(number)))
    return kernels


def _sort_steps(number: int) -> int:
    return -(-SORT_STEPS * number // BLOCK_THREADS)


def uses_several_blocks(rows: int, row: int) -> bool:
    """Whether ATen's topk uses several blocks for each row: should_use_multiblock of TensorTopK.cu."""
    max_rows = (20, 40, 80, 199, 799, 4000)
    min_length = (20_000, 10_000, 8_000, 5_000, 3_000, 800, 400)
    return row >= min_length[sum(rows > number for number in max_rows)]
