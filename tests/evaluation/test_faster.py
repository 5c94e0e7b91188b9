"""Results evaluated by faster-coco-eval against our own evaluation, which other tests compare with pycocotools."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.reference_cocoeval import CASES, draw_case, draw_poses

from fastmask.cli import main
from fastmask.data import Dataset, read_dataset
from fastmask.evaluation import Evaluation, evaluate_results

FAST = "faster-coco-eval"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("faster_coco_eval") is None, reason="it evaluates; extra fast-eval"
)


def check_same(results: list[Any], dataset: Dataset, **how: Any) -> Evaluation:
    """Metrics, every point of the curves, and each category's."""
    own, fast = (evaluate_results(results, dataset, progress=False, backend=name, **how) for name in ("own", FAST))
    assert (own.images, own.detections, own.left_out, own.areas) == (*fast[3:5], fast.left_out, fast.areas)
    assert list(own.metrics) == list(fast.metrics)
    assert [each[:2] for each in own.categories] == [each[:2] for each in fast.categories]
    pairs = [(own.metrics, fast.metrics), (own.curves, fast.curves)]
    pairs += [(mine.metrics, theirs.metrics) for mine, theirs in zip(own.categories, fast.categories, strict=True)]
    for mine, theirs in pairs:
        for kind in mine:
            for a, b in zip(mine[kind], theirs[kind], strict=True):
                np.testing.assert_allclose(b, a, rtol=0, atol=1e-9)
    return fast


def read(annotations: dict[str, Any], folder: Path) -> Dataset:
    (folder / "annotations.json").write_text(json.dumps(annotations))
    return read_dataset(folder / "annotations.json")


@needs_package
@pytest.mark.parametrize("name", [name for name in CASES if name != "many categories"])  # seconds
def test_boxes_and_masks(name: str, tmp_path: Path) -> None:
    annotations, results = draw_case(*CASES[name])
    np.random.shuffle(annotations["categories"])  # the curves are in their order
    dataset = read(annotations, tmp_path)
    check_same(results, dataset)
    check_same(results, dataset, areas="loadRes")
    check_same([{k: v for k, v in result.items() if k != "bbox"} for result in results], dataset)


@needs_package
def test_objects_without_masks(tmp_path: Path) -> None:
    """They count for boxes alone; crowds, an annotation of id 0 and detections of other classes are as in ours."""
    annotations, results = draw_case(12, 6, 12, [1, 2, 7], (60, 70), 0.3)
    for i, annotation in enumerate(annotations["annotations"]):
        annotation["id"] = i
        if i % 3 == 1:
            del annotation["segmentation"]
    results.append({"image_id": annotations["images"][0]["id"], "category_id": 99, "score": 0.5, "bbox": [1, 2, 3, 4]})
    results = [{k: v for k, v in result.items() if k != "segmentation"} for result in results]
    check_same(results, read(annotations, tmp_path))


@needs_package
def test_keypoints_by_either_areas(tmp_path: Path) -> None:
    for number, how in ((17, {}), (5, {}), (5, {"sigmas": [0.02, 0.05, 0.1, 0.1, 0.2]})):
        annotations, results = draw_poses(number, crowd=0.3)
        dataset = read(annotations, tmp_path)
        check_same(results, dataset, **how)
        boxes = [result | {"bbox": [1.0, 2.0, 50.0, 60.0 + i]} for i, result in enumerate(results)]
        check_same(boxes, dataset, areas="loadRes", **how)


@needs_package
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations, results = draw_case(6, 5, 10, [1, 2], (60, 70), 0.1)
    read(annotations, tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results))
    words = ["evaluate", str(tmp_path / "annotations.json"), "--out", str(tmp_path / "out"), "--backend", FAST]
    assert main([*words, "--results", str(tmp_path / "results.json")]) == 0
    fast = json.loads((tmp_path / "out" / "evaluation.json").read_text())["metrics"]
    assert main([*words, "--results", str(tmp_path / "results.json"), "--backend", "own"]) == 0
    own = json.loads((tmp_path / "out" / "evaluation.json").read_text())["metrics"]
    assert fast == {kind: pytest.approx(values, abs=1e-9) for kind, values in own.items()}
    capsys.readouterr()
    assert main(words) == 2
    assert capsys.readouterr().err == f"fastmask evaluate: --backend must be own without --results, got {FAST}\n"


def test_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations, results = draw_case(2, 2, 3, [1], (30, 30))
    dataset = read(annotations, tmp_path)
    with pytest.raises(ValueError, match="backend must be one of own, faster-coco-eval, got 'quick'"):
        evaluate_results(results, dataset, backend="quick", progress=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "results.json").write_text(json.dumps(results))
    words = [str(tmp_path / "annotations.json"), "--results", str(tmp_path / "results.json")]
    assert main(["evaluate", *words, "--out", str(tmp_path / "out"), "--backend", FAST]) == 2
    named = "fastmask evaluate: backend faster-coco-eval needs faster-coco-eval: pip install 'fastmask-rcnn[fast-eval]'"
    assert capsys.readouterr().err == f"{named}\n"
