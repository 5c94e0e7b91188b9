"""The models that people deploy, exported; with random weights that are calibrated to decide."""

from pathlib import Path

import pytest
import torch
from helpers.images import draw_image
from helpers.runtimes import open_onnx

from fastmask.benchmarks.calibrate import calibrate
from fastmask.export import ExportableModel, OnnxSession, Shape, TensorRTExportableModel, compare_outputs, write_onnx
from fastmask.export.parity import MIN_SHARE
from fastmask.models import detection

BUILDERS = {"R50": detection.maskrcnn_resnet50_fpn, "v2": detection.maskrcnn_resnet50_fpn_v2}
MOST = {False: 700, True: 900}  # nodes of a static and a dynamic graph


@pytest.mark.slow
@pytest.mark.parametrize("trim", [True, False], ids=["trimmed", "fixed"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", BUILDERS)
def test_resnet50(name: str, dynamic: bool, batch: int, trim: bool, tmp_path: Path) -> None:
    """Three sizes of images; all detections that are kept, few, and none."""
    model = BUILDERS[name](weights=None, weights_backbone=None, min_size=320, max_size=448).eval()
    sizes = ((320, 448), (200, 300), (300, 200))
    images = [draw_image(*size)[0] for size in sizes]
    calibrate(model, images)
    with torch.no_grad():
        found = model.detect(images)
    scores = torch.cat([prediction["scores"] for prediction in found]).sort(descending=True).values
    assert len(scores) > 20
    gap = 5 + int((scores[5:20] - scores[6:21]).argmax())  # far from every score, as they differ by rounding
    few = float(scores[gap] + scores[gap + 1]) / 2
    for threshold, most in ((model.roi_heads.score_thresh, 300), (few, 30), (1.0, 0)):
        model.roi_heads.score_thresh = threshold
        exportable = ExportableModel(model)
        written = write_onnx(
            ExportableModel(model, trim=trim), tmp_path / "model.onnx", Shape(batch, 320, 448, dynamic)
        )
        assert written.nodes < MOST[dynamic]
        for session in open_onnx(tmp_path / "model.onnx"):
            parity = compare_outputs(exportable.predict_arrays, session, images)
            print(f"\n{name}, {written.nodes} nodes, {session.runtime}, {parity}")
            assert parity.share >= MIN_SHARE[torch.float32]
            assert (parity.detections > 0) == (most > 0)
            assert parity.detections <= most
            assert session.batch == (None if dynamic else batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_for_tensorrt(name: str, tmp_path: Path) -> None:
    """At the size of COCO's weights: 4819 boxes for the RPN's NMS, 19,000 candidates of 90 classes for the other."""
    model = BUILDERS[name](weights=None, weights_backbone=None).eval()
    images = [draw_image(800, 1066)[0]]
    calibrate(model, images)
    written = write_onnx(TensorRTExportableModel(model), tmp_path / "model.onnx", Shape(1, 800, 1344))
    assert written.nodes < MOST[False]
    parity = compare_outputs(ExportableModel(model).predict_arrays, OnnxSession(tmp_path / "model.onnx", "cpu"), images)
    print(f"\n{name}, {written.nodes} nodes, {parity}")
    assert parity.share >= MIN_SHARE[torch.float32]
    assert parity.detections > 0
