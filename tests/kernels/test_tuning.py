"""Tuning files: which one is read, what is believed of it, and that launchers take its values."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from inputs import draw_boxes, draw_masks, draw_pyramid, pyramid_scales, with_images

from fastmask.kernels import knobs, tuning
from fastmask.kernels.knobs import KNOBS, Knob
from fastmask.kernels.launch import HAS_TRITON, INTERPRET
from fastmask.kernels.paste import paste_masks_op
from fastmask.kernels.tuning import tuned
from fastmask.ops.roi_align import level_limits

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
NAME = "NVIDIA H100 80GB HBM3"
IN_KERNELS = [knob for knob in KNOBS.values() if knob.module]
compiled_only = pytest.mark.skipif(INTERPRET or not HAS_TRITON, reason="looks at launches of compiled kernels")


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    for name in ("_tables", "_files"):
        monkeypatch.setattr(tuning, name, {})


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A file for the CPU, which ``FASTMASK_TUNING`` names."""

    def written(values: Any, **facts: Any) -> Path:
        path = tmp_path / "tuning.json"
        path.write_text(json.dumps({"format": tuning.FORMAT, **tuning.facts_of("cpu"), "values": values, **facts}))
        monkeypatch.setenv("FASTMASK_TUNING", str(path))
        return path

    return written


def test_values_of_a_file_are_read_once(write: Callable[..., Path]) -> None:
    path = write({"paste.programs": 8192, "roi_align_backward.tile": [8, 4]})
    assert tuned("paste.programs", 4096, CPU) == 8192
    assert tuned("roi_align_backward.tile", (4, 8), CPU) == (8, 4)
    assert tuned("rle.programs", 4096, CPU) == 4096
    path.unlink()  # what was captured in a graph and what is launched later must be the same
    assert tuned("paste.programs", 4096, CPU) == 8192
    assert tuning.values_on(CPU) == {"paste.programs": 8192, "roi_align_backward.tile": (8, 4)}


def test_off_and_no_file(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    write({"paste.programs": 8192})
    monkeypatch.setenv("FASTMASK_TUNING", "off")
    assert tuned("paste.programs", 4096, CPU) == 4096
    assert tuning.find_file(CPU) is tuning.find_file(GPU) is None
    monkeypatch.delenv("FASTMASK_TUNING")
    assert tuning.find_file(CPU) is None  # only GPUs are tuned


def test_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file a device's name and versions; nothing is written there, whether or not it can be."""
    monkeypatch.delenv("FASTMASK_TUNING")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: NAME)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert tuning.default_file(GPU).parent == tmp_path / "home" / ".cache" / "fastmask" / "tuning"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tuning.default_file(GPU)
    assert path.parent == tmp_path / "fastmask" / "tuning"
    assert path.name.startswith("NVIDIA-H100-80GB-HBM3_triton-")
    assert path == tuning.find_file(GPU) == tuning.file_to_write(GPU)
    assert tuned("paste.programs", 4096, GPU) == 4096
    assert list(tmp_path.iterdir()) == []

    tuning._tables.clear(), tuning._files.clear()
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"format": tuning.FORMAT, **tuning.facts_of(NAME), "values": {"paste.programs": 2048}}))
    before = path.stat().st_mtime_ns
    path.parent.chmod(0o555)
    assert tuned("paste.programs", 4096, GPU) == tuned("paste.programs", 4096, torch.device("cuda", 1)) == 2048
    assert [*path.parent.iterdir()] == [path]
    assert path.stat().st_mtime_ns == before
    path.parent.chmod(0o755)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"device": NAME}, f"device must be 'cpu', got '{NAME}'"),
        ({"triton": "1.0"}, "triton must be '.*', got '1.0'"),
        ({"fastmask": "0.0.1"}, "fastmask must be '.*', got '0.0.1'"),
        ({"format": 2}, "format must be 1, got 2"),
    ],
    ids=["device", "triton", "fastmask", "format"],
)
def test_a_foreign_file_is_named_once_and_ignored(
    facts: dict[str, Any], message: str, write: Callable[..., Path]
) -> None:
    path = write({"paste.programs": 8192}, **facts)
    with pytest.warns(UserWarning, match=message) as caught:
        assert tuned("paste.programs", 4096, CPU) == 4096
    assert [str(path) in str(one.message) for one in caught] == [True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuned("paste.programs", 4096, CPU) == 4096


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"values": 3}', "{}", "\ud83d", "[" * 10**6], ids=lambda text: repr(text[:9])
)
def test_a_broken_file_is_named_and_ignored(text: str, write: Callable[..., Path]) -> None:
    write({}).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.warns(UserWarning, match="the file is ignored"):
        assert tuned("paste.programs", 4096, CPU) == 4096


def test_a_cache_that_is_closed_to_the_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(f"Permission denied: '{self}'")

    monkeypatch.delenv("FASTMASK_TUNING")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: NAME)
    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.warns(UserWarning, match="Permission denied"):
        assert tuned("paste.programs", 4096, GPU) == 4096


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTMASK_TUNING", str(tmp_path / "missing.json"))
    with pytest.warns(UserWarning, match=r"missing\.json"):
        assert tuned("paste.programs", 4096, CPU) == 4096


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("paste.programs", 4097),
        ("paste.programs", True),
        ("paste.programs", "4096"),
        ("paste.programs", None),
        ("paste.programs", [4096]),
        ("roi_align_backward.tile", [8, 8]),  # spills
        ("paste.speed", 1),
        ("paste.programs at 800x1344, batch 1, bfloat16", 8192),
        ("predictor.mask_buckets", True),
        ("predictor.mask_buckets at 800x1344, batch 1, bfloat16", 1),
    ],
)
def test_a_value_that_is_no_choice_is_named_and_ignored(name: str, value: Any, write: Callable[..., Path]) -> None:
    write({name: value, "rle.programs": 2048})
    with pytest.warns(UserWarning, match=f"{name}") as caught:
        assert tuned(name, "default", CPU) == "default"
    assert len(caught) == 1
    assert tuned("rle.programs", 4096, CPU) == 2048  # the others are believed


def test_overridden_values_end_with_the_block(write: Callable[..., Path]) -> None:
    write({"paste.programs": 8192})
    for known in (False, True):  # whether the file was read before
        assert (CPU in tuning._tables) == known
        with tuning.overridden(CPU, {"paste.programs": 2048}):
            assert tuned("paste.programs", 4096, CPU) == 2048
            assert tuned("rle.programs", 4096, CPU) == 4096
        assert tuned("paste.programs", 4096, CPU) == 8192


def test_settings_of_a_shape(write: Callable[..., Path]) -> None:
    write({"predictor.mask_buckets at 320x480, batch 2, bfloat16": True})
    wanted = ((320, 480), 2, torch.bfloat16)
    assert tuning.tuned_at("predictor.mask_buckets", False, CPU, *wanted) is True
    for other in (((480, 320), *wanted[1:]), ((320, 480), 1, torch.bfloat16), ("exact", *wanted[1:])):
        assert tuning.tuned_at("predictor.mask_buckets", False, CPU, *other) is False


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
    assert tiles == {(8, 4), (4, 4), (2, 8)}


def launch_roi_align() -> None:
    from fastmask.kernels import gpu_roi_align

    maps = [f.bfloat16().contiguous(memory_format=torch.channels_last) for f in draw_pyramid(4, channels=256)]
    geometry = pyramid_scales(4), level_limits(pyramid_scales(4), 224, 4)
    gpu_roi_align.multilevel_roi_align(maps, with_images(draw_boxes(100), 2), *geometry, 14, 14, 2, False)


def launch_roi_align_apart() -> None:
    from fastmask.kernels import gpu_roi_align

    maps = [torch.randn(2, 32, 16 >> i, 24 >> i) for i in range(4)]  # 1020 pixels
    geometry = pyramid_scales(4), level_limits(pyramid_scales(4), 224, 4)
    gpu_roi_align.multilevel_roi_align(maps, with_images(draw_boxes(2), 2), *geometry, 7, 7, 2, False)  # 1568 taps


def launch_roi_align_backward() -> None:
    from fastmask.kernels import gpu_roi_align_backward

    scales = pyramid_scales(4)
    gpu_roi_align_backward.multilevel_roi_align_backward(
        torch.randn(5, 32, 7, 7), with_images(draw_boxes(5), 2), 2, [50, 25, 13, 7], [75, 38, 19, 10], scales,
        level_limits(scales, 224, 4), 2, False,
    )  # fmt: skip


def launch_nms() -> None:
    from fastmask.kernels import gpu_nms

    for num in (4000, 8000):
        boxes, scores, groups = torch.rand(1, num, 4), torch.rand(1, num), torch.randint(3, (1, num))
        gpu_nms.nms_padded(boxes, scores, groups, None, 0.5, 100)


def launch_paste() -> None:
    from fastmask.kernels import gpu_paste

    gpu_paste.paste_masks(draw_masks(100), draw_boxes(100), 200, 300, "bool", 0.5, False, False, 1)


def launch_rle() -> None:
    from fastmask.kernels import gpu_rle

    sizes = torch.tensor([[200, 300]]).repeat(100, 1)
    gpu_rle.encode_masks(draw_masks(100), draw_boxes(100), sizes, 2**17, 0.5, False, False, 1)


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
    """What a launcher launches with these values: kernel, grid, numbers and constants, warps."""
    from triton.runtime.jit import JITFunction

    found = []

    def note(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        fixed = {name: value for name, value in kwargs.items() if not isinstance(value, torch.Tensor)}
        found.append((self.__name__, grid, fixed))

    with mock.patch.object(JITFunction, "run", note), tuning.overridden(CPU, values):
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
    from fastmask.kernels import gpu_paste

    grids, kernel = [], gpu_paste._paste_kernel

    class Noting:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            grids.append(grid)
            return kernel[grid]

    monkeypatch.setattr(gpu_paste, "_paste_kernel", Noting())
    args = (draw_masks(2), draw_boxes(2, (32, 60), 30), 32, 60, "float", 0.5, False, False, 1)
    with tuning.overridden(CPU, {}):
        expected = paste_masks_op(*args)
    path = tmp_path / "tuning.json"
    tune.save(path, "cpu", tune.Outcome("paste.lines", 8, [], tune.Trial(4, {}, "")), Shapes())
    monkeypatch.setenv("FASTMASK_TUNING", str(path))
    assert torch.equal(paste_masks_op(*args), expected)
    assert grids == [(2 * 4,), (2 * 8,)]


@pytest.mark.gpu
@pytest.mark.parametrize("knob", IN_KERNELS, ids=lambda knob: knob.name)
def test_every_choice_agrees_with_the_default(knob: Knob) -> None:
    """Compiled, on small images; where a knob promises it, to the last bit."""
    from fastmask.benchmarks.tune_cases import WORKLOADS, Shapes, rule_of

    device = torch.device("cuda", torch.cuda.current_device())
    for workload in WORKLOADS[knob.op](Shapes((256, 320), 2), device):
        run = workload.make()
        with tuning.overridden(device, {}):
            expected = run()
        for choice in knob.choices:
            with tuning.overridden(device, {knob.name: choice}):
                rule_of(knob)(run(), expected)


@pytest.mark.gpu
def test_looking_values_up_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time as well, in a capture, of a file in the user's cache."""
    monkeypatch.delenv("FASTMASK_TUNING")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device = torch.device("cuda", torch.cuda.current_device())
    path, facts = tuning.default_file(device), tuning.facts_of(tuning.name_of(device))
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"format": tuning.FORMAT, **facts, "values": {"paste.programs": 8192}}))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.zeros(1, device=device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            out += tuned("paste.programs", 4096, device)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    graph.replay()
    assert out.item() == 8192
