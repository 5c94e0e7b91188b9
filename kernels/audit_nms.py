"""The variants of NMS's kernels that audit.py compiles."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fastmask.kernels.triton import (
    nms_order as nms_order_triton,
    nms_pairs as nms_pairs_triton,
    nms_presorted as nms_presorted_triton,
    nms_resolve as nms_resolve_triton,
    nms_runs as nms_runs_triton,
)


def variants(dtypes: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The fields of Variant: four ways to an order, two kinds of pair tests, groups and none."""
    order, pairs, resolve = nms_order_triton, nms_pairs_triton, nms_resolve_triton
    types = {
        f"{name}_ptr": "*i64" for name in ("groups", "labels", "order", "sorted", "keep_words", "indices", "count")
    }
    types |= {f"{name}_ptr": "*i8" for name in ("valid", "keep", "struck")} | {"tiles_ptr": "*fp32"}
    types |= {f"{name}_ptr": "*i32" for name in ("units", "ranks", "words", "kept", "num_kept", "lengths")}
    places = {"BLOCK": order.BLOCK, "PLACED": order.PLACED}

    def variant(name: str, kernel: Any, own: dict[str, str], default: bool, **constants: Any) -> tuple[Any, ...]:
        options = {"num_warps": constants.pop("num_warps", 4)}
        options |= {"enable_fp_fusion": False} if "TEST" in constants else {}
        return f"NMS, {name}", kernel, types | own, constants, options, (), default, ()

    flags = (False, True)
    for dtype, padded, divide in itertools.product(dtypes, flags, flags):
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
        merged = {"BLOCK": order.BLOCK, "MERGED": nms_presorted_triton.MERGED, "MOST_RUNS": order.MOST_RUNS}
        yield variant(f"merged, {suffix}", nms_presorted_triton._merge_kernel, own, padded, **common, **merged)
    yield from runs(dtypes, variant)
    for dtype, padded, one in itertools.product(dtypes, flags, flags):
        own = {"scores_ptr": f"*{dtype}", "keys_ptr": "*i32" if one else "*i64"}
        suffix = f"{dtype}, {'one image' if one else 'a batch'}{', padding' if padded else ''}"
        constants: dict[str, Any] = {"HAS_VALID": padded, "ONE_IMAGE": one, "PLACED": order.PLACED}
        yield variant(f"scores' keys, {suffix}", order._score_keys_kernel, own, False, **constants)
    for bits, padded, hashed in itertools.product(("u8", "i16", "i32"), flags, flags):
        own = {"keys_ptr": f"*{bits}"}
        suffix = f"{bits}, {'any groups' if hashed else 'groups'}{', padding' if padded else ''}"
        constants = {"HAS_VALID": padded, "HASHED": hashed, "PLACED": order.PLACED}
        yield variant(f"units' keys, {suffix}", order._unit_keys_kernel, own, False, **constants)
    for dtype in dtypes:
        own = {"scores_ptr": f"*{dtype}", "keys_ptr": "*i32"}
        yield variant(f"runs' keys, {dtype}", nms_presorted_triton._run_keys_kernel, own, False, RUN=order.RUN)
    for grouped, divide in itertools.product(flags, flags):
        own = {"threshold": "fp32", "half_gap": "fp32"}
        suffix = f"{'groups' if grouped else 'one group'}{', no positive threshold' if divide else ''}"
        test = "divide" if divide else "fma"
        sizes = {"BLOCK": order.BLOCK, "COLUMNS": pairs.columns_of(grouped, test), "num_warps": 1}
        constants = {"GROUPED": grouped, "TEST": test, **sizes}
        yield variant(f"pairs, {suffix}", pairs._pairs_kernel, own, not divide, **constants)
        constants["COLUMNS"] = pairs.columns_of(True, test)
        yield variant(f"strikes, {suffix}", pairs._strike_kernel, own, not divide, **constants)
    for later in flags:
        constants = {"LATER": later, "FAR": resolve.FAR, "BLOCK": order.BLOCK, "num_warps": 1}
        name = f"what stays, {'later windows' if later else 'first window'}"
        yield variant(name, resolve._resolve_kernel, {}, True, **constants)
    listed = {"LISTED": resolve.LISTED, "WORDS": resolve.COUNTED_WORDS}
    yield variant("list", resolve._list_kernel, {}, True, **listed)


def runs(dtypes: Sequence[str], variant: Callable[..., tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Sorts of runs, and their merges: which read no valid, and scores and groups from the keys."""
    flags = (False, True)
    for grouped, hashed in ((True, False), (True, True), (False, False)):
        groups = "one group" if not grouped else "any groups" if hashed else "groups"
        for dtype, padded in itertools.product(dtypes, flags):
            own = {"scores_ptr": f"*{dtype}", "keys_ptr": "*i64"}
            constants = {"GROUPED": grouped, "HASHED": hashed, "HAS_VALID": padded, "RUN": nms_runs_triton.RUN}
            constants["num_warps"] = nms_runs_triton.SORT_WARPS
            name = f"runs sorted, {groups}, {dtype}{', padding' if padded else ''}"
            first = grouped and padded and not hashed
            yield variant(name, nms_runs_triton._sort_runs_kernel, own, first, **constants)
    for dtype, grouped, divide in itertools.product(dtypes, flags, flags):
        own = {"boxes_ptr": f"*{dtype}", "keys_ptr": "*i64"}
        constants = {"GROUPED": grouped, "DIVIDE": divide, "BLOCK": nms_order_triton.BLOCK, "RUN": nms_runs_triton.RUN}
        constants |= {"SEARCHED": nms_runs_triton.SEARCHED, "MERGED": nms_runs_triton.MERGED}
        name = f"runs merged, {'groups' if grouped else 'one group'}, {dtype}"
        name += ", no positive threshold" if divide else ""
        yield variant(name, nms_runs_triton._merge_runs_kernel, own, grouped and not divide, **constants)
