"""Programs of a C4 model: Predictors with fused layers, exported files, and a training run from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.exact import assert_parity
from helpers.fusing import kinds
from helpers.images import draw_image
from helpers.runtimes import least_share, open_onnx
from helpers.slim import calibrate_on_images
from helpers.slim_c4 import build_slim, ours_c4

from fastmask import Predictor
from fastmask.cli import main
from fastmask.cocoapi import mask as coco_mask
from fastmask.demo import save_synthetic, synthetic_dataset
from fastmask.evaluation.agreement import matched_share
from fastmask.export import (
    AOTPackage,
    ExportableModel,
    Shape,
    TensorRTExportableModel,
    compare_outputs,
    write_onnx,
    write_package,
)
from fastmask.models import Checkpoint, fused
from fastmask.models.detection import _roi_stages
from fastmask.models.prepare import prepare_for_inference
from fastmask.models.resnet import BasicBlock, Bottleneck
from fastmask.ops import FrozenBatchNorm2d


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(5)
    model = ours_c4()
    calibrate_on_images(model)
    return model


def scenes(number: int, size: tuple[int, int]) -> list[torch.Tensor]:
    return [(draw_image(*size)[0] * 255).to(torch.uint8) for _ in range(number)]


@pytest.mark.parametrize("fuse", ["off", "kernel", "cudnn"])
def test_predictor_is_the_model(fuse: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of res5 are folded and its blocks fused, once for both branches; RLE is that of the pasted masks."""
    monkeypatch.setattr(_roi_stages, "MAX_ROIS", 30)
    ready = prepare_for_inference(model, torch.float32, fuse)
    blocks = {BasicBlock, Bottleneck} if fuse == "off" else {fused.FusedBlock}
    assert {type(block) for block in ready.roi_heads.res5} <= blocks
    assert FrozenBatchNorm2d not in kinds(ready)
    images = scenes(6, (96, 128))
    predictors = [Predictor(model, (96, 128), batch=2, masks=masks, fuse=fuse) for masks in ("float", "rle")]
    ours, encoded = (predictor(images) for predictor in predictors)
    with torch.no_grad():
        expected = model([image / 255 for image in images])
    total = sum(len(found["boxes"]) for found in expected)
    share = sum(matched_share(a, b) * len(b["boxes"]) for a, b in zip(ours, expected, strict=True)) / total
    assert total >= 60
    assert share >= 0.98
    for one, other in zip(ours, encoded, strict=True):
        for mask, rle in zip(one["masks"], other["masks"], strict=True):
            assert torch.equal(mask[0] > 0.5, torch.from_numpy(coco_mask.decode(rle)).bool())


@pytest.mark.parametrize(
    "tensorrt", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["for TensorRT", "trimmed, of any size"]
)
def test_exported_to_onnx(tensorrt: bool, model: Any, tmp_path: Path) -> None:
    """The file finds what the model finds, with masks of 14 x 14; TensorRT's table knows all of its operators."""
    reference = ExportableModel(model)
    exportable = TensorRTExportableModel(model) if tensorrt else ExportableModel(model, trim=True)
    write_onnx(exportable, tmp_path / "model.onnx", Shape(1, 96, 128, dynamic=not tensorrt))
    images = scenes(4, (90, 120))
    for session in open_onnx(tmp_path / "model.onnx"):
        assert_parity(compare_outputs(reference.predict_arrays, session, images), least_share(session))
        assert session(*session.preprocess(images[:1]))["masks"].shape == (1, 20, 14, 14)


@pytest.mark.slow
@pytest.mark.parametrize("trim", [True, False], ids=["trimmed", "fixed"])
def test_exported_by_aotinductor(trim: bool, model: Any, tmp_path: Path) -> None:
    exportable = ExportableModel(model)
    write_package(ExportableModel(model, trim=trim), tmp_path / "model.pt2", Shape(1, 96, 128))
    package, images = AOTPackage(tmp_path / "model.pt2"), scenes(4, (90, 120))
    assert_parity(compare_outputs(exportable.predict_arrays, package, images))


def test_trained_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps; the checkpoint names the builder and its options, and commands need no other word."""
    build_slim(monkeypatch)
    save_synthetic(synthetic_dataset(4, 1, (64, 96)), tmp_path / "set")
    words = ["--data-path", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--device", "cpu", "--workers", "0"]
    words += ["--epochs", "1", "--weights", "none", "--min-size", "64", "--max-size", "96", "--ema-decay", "0.9"]
    assert main(["train", *words, "--model", "maskrcnn_resnet50_c4"]) == 0
    rows = (tmp_path / "out" / "steps.csv").read_text().splitlines()
    assert len(rows) == 3
    last = Checkpoint(tmp_path / "out" / "last.pth")
    assert last.meta["builder"] == "maskrcnn_resnet50_c4"
    assert last.meta["options"].items() >= {"min_size": 64, "rpn_pre_nms_top_n_test": 6000}.items()
    image = next((tmp_path / "set").rglob("*.png"))
    command = ["predict", str(image), "--weights", last.path, "--out", str(tmp_path / "found"), "--score", "0"]
    assert main([*command, "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert found[0].keys() >= {"bbox", "segmentation"}
