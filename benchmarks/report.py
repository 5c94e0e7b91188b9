"""``python -m fastmask.benchmarks.report FILE... [--plots DIR]``: the tables and plots of benchmark results in JSON.

A file named ``*.md`` is filled in instead: between ``<!-- report: results.json -->`` (a path beside it) and
``<!-- /report -->``.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmask.benchmarks.results_io import Row, groups, is_ours, where
from fastmask.benchmarks.scaling import growth

SLOT = re.compile(r"(<!-- report: (.*?) -->\n).*?(<!-- /report -->)", re.DOTALL)
NAMES = "| | baseline | fastmask | times faster | than the best baseline | of a copy's speed |"

PATCHED = "torchvision patched"  # runs our kernels: shown, but no baseline


def report(results: dict[str, Any]) -> str:
    """Where and when, the table of times, how they grow, and peak memory where it is known."""
    parts = [f"{where(results)}\n", table(results), growth(groups(results)), memory(results)]
    return "\n".join(part for part in parts if part)


def table(results: dict[str, Any]) -> str:
    """A row for each of ours: beside the first baseline, and beside the best one where there are several."""
    lines = [NAMES, "|---|---|---|---|---|---|"]
    on_device = device_times(results)
    if on_device:
        lines = [lines[0] + " on the device, L2 warm (flushed) |", lines[1] + "---|"]
    for name, rows in groups(results).items():
        baselines = {provider: row for provider, row in rows.items() if not is_ours(provider)}
        for provider, row in rows.items():
            if is_ours(provider):
                title = name + provider.removeprefix("fastmask").replace(" Predictor", ", Predictor")
                last = f" {on_device.get((name, provider), '')} |" if on_device else ""
                lines.append(line(title, baselines, row) + last)
    return "\n".join(lines) + "\n"


def device_times(results: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Microseconds on a GPU without the host, by group and provider; of those that could be captured in a graph."""
    found = {}
    for row in results["benchmarks"]:
        times = row["extra_info"].get("device_time")  # results from before it was measured lack it
        if times is not None:
            text = (
                "not captured" if "error" in times else f"{1e6 * times['warm']:.4g} ({1e6 * times['flushed']:.4g}) us"
            )
            found[row["group"], row["extra_info"]["provider"]] = text
    return found


def line(title: str, baselines: dict[str, Row], ours: Row) -> str:
    info, time = ours["extra_info"], ours["stats"]["median"]
    cells = [f"{title}<br><sub>{info['inputs']}</sub>"]
    cells.append("<br>".join(f"{baseline}: {milliseconds(row['stats'])}" for baseline, row in baselines.items()))
    cells.append(milliseconds(ours["stats"]))
    times = [row["stats"]["median"] for baseline, row in baselines.items() if baseline != PATCHED]
    cells.append(ratio(times[0] / time) if times else "")
    cells.append(ratio(min(times) / time) if len(times) > 1 else "")
    moved = info["min_bytes"]
    cells.append("" if moved is None else f"{moved / time / info['copy_bandwidth']:.1%}")
    return f"| {' | '.join(cells)} |"


def ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 1 else f"**{value:.2f}**"


def milliseconds(stats: dict[str, float]) -> str:
    median, low, high = (f"{1e3 * stats[key]:.3g}" for key in ("median", "q1", "q3"))
    return f"{median} ({low}-{high})"


def memory(results: dict[str, Any]) -> str:
    """Peak memory of whole models; nothing where the device does not say."""
    lines = []
    for name, rows in groups(results).items():
        if rows[next(iter(rows))]["extra_info"]["min_bytes"] is None:
            known = {provider: row["extra_info"]["peak_memory"] for provider, row in rows.items()}
            cells = [f"{provider} {size / 2**20:.0f}" for provider, size in known.items() if size is not None]
            lines += [f"| {name} | {', '.join(cells)} |"] if cells else []
    return "\n".join(["| | peak memory of a call, MiB |", "|---|---|", *lines]) + "\n" if lines else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report of each JSON file, or fill in each Markdown file; draw the plots."""
    parser = argparse.ArgumentParser(prog="python -m fastmask.benchmarks.report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write each JSON file's plots there, as PNG")
    args = parser.parse_args(argv)
    for path in args.files:
        try:
            if path.suffix == ".md":
                path.write_text(filled(path))
                continue
            results = json.loads(path.read_text())
            print(report(results))
            if args.plots is not None:
                from fastmask.benchmarks.plots import draw

                for plot in draw(results, args.plots, path.stem):
                    print(plot)
        except (OSError, ValueError, ImportError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 2
    return 0


def filled(path: Path) -> str:
    """The text of a Markdown file with its reports made anew."""
    return SLOT.sub(
        lambda slot: slot[1] + report(json.loads((path.parent / slot[2]).read_text())) + slot[3], path.read_text()
    )


if __name__ == "__main__":
    raise SystemExit(main())
