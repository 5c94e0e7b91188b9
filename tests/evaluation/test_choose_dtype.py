"""Whether bfloat16 is native and keeps what float32 detects: counted, chosen, warned of, and on the command line."""

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.images import draw_image, draw_image_file
from helpers.slim import slim_model
from torch import nn

import fastmask
from fastmask import Predictor
from fastmask.cli import main
from fastmask.evaluation import agreement, choose_dtype
from fastmask.inference import arguments, bfloat16

choose = sys.modules["fastmask.evaluation.choose_dtype"]


def test_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what the CPU has, unless oneDNN may not use it; on Linux /proc/cpuinfo agrees."""
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and torch.backends.mkldnn.is_available():
        words = set(cpuinfo.read_text().split())
        assert bfloat16.has_native_bfloat16() == bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for known, native in (
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"bf16": True, "neon": True}, True),
        ({"avx512_f": True, "avx_ne_convert": True, "avx512_bf16": False}, False),
        ({}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        assert bfloat16.has_native_bfloat16() == native
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    for limit, native in (("avx512_core", False), ("AVX2", False), ("AVX512_CORE_BF16", True), ("ALL", True)):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert bfloat16.has_native_bfloat16() == native
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not bfloat16.has_native_bfloat16()


def test_kept() -> None:
    """By label and IoU 0.75, of masks where there are any."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
    expected = {"boxes": boxes, "labels": torch.tensor([1, 2, 3])}
    moved = {"boxes": boxes[[2, 1, 0]] + torch.tensor([[0.0], [1], [6]]), "labels": torch.tensor([3, 2, 1])}
    assert agreement.count_kept(expected, expected) == 3
    assert agreement.count_kept(moved, expected) == 2
    assert agreement.count_kept(moved | {"labels": torch.tensor([1, 2, 3])}, expected) == 1
    nothing = {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64)}
    assert agreement.count_kept(nothing, expected) == agreement.count_kept(expected, nothing) == 0
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[:, :4] = True
    other = masks.clone()
    other[1, 2:4] = False
    assert agreement.count_kept(moved | {"masks": other[[2, 1, 0]]}, expected | {"masks": masks}) == 2


@pytest.fixture
def model() -> nn.Module:
    return slim_model(fastmask, box_score_thresh=0.0).eval()


@pytest.mark.parametrize("native", [True, False], ids=["native", "emulated"])
def test_chosen(native: bool, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 where 99 % are kept; the model's dtype where fewer are, nothing is found or it is emulated."""
    for module in (choose, arguments):
        monkeypatch.setattr(module, "has_native_bfloat16", lambda: native)
    images = [(draw_image(96, 128)[0] * 255).to(torch.uint8) for _ in range(2)]
    if not native:
        assert choose_dtype(model, images).dtype == torch.float32
        assert str(choose_dtype(model, images)) == ("float32: this CPU only emulates bfloat16, which is slower")
        with pytest.warns(UserWarning, match=r"dtype torch.bfloat16 is emulated on this CPU"):
            Predictor(model, dtype=torch.bfloat16)
        assert Predictor(model).dtype == torch.float32
        return
    rounded = choose_dtype(model, images, "exact")
    assert 0 <= rounded.kept <= rounded.detections > 0
    assert (rounded.dtype == torch.bfloat16) == (rounded.kept >= 0.99 * rounded.detections)
    for lost, expected in ((0, torch.bfloat16), (1, torch.float32)):
        monkeypatch.setattr(choose, "count_kept", lambda _, one, lost=lost: max(len(one["boxes"]) - lost, 0))
        choice = choose_dtype(model, images, (96, 128))
        assert (choice.dtype, choice.detections - choice.kept) == (expected, 2 * lost)
        assert f"of float32's {choice.detections} detections" in str(choice)
    model.roi_heads.score_thresh = 1.0
    assert choose_dtype(model, images, (96, 128)) == (torch.float32, 0, 0, True)
    assert "no detections" in str(choose_dtype(model, images[:1], (96, 128)))
    assert choose_dtype(model.double(), images).dtype == torch.float64


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``evaluate`` has a row and a folder for each dtype; ``--check-images`` choose one, and say why."""
    for module in (choose, arguments):
        monkeypatch.setattr(module, "has_native_bfloat16", lambda: True)
    model = ["--weights", "SHAPES_V1", "--score", "0.0", "--size", "96", "96"]
    monkeypatch.setattr(choose, "count_kept", lambda _, one: len(one["boxes"]))
    image = draw_image_file(tmp_path / "one.png", 96, 128)
    arguments_ = ["predict", str(image), *model, "--no-overlays", "--out", str(tmp_path / "predicted")]
    assert main([*arguments_, "--check-images", str(image)]) == 0
    assert "fastmask predict: bfloat16: bfloat16 keeps " in capsys.readouterr().err
    assert main([*arguments_, "--check-images", str(image), "--dtype", "float32"]) == 2
    assert "--check-images must not be given with --dtype float32" in capsys.readouterr().err

    pytest.importorskip("pycocotools")
    assert main(["data", "draw", str(tmp_path / "val"), "--number", "2", "--seed", "3"]) == 0
    run = ["evaluate", str(tmp_path / "val"), *model, "--out", str(tmp_path / "out")]
    assert main([*run, "--dtype", "float32", "bfloat16"]) == 0
    *_, header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["box", "AP", "mask", "AP", "detections"]
    assert [line.split()[0] for line in (first, second)] == ["float32", "bfloat16"]
    for name in ("float32", "bfloat16"):
        saved = json.loads((tmp_path / "out" / name / "evaluation.json").read_text())
        assert saved["settings"]["dtype"] == f"torch.{name}"
    assert main([*run, "--dtype", "float32", "float32"]) == 2
    assert "--dtype must name each dtype once" in capsys.readouterr().err
