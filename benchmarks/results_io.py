"""Results of benchmarks, as pytest-benchmark's JSON has them: their rows by group, and where they were measured."""

from typing import Any

Row = dict[str, Any]  # pytest-benchmark's: group, stats, extra_info


def groups(results: dict[str, Any]) -> dict[str, dict[str, Row]]:
    """The rows of each group by provider, the one that others are compared with first."""
    found: dict[str, dict[str, Row]] = {}
    for row in results["benchmarks"]:
        found.setdefault(row["group"], {})[row["extra_info"]["provider"]] = row
    return found


def is_ours(provider: str) -> bool:
    return provider.startswith("fastmask")


def where(results: dict[str, Any]) -> str:
    if not results["benchmarks"]:
        raise ValueError("there are no rows")
    first = results["benchmarks"][0]["extra_info"]
    commits = " and ".join(dict.fromkeys(str(row["extra_info"]["commit"]) for row in results["benchmarks"]))
    versions = ", ".join(f"{name} {first[name]}" for name in ("torch", "torchvision", "triton") if first[name])
    infos = [row["extra_info"] for row in results["benchmarks"]]
    speeds = dict.fromkeys(f"{info['copy_bandwidth'] / 1e9:.0f}" for info in infos if info["min_bytes"] is not None)
    return (
        f"{first['device']}; {versions}, fastmask {first['fastmask']} at {commits}, "
        f"{results['datetime'][:10]}{', ' + tuned if (tuned := tuned_values(first)) else ''}. "
        "Milliseconds, median (quartiles); losses in bold. Last column: bytes that must be moved over the time, as a "
        f"share of a copy's {' or '.join(speeds)} GB/s."
    )


def tuned_values(info: dict[str, Any]) -> str:
    """What `fastmask tune` chose, where it was in use; results from before there was such a thing lack it."""
    return ", ".join(f"{name} {value}" for name, value in info.get("tuned", {}).items())
