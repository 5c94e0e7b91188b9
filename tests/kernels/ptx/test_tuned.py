"""Kernels that a tuning file can choose, executed as compiled: each choice that is a constant of a kernel."""

from collections.abc import Iterator

import pytest
import torch

from fastmask.kernels.launch import HAS_TRITON, INTERPRET

if INTERPRET or not HAS_TRITON:
    pytest.skip("executes compiled kernels, which Triton's interpreter does not have", allow_module_level=True)

import cases_paste
import cases_rle
import cases_roi_align
from helpers.ptx import MODES, execute

from fastmask.kernels import audit, tuning
from fastmask.kernels.knobs import KNOBS, Value

pytestmark = pytest.mark.ptx

CASES = {
    "roi_align.channels": (
        cases_roi_align,
        "RoIAlign fp32, NHWC, C=256 in two tiles",
        "RoIAlign bf16, NHWC, C=272 in three blocks",
    ),
    "roi_align_backward.tile": (
        cases_roi_align,
        "RoIAlign backward bf16, 4 levels, C=64, ratio 2",
        "RoIAlign backward fp32, adversarial RoIs, C=7, ratio 0",
    ),
    "paste.lines": (cases_paste, "paste bf16 to packed, continuous, 40x60", "paste fp32 to bool, 64x64, threshold 0.3"),
    "rle.text_warps": (cases_rle, "RLE fp32, all noise, over 512 runs"),
}


def test_cases_are_of_all_knobs_that_are_compiled() -> None:
    shipped = {variant.name for variant in audit.shipped_variants()}
    names = [variant.name for variant in audit.variants() if variant.name not in shipped]
    assert {knob for knob in KNOBS if any(f", {knob} " in name for name in names)} == CASES.keys()


def choices() -> Iterator[object]:
    for knob, (_, *names) in CASES.items():
        for choice in KNOBS[knob].choices:
            for name in names if choice != KNOBS[knob].default else ():
                marks = () if name == names[0] else pytest.mark.slow
                yield pytest.param(knob, choice, name, id=f"{knob} {choice}, {name}", marks=marks)


@pytest.mark.parametrize(("knob", "choice", "name"), [*choices()])
def test_every_choice_is_right(knob: str, choice: Value, name: str, seed: int) -> None:
    torch.manual_seed(seed)
    case = next(case for other, case in CASES[knob][0].cases() if other == name)
    mode = next(iter(MODES.values()))
    with tuning.override(torch.device("cpu"), {knob: choice}):
        errors, _ = execute(case, mode.capability, mode.options(seed))
    assert not errors, "\n".join(errors)
