"""``python -m fastmask.benchmarks.report FILE...``: the Markdown table of each of pytest-benchmark's JSON files.

A file named ``*.md`` is filled in instead: between ``<!-- report: results.json -->`` (a path beside it) and
``<!-- /report -->``.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SLOT = re.compile(r"(<!-- report: (.*?) -->\n).*?(<!-- /report -->)", re.DOTALL)


def table(results: dict[str, Any]) -> str:
    """One row a group: medians with quartiles in milliseconds, and how many times faster ours is; losses in bold.

    Where a case has a byte model, also the share that ours reaches of the copy bandwidth measured in the same run.
    """
    groups: dict[str, dict[str, Any]] = {}
    for row in results["benchmarks"]:
        groups.setdefault(row["group"], {})[row["extra_info"]["provider"]] = row
    first = results["benchmarks"][0]["extra_info"]
    commit = results["commit_info"]["id"][:12] + ("+" if results["commit_info"]["dirty"] else "")
    bandwidth = first["copy_bandwidth"]
    lines = [
        f"{first['device']}; torch {first['torch']}, torchvision {first['torchvision']}, fastmask at {commit}, "
        f"{results['datetime'][:10]}. Milliseconds, median (quartiles). "
        f"Last column: bytes that must be moved over the time, as a share of a copy's {bandwidth / 1e9:.0f} GB/s.",
        "",
        "| | torchvision | fastmask | times faster | of a copy's speed |",
        "|---|---|---|---|---|",
    ]
    for name, rows in groups.items():
        ratio = rows["torchvision"]["stats"]["median"] / rows["fastmask"]["stats"]["median"]
        times = f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"
        moved = rows["fastmask"]["extra_info"]["least_bytes"]
        share = "" if moved is None else f"{moved / rows['fastmask']['stats']['median'] / bandwidth:.1%}"
        name = f"{name}<br><sub>{rows['fastmask']['extra_info']['inputs']}</sub>"
        cells = (
            name,
            milliseconds(rows["torchvision"]["stats"]),
            milliseconds(rows["fastmask"]["stats"]),
            times,
            share,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def milliseconds(stats: dict[str, float]) -> str:
    median, low, high = (f"{1e3 * stats[key]:.3g}" for key in ("median", "q1", "q3"))
    return f"{median} ({low}-{high})"


def main(argv: Sequence[str]) -> int:
    """Print the table of each JSON file; fill in each Markdown file."""
    if not argv:
        print("usage: python -m fastmask.benchmarks.report FILE...", file=sys.stderr)
        return 2
    for path in map(Path, argv):
        if path.suffix == ".md":
            path.write_text(filled(path))
        else:
            print(table(json.loads(path.read_text())))
    return 0


def filled(path: Path) -> str:
    """The text of a Markdown file with its tables made anew."""
    return SLOT.sub(
        lambda slot: slot[1] + table(json.loads((path.parent / slot[2]).read_text())) + slot[3], path.read_text()
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
