"""Files that an evaluation reads and writes."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmask.data.formats import load_json
from fastmask.evaluation.evaluator import Evaluation
from fastmask.evaluation.tables import to_dict, write_csv
from fastmask.files import check_free, write_text


def read_results(path: Path) -> list[Any]:
    """A file in COCO's results format; ValueError if it is none."""
    results = load_json(path)
    if not isinstance(results, list):
        raise ValueError(f"{path} must be a list of detections, got {type(results).__name__}")
    return results


def check_outputs(folder: Path, inputs: Iterable[Path]) -> None:
    """Raise an error unless the folder is new, or has an earlier evaluation.

    Raises:
        FileExistsError: one of the files is there, and no evaluation's.
        ValueError: one of the files is an input.
    """
    try:
        content = json.loads((folder / "evaluation.json").read_bytes())
    except (OSError, ValueError):
        content = None
    names = ("categories.csv", "evaluation.json", "detections.json")
    check_free([folder / name for name in names], isinstance(content, dict) and "metrics" in content, inputs)


def write_evaluation(
    evaluation: Evaluation,
    folder: Path,
    results: Sequence[Any] | None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write categories.csv, evaluation.json and, where there are detections, detections.json in COCO's results format.

    ``settings``: what the detections depend on, as JSON values, such as weights and score.

    Raises:
        OSError: they cannot be written.
    """
    own = {} if settings is None else {"settings": dict(settings)}
    write_csv(evaluation, folder / "categories.csv")
    write_text(folder / "evaluation.json", json.dumps(to_dict(evaluation) | own, indent=1))
    if results is not None:
        write_text(folder / "detections.json", json.dumps(results))
