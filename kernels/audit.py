"""``python -m fastmask.kernels.audit [--arch sm_90 sm_80 ...] [--quick] [--json]``: what becomes of the kernels.

Compiles ahead of time, so it needs no GPU: every variant that a user can reach, for each architecture, or with
``--quick`` the default one of each kernel and dtype. Prints registers, spilled bytes, shared memory, slow paths, and
accesses to global memory by width.
"""

import argparse
import collections
import functools
import itertools
import json
import multiprocessing
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastmask.kernels import (
    audit_bias_act,
    audit_decode,
    audit_heads,
    audit_nms,
    audit_roi_align,
    audit_roi_align_backward,
    audit_stem,
    audit_top_anchors,
    audit_tuned,
)
from fastmask.kernels.cuda_tools import registers_and_stack, run_tool
from fastmask.kernels.triton import (
    mask_geometry as mask_geometry_triton,
    paste as paste_triton,
    paste_backward as paste_backward_triton,
    rle as rle_triton,
    roi_pool as roi_pool_triton,
)
from fastmask.kernels.variant import Variant

ARCHITECTURES = ("sm_90", "sm_80", "sm_100", "gfx942")
DTYPES = ("fp32", "fp16", "bf16")
ACCESS = re.compile(r"\b(LDG|STG|LDL|STL|RED|ATOM|ATOMG)\b((?:\.[A-Z0-9_]+)*)")


class Report(NamedTuple):
    """What one variant compiled to."""

    name: str
    architecture: str
    registers: int
    spilled_bytes: int  # on AMD: spilled registers
    shared_bytes: int
    accesses: dict[str, int]  # instructions by kind and width, such as {"LDG.128": 16}; NVIDIA only
    slow_paths: dict[str, int]  # FCHK: divisions that check their operands; CALL: of divisions and roots; NVIDIA only


def variants() -> Iterator[Variant]:
    """All that a user can reach: what ships, then what a tuning file may choose instead."""
    yield from shipped_variants()
    yield from _tuned_variants()


@functools.cache
def _tuned_variants() -> tuple[Variant, ...]:
    return tuple(audit_tuned.tuned_variants(shipped_variants))


def shipped_variants() -> Iterator[Variant]:
    """Without a tuning file: dtypes, layouts, sampling ratios and numbers of levels; outputs and modes."""
    yield from itertools.starmap(Variant, audit_roi_align.forward_variants(DTYPES))
    yield from itertools.starmap(Variant, audit_roi_align_backward.backward_variants(DTYPES))
    for dtype in DTYPES:
        for layout, last, multiple in (("NHWC", True, 16), ("NHWC of odd width", True, 1), ("NCHW", False, 1)):
            yield Variant(
                f"RoIPool forward, {layout}, {dtype}",
                roi_pool_triton._forward_kernel,
                {"map_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "rois_ptr": "*fp32", "argmax_ptr": "*i64"}
                | {"spatial_scale": "fp32", "lowest": "fp32"},
                {"POOLED_H": 7, "POOLED_W": 7, "CHANNELS_LAST": last, "MULTIPLE": multiple}
                | {"BINS": roi_pool_triton.BINS, "CHANNELS": roi_pool_triton.CHANNELS},
                {"num_warps": roi_pool_triton.NUM_WARPS},
                ("channels",),
                multiple == 16,
                ("LDG", "STG") if multiple == 16 else (),
            )
        yield Variant(
            f"RoIPool backward, {dtype}",
            roi_pool_triton._backward_kernel,
            {"grad_ptr": f"*{dtype}", "out_ptr": f"*{dtype}", "rois_ptr": "*fp32", "spatial_scale": "fp32"}
            | {f"{name}_ptr": "*i64" for name in ("argmax", "order", "starts")},
            {"POOLED_H": 7, "POOLED_W": 7, "TILE": roi_pool_triton.TILE}
            | {"CHANNELS": roi_pool_triton.GRAD_CHANNELS, "ROIS": roi_pool_triton.ROIS},
            {"num_warps": 4},
            ("channels",),
            True,
            ("STG",),
        )
    modes = {  # what a mask lies on: side, padding, continuous
        "torchvision": (28, 1, False),
        "continuous": (28, 0, True),
        "torchvision without padding, side 14": (14, 0, False),
    }
    sampled = {"boxes_ptr": "*fp32", "threshold": "fp32", "growth": "fp32"}
    for dtype, output, mode in itertools.product(DTYPES, ("float", "bool", "packed"), modes):
        side, padding, continuous = modes[mode]
        yield Variant(
            f"paste, {dtype} to {output}, {mode}",
            paste_triton._paste_kernel,
            sampled | {"masks_ptr": f"*{dtype}", "out_ptr": f"*{dtype}" if output == "float" else "*u8"},
            {"OUTPUT": output, "SIDE": side, "PADDING": padding, "CONTINUOUS": continuous}
            | {"TILE": paste_triton.TILE, "LINES": paste_triton.LINES},
            {"num_warps": paste_triton.NUM_WARPS, "enable_fp_fusion": False},
            (),
            output == "bool" and mode == "torchvision",
            (),
        )
    for dtype, mode, logits in itertools.product(DTYPES, modes, (True, False)):
        side, padding, continuous = modes[mode]
        yield Variant(
            f"paste backward, {dtype}, {mode}{', logits' if logits else ''}",
            paste_backward_triton._backward_kernel,
            {f"{name}_ptr": f"*{dtype}" for name in ("grad", "masks", "out")}
            | {"boxes_ptr": "*fp32", "growth": "fp32"},
            {"SIDE": side, "PADDING": padding, "CONTINUOUS": continuous, "LOGITS": logits}
            | {"CELLS": triton.next_power_of_2(side), "BLOCK": paste_backward_triton.BLOCK},
            {"num_warps": 4, "enable_fp_fusion": False},
            (),
            logits and mode == "torchvision",
            (),
        )
    yield from itertools.starmap(Variant, audit_nms.variants(DTYPES))
    yield from itertools.starmap(Variant, audit_bias_act.variants(DTYPES))
    yield from itertools.starmap(Variant, audit_decode.variants(DTYPES))
    places = {
        f"{name}_ptr": "*i64"
        for name in ("sizes", "counts", "changes", "totals", "slots", "positions", "lengths", "offsets")
    }
    for dtype, mode, positions in itertools.product(DTYPES, modes, (False, True)):
        side, padding, continuous = modes[mode]
        yield Variant(
            f"RLE's {'positions' if positions else 'changes'}, {dtype}, {mode}",
            rle_triton._changes_kernel,
            places | sampled | {"masks_ptr": f"*{dtype}"},
            {"POSITIONS": positions, "SIDE": side, "PADDING": padding, "CONTINUOUS": continuous}
            | {
                "SLOTS": rle_triton.SLOTS,
                "BLOCK": rle_triton.BLOCK,
                "WORD": rle_triton.WORD,
                "UNROLLED": rle_triton.UNROLLED,
            }
            | {"SUMMED": rle_triton.SUMMED},
            {"num_warps": rle_triton.NUM_WARPS, "enable_fp_fusion": False},
            (),
            mode == "torchvision",
            (),
        )
    for write in (False, True):
        yield Variant(
            f"RLE's text, {'written' if write else 'counted'}",
            rle_triton._text_kernel,
            places | {"buffer_ptr": "*u8"},
            {"WRITE": write, "SUMMED": rle_triton.SUMMED, "BLOCK": rle_triton.RUNS, "LONGEST": rle_triton.LONGEST},
            {"num_warps": rle_triton.TEXT_WARPS},
            (),
            True,
            (),
        )
    yield from itertools.starmap(Variant, audit_heads.variants(DTYPES))
    yield from itertools.starmap(Variant, audit_stem.variants(DTYPES))
    yield from itertools.starmap(Variant, audit_top_anchors.variants(DTYPES))
    for dtype in DTYPES:
        yield Variant(
            f"masks' sigmoid, {dtype}",
            mask_geometry_triton._sigmoid_kernel,
            {"logits_ptr": f"*{dtype}", "out_ptr": "*fp32"},
            {"BLOCK": mask_geometry_triton.LOGITS},
            {"num_warps": 4},
            ("elements",),
            False,
            ("STG",),
        )


def compile_variant(variant: Variant, architecture: str) -> Report:
    """Compile it as for tensors that are 16-byte aligned."""
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


def reports(architectures: Sequence[str], quick: bool = False, without: str | None = None) -> list[Report]:
    """All variants for each architecture, or with ``quick`` the default ones; none of ``without``, a dtype."""
    wanted = [
        (number, architecture)
        for architecture in architectures
        for number, variant in enumerate(variants())
        if (variant.default or not quick) and (without is None or without not in variant.name)
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
    parser.add_argument("--quick", action="store_true", help="the default variant of each kernel and dtype alone")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    rows = reports(args.arch, args.quick)
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
