"""OKS average precision against pycocotools' COCOeval, for its 17 keypoints and for others with sigmas."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.reference_cocoeval import draw_poses

from fastmask.cli import main
from fastmask.data import read_dataset
from fastmask.evaluation import evaluate_results
from fastmask.evaluation.matching import KEYPOINT_AREA_RANGES, MAX_DETECTIONS
from fastmask.inference.coco_results import to_coco_results

COCO = pytest.importorskip("pycocotools.coco", reason="metrics are compared with pycocotools'").COCO
COCOeval = pytest.importorskip("pycocotools.cocoeval").COCOeval
Json = dict[str, Any]


def run_cocoeval(annotations: Json, results: list[Json], sigmas: list[float] | None = None) -> Any:
    """pycocotools by hand."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {**annotations, "annotations": [dict(each) for each in annotations["annotations"]]}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in results]), "keypoints")
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def write(annotations: Json, folder: Path) -> Path:
    (folder / "annotations.json").write_text(json.dumps(annotations))
    return folder / "annotations.json"


def check(annotations: Json, results: list[Json], folder: Path, **how: Any) -> None:
    dataset = read_dataset(write(annotations, folder))
    assert not dataset.problems
    evaluation = evaluate_results(results, dataset, progress=False, **how)
    number = len(annotations["categories"][0]["keypoints"])
    expected = run_cocoeval(annotations, results, how.get("sigmas", None if number == 17 else [1 / number] * number))
    np.testing.assert_allclose(evaluation.metrics["keypoints"], expected.stats, rtol=0, atol=1e-9)
    curves = evaluation.curves["keypoints"]
    np.testing.assert_allclose(curves.precision, expected.eval["precision"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(curves.recall, expected.eval["recall"], rtol=0, atol=1e-9)


def test_parameters() -> None:
    params = COCOeval(iouType="keypoints").params
    assert KEYPOINT_AREA_RANGES.tolist() == params.areaRng
    assert [MAX_DETECTIONS["keypoints"]] == params.maxDets


@pytest.mark.parametrize("crowd", [0.1, 0.7])
def test_equal_to_pycocotools(crowd: float, tmp_path: Path) -> None:
    """Ten metrics and the curves, of keypoints alone and of results that have boxes as well."""
    annotations, results = draw_poses(crowd=crowd)
    check(annotations, results, tmp_path)
    dataset = read_dataset(tmp_path / "annotations.json")
    assert set(evaluate_results(results, dataset, progress=False).metrics) == {"keypoints"}
    boxes = [result | {"bbox": [1.0, 2.0, 50.0, 60.0 + i]} for i, result in enumerate(results)]
    check(annotations, boxes, tmp_path, areas="loadRes")
    both = evaluate_results(boxes, dataset, progress=False)
    assert set(both.metrics) == {"box", "keypoints"}
    alone = evaluate_results(results, dataset, progress=False)
    assert both.metrics["keypoints"] == alone.metrics["keypoints"]  # by the areas of keypoints


@pytest.mark.parametrize("number", [1, 5])
def test_other_numbers_and_sigmas(number: int, tmp_path: Path) -> None:
    """1 / K each, or the given ones."""
    annotations, results = draw_poses(number)
    annotations["categories"][0]["skeleton"] = []
    check(annotations, results, tmp_path)
    sigmas = np.random.uniform(0.02, 0.2, number).tolist()
    check(annotations, results, tmp_path, sigmas=sigmas)
    dataset = read_dataset(tmp_path / "annotations.json")
    with pytest.raises(ValueError, match=rf"sigmas must be {number}, as person has keypoints, got {number + 1}"):
        evaluate_results(results, dataset, sigmas=[*sigmas, 0.1], progress=False)
    with pytest.raises(ValueError, match="sigmas must be above 0, got"):
        evaluate_results(results, dataset, sigmas=[0.0] * number, progress=False)


def test_broken_results(tmp_path: Path) -> None:
    annotations, results = draw_poses()
    dataset = read_dataset(write(annotations, tmp_path))
    for points, rule in (
        ([1.0] * 50, r"results\[0\] must have 17 keypoints, x, y and a number each, got 50 numbers"),
        ("nose", r"results\[0\] must have 17 keypoints, x, y and a number each, got 'nose'"),
        ([float("nan")] * 51, r"results\[0\] keypoints\[0\] must be a finite number, got nan"),
    ):
        with pytest.raises(ValueError, match=rule):
            evaluate_results([results[0] | {"keypoints": points}], dataset, progress=False)
    box = {"bbox": [1, 2, 3, 4]}
    bare = {name: value for name, value in results[0].items() if name != "keypoints"}
    with pytest.raises(ValueError, match=r"results must all have keypoints, or none, got none in results\[0\]"):
        evaluate_results([bare | box, *(result | box for result in results[1:])], dataset, progress=False)
    with pytest.raises(ValueError, match=r"must all have a bbox or a segmentation, or none, got none in results\[1\]"):
        evaluate_results([results[0] | box, *results[1:]], dataset, progress=False)
    for annotation in annotations["annotations"]:
        del annotation["keypoints"], annotation["num_keypoints"]
    plain = read_dataset(write(annotations, tmp_path))
    with pytest.raises(ValueError, match="results must have boxes or masks where the dataset has no keypoints"):
        evaluate_results(results, plain, progress=False)


def test_command_and_results_of_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model's predictions as COCO's results, read back by the command and by pycocotools alike."""
    annotations, _ = draw_poses(crowd=0)
    results: list[Any] = []
    for image in annotations["images"]:
        own = [each for each in annotations["annotations"] if each["image_id"] == image["id"]]
        points = torch.tensor([each["keypoints"] for each in own]).reshape(-1, 17, 3)
        points[:, :, 2] = 1
        boxes = torch.tensor([each["bbox"] for each in own]).reshape(-1, 4)
        found = {"boxes": torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1), "scores": torch.rand(len(own))}
        found |= {"labels": torch.ones(len(own), dtype=torch.int64), "keypoints": points}
        results += to_coco_results(image["id"], found | {"keypoints_scores": torch.full((len(own), 17), 4.5)})
        assert all(result["keypoints"][2::3] == [4.5] * 17 for result in results)  # scores are the third numbers
        assert all(each["keypoints"][2::3] == [1] * 17 for each in to_coco_results(image["id"], found))
    path = write(annotations, tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(results))
    command = ["evaluate", str(path), "--results", str(tmp_path / "results.json"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == [
        "AP",
        "AP50",
        "AP75",
        "APs",
        "APm",
        "APl",
        "AR1",
        "AR10",
        "AR100",
        "ARs",
        "ARm",
        "ARl",
    ]
    assert printed[2].split() == ["AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"]
    assert [line.split()[0] for line in (printed[1], printed[3])] == ["box", "keypoints"]
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    expected = run_cocoeval(annotations, [{k: v for k, v in each.items() if k != "bbox"} for each in results]).stats
    actual = [-1 if value is None else value for value in content["metrics"]["keypoints"].values()]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9)
    heads = (tmp_path / "out" / "categories.csv").read_text().splitlines()[0].split(",")
    assert heads[3:] == [*["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"], *heads[9:]]
    assert heads[9:] == ["ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large", "ar", "ar50", "ar75"]
    assert main([*command, "--sigmas", "0.1"]) == 2
    assert "sigmas must be 17, as person has keypoints, got 1" in capsys.readouterr().err
