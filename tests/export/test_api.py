"""``export_model`` from Python; the other tests of this folder export by the command."""

from pathlib import Path

import pytest
import torch

from fastmask.demo import Scenes
from fastmask.export import MismatchError, OnnxSession, export_model
from fastmask.export.onnx import OnnxSummary
from fastmask.models import detection


def test_export_model(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that matches is kept, and replaces another; one that does not is not."""
    model = detection.maskrcnn_slim_fpn(weights="DEFAULT").eval()
    path, lines = tmp_path / "model.onnx", []
    path.write_bytes(b"before")
    images = [Scenes(1, seed)[0].load()]
    options = {"categories": ["", "a", "b", "c"], "images": images, "report": lines.append}
    found = export_model(model, str(path), (192, 224), **options)
    assert found.images == 1
    assert found.detections > 0
    assert found.share >= 0.99
    assert ["checked by onnx" in lines[0], "ONNX Runtime" in lines[1], len(lines)] == [True, True, 2]
    assert OnnxSession(path).metadata["categories"] == ["", "a", "b", "c"]

    before = path.read_bytes()

    def write_before(exportable: object, part: Path, *rest: object, **options: object) -> OnnxSummary:
        """As write_onnx, whose seconds were spent above."""
        part.write_bytes(before)
        return OnnxSummary(0, len(before), 18, {})

    monkeypatch.setattr("fastmask.export.api.write_onnx", write_before)
    monkeypatch.setattr("fastmask.export.api.MIN_SHARE", {torch.float32: 1.1})
    with pytest.raises(MismatchError, match="match, 110% must"):
        export_model(model, path, (192, 224))
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.engine", {}, "file must end in .onnx or .pt2"),
        ("model.pt2", {"target": "tensorrt"}, "opset and target must not be given for a .pt2 file"),
        ("model.onnx", {"target": "openvino"}, "target must be one of tensorrt, got 'openvino'"),
        (
            "model.onnx",
            {"dtype": torch.float64},
            "dtype must be one of .*, got torch.float64",
        ),
        ("model.onnx", {"masks": "28"}, "masks must be one of soft, paste, got '28'"),
        ("none/model.onnx", {}, "file must be in a folder that is there"),
    ],
)
def test_wrong_arguments(name: str, options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_model(detection.maskrcnn_slim_fpn().eval(), tmp_path / name, **options)
