"""Metrics and every point of the curves against the reference COCOeval of pycocotools on the same detections."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.reference_cocoeval import CASES, as_rle, box_around, draw_case, run_cocoeval

from fastmask.cli import main
from fastmask.data import read_dataset
from fastmask.demo import synthetic_dataset
from fastmask.evaluation import Evaluation, evaluate_results
from fastmask.evaluation.matching import AREA_RANGES, IOU_THRESHOLDS, match

NAMES = {"box": "bbox", "mask": "segm"}


def test_thresholds_and_sizes() -> None:
    settings = pytest.importorskip("pycocotools.cocoeval").Params("bbox")
    assert IOU_THRESHOLDS.tolist() == list(settings.iouThrs)
    assert AREA_RANGES.tolist() == settings.areaRng


def check_evaluation(annotations: dict[str, Any], results: list[dict[str, Any]], folder: Path) -> Evaluation:
    """Our evaluation, from a file, checked against the reference for boxes and masks."""
    evaluation = evaluate_results(results, read_dataset(write_annotations(annotations, folder)), progress=False)
    assert not evaluation.problems
    assert set(evaluation.metrics) == ({"box", "mask"} if annotations["annotations"] else {"box"})
    for kind, metrics in evaluation.metrics.items():
        expected = run_cocoeval(annotations, results, NAMES[kind])
        np.testing.assert_allclose(metrics, expected.stats, rtol=0, atol=1e-9)
        np.testing.assert_allclose(evaluation.curves[kind].precision, expected.eval["precision"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(evaluation.curves[kind].recall, expected.eval["recall"], rtol=0, atol=1e-9)
    return evaluation


@pytest.mark.parametrize("name", CASES)
def test_metrics_are_pycocotools(name: str, tmp_path: Path) -> None:
    annotations, results = draw_case(*CASES[name])
    evaluation = check_evaluation(annotations, results, tmp_path)
    assert evaluation.images == len(annotations["images"])
    assert evaluation.detections == len(results)
    if name == "many objects":  # in other cases all matches may fail
        assert evaluation.metrics["box"].ap50 > 0
        assert evaluation.metrics["mask"].ar_100 > 0


@pytest.mark.parametrize("has", ["both", "bbox", "segmentation"])
@pytest.mark.parametrize("name", ["ordinary", "crowds", "sizes"])
def test_areas_of_load_res(name: str, has: str, tmp_path: Path) -> None:
    """pycocotools on results as they are: it takes the bbox's area for masks, too, if there is a bbox."""
    annotations, results = draw_case(*CASES[name])
    if has != "both":
        dropped = "bbox" if has == "segmentation" else "segmentation"
        results = [{key: value for key, value in result.items() if key != dropped} for result in results]
    dataset = read_dataset(write_annotations(annotations, tmp_path))
    loaded, own = (evaluate_results(results, dataset, areas=areas, progress=False) for areas in ("loadRes", "own"))
    assert (loaded.areas, own.areas) == ("loadRes", "own")
    assert set(loaded.metrics) == ({"box"} if has == "bbox" else {"box", "mask"})
    for kind, metrics in loaded.metrics.items():
        expected = run_cocoeval(annotations, results, NAMES[kind], whole=True)
        np.testing.assert_allclose(metrics, expected.stats, rtol=0, atol=1e-9)
        np.testing.assert_allclose(loaded.curves[kind].precision, expected.eval["precision"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(loaded.curves[kind].recall, expected.eval["recall"], rtol=0, atol=1e-9)
        np.testing.assert_array_equal(metrics[:3], own.metrics[kind][:3])  # areas of detections are for AP by size
        np.testing.assert_array_equal(loaded.curves[kind].recall[:, :, 0], own.curves[kind].recall[:, :, 0])


def test_a_thin_mask_in_a_large_box(tmp_path: Path) -> None:
    """A false positive that is small by its mask, and medium by its box."""
    square, thin = np.zeros((2, 100, 100), bool)
    square[:40, :40] = thin[50:, 50] = thin[50, 50:] = True
    common = {"image_id": 1, "category_id": 1}
    shapes = [{"bbox": box_around(mask), "segmentation": as_rle(mask)} for mask in (square, thin)]
    images = [{"id": 1, "file_name": "1.png", "height": 100, "width": 100}]
    truth = common | shapes[0] | {"id": 1, "area": 1600.0, "iscrowd": 0}
    annotations = {"images": images, "annotations": [truth], "categories": [{"id": 1, "name": "c"}]}
    both = [common | shape | {"score": score} for shape, score in zip(shapes, (0.5, 0.9), strict=True)]
    masks = [{name: value for name, value in result.items() if name != "bbox"} for result in both]
    dataset = read_dataset(write_annotations(annotations, tmp_path))
    for results, areas, box, mask in (
        (both, "own", 0.5, 1),
        (both, "loadRes", 0.5, 0.5),
        (masks, "own", 0.5, 1),
        (masks, "loadRes", 1, 1),
    ):
        metrics = evaluate_results(results, dataset, areas=areas, progress=False).metrics
        assert metrics["box"].ap_medium == pytest.approx(box)
        assert metrics["mask"].ap_medium == pytest.approx(mask)


def test_areas_are_checked() -> None:
    dataset = synthetic_dataset(1, 0, (64, 64))
    box = {"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}
    mask = {"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": {"size": [64, 64], "counts": [64 * 64]}}
    with pytest.raises(ValueError, match="areas must be one of own, loadRes, got 'mask'"):
        evaluate_results([box], dataset, areas="mask", progress=False)
    evaluate_results([mask | box, mask], dataset, progress=False)
    with pytest.raises(ValueError, match=r"results must all have a bbox, or none, got none in results\[1\]"):
        evaluate_results([mask | box, mask], dataset, areas="loadRes", progress=False)


def test_annotation_id_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """pycocotools takes a match with the annotation of id 0 for none; ours counts it, and the command says so."""
    annotations: dict[str, Any] = {"annotations": []}
    while not annotations["annotations"]:
        annotations, _ = draw_case(3, 6, 0, [1, 2], (60, 70), crowd=0.0)
    names = ("image_id", "category_id", "bbox", "segmentation")
    results = [{name: each[name] for name in names} | {"score": 0.5} for each in annotations["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    for number, crowd, told in ((1, 0, False), (0, 0, True), (0, 1, False)):
        annotations["annotations"][0] |= {"id": number, "iscrowd": crowd}
        path = write_annotations(annotations, tmp_path)
        evaluation = evaluate_results(results, read_dataset(path), progress=False)
        for kind, metrics in evaluation.metrics.items():
            expected = run_cocoeval(annotations, results, NAMES[kind]).stats
            if number == 0 and not crowd:
                assert metrics.ar_100 == pytest.approx(1)
                assert expected[8] < 1
            else:
                np.testing.assert_allclose(metrics, expected, rtol=0, atol=1e-9)
        command = ["evaluate", str(path), "--results", str(tmp_path / "results.json"), "--out", str(tmp_path / "out")]
        assert main(command) == 0
        assert ("an annotation has the id 0: its detection is" in capsys.readouterr().err) == told


def test_each_category_is_its_own_evaluation(tmp_path: Path) -> None:
    annotations, results = draw_case(8, 8, 20, [2, 4, 9], (60, 60))
    evaluation = check_evaluation(annotations, results, tmp_path)
    for name, instances, metrics in evaluation.categories:
        number = int(name[1:])
        own = [annotation for annotation in annotations["annotations"] if annotation["category_id"] == number]
        alone = {**annotations, "annotations": own, "categories": [{"id": number, "name": name}]}
        mine = [result for result in results if result["category_id"] == number]
        assert instances == sum(not annotation["iscrowd"] for annotation in own)
        for kind, values in metrics.items():
            np.testing.assert_allclose(values, run_cocoeval(alone, mine, NAMES[kind]).stats, rtol=0, atol=1e-9)


def test_polygons_and_boxes_without_area(tmp_path: Path) -> None:
    """Polygons, and areas as in the file; a result without a bbox gets the box around its mask."""
    annotations, results = draw_case(6, 6, 12, [1, 2], (80, 90))
    for annotation in annotations["annotations"]:
        x, y, width, height = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + width, y, x + width / 2, y + height], [x, y, x + 3, y, x, y + 3]]
    check_evaluation(annotations, results, tmp_path)
    masks_only = [result | {"bbox": None} for result in results]
    evaluation = evaluate_results(masks_only, read_dataset(tmp_path / "annotations.json"), progress=False)
    expected = run_cocoeval(annotations, results, "segm").stats
    np.testing.assert_allclose(evaluation.metrics["mask"], expected, rtol=0, atol=1e-9)


def test_boxes_alone(tmp_path: Path) -> None:
    annotations, results = draw_case(6, 6, 12, [1, 2], (80, 90))
    for entry in [*annotations["annotations"], *results]:
        del entry["segmentation"]
    evaluation = evaluate_results(results, read_dataset(write_annotations(annotations, tmp_path)), progress=False)
    assert set(evaluation.metrics) == {"box"}
    expected = run_cocoeval(annotations, results, "bbox").stats
    np.testing.assert_allclose(evaluation.metrics["box"], expected, rtol=0, atol=1e-9)


def write_annotations(annotations: dict[str, Any], folder: Path) -> Path:
    (folder / "annotations.json").write_text(json.dumps(annotations))
    return folder / "annotations.json"


def test_matching_with_equal_overlaps() -> None:
    """Of equal IoUs the last instance wins; ignored instances come after all others."""
    ious = np.array([[0.8, 0.8, 0.9], [0.8, 0.8, 0.6], [0.8, 0.8, 0.6], [0.4, 0.4, 0.4]])
    areas = np.full(4, 500.0)
    crowds = np.array([False, False, True])
    matches = match(ious, np.array([0.9, 0.8, 0.7, 0.6]), areas, np.full(3, 500.0), crowds)
    assert AREA_RANGES[0].tolist() == [0, 1e10]
    assert matches.matched[0, 0].tolist() == [True, True, True, False]  # the third matches the crowd
    assert matches.ignored[0, 0].tolist() == [False, False, True, False]
    at_85 = matches.matched[0, 7], matches.ignored[0, 7]  # only the crowd reaches 0.85
    assert at_85[0].tolist() == [True, False, False, False]
    assert at_85[1].tolist() == [True, False, False, False]
    assert matches.ignored[2, 0].all()  # none has a medium area
