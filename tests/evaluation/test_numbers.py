"""NumPy's numbers and zero-dimensional arrays and tensors as ids, scores and sizes give what Python's numbers give."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.reference_cocoeval import draw_case
from helpers.slim import slim_pair

from fastmask.data import Dataset, assign_labels, read_dataset, write_dataset
from fastmask.data.coco import read_coco
from fastmask.demo import synthetic_dataset
from fastmask.evaluation import Evaluation, Evaluator, evaluate, evaluate_results
from fastmask.inference.coco_results import to_coco_results

Convert = tuple[Callable[[int], Any], Callable[[float], Any], Callable[[list[Any]], Any]]
KINDS: dict[str, Convert] = {  # of integers, of floats, of lists of numbers
    "NumPy": (np.int32, np.float64, lambda values: [np.asarray(value)[()] for value in values]),
    "unsigned": (np.uint16, np.longdouble, tuple),
    "0-d arrays": (np.array, np.array, np.array),
    "tensors": (torch.tensor, lambda value: torch.tensor(value, dtype=torch.float64), torch.tensor),
}


def convert(value: Any, kind: Convert) -> Any:
    """The JSON value with all of its numbers, and its lists of numbers, of a kind."""
    integer, real, many = kind
    if isinstance(value, dict):
        return {name: each if name == "iscrowd" else convert(each, kind) for name, each in value.items()}
    if isinstance(value, list) and value and all(isinstance(each, int | float) for each in value):
        return torch.tensor(value, dtype=torch.float64) if many is torch.tensor and value[0] % 1 else many(value)
    if isinstance(value, list):
        return [convert(each, kind) for each in value]
    return integer(value) if isinstance(value, int) else real(value) if isinstance(value, float) else value


def check_equal(actual: Evaluation, expected: Evaluation) -> None:
    assert actual.metrics == expected.metrics
    assert actual.categories == expected.categories
    assert actual.metrics["box"].ar_100 > 0


@pytest.mark.parametrize("name", KINDS)
def test_results_and_annotations(name: str, tmp_path: Path) -> None:
    annotations, results = draw_case(8, 8, 16, [1, 2, 7], (60, 70))
    runs = copy.deepcopy(results)
    for result in runs:  # uncompressed
        result["segmentation"] = {"size": [60, 70], "counts": [0, 60 * 70]}
    dataset = read_coco(annotations, tmp_path / "truth.json", tmp_path)
    converted = read_coco(convert(annotations, KINDS[name]), tmp_path / "truth.json", tmp_path)
    assert str(converted) == str(dataset)  # dtypes would show
    for given in (results, runs):
        expected = evaluate_results(given, dataset, progress=False)
        check_equal(evaluate_results(convert(given, KINDS[name]), converted, progress=False), expected)
        loaded = evaluate_results(given, dataset, areas="loadRes", progress=False)
        check_equal(evaluate_results(convert(given, KINDS[name]), converted, areas="loadRes", progress=False), loaded)


@pytest.mark.parametrize("name", KINDS)
def test_data_sets_made_in_python(name: str, tmp_path: Path) -> None:
    """Records, instances and categories with such numbers are evaluated, and written to COCO and labelme, as usual."""
    integer, real, _ = KINDS[name]
    annotations, results = draw_case(6, 8, 16, [1, 2, 7], (60, 70))
    plain = read_coco(annotations, tmp_path / "truth.json", tmp_path)
    records = [
        record._replace(
            id=integer(record.id or 0),
            size=(integer(60), integer(70)),
            instances=tuple(
                instance._replace(
                    id=integer(instance.id or 0),
                    area=real(instance.area or 0.0),
                    box=tuple(map(real, instance.bounds())),
                )
                for instance in record.instances
            ),
        )
        for record in plain.records
    ]
    categories = {category: integer(number) for category, number in plain.categories.items()}
    dataset = Dataset(records, categories, [])
    assert assign_labels(categories) == assign_labels(plain.categories)
    check_equal(evaluate_results(results, dataset, progress=False), evaluate_results(results, plain, progress=False))
    for format in ("coco", "labelme"):
        for folder, each in (("plain", plain), ("other", dataset)):
            write_dataset(each, tmp_path / folder / (format if format == "labelme" else "truth.json"), format)
        written = [sorted((tmp_path / folder).rglob("*.json")) for folder in ("plain", "other")]
        assert [path.read_text() for path in written[0]] == [path.read_text() for path in written[1]]
    assert str(read_dataset(tmp_path / "other" / "truth.json").categories) == str(plain.categories)
    evaluator, expected = Evaluator(categories), Evaluator(plain.categories)
    for record, other in zip(plain.records, records, strict=True):
        own = [result for result in results if result["image_id"] == record.id]
        expected.add(record.id or 0, record, own)
        evaluator.add(other.id or 0, other, convert(own, (integer, real, list)))
    assert evaluator.evaluate().metrics == expected.evaluate().metrics


def test_detections_of_a_model(seed: int) -> None:
    """What a caller gets is ready for JSON."""
    dataset = synthetic_dataset(2, seed, (96, 128))
    torch.manual_seed(7)
    model = slim_pair(box_score_thresh=0.01)[1]
    plain: list[Any] = []
    expected = evaluate(model, dataset, progress=False, results=plain)
    assert plain
    categories: dict[str, Any] = {name: np.int64(number) for name, number in dataset.categories.items()}
    records = [record._replace(id=np.int64(record.id or 0)) for record in dataset.records]
    results: list[Any] = []
    evaluation = evaluate(model, dataset._replace(records=records, categories=categories), results=results)
    assert json.dumps(results) == json.dumps(plain)
    assert evaluation.metrics == expected.metrics
    detections = {"boxes": np.ones((1, 4), np.float32), "labels": np.array([3]), "scores": np.array([0.5])}
    for number in (np.int64(5), np.array(5), torch.tensor(5)):
        assert json.dumps(to_coco_results(number, detections)) == json.dumps(to_coco_results(5, detections))


NO_IDS = ["1", True, 1.0, None, [1], np.bool_(True), np.float64(1), np.str_("1"), np.array([1]), np.array("1"), 1j]
NO_IDS += [np.datetime64(1, "s"), torch.tensor(True), torch.tensor(1.0), torch.tensor([1])]
NO_SCORES = ["0.5", True, None, [0.5], np.bool_(True), np.array([0.5]), np.float32("nan"), np.str_("1"), 1j]
NO_SCORES += [np.datetime64(1, "s"), torch.tensor(True), torch.tensor(torch.inf), torch.tensor([0.5]), torch.tensor(1j)]


@pytest.mark.parametrize("value", NO_IDS, ids=repr)
def test_what_is_no_integer_is_no_id(value: Any) -> None:
    dataset = synthetic_dataset(1, 0, (64, 64))
    good = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    evaluate_results([good], dataset, progress=False)
    for name in ("image_id", "category_id"):
        with pytest.raises(ValueError, match=rf"results\[0\] must have (the|a) {name}"):
            evaluate_results([{**good, name: value}], dataset, progress=False)
    for part in ({"size": [64, value], "counts": [64]}, {"size": [64, 64], "counts": [64 * 64, value]}):
        with pytest.raises(ValueError, match=r"results\[0\] an RLE's (size|counts) must be"):
            evaluate_results([good | {"segmentation": part}], dataset, progress=False)


@pytest.mark.parametrize("value", NO_SCORES, ids=repr)
def test_what_is_no_number_is_no_score(value: Any) -> None:
    dataset = synthetic_dataset(1, 0, (64, 64))
    good = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    with pytest.raises(ValueError, match=r"results\[0\] score must be a finite number"):
        evaluate_results([{**good, "score": value}], dataset, progress=False)
    with pytest.raises(ValueError, match=r"results\[0\] w must be a finite number"):
        evaluate_results([{**good, "bbox": [1, 2, value, 4]}], dataset, progress=False)
    for box in (np.array(3.0), torch.ones(3), torch.ones(4, 1)):
        with pytest.raises(ValueError, match=r"results\[0\] (bbox must be x, y|x must be a finite)"):
            evaluate_results([{**good, "bbox": box}], dataset, progress=False)
