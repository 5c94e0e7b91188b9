"""Planted bugs in the kernels, which must be found: by the results, by bounds, or as races."""

from collections.abc import Iterator

import pytest
import torch

from fastmask.kernels.launch import HAS_TRITON, INTERPRET

if INTERPRET or not HAS_TRITON:
    pytest.skip("executes compiled kernels, which Triton's interpreter does not have", allow_module_level=True)

import cases_bias_act
import cases_decode
import cases_heads
import cases_nms
import cases_paste
import cases_rle
import cases_roi_align
import cases_roi_pool
import cases_soft_nms
import cases_stem
import cases_top_anchors
from helpers.ptx import Options, execute, planted
from helpers.ptx.plant import count_barriers, endless_at_barrier, without_barrier

pytestmark = pytest.mark.ptx

FAMILIES = (
    cases_nms,
    cases_soft_nms,
    cases_roi_align,
    cases_roi_pool,
    cases_paste,
    cases_rle,
    cases_bias_act,
    cases_decode,
    cases_heads,
    cases_stem,
    cases_top_anchors,
)
BUGS = [  # that change with these tests, not with the kernels: most are slow
    pytest.param(module, name, id=name, marks=() if number < 1 else pytest.mark.slow)
    for module in FAMILIES
    for number, (name, _) in enumerate(module.bugs())
]


@pytest.mark.parametrize(("module", "name"), BUGS)
def test_finds_planted_bug(module: object, name: str, seed: int) -> None:
    torch.manual_seed(seed)
    bug = dict(module.bugs())[name]
    options = [Options(seed), Options(seed, "last", perturb=True)]
    assert not execute(bug.case, 90, options[0])[0]
    with planted(bug):
        assert any(execute(bug.case, 90, o)[0] for o in options)


def name_some_cases() -> Iterator[object]:
    """Some cases of each family, with most of its kernels."""
    for module in FAMILIES:
        names = [name for name, _ in module.cases()]
        for name in names[:: max(1, len(names) // 4)]:
            yield pytest.param(module, name, id=name)


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name"), [*name_some_cases()])
def test_finds_missing_barriers(module: object, name: str, seed: int) -> None:
    """Remove each bar.sync in turn. A few change nothing: Triton emits some that are redundant, such as the first
    one of a program, and beside a bar.warp.sync all of a kernel of one warp."""
    torch.manual_seed(seed)
    case = dict(module.cases())[name]
    options = Options(seed, most_instructions=50_000)
    _, runs = execute(case, 90, options)
    kernels = {r.name.split(".")[-1]: count_barriers(r.ptx) for r in runs if r.warps > 1}
    places = [(kernel, i) for kernel, num in kernels.items() for i in range(num)]
    places = [p for p in places if execute(case, 90, options, endless_at_barrier(*p))[0]]  # that the case reaches
    missed = [p for p in places if not execute(case, 90, options, without_barrier(*p))[0]]
    print(f"{len(places)} barriers, redundant or not found: {missed}")
    assert len(missed) <= max(2, len(places) // 5), missed
