"""Files that an evaluation reads and writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmask.data.formats import load_json
from fastmask.evaluation.evaluator import Evaluation
from fastmask.evaluation.tables import to_dict, write_csv


def read_results(path: Path) -> list[Any]:
    """A file in COCO's results format; ValueError if it is none."""
    results = load_json(path)
    if not isinstance(results, list):
        raise ValueError(f"{path} must be a list of detections, got {type(results).__name__}")
    return results


def write_evaluation(evaluation: Evaluation, folder: Path, results: Sequence[Any] | None) -> None:
    """Write categories.csv, evaluation.json and, where there are detections, detections.json in COCO's results format.

    Raises:
        OSError: they cannot be written.
    """
    write_csv(evaluation, folder / "categories.csv")
    (folder / "evaluation.json").write_text(json.dumps(to_dict(evaluation), indent=1))
    if results is not None:
        (folder / "detections.json").write_text(json.dumps(results))
