"""Table and plot of what runtimes.py measured."""

import os
from pathlib import Path
from typing import Any

from fastmask.benchmarks.plots import BASELINES, OURS
from fastmask.benchmarks.report import format_stats, format_time
from fastmask.benchmarks.results_io import describe_run, group_rows
from fastmask.benchmarks.study_report import fill_page

RESULTS = Path(__file__).parent / "results" / "runtimes.json"
README = Path(__file__).parent.parent / "export" / "README.md"
MARKERS = "<!-- runtimes: written by python -m fastmask.benchmarks.runtimes -->", "<!-- end of runtimes -->"
COLORS = {"torchvision": BASELINES[0], "eager": BASELINES[1], "Predictor": OURS[0]}  # by how a name begins


def format_table(results: dict[str, Any]) -> str:
    """Where and when; a row for each runtime, with time and agreement on each image."""
    groups = group_rows(results)
    names = list(dict.fromkeys(name for rows in groups.values() for name in rows))
    info = results["benchmarks"][0]["extra_info"]
    others = ", ".join(f"{name} {info[name]}" for name in ("onnxruntime", "openvino") if info[name])
    with_ap = any(row["extra_info"]["mask_ap"] is not None for row in results["benchmarks"])
    evaluated = results["benchmarks"][-1]["extra_info"]["evaluated"]
    note = f" Mask AP is that of the last column's model, on {evaluated} synthetic images." if with_ap else ""
    where = f"{describe_run(results)[:-1]}{f'; {others}' if others else ''}."
    lines = [
        f"{where} Median times of a call (quartiles), all in turns, and the share of detections that match "
        "the model's own (label, 1 pixel, score 0.001, mask IoU 0.99). A call takes an image in memory and returns "
        f"masks, pasted by torchvision and eager, as COCO RLE by the others.{note}\n",
        f"| runtime | {' | '.join(groups)} |{' mask AP |' if with_ap else ''}",
        f"|---|{'---|' * len(groups)}{'--:|' if with_ap else ''}",
    ]
    for name in names:
        cells = [name]
        for rows in groups.values():
            row = rows.get(name)
            cells.append(f"{format_stats(row['stats'])}, {format_share(row)}" if row else "")
        if with_ap:
            aps = [rows[name]["extra_info"]["mask_ap"] for rows in groups.values() if name in rows]
            cells.append(next((f"{ap:.3f}" for ap in aps if ap is not None), ""))
        lines.append(f"| {' | '.join(cells)} |")
    if results["left out"]:
        lines.append(f"\nNot measured: {'; '.join(f'{name} ({why})' for name, why in results['left out'].items())}.")
    return "\n".join(lines) + "\n"


def format_share(row: dict[str, Any]) -> str:
    return f"{row['extra_info']['agreement']:.1%}"


def save_plot(results: dict[str, Any], path: Path) -> None:
    """A panel for each image, a bar for each runtime, with its quartiles; ImportError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'fastmask-rcnn[train]'") from error
    groups = group_rows(results)
    figure = Figure(figsize=(9, sum(0.28 * len(rows) + 0.7 for rows in groups.values()) + 0.5), layout="constrained")
    heights = [len(rows) + 1 for rows in groups.values()]
    for axes, (group, rows) in zip(
        figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0], groups.items(), strict=True
    ):
        for y, (name, row) in enumerate(rows.items()):
            stats = row["stats"]
            color = next((value for start, value in COLORS.items() if name.startswith(start)), OURS[1])
            middle, low, high = (1e3 * stats[key] for key in ("median", "q1", "q3"))
            axes.barh(y, middle, xerr=[[middle - low], [high - middle]], color=color, ecolor="#404040", height=0.7)
            text = f" {format_time(stats['median'])}, {format_share(row)}"
            axes.text(high, y, text, va="center", fontsize=7)
        axes.set_yticks(range(len(rows)), list(rows), fontsize=7)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(f"{group}: milliseconds; share of detections that match", fontsize=8, loc="left")
    figure.suptitle(describe_run(results), fontsize=7)
    figure.savefig(path, dpi=120)


def format_section(results: dict[str, Any], plot: Path) -> str:
    """The table and the plot, as the page has them."""
    link = os.path.relpath(plot, README.parent)
    return f"{format_table(results)}\n![times of each runtime as bars]({link})\n"


def write_readme(results: dict[str, Any], plot: Path) -> None:
    """Write table and plot into export/README.md."""
    README.write_text(fill_page(README.read_text(), format_section(results, plot), MARKERS))
