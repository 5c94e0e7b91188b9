"""Images of benchmark results: bars beside the baselines, how near to a copy's speed, how times grow."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmask.benchmarks.results_io import groups, is_ours, where
from fastmask.benchmarks.scaling import grown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BASELINES = ("#b8b8b8", "#8c8c8c", "#666666", "#404040")
OURS = ("#0b6e4f", "#3fa34d", "#8cc152")


def draw(results: dict[str, Any], folder: Path, stem: str) -> Iterator[Path]:
    """Write the plots as PNG into a folder -> their files.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'fastmask-rcnn[train]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    found = groups(results)
    plots = {"bars": bars, "bandwidth": bandwidth, "growth": growth_curves}
    for name, plot in plots.items():
        height = 0.25 * sum(map(len, found.values())) + 1.5 if name == "bars" else 6
        figure = Figure(figsize=(10, height), layout="constrained")
        if plot(figure, found):
            figure.suptitle(where(results).partition(". ")[0], fontsize=8)
            path = folder / f"{stem}-{name}.png"
            figure.savefig(path, dpi=120)
            yield path


def bars(figure: "Figure", found: dict[str, Any]) -> bool:
    """Median times of every provider on a logarithmic axis; red, where moving the bytes at a copy's speed ends."""
    axes, y, labels = figure.add_subplot(), 0.0, []
    for name, rows in found.items():
        first = y
        colors = {True: iter(OURS), False: iter(BASELINES)}
        for provider, row in rows.items():
            time = 1e3 * row["stats"]["median"]
            axes.barh(y, time, height=0.8, color=next(colors[is_ours(provider)]))
            axes.text(time, y, f" {time:.3g}  {provider}", va="center", fontsize=6)
            y += 1
        info = next(iter(rows.values()))["extra_info"]
        if info["min_bytes"] is not None:
            floor = 1e3 * info["min_bytes"] / info["copy_bandwidth"]
            axes.plot([floor, floor], [first - 0.5, y - 0.5], color="#c0392b", linewidth=1.2)
        labels.append(((first + y - 1) / 2, name))
        y += 0.6
    medians = [1e3 * row["stats"]["median"] for rows in found.values() for row in rows.values()]
    axes.set_xscale("log")
    axes.set_xlim(min(medians) / 1000, max(medians) * 100)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_yticks([at for at, _ in labels], [name for _, name in labels], fontsize=7)
    axes.set_xlabel("milliseconds (red: the bytes that must be moved, at a copy's speed)")
    return True


def bandwidth(figure: "Figure", found: dict[str, Any]) -> bool:
    """Bytes that must be moved against bytes a second, and the copy's own."""
    axes, speed = figure.add_subplot(), 0.0
    for name, rows in found.items():
        for provider, row in rows.items():
            info = row["extra_info"]
            if info["min_bytes"] is None or not (is_ours(provider) or provider == next(iter(rows))):
                continue
            speed = info["copy_bandwidth"]
            rate = info["min_bytes"] / row["stats"]["median"]
            axes.scatter(info["min_bytes"], rate, s=18, color=OURS[0] if is_ours(provider) else BASELINES[0])
            if is_ours(provider):
                axes.annotate(name, (info["min_bytes"], rate), fontsize=5, xytext=(3, 2), textcoords="offset points")
    if not speed:
        return False
    axes.axhline(speed, color="#c0392b", linewidth=1.2)
    axes.set(xscale="log", yscale="log", xlabel="bytes that must be moved", ylabel="bytes a second")
    axes.set_title("green: fastmask, gray: its first baseline, red: a copy", fontsize=8)
    return True


def growth_curves(figure: "Figure", found: dict[str, Any]) -> bool:
    """One panel an operation, both axes logarithmic."""
    curves = grown(found)
    if not curves:
        return False
    columns = min(3, len(curves))
    panels = list(figure.subplots(math.ceil(len(curves) / columns), columns, squeeze=False).flat)
    for axes, ((operation, what), providers) in zip(panels, curves.items(), strict=False):
        curve_panel(axes, operation, what, providers)
    for axes in panels[len(curves) :]:
        axes.axis("off")
    return True


def curve_panel(axes: "Axes", operation: str, what: str, providers: dict[str, Any]) -> None:
    colors = {True: iter(OURS), False: iter(BASELINES)}
    for provider, one in providers.items():
        times = [1e3 * time for time in one.seconds]
        label = f"{provider}, power {one.exponent:.2f}"
        axes.plot(one.numbers, times, marker="o", markersize=3, color=next(colors[is_ours(provider)]), label=label)
    axes.set(xscale="log", yscale="log", ylabel="ms")
    axes.set_xlabel(what, fontsize=7)
    axes.set_title(operation, fontsize=8)
    axes.legend(fontsize=6)
    axes.tick_params(labelsize=6, which="both")
