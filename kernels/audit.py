"""``python -m fastmask.kernels.audit [--arch sm_90 sm_80 ...] [--quick] [--json]``: compile every kernel and report.

Kernels are compiled ahead of time, without a GPU: every variant that a user can reach, for each architecture, or with
``--quick`` the default one of each kernel and dtype. The report has registers, spilled bytes, shared memory, slow
paths, and accesses to global memory by width. Each module of kernels/triton lists its own ``variants``.
"""

import argparse
import collections
import functools
import importlib
import itertools
import json
import multiprocessing
import pkgutil
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import ModuleType
from typing import NamedTuple

import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import fastmask.kernels.triton
from fastmask.kernels import audit_tuned
from fastmask.kernels.cuda_tools import registers_and_stack, run_tool
from fastmask.kernels.variant import Variant

ARCHITECTURES = ("sm_90", "sm_80", "sm_100", "gfx942")
ACCESS = re.compile(r"\b(LDG|STG|LDL|STL|RED|ATOM|ATOMG)\b((?:\.[A-Z0-9_]+)*)")


class Report(NamedTuple):
    """Resources and instructions of one compiled variant."""

    name: str
    architecture: str
    registers: int
    spilled_bytes: int  # on AMD: spilled registers
    shared_bytes: int
    accesses: dict[str, int]  # instructions by kind and width, such as {"LDG.128": 16}; NVIDIA only
    slow_paths: dict[str, int]  # FCHK: divisions that check their operands; CALL: of divisions and roots; NVIDIA only


def variants() -> Iterator[Variant]:
    """All variants that a user can reach: those that ship, then those that a tuning file may choose instead."""
    yield from shipped_variants()
    yield from _tuned_variants()


@functools.cache
def _tuned_variants() -> tuple[Variant, ...]:
    return tuple(audit_tuned.tuned_variants(shipped_variants))


def shipped_variants() -> Iterator[Variant]:
    """The variants without a tuning file, which the modules of kernels/triton list."""
    for module in modules():
        if hasattr(module, "variants"):
            yield from module.variants()


def modules() -> list[ModuleType]:
    """The modules of kernels/triton, by name."""
    package = fastmask.kernels.triton
    names = sorted(info.name for info in pkgutil.iter_modules(package.__path__))
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]


def compile_variant(variant: Variant, architecture: str) -> Report:
    """Compile a variant for tensors that are 16-byte aligned."""
    if architecture.startswith("gfx"):
        variant = variant._replace(
            constants={name: variant.amd.get(name, value) for name, value in variant.constants.items()},
            options={
                name: variant.amd.get(name, value) for name, value in variant.options.items() if name != "maxnreg"
            },
        )
    names = variant.kernel.arg_names
    signature = {name: "constexpr" if name in variant.constants else variant.types.get(name, "i32") for name in names}
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or name in variant.multiples]
    source = ASTSource(
        variant.kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    target = (
        GPUTarget("hip", architecture, 64)
        if architecture.startswith("gfx")
        else GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    )
    compiled = triton.compile(source, target=target, options=variant.options)
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]
        registers, spilled = (
            int(re.findall(rf"\.{key}:\s*(\d+)", text)[0]) for key in ("vgpr_count", "vgpr_spill_count")
        )
        return Report(variant.name, architecture, registers, spilled, compiled.metadata.shared, {}, {})
    registers, stack = registers_and_stack(compiled.asm["cubin"])
    assembly = run_tool(["nvdisasm"], compiled.asm["cubin"])
    accesses: dict[str, int] = collections.Counter()
    for kind, modifiers in ACCESS.findall(assembly):
        width = next((part for part in modifiers.split(".") if part in ("64", "128", "U8", "U16", "S8", "S16")), "32")
        accesses[f"{kind}.{width.lstrip('US')}"] += 1
    slow = {kind: len(re.findall(rf"\b{kind}\b", assembly)) for kind in ("FCHK", "CALL")}
    return Report(variant.name, architecture, registers, stack, compiled.metadata.shared, dict(accesses), slow)


def reports(architectures: Sequence[str], names: Collection[str]) -> list[Report]:
    """Reports of the variants of these names, for each architecture."""
    wanted = [
        (number, architecture)
        for architecture in architectures
        for number, variant in enumerate(variants())
        if variant.name in names
    ]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(
            tqdm(
                pool.map(_compile_number, *zip(*wanted, strict=True)),
                total=len(wanted),
                unit="variant",
                leave=False,
                disable=None,
            )
        )


def _compile_number(number: int, architecture: str) -> Report:
    """Compile a variant by its number, in another process: kernels cannot be pickled."""
    return compile_variant(next(itertools.islice(variants(), number, None)), architecture)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fastmask.kernels.audit", description=__doc__)
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES), help=" ".join(ARCHITECTURES))
    parser.add_argument("--quick", action="store_true", help="the default variant of each kernel and dtype alone")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    rows = reports(args.arch, [variant.name for variant in variants() if variant.default or not args.quick])
    if args.json:
        print(json.dumps({"triton": triton.__version__, "variants": [row._asdict() for row in rows]}, indent=1))
        return
    print(f"triton {triton.__version__}")
    print(f"{'':60} {'arch':8} regs spilled shared FCHK CALL  accesses to global and local memory")
    for row in rows:
        accesses = " ".join(f"{kind}x{number}" for kind, number in sorted(row.accesses.items()))
        spilled, shared = row.spilled_bytes, row.shared_bytes
        slow = " ".join(f"{row.slow_paths.get(kind, 0):4}" for kind in ("FCHK", "CALL"))
        print(f"{row.name:60} {row.architecture:8} {row.registers:4} {spilled:7} {shared:6} {slow}  {accesses}")


if __name__ == "__main__":
    main()
