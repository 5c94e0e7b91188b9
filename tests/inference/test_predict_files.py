"""``predict_files`` and ``Predictor.from_pretrained``, from Python; tests/cli has interruptions and ranks."""

import json
from pathlib import Path

import pytest

from fastmask.demo import CLASSES, Scenes
from fastmask.inference import Predictor, load_pretrained, predict_files
from fastmask.inference.coco_results import to_coco_results


def load_predictor(**options: object) -> Predictor:
    return Predictor.from_pretrained("maskrcnn_slim_fpn", device="cpu", score=0.5, size="exact", **options)


def test_predict_files(tmp_path: Path, seed: int) -> None:
    """The file holds what the Predictor finds; an image that is broken is skipped, and tried again."""
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    drawn = Scenes(2, seed)
    for i in range(2):
        drawn[i].load().save(images / f"{i}.png")
    (images / "torn.png").write_bytes(b"torn")
    predictor = load_predictor()
    assert list(predictor.categories[1:]) == list(CLASSES[:3])
    reasons: list[str] = []
    found = predict_files(predictor, [images], out, on_skip=reasons.append, progress=False)
    assert (found.images, found.skipped, found.results) == (2, reasons, out / "predictions.json")
    assert len(reasons) == 1
    assert "torn.png cannot be read as an image" in reasons[0]
    assert [path.exists() for path in found.overlays] == [True, True, False]
    predictions = predictor([images / "0.png", images / "1.png"])
    expected = to_coco_results(1, predictions[0]) + to_coco_results(2, predictions[1])
    for result in (results := json.loads(found.results.read_text())):
        del result["file_name"]
    assert results == expected
    assert found.detections == len(expected)

    drawn[0].load().save(images / "torn.png")
    again = predict_files(predictor, [images], str(out), progress=False)
    assert (again.images, again.skipped) == (3, [])
    bare = predict_files(predictor, [str(images / "0.png")], tmp_path / "bare", overlays=False, progress=False)
    assert bare.overlays == []
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["predictions.json"]
    with pytest.raises(ValueError, match="images must be a list of images, got one str"):
        predict_files(predictor, str(images), out)
    with pytest.raises(ValueError, match="bare must hold images, got none"):
        predict_files(predictor, [tmp_path / "bare"], out)


def test_from_pretrained() -> None:
    predictor = load_predictor(masks="bool", batch=2)
    assert (predictor.masks, predictor.batch, predictor.device.type) == ("bool", 2, "cpu")
    model, categories = load_pretrained("maskrcnn_slim_fpn", "SHAPES_V1", "cpu", 0.25)
    assert categories == predictor.categories
    assert model.roi_heads.score_thresh == 0.25
    assert model.transform.max_size == 320  # as the weights were trained
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for arguments, message in (
        (("yolo",), "name must be one of .*fasterrcnn_resnet50_fpn, "),
        (("resnet50",), "name must be one of .*fasterrcnn_resnet50_fpn, "),
        (("maskrcnn_slim_fpn", "COCO_V1"), "weights must be SHAPES_V1, DEFAULT or a file, got 'COCO_V1'"),
        (("maskrcnn_slim_fpn", "DEFAULT", "cpu", float("nan")), r"score must be in \[0, 1\], got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            load_pretrained(*arguments)
