"""Metrics to read, and to compute with."""

import csv
from pathlib import Path

from fastmask.evaluation.accumulating import Metrics
from fastmask.evaluation.evaluator import Evaluation

HEADS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def format_evaluation(evaluation: Evaluation, most: int = 100) -> str:
    """COCO's twelve metrics, and three of each category, the first ``most`` of them; ``-`` where nothing counts."""
    lines = [" " * 6 + "".join(f"{head:>7}" for head in HEADS)]
    lines += [f"{kind:6}" + "".join(map(shown, metrics)) for kind, metrics in evaluation.metrics.items()]
    shown_categories = evaluation.categories[:most]
    width = max([8, *(len(one.name) for one in shown_categories)])
    lines += [
        "",
        f"{'category':{width}} objects" + "".join(f"{kind:>9} AP   AP50   AP75" for kind in evaluation.metrics),
    ]
    for one in shown_categories:
        parts = "".join(f"{shown(each.ap):>12}{shown(each.ap50)}{shown(each.ap75)}" for each in one.metrics.values())
        lines.append(f"{one.name:{width}} {one.objects:7}{parts}")
    if len(evaluation.categories) > most:
        lines.append(f"... and {len(evaluation.categories) - most} more")
    return "\n".join(lines)


def shown(figure: float) -> str:
    return f"{'-' if figure < 0 else f'{figure:.3f}':>7}"


def write_csv(evaluation: Evaluation, path: Path) -> None:
    """All metrics of all categories, and of all together; empty where nothing counts.

    Raises:
        OSError: it cannot be written.
    """
    total = sum(one.objects for one in evaluation.categories)
    rows = [
        ("all", total, evaluation.metrics),
        *((one.name, one.objects, one.metrics) for one in evaluation.categories),
    ]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["category", "objects", "of", *Metrics._fields])
        for name, objects, metrics in rows:
            for kind, each in metrics.items():
                writer.writerow([name, objects, kind, *("" if one < 0 else f"{one:.6f}" for one in each)])


def to_dict(evaluation: Evaluation) -> dict[str, object]:
    """The twelve metrics by name, and what they are of; None where nothing counts."""
    return {
        "metrics": {
            kind: {name: None if one < 0 else one for name, one in each._asdict().items()}
            for kind, each in evaluation.metrics.items()
        },
        "images": evaluation.images,
        "detections": evaluation.detections,
        "problems": list(evaluation.problems),
        "seconds": evaluation.seconds,
    }
