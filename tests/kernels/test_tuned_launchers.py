"""Knobs: launchers take every choice, the audit compiles it, and results stay the same."""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers.inputs import draw_boxes, draw_masks, draw_pyramid, pyramid_scales, with_images

from fastmask.kernels import knobs, tuning
from fastmask.kernels.knobs import KNOBS, Knob
from fastmask.kernels.launch import HAS_TRITON, INTERPRET
from fastmask.kernels.paste import paste_masks_op
from fastmask.ops.roi_align import level_limits

CPU = torch.device("cpu")
IN_KERNELS = [knob for knob in KNOBS.values() if knob.module]
compiled_only = pytest.mark.skipif(INTERPRET or not HAS_TRITON, reason="looks at launches of compiled kernels")


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    for name in ("_tables", "_files"):
        monkeypatch.setattr(tuning, name, {})


@pytest.mark.skipif(not HAS_TRITON, reason="defaults are the launchers' constants")
@pytest.mark.parametrize("knob", KNOBS.values(), ids=lambda knob: knob.name)
def test_the_default_is_a_choice(knob: Knob) -> None:
    if not INTERPRET:  # where tests raise constants
        assert knob.default in knob.choices
    assert len(set(knob.choices)) == len(knob.choices) >= 2
    assert all(
        knobs.check_value(knob.name + ("" if knob.module else " at x"), choice) == choice for choice in knob.choices
    )


@compiled_only
def test_the_audit_compiles_every_choice() -> None:
    """Of constants that kernels are compiled with; other knobs reach no kernel that the defaults do not."""
    from fastmask.kernels import audit

    assert len({variant.name for variant in audit.variants()}) == len(list(audit.variants()))
    shipped = {variant.name for variant in audit.shipped_variants()}
    more = [variant for variant in audit.variants() if variant.name not in shipped]
    compiled = {"roi_align.channels", "roi_align_backward.tile", "paste.lines", "rle.text_warps"}
    for knob in IN_KERNELS:
        for choice in knob.choices:
            named = [variant for variant in more if variant.name.endswith(f"{knob.name} {choice}")]
            assert bool(named) == (knob.name in compiled and choice != knob.default), (knob.name, choice)
    assert all(not variant.default for variant in more)
    tiles = {(v.constants["TILE_Y"], v.constants["TILE_X"]) for v in more if "RoIAlign backward" in v.name}
    assert tiles == {(4, 4), (2, 8)}


def launch_roi_align() -> None:
    from fastmask.kernels.triton import roi_align as roi_align_triton

    maps = [f.bfloat16().contiguous(memory_format=torch.channels_last) for f in draw_pyramid(4, channels=256)]
    geometry = pyramid_scales(4), level_limits(pyramid_scales(4), 224, 4)
    roi_align_triton.multilevel_roi_align(maps, with_images(draw_boxes(100), 2), *geometry, 14, 14, 2, False)


def launch_roi_align_apart() -> None:
    from fastmask.kernels.triton import roi_align as roi_align_triton

    maps = [torch.randn(2, 32, 16 >> i, 24 >> i) for i in range(4)]  # 1020 pixels
    geometry = pyramid_scales(4), level_limits(pyramid_scales(4), 224, 4)
    roi_align_triton.multilevel_roi_align(maps, with_images(draw_boxes(2), 2), *geometry, 7, 7, 2, False)  # 1568 taps


def launch_roi_align_backward() -> None:
    from fastmask.kernels.triton import roi_align_backward as roi_align_backward_triton

    scales = pyramid_scales(4)
    roi_align_backward_triton.multilevel_roi_align_backward(
        torch.randn(5, 32, 7, 7), with_images(draw_boxes(5), 2), 2, [50, 25, 13, 7], [75, 38, 19, 10], scales,
        level_limits(scales, 224, 4), 2, False,
    )  # fmt: skip


def launch_nms() -> None:
    from fastmask.kernels.triton import nms as nms_triton

    for num in (1500, 3000):
        boxes, scores, groups = torch.rand(1, num, 4), torch.rand(1, num), torch.randint(3, (1, num))
        nms_triton.nms_padded(boxes, scores, groups, None, 0.5, 100)


def launch_paste() -> None:
    from fastmask.kernels.triton import paste as paste_triton

    paste_triton.paste_masks(draw_masks(100), draw_boxes(100), 200, 300, "bool", 0.5, False, False, 1)


def launch_rle() -> None:
    from fastmask.kernels.triton import rle as rle_triton

    sizes = torch.tensor([[200, 300]]).repeat(100, 1)
    rle_triton.encode_masks(draw_masks(100), draw_boxes(100), sizes, 2**17, 0.5, False, False, 1)


LAUNCH = {
    "roi_align": launch_roi_align,
    "roi_align_apart": launch_roi_align_apart,
    "roi_align_backward": launch_roi_align_backward,
    "nms": launch_nms,
    "nms_counted": launch_nms,
    "paste_masks": launch_paste,
    "encode_masks": launch_rle,
}


def launches(knob: Knob, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Launches of a launcher with these values: kernel, grid, numbers and constants, warps."""
    from triton.runtime.jit import JITFunction

    found = []

    def note(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        fixed = {name: value for name, value in kwargs.items() if not isinstance(value, torch.Tensor)}
        found.append((self.__name__, grid, fixed))

    with mock.patch.object(JITFunction, "run", note), tuning.override(CPU, values):
        LAUNCH[knob.op]()
    return found


@compiled_only
@pytest.mark.parametrize("knob", IN_KERNELS, ids=lambda knob: knob.name)
def test_launchers_take_every_choice(knob: Knob) -> None:
    usual = launches(knob, {})
    assert launches(knob, {knob.name: knob.default}) == usual
    for choice in knob.choices:
        if choice != knob.default:
            assert launches(knob, {knob.name: choice}) != usual, choice


@pytest.mark.skipif(not INTERPRET, reason="launches kernels in Triton's interpreter")
def test_an_interpreted_launcher_takes_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More programs of fewer rows each, and the same pixels."""
    from fastmask.benchmarks import tune
    from fastmask.benchmarks.tune_cases import Shapes
    from fastmask.kernels.triton import paste as paste_triton

    grids, kernel = [], paste_triton._paste_kernel

    class Noting:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            grids.append(grid)
            return kernel[grid]

    monkeypatch.setattr(paste_triton, "_paste_kernel", Noting())
    args = (draw_masks(2), draw_boxes(2, (32, 60), 30), 32, 60, "float", 0.5, False, False, 1)
    with tuning.override(CPU, {}):
        expected = paste_masks_op(*args)
    path = tmp_path / "tuning.json"
    tune.save_outcome(path, "cpu", tune.Outcome("paste.lines", 8, [], tune.Trial(4, {}, "")), Shapes())
    monkeypatch.setenv("FASTMASK_TUNING", str(path))
    assert torch.equal(paste_masks_op(*args), expected)
    assert grids == [(2 * 4,), (2 * 8,)]


@pytest.mark.gpu
@pytest.mark.parametrize("knob", IN_KERNELS, ids=lambda knob: knob.name)
def test_every_choice_agrees_with_the_default(knob: Knob) -> None:
    """Compiled, on small images; where a knob promises it, to the last bit."""
    from fastmask.benchmarks.tune_cases import WORKLOADS, Shapes, choose_check

    device = torch.device("cuda", torch.cuda.current_device())
    for workload in WORKLOADS[knob.op](Shapes((256, 320), 2), device):
        run = workload.make()
        with tuning.override(device, {}):
            expected = run()
        for choice in knob.choices:
            with tuning.override(device, {knob.name: choice}):
                choose_check(knob)(run(), expected)
