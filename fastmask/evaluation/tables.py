"""Metrics as text, CSV and JSON."""

import csv
from pathlib import Path

from fastmask.evaluation.evaluator import Evaluation
from fastmask.evaluation.metrics import Metrics
from fastmask.files import replace_file

HEADS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def format_evaluation(evaluation: Evaluation, max_categories: int = 100) -> str:
    """Tables of COCO's twelve metrics, and of three metrics of each category; ``-`` without ground truth."""
    lines = [" " * 6 + "".join(f"{head:>7}" for head in HEADS)]
    lines += [f"{kind:6}" + "".join(map(format_value, metrics)) for kind, metrics in evaluation.metrics.items()]
    categories = evaluation.categories[:max_categories]
    width = max([8, *(len(category.name) for category in categories)])
    heads = "".join(f"{kind:>9} AP   AP50   AP75" for kind in evaluation.metrics)
    lines += ["", f"{'category':{width}} objects{heads}"]
    for name, instances, metrics in categories:
        values = "".join(f"{format_value(m.ap):>12}{''.join(map(format_value, m[1:3]))}" for m in metrics.values())
        lines.append(f"{name:{width}} {instances:7}{values}")
    if len(evaluation.categories) > max_categories:
        lines.append(f"... and {len(evaluation.categories) - max_categories} more")
    return "\n".join(lines)


def format_value(value: float) -> str:
    """A metric in seven characters, ``-`` for -1."""
    return f"{'-' if value < 0 else f'{value:.3f}':>7}"


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """Write all metrics, of all categories together and of each; values without ground truth are empty.

    Raises:
        OSError: the file cannot be written.
    """
    total = sum(category.instances for category in evaluation.categories)
    with replace_file(path) as draft, open(draft, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["category", "objects", "kind", *Metrics._fields])
        for name, instances, metrics in (("all", total, evaluation.metrics), *evaluation.categories):
            for kind, values in metrics.items():
                writer.writerow([name, instances, kind, *("" if value < 0 else f"{value:.6f}" for value in values)])


def to_dict(evaluation: Evaluation) -> dict[str, object]:
    """The metrics by kind and name, None without ground truth, and what they were computed from, for JSON."""
    return {
        "metrics": {
            kind: {name: None if value < 0 else value for name, value in metrics._asdict().items()}
            for kind, metrics in evaluation.metrics.items()
        },
        "areas": evaluation.areas,
        "images": evaluation.images,
        "detections": evaluation.detections,
        "problems": list(evaluation.problems),
        "left_out": evaluation.left_out,
        "unknown": evaluation.unknown,
        "seconds": evaluation.seconds,
    }
