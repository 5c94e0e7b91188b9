"""Plots of benchmark results: speedup over the baselines, roofline, scaling."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmask.benchmarks.results_io import compare, describe_run, group_rows, is_ours
from fastmask.benchmarks.scaling import Scaling, fit_scaling

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BASELINES = ("#b8b8b8", "#8c8c8c", "#666666", "#404040")
OURS = ("#0b6e4f", "#2f7fc1", "#e08214")
RED = "#c0392b"


def save_plots(results: dict[str, Any], folder: Path, stem: str) -> Iterator[Path]:
    """Write the plots as PNG into a folder, and yield their paths.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'fastmask-rcnn[train]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    for name, plot in {"speedup": plot_speedup, "roofline": plot_roofline, "scaling": plot_scaling}.items():
        figure = Figure(figsize=(11, 7), layout="constrained")
        if plot(figure, results):
            figure.suptitle(describe_run(results), fontsize=8)
            path = folder / f"{stem}-{name}.png"
            figure.savefig(path, dpi=120)
            yield path


def plot_speedup(figure: "Figure", results: dict[str, Any]) -> bool:
    """A row for each group with a baseline, a dot for each of fastmask's providers, the best baseline's hollow."""
    rows = [row for row in compare(results) if row.speedups]
    groups = list(dict.fromkeys(row.group for row in rows))
    if not rows:
        return False
    figure.set_size_inches(10, 0.26 * len(groups) + 1.6)
    axes = figure.add_subplot()
    colors = dict(zip(dict.fromkeys(row.provider for row in rows), OURS, strict=False))
    for row in rows:
        y, color = groups.index(row.group), colors[row.provider]
        first, best = row.speedups[0], min(row.speedups)
        axes.plot([first, best], [y, y], color=color, linewidth=1)
        axes.plot(best, y, "o", markersize=6, color=color, markerfacecolor="white")
        axes.plot(first, y, "o", markersize=6, color=color)
    for provider, color in colors.items():
        axes.plot([], [], "o", color=color, label=provider)
    axes.plot([], [], "o", color="black", markerfacecolor="white", label="the same over the best baseline")
    axes.axvline(1, color=RED, linewidth=1.2)
    axes.set_xscale("log")
    label_log_axis(axes.xaxis, "x")
    axes.set_xlabel(
        "speedup: median time of the baseline over fastmask's; left of the red line fastmask is slower", fontsize=8
    )
    axes.set_yticks(range(len(groups)), groups, fontsize=8)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(axis="both", color="#e8e8e8")
    axes.set_axisbelow(True)
    figure.legend(fontsize=8, loc="outside lower center", ncols=4)
    return True


def label_log_axis(axis: "Axis", unit: str = "") -> None:
    """Plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
    axis.set_minor_formatter(NullFormatter())


def plot_roofline(figure: "Figure", results: dict[str, Any]) -> bool:
    """Min bytes against min bytes per second, of fastmask and its first baselines, below the copy bandwidth."""
    axes, speed = figure.add_subplot(), 0.0
    names: list[str] = []
    labels: dict[tuple[float, float], list[str]] = {}  # by place, those of near dots together
    for name, rows in group_rows(results).items():
        info = next(iter(rows.values()))["extra_info"]
        if info["min_bytes"] is None:
            continue
        size, speed = info["min_bytes"], info["copy_bandwidth"]
        shown = [provider for number, provider in enumerate(rows) if is_ours(provider) or not number]
        rates = [size / rows[provider]["stats"]["median"] for provider in shown]
        colors = [OURS[0] if is_ours(provider) else BASELINES[0] for provider in shown]
        axes.plot([size] * len(rates), rates, color=BASELINES[0], linewidth=0.5, zorder=0)
        axes.scatter([size] * len(rates), rates, s=18, c=colors)
        names.append(f"{len(names) + 1} {name}")
        dot = size, rates[-1]
        place = next(place for place in [*labels, dot] if math.dist(map(math.log10, place), map(math.log10, dot)) < 0.1)
        labels.setdefault(place, []).append(str(len(names)))
    if not speed:
        return False
    for place, numbers in labels.items():
        axes.annotate(", ".join(numbers), place, fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.axhline(speed, color=RED, linewidth=1.2)
    axes.set(xscale="log", yscale="log", xlabel="min bytes", ylabel="min bytes per second")
    axes.set_title("green: fastmask; gray: its first baseline; red: min bytes at copy bandwidth", fontsize=8)
    axes.text(1.02, 1, "\n".join(names), transform=axes.transAxes, va="top", fontsize=7)
    return True


def plot_scaling(figure: "Figure", results: dict[str, Any]) -> bool:
    """One panel an operation, both axes logarithmic."""
    curves = fit_scaling(group_rows(results))
    if not curves:
        return False
    columns = min(3, len(curves))
    panels = list(figure.subplots(math.ceil(len(curves) / columns), columns, squeeze=False).flat)
    for axes, ((operation, what), providers) in zip(panels, curves.items(), strict=False):
        plot_curves(axes, operation, what, providers)
    for axes in panels[len(curves) :]:
        axes.axis("off")
    return True


def plot_curves(axes: "Axes", operation: str, what: str, providers: dict[str, Scaling]) -> None:
    colors = {True: iter(OURS), False: iter(BASELINES)}
    for provider, curve in providers.items():
        times = [1e3 * time for time in curve.seconds]
        label = f"{provider}, power {curve.exponent:.2f}"
        axes.plot(curve.numbers, times, marker="o", markersize=3, color=next(colors[is_ours(provider)]), label=label)
    axes.set(xscale="log", yscale="log")
    label_log_axis(axes.yaxis, " ms")
    axes.set_xticks(curve.numbers, [f"{number:,}" for number in curve.numbers])
    axes.tick_params(axis="x", which="minor", labelbottom=False)
    axes.set_xlabel(what, fontsize=7)
    axes.set_title(operation, fontsize=8)
    axes.margins(y=0.25)  # room for the legend
    axes.legend(fontsize=7, loc="upper left")
    axes.tick_params(labelsize=7)
