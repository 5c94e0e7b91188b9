"""Exported files in OpenVINO: kept and predicted with as in ONNX Runtime; bfloat16 by its AP; errors of one line.

The other tests of files run in both runtimes (helpers/runtimes.py).
"""

import ctypes
import gc
import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.exact import assert_parity

pytest.importorskip("openvino", reason="it runs the files")

import openvino

from fastmask.cli import main
from fastmask.demo import CLASSES, synthetic_dataset
from fastmask.evaluation import evaluate_results
from fastmask.export import (
    ExportedPredictor,
    MismatchError,
    OpenVINOSession,
    export_model,
)
from fastmask.export.onnx import OnnxSummary
from fastmask.export.openvino import open_core
from fastmask.export.parity import synthetic_images
from fastmask.inference.coco_results import to_coco_results
from fastmask.models import detection

SIZE = (192, 224)
NATIVE = open_core().get_property("CPU", "INFERENCE_PRECISION_HINT") == openvino.Type.bf16


class SignalStack(ctypes.Structure):
    """stack_t of sigaltstack(2)."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    @classmethod
    def current(cls) -> tuple[int | None, int]:
        stack = cls()
        assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
        return stack.start, stack.size


@pytest.fixture(scope="module")
def model() -> Any:
    return detection.maskrcnn_slim_fpn(weights="DEFAULT").eval()


@pytest.fixture
def file(exportable: Path) -> Path:
    """Of raw images, one of them at once."""
    return exportable / "model.onnx"


def test_a_file_is_kept_if_openvino_finds_what_the_model_finds(
    file: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As strictly as in ONNX Runtime, which need not be installed."""

    def copy(exportable: object, part: Path, *rest: object, **options: object) -> OnnxSummary:
        """As write_onnx, whose seconds were spent above."""
        shutil.copy(file, part)
        return OnnxSummary(0, 0, 18, {})

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("fastmask.export.api.write_onnx", copy)
    lines: list[str] = []
    options: dict[str, Any] = {"raw": True, "runtime": "openvino", "images": synthetic_images(SIZE)[:2]}
    found = export_model(model, tmp_path / "a.onnx", SIZE, **options, report=lines.append)
    assert_parity(found)
    assert "OpenVINO (cpu) on 2 images" in lines[1]
    call = OpenVINOSession.__call__

    def shift(session: OpenVINOSession, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        outputs = call(session, *inputs)
        return outputs | {"boxes": outputs["boxes"] + 2}

    monkeypatch.setattr(OpenVINOSession, "__call__", shift)
    with pytest.raises(MismatchError, match=r"0\.0% match, 99% must"):
        export_model(model, tmp_path / "b.onnx", SIZE, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_predict_runs_a_file(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the results of ONNX Runtime; on as many threads as PyTorch uses, and called from several."""
    dataset = synthetic_dataset(2, 3)
    for i, record in enumerate(dataset.records):
        record.load().save(tmp_path / f"{i}.png")
    command = ["predict", str(tmp_path), "--exported", str(file), "--no-overlays", "--device", "cpu"]
    found = []
    for runtime in ("onnxruntime", "openvino"):
        out = tmp_path / runtime
        assert main([*command, "--runtime", runtime, "--out", str(out), "--quiet"]) == 0
        found.append(json.loads((out / "predictions.json").read_text()))
    assert len(found[0]) == len(found[1]) > 0
    for theirs, ours in zip(*found, strict=True):
        assert theirs["category_id"] == ours["category_id"]
        assert theirs["bbox"] == pytest.approx(ours["bbox"], abs=0.05)
    predictor = ExportedPredictor(file, runtime="openvino")
    session = predictor.session
    assert isinstance(session, OpenVINOSession)
    assert session.metadata["categories"][1:] == list(CLASSES[:3])
    assert session.compiled.get_property("INFERENCE_NUM_THREADS") == torch.get_num_threads()
    image, counts = dataset.records[0].load(), []
    threads = [threading.Thread(target=lambda: counts.append(len(predictor([image])[0]["boxes"]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == 4
    assert len(set(counts)) == 1
    for options, message in (
        (["--runtime", "openvino", "--dtype", "float16"], "--dtype must be one of torch.float32, torch.bfloat16 in"),
        (["--runtime", "openvino", "--device", "cuda"], "--device must be one that OpenVINO lists here (cpu"),
        (["--runtime", "onnxruntime", "--dtype", "bfloat16"], "--dtype and --nms must not be given with --exported"),
    ):
        assert main([*command, *options, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.skipif(not NATIVE, reason="this processor has no instructions for bfloat16")
def test_bfloat16_has_the_ap_of_float32(file: Path, seed: int) -> None:
    """Boxes and masks move by more than a check of each allows. Seen: at most 0.013 on 24 images, in ten runs."""
    dataset = synthetic_dataset(10, seed)
    images, found = [record.load() for record in dataset.records], []
    for dtype in (torch.float32, torch.bfloat16):
        predictor = ExportedPredictor(file, runtime="openvino", dtype=dtype)
        predictions = enumerate(predictor(images), 1)
        results = [result for number, each in predictions for result in to_coco_results(number, each)]
        found.append(evaluate_results(results, dataset, progress=False).metrics)
    for kind in ("box", "mask"):
        assert found[0][kind].ap > 0.6
        assert found[1][kind].ap == pytest.approx(found[0][kind].ap, abs=0.05)
        assert found[1][kind].ap != found[0][kind].ap  # or it was not bfloat16


def test_bfloat16_is_not_emulated(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Emulated:
        """A processor's core whose own choice is float32."""

        available_devices = ("CPU",)

        def get_property(self, device: str, name: str) -> Any:
            return openvino.Type.f32

    monkeypatch.setattr("fastmask.export.openvino.open_core", Emulated)
    with pytest.raises(ValueError, match=r"dtype must be torch.float32, as this CPU has no bfloat16, got torch.bf"):
        OpenVINOSession(file, dtype=torch.bfloat16)


def test_other_files(file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each is named, in one line, and nothing else is printed."""
    (tmp_path / "torn.onnx").write_bytes(b"torn")
    graph = onnx.load(file)
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "other.onnx")
    for name, message in (
        ("torn.onnx", "torn.onnx cannot be run: "),
        ("none.onnx", "none.onnx cannot be run: Could not open the file"),
        ("other.onnx", "other.onnx must be a file made by fastmask export, got one without its metadata"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            OpenVINOSession(tmp_path / name)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"model.onnx cannot be run: .*model input"):
        OpenVINOSession(file)(np.zeros((1, 192, 256, 3), np.uint8), np.array([[192, 224]]))
    assert capfd.readouterr() == ("", "")


def test_wrong_arguments(file: Path, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, message in (
        ({"runtime": "tensorrt"}, "runtime must be one of onnxruntime, openvino, got 'tensorrt'"),
        ({"dtype": torch.bfloat16}, "dtype must be given with runtime openvino alone, as a file has its own, got"),
    ):
        with pytest.raises(ValueError, match=message):
            ExportedPredictor(file, **options)
    with pytest.raises(ValueError, match=r"runtime must not be given for a .pt2 file, got 'openvino'"):
        ExportedPredictor(tmp_path / "model.pt2", runtime="openvino")
    with pytest.raises(ValueError, match=r"runtime must not be given for a .pt2 file, got 'openvino'"):
        export_model(model, tmp_path / "model.pt2", runtime="openvino")
    with pytest.raises(ValueError, match=r"device must be one that OpenVINO lists here \(cpu.*\), got 'cuda'"):
        export_model(model, tmp_path / "model.onnx", runtime="openvino", device="cuda")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"OpenVINO is not installed: pip install 'fastmask-rcnn\[openvino\]'"):
        export_model(model, tmp_path / "model.onnx", runtime="openvino")


def test_without_the_extra(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands name it before anything is done; --runtime needs a file."""
    synthetic_dataset(1, 0).records[0].load().save(tmp_path / "a.png")
    words = ["predict", str(tmp_path / "a.png"), "--runtime", "openvino", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "--runtime must be given with --exported alone, got openvino" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "openvino", None)
    new = ["export", str(tmp_path / "new.onnx"), "--model", "maskrcnn_slim_fpn", "--weights", "SHAPES_V1"]
    for command in ([*words, "--exported", str(file)], [*new, "--runtime", "openvino"]):
        assert main(command) == 2
        assert "pip install 'fastmask-rcnn[openvino]'" in capsys.readouterr().err
    assert not (tmp_path / "new.onnx").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="its stack_t")
def test_signals_have_a_stack_after_sessions_are_gone(file: Path) -> None:
    """Also when the first goes first: a stack that was unmapped would end the process at its next signal."""
    first = OpenVINOSession(file)
    expected = SignalStack.current()
    second = OpenVINOSession(file)
    for _ in range(2):
        first, second = second, None
        gc.collect()
    assert first is second
    assert SignalStack.current() == expected
