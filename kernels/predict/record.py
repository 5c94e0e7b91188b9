"""Recording of a launcher's work on the device: the kernels that it launches, and torch's operations around them.

The launcher runs on CPU tensors. Triton compiles each kernel ahead of time with the specialization of its real
arguments, and launches nothing; outputs of kernels are zeros. Torch's operations run and are recorded in order.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fastmask.kernels.cuda_tools import registers_and_stack, run_tool

# Triton's, of this process alone: a kernel that another checkout compiled would name the lines of that one's files
_CACHE = tempfile.TemporaryDirectory(prefix="fastmask-predict-")


class Launch(NamedTuple):
    """One kernel as it would be launched."""

    name: str
    programs: int
    warps: int
    shared_bytes: int
    registers: int
    spilled_bytes: int
    sass: str  # with the source line of each instruction
    ptx: str


class TorchOp(NamedTuple):
    """One operation of torch's."""

    name: str  # such as "aten::sort"
    arguments: tuple[Any, ...]  # tensors are (shape, dtype)
    moved_bytes: int  # tensors in and out, each once


class Shape(NamedTuple):
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class _Target:
    """A driver for Triton in place of its own, which needs a GPU."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # type: ignore[no-any-return]

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


class _Torch(TorchDispatchMode):
    """Record torch's operations; uninitialized tensors become zeros."""

    def __init__(self, events: list[Launch | TorchOp]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.events = events

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if "empty" in func.name():
            return out.zero_()
        if not _is_view(func):
            read = () if func.name().startswith("aten::new_") else (args, kwargs)  # of which only the dtype counts
            tensors = [leaf for leaf in pytree.tree_leaves((read, out)) if isinstance(leaf, Tensor)]
            moved = sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())
            kept = pytree.tree_map_only(Tensor, lambda t: Shape(tuple(t.shape), t.dtype), tuple(args))
            self.events.append(TorchOp(func.name().split(".")[0], kept, moved))
        return out


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    writes = [value.alias_info is not None and value.alias_info.is_write for value in func._schema.arguments]
    aliases = bool(returns) and all(value.alias_info is not None for value in returns)
    return (aliases and not any(writes)) or func.name().startswith(("aten::_unsafe_view", "aten::lift", "aten::detach"))


@contextlib.contextmanager
def _compiling(launch: Callable[..., Any], capability: int) -> Iterator[None]:
    driver = triton.runtime.driver
    before, run_kernel = driver._active, JITFunction.run
    driver.set_active(_Target(capability))
    JITFunction.run = launch
    try:
        with mock.patch.dict(os.environ, TRITON_CACHE_DIR=_CACHE.name):
            yield
    finally:
        JITFunction.run = run_kernel
        driver._active = before


def record(run: Callable[[], Any], architecture: str = "sm_90") -> list[Launch | TorchOp]:
    """Record ``run``, which calls a launcher on CPU tensors.

    Raises:
        RuntimeError: kernels are interpreted, or this Triton does not say where a function was called.
    """
    events: list[Launch | TorchOp] = []
    run_kernel = JITFunction.run

    def launch(self: Any, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> Any:
        compiled = run_kernel(self, *args, grid=grid, warmup=True, **kwargs)
        if callable(grid):
            grid = grid(dict(zip(self.arg_names, args, strict=False)) | kwargs)
        programs = 1
        for size in grid:
            programs *= size
        cubin = compiled.asm["cubin"]
        registers, stack = registers_and_stack(cubin)
        metadata, sass = compiled.metadata, run_tool(["nvdisasm", "-gi", "-c"], cubin)
        events.append(
            Launch(
                self.__name__, programs, metadata.num_warps, metadata.shared, registers, stack,
                sass, compiled.asm["ptx"],
            )
        )  # fmt: skip
        return compiled

    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET: must not be 1, kernels are compiled")
    with _compiling(launch, int(architecture.removeprefix("sm_"))), torch.no_grad(), _Torch(events):
        run()
    launches = [event for event in events if isinstance(event, Launch)]
    if launches and not any("inlined_at" in launch.ptx for launch in launches):
        raise RuntimeError(f"triton must say where functions were called, as 3.8 does, got {triton.__version__}")
    return events
