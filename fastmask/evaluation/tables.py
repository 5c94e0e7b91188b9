"""Metrics as text, CSV and JSON."""

import csv
from pathlib import Path

from fastmask.evaluation.evaluator import Evaluation
from fastmask.evaluation.metrics import KeypointMetrics, Metrics
from fastmask.files import replace_file

HEADS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
KEYPOINT_HEADS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


def format_evaluation(evaluation: Evaluation, max_categories: int = 100) -> str:
    """Tables of COCO's twelve or ten metrics, and of three metrics of each category; ``-`` without ground truth."""
    lines = []
    wide = max(map(len, evaluation.metrics), default=0) + 2
    for heads, shape in ((HEADS, Metrics), (KEYPOINT_HEADS, KeypointMetrics)):
        rows = {kind: metrics for kind, metrics in evaluation.metrics.items() if isinstance(metrics, shape)}
        lines += [" " * wide + "".join(f"{head:>7}" for head in heads)] if rows else []
        lines += [f"{kind:{wide}}" + "".join(map(format_value, metrics)) for kind, metrics in rows.items()]
    categories = evaluation.categories[:max_categories]
    width = max([8, *(len(category.name) for category in categories)])
    wides = {kind: max(12, len(kind) + 5) for kind in evaluation.metrics}
    titles = "".join(f"{kind + ' AP':>{wides[kind]}}   AP50   AP75" for kind in evaluation.metrics)
    lines += ["", f"{'category':{width}} objects{titles}"]
    for name, instances, metrics in categories:
        values = "".join(
            f"{format_value(m.ap):>{wides[kind]}}{''.join(map(format_value, m[1:3]))}" for kind, m in metrics.items()
        )
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
        shapes = {type(metrics) for metrics in evaluation.metrics.values()}
        fields = [f for shape in (Metrics, KeypointMetrics) if shape in shapes for f in shape._fields]
        writer.writerow(["category", "objects", "kind", *dict.fromkeys(fields)])
        for name, instances, metrics in (("all", total, evaluation.metrics), *evaluation.categories):
            for kind, values in metrics.items():
                known = {field: "" if value < 0 else f"{value:.6f}" for field, value in values._asdict().items()}
                writer.writerow([name, instances, kind, *(known.get(field, "") for field in dict.fromkeys(fields))])


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
