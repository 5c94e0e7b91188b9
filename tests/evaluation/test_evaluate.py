"""Evaluation of a model: the reference COCOeval's metrics of its detections; broken images; ranks; the command."""

import copy
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.reference_cocoeval import draw_case, run_cocoeval
from helpers.slim import slim_pair
from torch import nn

from fastmask import Predictor
from fastmask.cli import main
from fastmask.data import Dataset, read_dataset, write_dataset
from fastmask.demo import CLASSES, save_synthetic, synthetic_dataset
from fastmask.evaluation import Evaluator, evaluate, evaluate_results
from fastmask.evaluation.identity import map_labels
from fastmask.inference.coco_results import to_coco_results

NAMES = {"box": "bbox", "mask": "segm"}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    import torch

    torch.manual_seed(7)  # with some weights all detections are of a class without annotations
    return slim_pair(box_score_thresh=0.01)[1]


def annotations_of(dataset: Dataset, folder: Path) -> dict:
    write_dataset(dataset, folder / "truth.json", "coco")
    return json.loads((folder / "truth.json").read_text())


def test_a_model_gets_the_metrics_of_its_detections(model: nn.Module, tmp_path: Path, seed: int) -> None:
    dataset = synthetic_dataset(6, seed, (96, 128))
    results: list = []
    evaluation = evaluate(model, dataset, progress=False, results=results)
    assert evaluation.detections == len(results) > 20
    assert evaluation.images == 6
    assert not evaluation.problems
    assert set(evaluation.seconds) == {"inference", "match", "wait", "accumulate"}
    annotations = annotations_of(dataset, tmp_path)
    for kind, metrics in evaluation.metrics.items():
        expected = run_cocoeval(annotations, results, NAMES[kind])
        np.testing.assert_allclose(metrics, expected.stats, rtol=0, atol=1e-9)
        np.testing.assert_allclose(evaluation.curves[kind].recall, expected.eval["recall"], rtol=0, atol=1e-9)
    assert evaluation.metrics["box"].ar_100 >= 0
    again = evaluate_results(results, read_dataset(tmp_path / "truth.json"), progress=False)
    assert again.metrics == evaluation.metrics
    loaded = evaluate(model, dataset, areas="loadRes", progress=False).metrics["mask"]
    np.testing.assert_allclose(loaded, run_cocoeval(annotations, results, "segm", whole=True).stats, rtol=0, atol=1e-9)
    predictions = Predictor(model, "exact")([record.load() for record in dataset.records])
    expected_results = [result for i, each in enumerate(predictions, 1) for result in to_coco_results(i, each)]
    assert results == [result for result in expected_results if result["category_id"] in dataset.categories.values()]


def test_perfect_detections_are_perfect(tmp_path: Path, seed: int) -> None:
    dataset = synthetic_dataset(5, seed, scene="mixed")
    results = []
    for record in dataset.records:
        for instance in record.instances:
            x1, y1, x2, y2 = instance.bounds()
            rle = {"size": [192, 192], "counts": instance.to_rle(192, 192)["counts"].decode()}
            result = {"image_id": record.id, "category_id": dataset.categories[instance.category], "score": 0.5}
            results.append(result | {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": rle})
    evaluation = evaluate_results(results, dataset, progress=False)
    for metrics in evaluation.metrics.values():
        assert metrics.ap == metrics.ap50 == metrics.ar_100 == pytest.approx(1)
    assert sum(category.instances for category in evaluation.categories) == len(results)
    fewer = evaluate_results(results[::2], dataset, progress=False)
    assert 0 < fewer.metrics["mask"].ar_100 < 0.9


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "boxes"])
def test_broken_images_count_as_missed(masks: bool, model: nn.Module, tmp_path: Path, seed: int) -> None:
    """Unreadable images and those of another size, whether sizes are annotated or not."""
    if not masks:
        model = copy.deepcopy(model)
        model.roi_heads.mask_roi_pool = model.roi_heads.mask_head = model.roi_heads.mask_predictor = None
    dataset = save_synthetic(synthetic_dataset(4, seed, (96, 128)), tmp_path)
    (tmp_path / "images" / "000001.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    dataset.records[2].load().resize((64, 64)).save(tmp_path / "images" / "000002.png")
    results: list = []
    evaluation = evaluate(model, dataset, progress=False, results=results)
    assert evaluation.images == 4
    assert len(evaluation.problems) == 2
    assert any("000001.png" in problem for problem in evaluation.problems)
    assert any("000002.png must be of (96, 128) as annotated, got (64, 64)" in text for text in evaluation.problems)
    assert {result["image_id"] for result in results} == {1, 4}
    annotations = annotations_of(dataset, tmp_path)
    for kind, metrics in evaluation.metrics.items():
        np.testing.assert_allclose(metrics, run_cocoeval(annotations, results, NAMES[kind]).stats, rtol=0, atol=1e-9)
    unknown = dataset._replace(records=[record._replace(size=None) for record in dataset.records])
    dataset.records[2].load().resize((128, 96)).save(tmp_path / "images" / "000002.png")
    again = evaluate(model, unknown, progress=False)
    assert again.images == 4
    assert len(again.problems) == 1
    instances = [sum(category.instances for category in each.categories) for each in (evaluation, again)]
    assert instances[0] == instances[1] == len(annotations["annotations"])


def test_results_of_images_that_are_not_there(tmp_path: Path, seed: int) -> None:
    """Without image files and sizes, masks are compared at their own size."""
    dataset = save_synthetic(synthetic_dataset(4, seed, (96, 128)), tmp_path)
    records = [record._replace(id=None, size=None) for record in dataset.records]
    results = []
    for number, record in enumerate(records, 1):
        for instance in record.instances:
            x1, y1, x2, y2 = instance.bounds()
            rle = {"size": [96, 128], "counts": instance.to_rle(96, 128)["counts"].decode()}
            category = dataset.categories[instance.category]
            result = {"image_id": number, "category_id": category, "score": np.float32(0.5)}
            results.append(result | {"bbox": (x1, y1, x2 - x1, y2 - y1), "segmentation": rle})
    (tmp_path / "images" / "000001.png").unlink()
    for given in (records, tuple(records)):
        evaluation = evaluate_results(results, dataset._replace(records=given), progress=False)
        assert evaluation.metrics["box"].ap == evaluation.metrics["mask"].ap == pytest.approx(1)
        assert evaluation.images == 4
    with pytest.raises(ValueError, match=r"dataset must have ids of one image each, got several of \[7\]"):
        evaluate_results([], dataset._replace(records=[record._replace(id=7) for record in records]), progress=False)


def test_names_of_labels(model: nn.Module, seed: int) -> None:
    categories = {"triangle": 7, "grain": 3}
    assert map_labels(["-", "grain", "cat", "triangle"], categories) == {1: 3, 3: 7}
    assert map_labels(None, categories) == {7: 7, 3: 3}
    assert map_labels(None, {"a": 0, "b": 5}) == {1: 0, 2: 5}
    with pytest.raises(ValueError, match=r"names must have one of the dataset's categories \(triangle, grain"):
        map_labels(["-", "cat"], categories)
    results: list = []
    names = ["-", "grain", "ellipse", "cat", "dog"]
    evaluate(model, synthetic_dataset(2, seed, (96, 128)), names=names, progress=False, results=results)
    assert {result["category_id"] for result in results} <= {1, 4}


def test_bad_requests(model: nn.Module, seed: int) -> None:
    with pytest.raises(ValueError, match="dataset must have images, got none"):
        evaluate(model, synthetic_dataset(0))
    with pytest.raises(ValueError, match="dataset must have images, got none"):
        evaluate_results([], synthetic_dataset(0)._replace(records=[]))
    with pytest.raises(ValueError, match="model must be a Predictor with masks='rle', got 'bool'"):
        evaluate(Predictor(model, "exact", masks="bool"), synthetic_dataset(1, seed))
    dataset = synthetic_dataset(2, seed, (64, 64))
    evaluator = Evaluator(dataset.categories)
    evaluator.add(1, dataset.records[0], [])
    with pytest.raises(ValueError, match="images must be added once, got number 1 again"):
        evaluator.add(1, dataset.records[0], [])
    with pytest.raises(ValueError, match=r"images must be added once, got numbers \[1\] on two ranks"):
        evaluator.merge([evaluator.state()])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 99}, "must have the image_id of one of the 2 images, got 99"),
        ({"image_id": [1]}, r"must have the image_id of one of the 2 images, got \[1\]"),
        ({"category_id": None}, "must have a category_id, got None"),
        ({"score": float("nan")}, "score must be a finite number, got nan"),
        ({"bbox": [1, 2, 3]}, "bbox must be x, y, width, height"),
        ({"bbox": None, "segmentation": None}, "must have a bbox, a segmentation or keypoints"),
        ({"segmentation": {"size": [64, 64], "counts": "~~~~"}}, "an RLE's counts must be runs"),
        ({"segmentation": {"size": [8, 8], "counts": [64]}}, r"must have a mask of \(64, 64\) as its image"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6]]}, "must have an RLE as its segmentation"),
        ({"category_id": 10**20}, "must have a category_id"),
        ({"score": 10**400}, "score must be a finite number, got 1000"),
    ],
)
def test_broken_results(change: dict, message: str) -> None:
    good = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    with pytest.raises(ValueError, match=r"results\[1\] .*" + message):
        evaluate_results([good, {**good, **change}], synthetic_dataset(2, 0, (64, 64)), progress=False)
    mixed = [good | {"segmentation": None}, good | {"segmentation": {"size": [64, 64], "counts": [64 * 64]}}]
    with pytest.raises(ValueError, match=r"results must all have a segmentation, or none, got none in results\[0\]"):
        evaluate_results(mixed, synthetic_dataset(2, 0, (64, 64)))
    nothing = [good | {"segmentation": None}, good]
    assert set(evaluate_results(nothing, synthetic_dataset(2, 0, (64, 64)), progress=False).metrics) == {"box"}
    with pytest.raises(ValueError, match=r"results\[0\] must be an object, got int"):
        evaluate_results([3], synthetic_dataset(2, 0, (64, 64)), progress=False)  # type: ignore[list-item]


def test_the_command(
    slim_file: tuple[Path, nn.Module], tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    save_synthetic(synthetic_dataset(3, seed, (96, 128)), tmp_path / "set")
    options = ["--weights", str(slim_file[0]), "--model", "slim", "--out", str(tmp_path / "out")]
    classes = [
        "--classes",
        ",".join(f"{mine}={data}" for mine, data in zip(("one", "two", "three"), CLASSES[:3], strict=True)),
    ]
    command = ["evaluate", str(tmp_path / "set"), *options, "--score", "0.01", *classes]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "img/s" not in captured.err  # no bar in a log file
    printed = captured.out
    assert "AP50" in printed
    assert "3 images" in printed
    assert "accumulate" in printed
    summary = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    with open(tmp_path / "out" / "categories.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["category"], row["kind"]) for row in rows} >= {("all", "box"), ("all", "mask"), (CLASSES[0], "mask")}
    annotations = json.loads((tmp_path / "set" / "annotations.json").read_text())
    stats = run_cocoeval(annotations, results, "segm").stats
    assert [-1 if value is None else value for value in summary["metrics"]["mask"].values()] == pytest.approx(
        list(stats)
    )
    for row in rows[:2]:
        assert float(row["ap"]) == pytest.approx(summary["metrics"][row["kind"]]["ap"], abs=1e-6)
    results = ["--results", str(tmp_path / "out" / "detections.json"), "--out", str(tmp_path / "again")]
    assert main(["evaluate", str(tmp_path / "set"), *results]) == 0
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert again["metrics"] == summary["metrics"]
    assert again["areas"] == "own"
    assert main(["evaluate", str(tmp_path / "set"), *results, "--areas", "loadRes"]) == 0
    loaded = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    stats = run_cocoeval(annotations, results, "segm", whole=True).stats
    assert loaded["areas"] == "loadRes"
    assert [-1 if value is None else value for value in loaded["metrics"]["mask"].values()] == pytest.approx(
        list(stats)
    )
    capsys.readouterr()
    (tmp_path / "set" / "images" / "000000.png").write_bytes(b"torn")
    assert main(command) == 1
    assert "000000.png" in capsys.readouterr().err


def test_errors_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_synthetic(synthetic_dataset(1, 0, (64, 64)), tmp_path / "set")
    for name, content, message in (
        ("a.json", "{", "must be JSON, got a broken file"),
        ("d.json", "[" * 100_000, "must be JSON of few levels"),
        ("b.json", "{}", "must be a list of detections, got dict"),
        ("c.json", "[{}]", r"results[0] must have the image_id of one of the 1 images, got None"),
    ):
        (tmp_path / name).write_text(content)
        out = str(tmp_path / "out")
        assert main(["evaluate", str(tmp_path / "set"), "--results", str(tmp_path / name), "--out", out]) == 2
        assert message in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_two_ranks_give_the_metrics_of_one(
    slim_file: tuple[Path, nn.Module], tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun with gloo on seven images, which two ranks cannot share evenly, one of them broken."""
    save_synthetic(synthetic_dataset(7, seed, (96, 128)), tmp_path / "set")
    (tmp_path / "set" / "images" / "000004.png").write_bytes(b"torn")
    options = ["evaluate", str(tmp_path / "set"), "--weights", str(slim_file[0]), "--model", "slim", "--score", "0.01"]
    options += [
        "--classes",
        *(f"{mine}={data}" for mine, data in zip(("one", "two", "three"), CLASSES[:3], strict=True)),
    ]
    assert main([*options, "--out", str(tmp_path / "one")]) == 1
    assert capsys.readouterr().err.count("000004.png") == 1
    program = Path(__file__).parent.parent / "helpers" / "slim_command.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(program)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*torchrun, *options, "--out", str(tmp_path / "two")],
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())},  # sums in the same order
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("000004.png") == 1, done.stderr
    outputs = [
        [json.loads((tmp_path / name / file).read_text()) for file in ("evaluation.json", "detections.json")]
        for name in ("one", "two")
    ]
    (one, first), (two, second) = outputs
    assert one["metrics"] == two["metrics"]
    assert one["images"] == two["images"] == 7
    assert sorted(first, key=json.dumps) == sorted(second, key=json.dumps)


@pytest.mark.slow  # compares two times
def test_many_categories_are_quick() -> None:
    """1,203 categories, few of them in each image, as in LVIS; pycocotools visits each pair of image and category."""
    import time

    annotations, results = draw_case(20, 15, 25, list(range(1, 1204)), (40, 40))
    from fastmask.data.coco import read_coco

    dataset = read_coco(annotations, Path("none.json"), Path("."))
    start = time.perf_counter()
    evaluate_results(results, dataset, progress=False)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    run_cocoeval(annotations, results, "bbox")
    run_cocoeval(annotations, results, "segm")
    assert ours < time.perf_counter() - start
