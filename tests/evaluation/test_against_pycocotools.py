"""Our metrics, and each point of the curves, against pycocotools run by hand on the same detections."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.reference_cocoeval import draw_case, run_cocoeval

from fastmask.data import read_dataset
from fastmask.evaluation import Evaluation, evaluate_results
from fastmask.evaluation.matching import SIZES, THRESHOLDS, match

NAMES = {"box": "bbox", "mask": "segm"}
CASES = {
    "ordinary": (12, 6, 12, [1, 2, 7], (60, 70), 0.15),
    "crowds": (8, 6, 15, [3], (50, 50), 0.7),
    "sizes": (6, 5, 10, [1, 2], (200, 220), 0.1),
    "many categories": (10, 20, 30, list(range(1, 1204)), (40, 40), 0.1),
    "many objects": (2, 300, 500, [1], (40, 50), 0.05),
    "no objects": (4, 0, 5, [1, 2], (40, 50), 0.0),
    "no detections": (4, 4, 0, [1, 2], (40, 50), 0.0),
    "nothing": (2, 0, 0, [1], (40, 50), 0.0),
}


def test_thresholds_and_sizes() -> None:
    settings = pytest.importorskip("pycocotools.cocoeval").Params("bbox")
    assert THRESHOLDS.tolist() == list(settings.iouThrs)
    assert SIZES.tolist() == settings.areaRng


def compared(annotations: dict[str, Any], entries: list[dict[str, Any]], folder: Path) -> Evaluation:
    """Ours, from the file, once it is pycocotools' for all kinds."""
    (folder / "annotations.json").write_text(json.dumps(annotations))
    found = evaluate_results(entries, read_dataset(folder / "annotations.json"), progress=False)
    assert not found.problems
    assert set(found.metrics) == ({"box", "mask"} if annotations["annotations"] else {"box"})
    for kind, metrics in found.metrics.items():
        expected = run_cocoeval(annotations, entries, NAMES[kind])
        np.testing.assert_allclose(metrics, expected.stats, rtol=0, atol=1e-9)
        np.testing.assert_allclose(found.curves[kind].precision, expected.eval["precision"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(found.curves[kind].recall, expected.eval["recall"], rtol=0, atol=1e-9)
    return found


@pytest.mark.parametrize("name", CASES)
def test_figures_are_pycocotools(name: str, tmp_path: Path) -> None:
    annotations, entries = draw_case(*CASES[name])
    found = compared(annotations, entries, tmp_path)
    assert found.images == len(annotations["images"])
    assert found.detections == len(entries)
    if name == "many objects":  # of the others a draw may leave nothing to find
        assert found.metrics["box"].ap50 > 0
        assert found.metrics["mask"].ar_100 > 0


def test_each_category_is_its_own_evaluation(tmp_path: Path) -> None:
    annotations, entries = draw_case(8, 8, 20, [2, 4, 9], (60, 60))
    found = compared(annotations, entries, tmp_path)
    for one in found.categories:
        number = int(one.name[1:])
        own = [each for each in annotations["annotations"] if each["category_id"] == number]
        alone = {**annotations, "annotations": own, "categories": [{"id": number, "name": one.name}]}
        mine = [entry for entry in entries if entry["category_id"] == number]
        assert one.objects == sum(not each["iscrowd"] for each in own)
        for kind, metrics in one.metrics.items():
            np.testing.assert_allclose(metrics, run_cocoeval(alone, mine, NAMES[kind]).stats, rtol=0, atol=1e-9)


def test_polygons_and_boxes_without_area(tmp_path: Path) -> None:
    """As COCO's polygons; areas as in the file; a detection without a bbox has its mask's."""
    annotations, entries = draw_case(6, 6, 12, [1, 2], (80, 90))
    for one in annotations["annotations"]:
        x, y, width, height = one["bbox"]
        one["segmentation"] = [[x, y, x + width, y, x + width / 2, y + height], [x, y, x + 3, y, x, y + 3]]
    compared(annotations, entries, tmp_path)
    masks_only = [
        {"bbox": None, **{name: value for name, value in entry.items() if name != "bbox"}} for entry in entries
    ]
    found = evaluate_results(masks_only, read_dataset(tmp_path / "annotations.json"), progress=False)
    expected = run_cocoeval(annotations, entries, "segm").stats
    np.testing.assert_allclose(found.metrics["mask"], expected, rtol=0, atol=1e-9)


def test_boxes_alone(tmp_path: Path) -> None:
    annotations, entries = draw_case(6, 6, 12, [1, 2], (80, 90))
    for one in [*annotations["annotations"], *entries]:
        del one["segmentation"]
    compared_boxes = evaluate_results(
        entries,
        read_dataset(_saved(annotations, tmp_path)),
        progress=False,
    )
    assert set(compared_boxes.metrics) == {"box"}
    expected = run_cocoeval(annotations, entries, "bbox").stats
    np.testing.assert_allclose(compared_boxes.metrics["box"], expected, rtol=0, atol=1e-9)


def _saved(annotations: dict[str, Any], folder: Path) -> Path:
    (folder / "annotations.json").write_text(json.dumps(annotations))
    return folder / "annotations.json"


def test_matching_with_equal_overlaps() -> None:
    """Of objects that a detection overlaps alike the last one; those that do not count come after all others."""
    overlaps = np.array([[0.8, 0.8, 0.9], [0.8, 0.8, 0.6], [0.8, 0.8, 0.6], [0.4, 0.4, 0.4]])
    areas = np.full(4, 500.0)
    crowds = np.array([False, False, True])
    found = match(overlaps, np.array([0.9, 0.8, 0.7, 0.6]), areas, np.full(3, 500.0), crowds)
    assert SIZES[0].tolist() == [0, 1e10]
    assert found.matched[0, 0].tolist() == [True, True, True, False]  # the third is the crowd's
    assert found.ignored[0, 0].tolist() == [False, False, True, False]
    at_85 = found.matched[0, 7], found.ignored[0, 7]  # only the crowd overlaps that much
    assert at_85[0].tolist() == [True, False, False, False]
    assert at_85[1].tolist() == [True, False, False, False]
    assert found.ignored[2, 0].all()  # of medium size is none of them
