"""Models with soft-NMS: detections from the candidates by its specification, static, compiled, saved, exported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.images import draw_image
from helpers.slim import slim_model, slim_pair
from helpers.static import NoDataDependence
from torch import Tensor, nn

import fastmask
from fastmask import Predictor
from fastmask.export import ExportableModel, Shape
from fastmask.export.onnx import write_onnx
from fastmask.kernels import reference
from fastmask.structures import Candidates

SIZES = torch.tensor([[96, 128], [90, 100]])
METHODS = pytest.mark.parametrize("method", ["linear", "gaussian"])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(7)
    return slim_pair(box_score_thresh=0.0, rpn_post_nms_top_n_test=30)[1].double()


def run(model: nn.Module, method: str, call: Any) -> Any:
    """Call with another NMS than the model's own."""
    heads: Any = model.roi_heads
    heads.box_nms = f"soft_{method}"
    try:
        with torch.no_grad():
            return call()
    finally:
        heads.box_nms = "hard"


def draw_pixels() -> Tensor:
    return torch.stack([draw_image(96, 128)[0] for _ in SIZES]).double() * 4 - 2


@METHODS
@pytest.mark.parametrize("score", [0.0, 0.15], ids="score {}".format)
def test_detections_are_rescored_candidates(model: nn.Module, method: str, score: float) -> None:
    """The best by decayed score, of all candidates; none below the model's score threshold."""
    pixels, heads = draw_pixels(), model.roi_heads
    heads.score_thresh = score
    with NoDataDependence():
        found = run(model, method, lambda: model.infer(pixels, SIZES))
    with torch.no_grad():
        _, candidates = model.detect_candidates(pixels, SIZES)
    heads.score_thresh = 0.0
    changed = 0
    for b in range(len(SIZES)):
        boxes, labels, scores, valid = (values[b] for values in candidates[:4])
        settings = (heads.nms_thresh, 0.5, method == "gaussian", max(score, 0.001), heads.detections_per_img)
        valid = valid & (scores > score)
        picks, decayed = reference.soft_nms(boxes, scores, labels, valid, *settings)
        count = int(found.count[b])
        assert count == len(picks) > 0
        assert torch.equal(found.boxes[b, :count], boxes[picks])
        assert torch.equal(found.labels[b, :count], labels[picks])
        assert found.scores[b, :count].tolist() == decayed
        assert not found.scores[b, count:].any()
        changed += sum(decayed[k] != float(scores[i]) for k, i in enumerate(picks))
    assert changed or score


@METHODS
def test_lists(model: nn.Module, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's way on lists, which overridden parts take."""
    images = [draw_image(96, 128)[0].double(), draw_image(90, 100)[0].double()]
    expected = run(model, method, lambda: model(images))
    monkeypatch.setattr("fastmask.models.detection.generalized_rcnn.is_static", lambda *_: False)
    for wanted, actual in zip(expected, run(model, method, lambda: model(images)), strict=True):
        for name in ("boxes", "labels", "scores"):
            torch.testing.assert_close(actual[name], wanted[name], rtol=1e-9, atol=1e-9)


def test_compiled_and_exported(model: nn.Module) -> None:
    """One graph of ``torch.compile``; for a package of AOTInductor, a program in which the op stays what it is."""
    torch._dynamo.reset()
    with torch.no_grad():
        _, candidates = model.detect_candidates(draw_pixels(), SIZES)
    suppress = model.roi_heads.suppress
    expected = run(model, "gaussian", lambda: suppress(candidates))
    compiled = run(model, "gaussian", lambda: torch.compile(suppress, fullgraph=True, backend="eager")(candidates))

    class Suppress(nn.Module):
        def forward(self, *values: Tensor) -> Any:
            return suppress(Candidates(*values, num_classes=candidates.num_classes))

    program = run(model, "gaussian", lambda: torch.export.export(Suppress(), candidates[:4], strict=False))
    assert "soft_nms_padded" in str(program.graph)
    for found in (compiled, program.module()(*candidates[:4])):
        for actual, wanted in zip(found, expected, strict=True):
            assert (actual is None and wanted is None) or torch.equal(actual, wanted)


def test_predictors_choose(model: nn.Module) -> None:
    image = (draw_image(128, 160)[0] * 255).to(torch.uint8)
    hard, soft = (Predictor(model, "exact", box_nms=kind)([image])[0] for kind in (None, "soft_gaussian"))
    (expected,) = run(model, "gaussian", lambda: model([image.double() / 255]))
    torch.testing.assert_close(soft["scores"], expected["scores"], rtol=1e-6, atol=1e-6)
    assert not torch.equal(hard["scores"], soft["scores"])
    with pytest.raises(ValueError, match="box_nms must be one of hard, soft_linear, soft_gaussian, got 'soft'"):
        Predictor(model, "exact", box_nms="soft")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="box_nms must be one of hard, soft_linear, soft_gaussian, got 'linear'"):
        slim_model(fastmask, box_nms="linear")


def test_onnx_refuses_it(tmp_path: Path) -> None:
    exportable = ExportableModel(slim_model(fastmask, box_nms="soft_linear").eval())
    with pytest.raises(ValueError, match=r"box_nms must be hard: ONNX has no soft-NMS, .* got soft_linear"):
        write_onnx(exportable, tmp_path / "model.onnx", Shape(1, 128, 160))
