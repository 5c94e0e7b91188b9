"""Compiled kernels, executed from their PTX: results, bounds, races, uninitialized reads, barriers.

`pytest -m "ptx and not slow"`: each case in one or two modes; with slow: in all. See helpers/ptx.
"""

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
from helpers.ptx import MODES, Options, execute, launched

pytestmark = pytest.mark.ptx


FAMILIES = {
    module.__name__: module
    for module in (
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
}


def name_cases() -> Iterator[object]:
    """Run every case in the first mode, some of them in one of the others as well; the rest is slow.

    One in six is compiled again, for sm_80, and compiling takes most of the time; of families with products, which are
    other instructions there, one in three. The last mode runs what the first has compiled.
    """
    first, *others = MODES
    for family, module in FAMILIES.items():
        compiled_again = 3 if module in (cases_bias_act, cases_heads, cases_stem) else 6
        for number, (name, _) in enumerate(module.cases()):
            second = others[0] if number % compiled_again == 0 else others[1] if number % 6 == 1 else None
            for mode in MODES:
                quick = mode in (first, second)
                yield pytest.param(family, name, mode, id=f"{name}, {mode}", marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("family", "name", "mode"), [*name_cases()])
def test_compiled(family: str, name: str, mode: str, seed: int) -> None:
    torch.manual_seed(seed)
    case = next(case for other, case in FAMILIES[family].cases() if other == name)
    errors, _ = execute(case, MODES[mode].capability, MODES[mode].options(seed))
    assert not errors, "\n".join(errors)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_backward_is_bitwise_reproducible(dtype: str, seed: int) -> None:
    """Results do not depend on the order in which warps run."""
    torch.manual_seed(seed)
    case = dict(cases_roi_align.cases())[f"RoIAlign backward {dtype}, 4 levels, C=64, ratio 2"]
    outputs = []
    for order in ("first", "last", "random"):
        with launched(90, Options(seed, order)):
            outputs.append(case.run())
    for others in outputs[1:]:
        assert all(torch.equal(*pair) for pair in zip(outputs[0], others, strict=True))
