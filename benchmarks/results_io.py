"""Benchmark results as pytest-benchmark's JSON has them: loaded, saved, and grouped into comparisons."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastmask.files import write_text

Row = dict[str, Any]  # pytest-benchmark's: group, stats, extra_info

PATCHED = "torchvision patched"  # runs fastmask's kernels: shown, but no baseline


class Comparison(NamedTuple):
    """One row of fastmask's beside all other providers of its group, the baseline first."""

    group: str
    ours: Row
    others: dict[str, Row]

    @property
    def provider(self) -> str:
        provider: str = self.ours["extra_info"]["provider"]
        return provider

    @property
    def title(self) -> str:
        return self.group + self.provider.removeprefix("fastmask").replace(" Predictor", ", Predictor")

    @property
    def baselines(self) -> dict[str, Row]:
        return {provider: row for provider, row in self.others.items() if provider != PATCHED}

    @property
    def speedups(self) -> list[float]:
        """Median time of each baseline over fastmask's."""
        return [row["stats"]["median"] / self.ours["stats"]["median"] for row in self.baselines.values()]


def load_results(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def load_rows(path: Path) -> list[Row]:
    """The rows of a results file, none if it is empty; ValueError if it is another file."""
    results = load_results(path) if path.stat().st_size else {"benchmarks": []}
    if not isinstance(results, dict) or "benchmarks" not in results:
        raise ValueError(f"{path} must be results of fastmask bench, got another file")
    rows: list[Row] = results["benchmarks"]
    return rows


def save_results(results: dict[str, Any], path: Path) -> None:
    write_text(path, json.dumps(results, indent=1))


def group_rows(results: dict[str, Any]) -> dict[str, dict[str, Row]]:
    """The rows of each group by provider, the baseline first."""
    groups: dict[str, dict[str, Row]] = {}
    for row in results["benchmarks"]:
        groups.setdefault(row["group"], {})[row["extra_info"]["provider"]] = row
    return groups


def compare(results: dict[str, Any]) -> Iterator[Comparison]:
    """Each of fastmask's rows, in order."""
    for group, rows in group_rows(results).items():
        others = {provider: row for provider, row in rows.items() if not is_ours(provider)}
        yield from (Comparison(group, row, others) for provider, row in rows.items() if is_ours(provider))


def is_ours(provider: str) -> bool:
    return provider.startswith("fastmask")


def describe_run(results: dict[str, Any]) -> str:
    """Device, versions, commits, date and tuned values."""
    if not results["benchmarks"]:
        raise ValueError("there are no rows")
    first = results["benchmarks"][0]["extra_info"]
    commits = " and ".join(dict.fromkeys(str(row["extra_info"]["commit"]) for row in results["benchmarks"]))
    versions = ", ".join(f"{name} {first[name]}" for name in ("torch", "torchvision", "triton") if first[name])
    tuned = f", {values}" if (values := tuned_values(first)) else ""
    return (
        f"{first['device']}; {versions}, fastmask {first['fastmask']} at {commits}, {results['datetime'][:10]}{tuned}."
    )


def tuned_values(info: dict[str, Any]) -> str:
    """Values from ``fastmask tune`` that were in use; older results have none."""
    return ", ".join(f"{name} {value}" for name, value in info.get("tuned", {}).items())
