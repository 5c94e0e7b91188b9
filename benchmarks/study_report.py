"""Table, plot and spread of what study.py measured."""

import math
import re
import statistics
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results" / "study.json"
README = Path(__file__).parent / "README.md"
MARKERS = "<!-- study: written by the command -->", "<!-- end of study -->"
ERRORS = 3.0  # standard errors that a difference must exceed; of 14 of equals, one would exceed 2


class Row(NamedTuple):
    """A variant's runs."""

    name: str
    ap: list[float]  # of masks, run by run, as the next two
    ap75: list[float]
    box_ap: list[float]
    parameters: int
    milliseconds: float


def collect_rows(results: dict[str, Any]) -> list[Row]:
    """A row for each variant, the baseline first."""
    rows = []
    for name, milliseconds in results["milliseconds"].items():
        runs = [run for run in results["runs"] if run["variant"] == name]
        ap, ap75 = ([run["mask"][key] for run in runs] for key in ("ap", "ap75"))
        rows.append(Row(name, ap, ap75, [run["box"]["ap"] for run in runs], runs[0]["parameters"], milliseconds))
    return rows


def standard_error(rows: list[Row], values: str = "ap") -> float:
    """Of a difference of two variants' means: runs of a variant differ by their seed alone, equally in all variants."""
    samples = [getattr(row, values) for row in rows]
    freedom = sum(len(sample) - 1 for sample in samples)
    squares = sum((value - statistics.fmean(sample)) ** 2 for sample in samples for value in sample)
    return math.sqrt(squares / freedom * 2 / len(samples[0]))


def judge(row: Row, rows: list[Row], values: str = "ap") -> str:
    """What the spread allows to say of a row beside the first."""
    mean, baseline = (statistics.fmean(getattr(each, values)) for each in (row, rows[0]))
    difference = mean - baseline
    if row is rows[0]:
        return ""
    if abs(difference) <= ERRORS * standard_error(rows, values):
        return "no difference shown"
    return "better" if difference > 0 else "**worse**"


def format_table(results: dict[str, Any]) -> str:
    """Where, when and how; then the table."""
    rows, runs, settings = collect_rows(results), results["runs"], results["settings"]
    seeds = sorted({run["seed"] for run in runs})
    commits = " and ".join(dict.fromkeys(str(run["commit"]) for run in runs))
    minutes = [run["minutes"] for run in runs]
    errors = [standard_error(rows, values) for values in ("ap", "box_ap")]
    text = (
        f"{results['machine']}; torch {runs[0]['torch']}, fastmask at {commits}; {settings['images']} images, "
        f"{settings['val_images']} others evaluated, seeds {', '.join(map(str, seeds))}, "
        f"{min(minutes):.1f} to {max(minutes):.1f} minutes a run on one thread. Means (least to most); the "
        f"standard error of a difference is {errors[0]:.4f} of mask AP and {errors[1]:.4f} of box AP, and within "
        f"{ERRORS:g} of them no difference is shown.\n"
    )
    lines = [
        "| variant | mask AP | mask AP75 | box AP | parameters | ms an image | mask AP beside the first | box AP |",
        "|---|--:|--:|--:|--:|--:|---|---|",
    ]
    for row in rows:
        values = [f"{statistics.fmean(v):.3f} ({min(v):.3f}-{max(v):.3f})" for v in (row.ap, row.ap75, row.box_ap)]
        cells = [row.name, *values, f"{row.parameters:,}", f"{row.milliseconds:.1f}"]
        cells += [judge(row, rows), judge(row, rows, "box_ap")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([text, *lines]) + "\n"


def save_plot(results: dict[str, Any], path: Path) -> None:
    """A dot for each run beside the band of what shows no difference; ImportError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'fastmask-rcnn[train]'") from error
    rows = collect_rows(results)
    figure = Figure(figsize=(9, 0.4 * len(rows) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    band, middle = ERRORS * standard_error(rows), statistics.fmean(rows[0].ap)
    axes.axvspan(middle - band, middle + band, color="#e6e6e6", label="no difference shown")
    axes.axvline(middle, color="#666666", linewidth=1)
    for y, row in enumerate(rows):
        color = {"better": "#0b6e4f", "**worse**": "#c0392b"}.get(judge(row, rows), "#404040")
        axes.plot(row.ap, [y] * len(row.ap), "o", color=color, markersize=4, alpha=0.6)
        axes.plot(statistics.fmean(row.ap), y, "|", color=color, markersize=16, markeredgewidth=2)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("mask AP: a dot a seed, a bar their mean")
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=120)


def fill_page(text: str, table: str, markers: tuple[str, str] = MARKERS) -> str:
    """A page with the table between its markers."""
    between = re.compile(f"(?<={re.escape(markers[0])}\n).*?(?={re.escape(markers[1])})", re.S)
    if not between.search(text):
        raise ValueError(f"the page must have {' and '.join(markers)}, got one without")
    return between.sub(lambda _: table, text)


def write_readme(results: dict[str, Any]) -> None:
    """Write the table into this folder's README.md."""
    README.write_text(fill_page(README.read_text(), format_table(results)))
