"""``python -m fastmask.kernels.audit [--arch sm_90 sm_80 ...] [--json]``: what the compiler makes of the kernels.

Compiles ahead of time, so it needs no GPU: every variant for the first architecture, the default one of each kernel and
dtype for the others. Prints registers, spilled bytes, shared memory, and accesses to global memory by width.
"""

import argparse
import collections
import itertools
import json
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastmask.kernels import (
    gpu_nms_order,
    gpu_nms_pairs,
    gpu_nms_presorted,
    gpu_nms_resolve,
    gpu_paste,
    gpu_paste_backward,
    gpu_rle,
    gpu_roi_align,
    gpu_roi_align_backward,
    gpu_roi_geometry,
    gpu_roi_pool,
)

ARCHITECTURES = ("sm_90", "sm_80", "sm_100", "gfx942")
DTYPES = ("fp32", "fp16", "bf16")
ACCESS = re.compile(r"\b(LDG|STG|LDL|STL|RED|ATOM|ATOMG)\b((?:\.[A-Z0-9_]+)*)")


class Variant(NamedTuple):
    """A kernel as a launcher would specialise it."""

    name: str
    kernel: Any
    types: dict[str, str]  # of arguments that are no constants: those not named are int32
    constants: dict[str, Any]
    options: dict[str, Any]
    multiples: tuple[str, ...]  # int arguments that are multiples of 16
    default: bool  # compiled for every architecture
    wide: tuple[str, ...]  # which of LDG and STG must be 16 bytes wide, but for a RoI's own coordinates


class Report(NamedTuple):
    """What one variant compiled to."""

    name: str
    architecture: str
    registers: int
    spilled_bytes: int  # on AMD: spilled registers
    shared_bytes: int
    accesses: dict[str, int]  # instructions by kind and width, such as {"LDG.128": 16}; NVIDIA only


def variants() -> Iterator[Variant]:
    """All that ships: dtypes, layouts, sampling ratios and numbers of levels; outputs and modes."""
    geometry = {f"{name}{i}": "fp32" for name in ("scale", "limit") for i in range(5)}
    common = {"POOLED_H": 7, "POOLED_W": 7, "ALIGNED": False}
    for dtype, levels, ratio in itertools.product(DTYPES, (4, 1), (2, 0)):
        suffix = f"{dtype}, {levels} levels, sampling ratio {ratio}"
        constants = common | {"LEVELS": levels, "RATIO": ratio}
        first = (levels, ratio) == (4, 2)
        maps = {f"map{i}_ptr": f"*{dtype}" for i in range(5)} | {"out_ptr": f"*{dtype}", "rois_ptr": "*fp32"}
        for layout, last, multiple in (("NHWC", True, 16), ("NHWC of odd width", True, 1), ("NCHW", False, 1)):
            channels = gpu_roi_align.CHANNELS if last else gpu_roi_align.APART_CHANNELS
            own = {"CHANNELS_LAST": last, "MULTIPLE": multiple, "BINS": gpu_roi_align.BINS, "CHANNELS": channels}
            yield Variant(
                f"RoIAlign forward, {layout}, {suffix}",
                gpu_roi_align._forward_kernel,
                maps | geometry,
                constants | own,
                {"num_warps": gpu_roi_align.NUM_WARPS},
                ("channels",),
                first and multiple == 16,
                ("LDG", "STG") if multiple == 16 else (),
            )
        backward = gpu_roi_align_backward
        grads = {f"out{i}_ptr": f"*{dtype}" for i in range(5)} | {"grad_ptr": f"*{dtype}", "rois_ptr": "*fp32"}
        own = {"TILE": backward.TILE, "CHANNELS": backward.CHANNELS, "ROIS": backward.ROIS}
        yield Variant(
            f"RoIAlign backward, {suffix}",
            backward._backward_kernel,
            grads | geometry | {"order_ptr": "*i64", "starts_ptr": "*i64"},
            constants | own,
            {"num_warps": backward.NUM_WARPS},
            ("channels",),
            first,
            ("STG",),
        )
        if levels == 4 or ratio == 0:
            continue
        for layout, last, multiple in (("NHWC", True, 16), ("NCHW", False, 1)):
            yield Variant(
                f"RoIPool forward, {layout}, {dtype}",
                gpu_roi_pool._forward_kernel,
                {"map_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "rois_ptr": "*fp32", "argmax_ptr": "*i64"}
                | {"spatial_scale": "fp32", "lowest": "fp32"},
                {"POOLED_H": 7, "POOLED_W": 7, "CHANNELS_LAST": last, "MULTIPLE": multiple}
                | {"BINS": gpu_roi_pool.BINS, "CHANNELS": gpu_roi_pool.CHANNELS},
                {"num_warps": gpu_roi_pool.NUM_WARPS},
                ("channels",),
                last,
                ("LDG", "STG") if last else (),
            )
        yield Variant(
            f"RoIPool backward, {dtype}",
            gpu_roi_pool._backward_kernel,
            {"grad_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "rois_ptr": "*fp32", "spatial_scale": "fp32"}
            | {f"{name}_ptr": "*i64" for name in ("argmax", "order", "starts")},
            {"POOLED_H": 7, "POOLED_W": 7, "TILE": gpu_roi_pool.TILE}
            | {"CHANNELS": gpu_roi_pool.GRAD_CHANNELS, "ROIS": gpu_roi_pool.ROIS},
            {"num_warps": 4},
            ("channels",),
            True,
            ("STG",),
        )
    for levels in (4, 1):
        yield Variant(
            f"RoIs' maps, {levels} levels",
            gpu_roi_geometry._keys_kernel,
            geometry | {"rois_ptr": "*fp32", "keys_ptr": "*i32"},
            {"LEVELS": levels, "ALIGNED": False, "BLOCK": gpu_roi_geometry.KEYS},
            {"num_warps": 4},
            (),
            levels == 4,
            (),
        )
    for dtype, output, continuous in itertools.product(DTYPES, ("float", "bool", "packed"), (False, True)):
        block = gpu_paste.BLOCK // 8 if output == "packed" else gpu_paste.BLOCK
        yield Variant(
            f"paste, {dtype} to {output}, {'continuous' if continuous else 'torchvision'}",
            gpu_paste._paste_kernel,
            {
                "masks_ptr": f"*{dtype}",
                "boxes_ptr": "*fp32",
                "out_ptr": f"*{dtype}" if output == "float" else "*u8",
                "threshold": "fp32",
                "growth": "fp32",
            },
            {
                "OUTPUT": output,
                "SIDE": 28,
                "PADDING": 0 if continuous else 1,
                "CONTINUOUS": continuous,
                "LOGITS": True,
                "BLOCK": block,
            },
            {"num_warps": gpu_paste.NUM_WARPS, "enable_fp_fusion": False},
            ("elements",),
            output == "bool" and not continuous,
            ("STG",) if output != "packed" else (),
        )
    for dtype, continuous in itertools.product(DTYPES, (False, True)):
        yield Variant(
            f"paste backward, {dtype}, {'continuous' if continuous else 'torchvision'}",
            gpu_paste_backward._backward_kernel,
            {f"{name}_ptr": f"*{dtype}" for name in ("grad", "masks", "out")}
            | {"boxes_ptr": "*fp32", "growth": "fp32"},
            {
                "SIDE": 28,
                "PADDING": 0 if continuous else 1,
                "CONTINUOUS": continuous,
                "LOGITS": True,
                "CELLS": 32,
                "BLOCK": gpu_paste_backward.BLOCK,
            },
            {"num_warps": 4, "enable_fp_fusion": False},
            (),
            not continuous,
            (),
        )
    yield from nms_variants()
    places = {f"{name}_ptr": "*i64" for name in ("sizes", "counts", "positions", "totals", "offsets")}
    for continuous, write in itertools.product((False, True), (False, True)):
        yield Variant(
            f"RLE's changes, {'continuous' if continuous else 'torchvision'}, {'written' if write else 'counted'}",
            gpu_rle._changes_kernel,
            places | {"masks_ptr": "*fp32", "boxes_ptr": "*fp32", "threshold": "fp32", "growth": "fp32"},
            {
                "WRITE": write,
                "SIDE": 28,
                "PADDING": 0 if continuous else 1,
                "CONTINUOUS": continuous,
                "CHUNKS": gpu_rle.CHUNKS,
                "BLOCK": gpu_rle.BLOCK,
            },
            {"num_warps": 4, "enable_fp_fusion": False},
            (),
            not continuous,
            (),
        )
    for write in (False, True):
        yield Variant(
            f"RLE's text, {'written' if write else 'counted'}",
            gpu_rle._text_kernel,
            places | {"buffer_ptr": "*u8"},
            {"WRITE": write, "CHUNKS": gpu_rle.CHUNKS, "BLOCK": gpu_rle.BLOCK, "LONGEST": gpu_rle.LONGEST},
            {"num_warps": 4},
            (),
            True,
            (),
        )
    for dtype in DTYPES:
        yield Variant(
            f"RLE's sigmoid, {dtype}",
            gpu_rle._sigmoid_kernel,
            {"logits_ptr": f"*{dtype}", "out_ptr": "*fp32"},
            {"BLOCK": gpu_rle.BLOCK},
            {"num_warps": 4},
            ("elements",),
            False,
            ("STG",),
        )


def nms_variants() -> Iterator[Variant]:
    """NMS: three ways to an order, two kinds of pair tests, groups and none."""
    order, pairs, resolve = gpu_nms_order, gpu_nms_pairs, gpu_nms_resolve
    types = {
        f"{name}_ptr": "*i64" for name in ("groups", "labels", "order", "sorted", "keep_words", "indices", "count")
    }
    types |= {f"{name}_ptr": "*i8" for name in ("valid", "keep", "struck")} | {"tiles_ptr": "*fp32"}
    types |= {f"{name}_ptr": "*i32" for name in ("units", "ranks", "words", "kept", "num_kept")}
    places = {"BLOCK": order.BLOCK, "PLACED": order.PLACED}

    def variant(name: str, kernel: Any, own: dict[str, str], default: bool, **constants: Any) -> Variant:
        options = {"num_warps": constants.pop("num_warps", 4)}
        options |= {"enable_fp_fusion": False} if "TEST" in constants else {}
        return Variant(f"NMS, {name}", kernel, types | own, constants, options, (), default, ())

    flags = (False, True)
    for dtype, padded, divide in itertools.product(DTYPES, flags, flags):
        own = {"boxes_ptr": f"*{dtype}", "scores_ptr": f"*{dtype}", "keys_ptr": "*i32"}
        suffix = f"{dtype}{', padding' if padded else ''}{', no positive threshold' if divide else ''}"
        common = {"HAS_VALID": padded, "DIVIDE": divide}
        for grouped, hashed in ((True, False), (True, True), (False, False)):
            groups = "one group" if not grouped else "any groups" if hashed else "groups"
            first = grouped and padded and not hashed and not divide
            units = common | {"GROUPED": grouped, "HASHED": hashed}
            counted = {"BLOCK": order.BLOCK, "COUNTED": order.COUNTED, "COMPARED": order.COMPARED}
            counted["num_warps"] = order.COUNT_WARPS
            yield variant(f"counted, {groups}, {suffix}", order._count_kernel, own, first, **units, **counted)
            yield variant(f"placed, {groups}, {suffix}", order._place_kernel, own, first, **units, **places)
        merged = places | {"MOST_RUNS": order.MOST_RUNS}
        yield variant(f"merged, {suffix}", gpu_nms_presorted._merge_kernel, own, padded, **common, **merged)
    for dtype, padded, one in itertools.product(DTYPES, flags, flags):
        own = {"scores_ptr": f"*{dtype}", "keys_ptr": "*i32" if one else "*i64"}
        suffix = f"{dtype}, {'one image' if one else 'a batch'}{', padding' if padded else ''}"
        constants = {"HAS_VALID": padded, "ONE_IMAGE": one, "PLACED": order.PLACED}
        yield variant(f"scores' keys, {suffix}", order._score_keys_kernel, own, False, **constants)
    for bits, padded, hashed in itertools.product(("u8", "i16", "i32"), flags, flags):
        own = {"keys_ptr": f"*{bits}"}
        suffix = f"{bits}, {'any groups' if hashed else 'groups'}{', padding' if padded else ''}"
        constants = {"HAS_VALID": padded, "HASHED": hashed, "PLACED": order.PLACED}
        yield variant(f"units' keys, {suffix}", order._unit_keys_kernel, own, False, **constants)
    for dtype in DTYPES:
        own = {"scores_ptr": f"*{dtype}", "keys_ptr": "*i32"}
        yield variant(f"runs' keys, {dtype}", gpu_nms_presorted._run_keys_kernel, own, False, RUN=order.RUN)
    for grouped, divide in itertools.product(flags, flags):
        own = {"threshold": "fp32", "half_gap": "fp32"}
        suffix = f"{'groups' if grouped else 'one group'}{', no positive threshold' if divide else ''}"
        test = "divide" if divide else "fma"
        sizes = {"BLOCK": order.BLOCK, "COLUMNS": pairs.columns_of(grouped, test), "num_warps": 1}
        constants = {"GROUPED": grouped, "TEST": test} | sizes
        yield variant(f"pairs, {suffix}", pairs._pairs_kernel, own, not divide, **constants)
        constants["COLUMNS"] = pairs.columns_of(True, test)
        yield variant(f"strikes, {suffix}", pairs._strike_kernel, own, not divide, **constants)
    for later in flags:
        constants = {"LATER": later, "FAR": resolve.FAR, "BLOCK": order.BLOCK, "num_warps": 1}
        name = f"what stays, {'later windows' if later else 'first window'}"
        yield variant(name, resolve._resolve_kernel, {}, True, **constants)
    listed = {"LISTED": resolve.LISTED, "WORDS": resolve.COUNTED_WORDS}
    yield variant("list", resolve._list_kernel, {}, True, **listed)


def compile_variant(variant: Variant, architecture: str) -> Report:
    """Compile it as for tensors that are 16-byte aligned."""
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
        return Report(variant.name, architecture, registers, spilled, compiled.metadata.shared, {})
    usage, assembly = (_tool(tool, compiled.asm["cubin"]) for tool in (["cuobjdump", "-res-usage"], ["nvdisasm"]))
    registers, stack = (int(re.findall(rf"{key}:(\d+)", usage)[0]) for key in ("REG", "STACK"))
    accesses: dict[str, int] = collections.Counter()
    for kind, modifiers in ACCESS.findall(assembly):
        width = next((part for part in modifiers.split(".") if part in ("64", "128", "U8", "U16", "S8", "S16")), "32")
        accesses[f"{kind}.{width.lstrip('US')}"] += 1
    return Report(variant.name, architecture, registers, stack, compiled.metadata.shared, dict(accesses))


def _tool(command: list[str], cubin: bytes) -> str:
    """What one of the CUDA tools inside Triton's wheel says of a cubin."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        arguments = [str(folder / command[0]), *command[1:], file.name]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


def reports(architectures: list[str]) -> list[Report]:
    """All variants for the first architecture, the default ones for the others."""
    wanted = [
        (number, architecture)
        for architecture in architectures
        for number, variant in enumerate(variants())
        if variant.default or architecture == architectures[0]
    ]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(
            tqdm(pool.map(_compile_number, *zip(*wanted, strict=True)), total=len(wanted), unit="variant", leave=False)
        )


def _compile_number(number: int, architecture: str) -> Report:
    """For another process, to which kernels cannot be handed over."""
    return compile_variant(next(itertools.islice(variants(), number, None)), architecture)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fastmask.kernels.audit", description=__doc__)
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES), help=" ".join(ARCHITECTURES))
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    rows = reports(args.arch)
    if args.json:
        print(json.dumps({"triton": triton.__version__, "variants": [row._asdict() for row in rows]}, indent=1))
        return
    print(f"triton {triton.__version__}\n{'':60} {'arch':8} regs spilled shared  accesses to global and local memory")
    for row in rows:
        accesses = " ".join(f"{kind}x{number}" for kind, number in sorted(row.accesses.items()))
        spilled, shared = row.spilled_bytes, row.shared_bytes
        print(f"{row.name:60} {row.architecture:8} {row.registers:4} {spilled:7} {shared:6}  {accesses}")


if __name__ == "__main__":
    main()
