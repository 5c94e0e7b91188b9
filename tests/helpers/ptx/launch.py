"""Execute what Triton compiles, on a machine without a GPU.

    with launched(90, Options(seed=0)) as runs:
        fastmask.kernels.triton.nms.nms_padded(...)  # on CPU tensors; runs collects one Run per launch

Every `kernel[grid](...)` inside is compiled by Triton as for that GPU, with the specialization of its real arguments,
and its PTX is executed on the tensors' own memory, all threads of some CTAs in lockstep (threads.py).

Checked on the way (Run.errors): accesses out of the launch's tensors or of shared memory, misaligned ones; reads of
what torch.empty gave and nobody has written, and of what cp.async still copies; races (shadow.py); barriers that not
all threads reach, instructions of whole warps with lanes missing.
Varied: the order of CTAs, which thread comes first at an atomic, the last bits of approximate instructions (perturb),
contraction of mul + add into fma as ptxas may do it (contract).
Not seen: anything between PTX and the machine, 32-bit overflow at sizes that nobody runs here, time.
"""

import contextlib
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction

from helpers.ptx import dtypes
from helpers.ptx.dtypes import TYPES
from helpers.ptx.memory import POISON, POISONED, Global, order, view_bytes
from helpers.ptx.program import Program
from helpers.ptx.report import Options, Run, Trap
from helpers.ptx.threads import Batch

_CACHE = tempfile.TemporaryDirectory(prefix="fastmask-ptx-")  # Triton's, of kernels without machine code
_PROGRAMS: dict[tuple[str, bool], Program] = {}


def execute_ptx(
    ptx: str,
    shared: int,
    warps: int,
    grid: tuple[int, ...],
    arguments: list[Any],
    options: Options,
    name: str = "",
    reached: Sequence[torch.Tensor] = (),
) -> Run:
    """``arguments``: tensors and numbers, in the order of the entry's parameters (scratch pointers may be missing).

    ``reached``: tensors beside these that the program may access.
    """
    key = ptx, options.contract
    program = _PROGRAMS.get(key) or _PROGRAMS.setdefault(key, Program(ptx, options.contract))
    grid = (*grid, *[1] * (3 - len(grid)))
    run = Run(name or program.name, ptx, grid, warps, options)
    tensors = [*(a for a in arguments if isinstance(a, torch.Tensor)), *reached]
    memory = Global(run, tensors, program.granules["global"], dtypes.WARP * warps)
    params = [_pack(a, kind) for (kind, _), a in zip(program.params, [*arguments, *[0] * 9], strict=False)]
    rng = random.Random(options.seed)
    positions = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    positions = [positions[i] for i in order(options.order, len(positions), rng)]
    together = max(1, options.most_threads // (dtypes.WARP * warps))
    with np.errstate(all="ignore"):
        for first in range(0, len(positions), together):
            batch = Batch(program, run, memory, params, positions[first : first + together], first, shared, rng)
            try:
                batch.execute()
            except Trap as trap:
                run.error(str(trap))
                break
            finally:
                for block, visits in zip(program.blocks, batch.visits.tolist(), strict=True):
                    for op in block.instructions if options.statistics and visits else []:
                        run.opcodes[op.opcode] += visits
    return run


def _pack(value: Any, kind: str) -> np.generic:
    dtype = np.dtype(vars(dtypes)[TYPES[kind]])
    if dtype.kind == "f":
        return dtype.type(value)
    value = value.data_ptr() if isinstance(value, torch.Tensor) else int(value)
    return dtypes.UNSIGNED[dtype.itemsize](value & (256**dtype.itemsize - 1))


class Driver:
    """What Triton asks of a GPU's driver in order to compile."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: Any = None) -> int:
        return 0


def _poison(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = function(*args, **kwargs)
        storage = out.untyped_storage()
        if storage.nbytes():
            POISONED[storage.data_ptr()] = storage
            raw = view_bytes(storage.data_ptr(), storage.nbytes())
            raw[:] = np.resize(POISON, len(raw))
        return out

    return empty


@contextlib.contextmanager
def launched(
    capability: int,
    options: Options,
    rewrite: Callable[[str], str] | None = None,
    reached: Sequence[torch.Tensor] = (),
) -> Iterator[list[Run]]:
    """Inside, Triton kernels called on CPU tensors run here.

    ``rewrite``: PTX -> PTX, to plant a bug. ``reached``: tensors whose addresses stand in others.
    """
    compile_and_launch, add_stages, runs = JITFunction.run, CUDABackend.add_stages, []

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled = compile_and_launch(self, *args, grid=grid, warmup=True, **kwargs)
        bound = dict(zip(self.arg_names, args, strict=False)) | kwargs
        bound = {p.name: bound.get(p.name, p.default) for p in self.params}
        # constants, among them ints that are 1 and not exempt from specialization, are no parameters of the entry
        constants = {path[0] for path in compiled.src.constants}
        arguments = [bound[n] for i, n in enumerate(self.arg_names) if i not in constants]
        grid = grid(bound) if callable(grid) else grid
        ptx, metadata = compiled.asm["ptx"], compiled.metadata
        name = f"{self.__module__.split('.')[-1]}.{self.__name__}"
        ptx = rewrite(ptx) if rewrite else ptx
        runs.append(execute_ptx(ptx, metadata.shared, metadata.num_warps, grid, arguments, options, name, reached))
        return compiled

    def add_stages_to_ptx(self: Any, stages: dict[str, Any], *args: Any) -> None:
        add_stages(self, stages, *args)
        stages["cubin"] = lambda source, metadata: b""  # ptxas would take as long as all the rest

    places = [(torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty"),
              (torch.Tensor, "new_empty_strided")]  # fmt: skip
    with contextlib.ExitStack() as stack:
        for place, name, value in (
            (JITFunction, "run", launch),
            (CUDABackend, "add_stages", add_stages_to_ptx),
            (triton.runtime.driver, "_active", Driver(capability)),
            *((place, name, _poison(getattr(place, name))) for place, name in places),
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        stack.enter_context(mock.patch.dict(os.environ, TRITON_CACHE_DIR=_CACHE.name))
        stack.callback(POISONED.clear)
        yield runs
