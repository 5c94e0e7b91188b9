"""``python -m fastmask.benchmarks.report FILE... [--plots DIR]``: the tables and plots of benchmark results in JSON.

In a file named ``*.md``, the full report is written between ``<!-- report: results.json -->`` (a path relative to the
file) and ``<!-- /report -->``; after ``<!-- report: results.json short -->`` the short table of nine rows.
"""

import argparse
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmask.benchmarks.results_io import Comparison, compare, describe_run, group_rows, load_results
from fastmask.benchmarks.scaling import format_scaling

SLOT = re.compile(r"(<!-- report: (\S+)( short)? -->\n).*?(<!-- /report -->)", re.DOTALL)
SHORT = {  # the short table's rows: group and provider, and what README calls them
    ("Mask R-CNN", "fastmask"): "Mask R-CNN R50-FPN, one image, masks pasted",
    ("Mask R-CNN", "fastmask Predictor, float32"): "the same, `Predictor`",
    ("Mask R-CNN, encoded", "fastmask Predictor, float32"): "the same, masks as COCO RLE, `Predictor`",
    ("RoIAlign, NCHW", "fastmask"): "RoIAlign, 1000 RoIs, float32",
    ("RoIAlign of a batch, bfloat16", "fastmask"): "RoIAlign of a batch, bfloat16",
    ("NMS, RPN, a batch", "fastmask"): "NMS of an RPN's proposals of a batch",
    ("NMS, 20k in 80 classes, random", "fastmask"): "NMS of 20,000 boxes in 80 classes",
    ("paste 100 masks, bool", "fastmask"): "paste 100 masks into an image",
    ("RLE of 100 masks", "fastmask"): "encode 100 masks as COCO RLE",
}


def format_report(results: dict[str, Any]) -> str:
    """Device and versions, the full table, scaling exponents, and peak memory where it was measured."""
    infos = [row["extra_info"] for row in results["benchmarks"]]
    speeds = dict.fromkeys(f"{info['copy_bandwidth'] / 1e9:.0f}" for info in infos if info["min_bytes"] is not None)
    head = (
        f"{describe_run(results)} Median times (quartiles); losses in bold. Of copy bandwidth: min bytes (inputs read "
        f"and outputs written once) over the time, as a share of a copy's {' or '.join(speeds)} GB/s.\n"
    )
    parts = [head, format_table(results), format_scaling(group_rows(results)), format_memory(results)]
    return "\n".join(part for part in parts if part)


def format_short(results: dict[str, Any]) -> str:
    """Device and versions, and the rows of SHORT.

    Raises:
        ValueError: a row of SHORT, or its baseline, is not among the results.
    """
    rows = {(row.group, row.provider): row for row in compare(results)}
    lines = ["| operation | torchvision | fastmask | speedup |", "|---|--:|--:|--:|"]
    for key, title in SHORT.items():
        if key not in rows or "torchvision" not in rows[key].others:
            raise ValueError(f"the short table needs {key[1]} and torchvision in {key[0]!r}, and the results lack them")
        ours, theirs = rows[key].ours["stats"], rows[key].others["torchvision"]["stats"]
        speedup = format_speedup(theirs["median"] / ours["median"])
        lines.append(f"| {title} | {format_time(theirs['median'])} | {format_time(ours['median'])} | {speedup} |")
    return "\n".join([f"{describe_run(results)} Median times; losses in bold.\n", *lines]) + "\n"


def format_table(results: dict[str, Any]) -> str:
    """A row for each of fastmask's: all baselines with quartiles, and the speedup over the first and the best."""
    names = ["operation", "baselines", "fastmask", "speedup", "over the best baseline", "of copy bandwidth"]
    on_device = device_times(results)
    if on_device:
        names.append("device time, L2 warm (flushed)")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in compare(results):
        last = [on_device.get((row.group, row.provider), "")] if on_device else []
        lines.append(f"| {' | '.join([*table_cells(row), *last])} |")
    return "\n".join(lines) + "\n"


def table_cells(row: Comparison) -> list[str]:
    info, stats, speedups = row.ours["extra_info"], row.ours["stats"], row.speedups
    return [
        f"{row.title}<br><sub>{info['inputs']}</sub>",
        "<br>".join(f"{provider}: {format_stats(other['stats'])}" for provider, other in row.others.items()),
        format_stats(stats),
        format_speedup(speedups[0]) if speedups else "",
        format_speedup(min(speedups)) if len(speedups) > 1 else "",
        format_share(info["min_bytes"], stats["median"] * info["copy_bandwidth"]),
    ]


def device_times(results: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Time on a GPU without the host, by group and provider; of those that were captured in a CUDA graph."""
    texts = {}
    for row in results["benchmarks"]:
        times = row["extra_info"].get("device_time")  # older results lack it
        if times is not None:
            text = "not captured" if "error" in times else format_time(times["warm"], times["flushed"])
            texts[row["group"], row["extra_info"]["provider"]] = text
    return texts


def format_time(seconds: float, *others: float) -> str:
    """A time with its unit, and others beside it in the same unit, in parentheses.

    Below 10 ms: milliseconds with two significant digits; below a second: whole milliseconds; above: seconds with two
    decimals.
    """
    if round(1e3 * seconds) >= 1000:
        factor, decimals, unit = 1.0, 2, "s"
    else:
        rounded = float(f"{1e3 * seconds:.1e}")  # two digits, so that 9.96 ms is 10 ms
        factor, decimals, unit = 1e3, 0 if rounded >= 10 or not rounded else 1 - math.floor(math.log10(rounded)), "ms"
    beside = f" ({'-'.join(f'{factor * other:.{decimals}f}' for other in others)})" if others else ""
    return f"{factor * seconds:.{decimals}f} {unit}{beside}"


def format_stats(stats: dict[str, float]) -> str:
    return format_time(stats["median"], stats["q1"], stats["q3"])


def format_speedup(value: float) -> str:
    text = f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}x"
    return text if value >= 1 else f"**{text}**"


def format_share(part: float | None, whole: float) -> str:
    return "" if part is None else f"{part / whole:.1%}" if part > 0.001 * whole else "< 0.1%"


def format_memory(results: dict[str, Any]) -> str:
    """Peak memory of whole models; empty where the device does not report it."""
    lines = []
    for name, rows in group_rows(results).items():
        if rows[next(iter(rows))]["extra_info"]["min_bytes"] is None:
            sizes = {provider: row["extra_info"]["peak_memory"] for provider, row in rows.items()}
            cells = [f"{provider} {size / 2**20:.0f} MiB" for provider, size in sizes.items() if size is not None]
            lines += [f"| {name} | {', '.join(cells)} |"] if cells else []
    return "\n".join(["| operation | peak memory of a call |", "|---|---|", *lines]) + "\n" if lines else ""


def format_summary(results: dict[str, Any]) -> str:
    """For the screen: median times and the speedup over the first baseline."""
    on_device = device_times(results)
    last = "  device time, L2 warm (flushed)" if on_device else ""
    lines = [f"{describe_run(results)} Median times.", ""]
    lines.append(f"{'operation':44} {'baseline':>10} {'fastmask':>10}  {'speedup':>8}{last}")
    for row in compare(results):
        baseline = next((format_time(other["stats"]["median"]) for other in row.baselines.values()), "")
        speedup = format_speedup(row.speedups[0]).strip("*") if row.speedups else ""
        time, last = format_time(row.ours["stats"]["median"]), on_device.get((row.group, row.provider), "")
        lines.append(f"{row.title:44} {baseline:>10} {time:>10}  {speedup:>8}  {last}".rstrip())
    return "\n".join(lines)


def filled(path: Path) -> str:
    """The text of a Markdown file with its reports regenerated."""

    def fill(slot: re.Match[str]) -> str:
        results = load_results(path.parent / slot[2])
        return slot[1] + (format_short(results) if slot[3] else format_report(results)) + slot[4]

    return SLOT.sub(fill, path.read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report of each JSON file, or fill in each Markdown file; save the plots."""
    parser = argparse.ArgumentParser(prog="python -m fastmask.benchmarks.report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write each JSON file's plots there, as PNG")
    args = parser.parse_args(argv)
    for path in args.files:
        try:
            if path.suffix == ".md":
                path.write_text(filled(path))
                continue
            results = load_results(path)
            print(format_report(results))
            if args.plots is not None:
                from fastmask.benchmarks.plots import save_plots

                for plot in save_plots(results, args.plots, path.stem):
                    print(plot)
        except (OSError, ValueError, ImportError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
