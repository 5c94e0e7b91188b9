"""Cases timed one after the other, without pytest: results as pytest-benchmark writes them, as far as they are read."""

import datetime
import json
import math
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastmask.benchmarks.case import Case, Entry
from fastmask.benchmarks.measure import Checked, checked, facts, name_of, rounds_of, said, turns, versions
from fastmask.benchmarks.report import device_times
from fastmask.benchmarks.results_io import groups, is_ours, where

BUDGET = {False: 20.0, True: 1.0}  # seconds of a row's rounds, by --quick; three there are in any case


def measured(
    entries: Mapping[str, Entry],
    device: torch.device,
    quick: bool,
    path: Path | None = None,
    limit: float = math.inf,
    earlier: Sequence[dict[str, Any]] = (),
) -> tuple[dict[str, Any], list[str]]:
    """The results, and what has none: answers that disagreed, providers that failed, cases that came too late.

    Args:
        entries: the cases.
        device: of all of them.
        quick: few rounds, on one set of inputs.
        path: written after each provider, so that a run that is cut leaves what it has.
        limit: seconds, after which no case is begun.
        earlier: rows of a run that was cut; a case of which the same device, versions and commit have them all is kept
            as it is.
    """
    wrong: list[str] = []
    rows: list[dict[str, Any]] = []
    now = datetime.datetime.now(datetime.UTC).isoformat()
    results: dict[str, Any] = {"benchmarks": rows, "datetime": now, "no row": wrong, "finished": False}
    begun, late = time.monotonic(), False
    here = {"device": name_of(device), **versions()}
    kept = [row for row in earlier if here.items() <= row["extra_info"].items()]
    progress = tqdm(entries.items(), unit="case")
    for name, entry in progress:
        progress.set_postfix_str(name)
        own = [row for row in kept if row["group"] == name]
        if {row["extra_info"]["provider"] for row in own} >= set(expected_providers(entry, device)):
            rows += own
            continue
        if time.monotonic() - begun > limit:
            wrong.append(f"{name}: not begun after {limit:.0f} seconds")
            rows += own
            late = True
            continue
        try:
            case = checked(name, entry, device, 1 if quick else None)
        except Exception as error:  # of building it; the other cases go on
            wrong.append(f"{name}: {said(error)}")
            continue
        wrong += [f"{name}: {provider} {reason}" for provider, reason in case.failed.items()]
        for provider in case.sets[0].providers:
            if provider not in case.failed:
                times = seconds(case, provider, BUDGET[quick])
                info = facts(case, provider)
                rows.append({"group": name, "stats": spread(times), "extra_info": info})
                if "error" in (info["device_time"] or {}):
                    wrong.append(f"{name}: {provider} has no device time: {info['device_time']['error']}")
            if path is not None:
                saved(results, path)
    results["finished"] = not late
    if path is not None:
        saved(results, path)
    return results, wrong


def expected_providers(entry: Entry, device: torch.device) -> tuple[str, ...]:
    """Those of a case that is measured on a device."""
    return (*entry.providers, *(entry.on_cuda if device.type == "cuda" else ()))


def without(entry: Entry, pattern: str) -> Entry:
    """The case without the providers in whose names a pattern is found."""

    def kept(name: str) -> bool:
        return re.search(pattern, name, re.IGNORECASE) is None

    def build(generator: torch.Generator, device: torch.device) -> Case:
        case = entry.build(generator, device)
        return case._replace(providers={name: run for name, run in case.providers.items() if kept(name)})

    return entry._replace(
        build=build, providers=tuple(filter(kept, entry.providers)), on_cuda=tuple(filter(kept, entry.on_cuda))
    )


def seconds(case: Checked, provider: str, budget: float) -> list[float]:
    """Of each round."""
    prepared, times = turns(case, provider), []
    for _ in range(rounds_of(case, provider, budget)):
        run = prepared()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def spread(times: list[float]) -> dict[str, float]:
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3, "rounds": len(times)}


def plain(results: dict[str, Any]) -> str:
    """For the screen: medians in milliseconds, and how many times faster ours are than the first baseline."""
    lines = [
        where(results).partition(" Milliseconds")[0] + " Milliseconds, medians.",
        "",
        f"{'':44} {'baseline':>10} {'fastmask':>10}  times faster",
    ]
    if on_device := device_times(results):
        lines[-1] += "  on the device (L2 flushed)"
    for name, rows in groups(results).items():
        baselines = [row["stats"]["median"] for provider, row in rows.items() if not is_ours(provider)]
        for provider, row in rows.items():
            if is_ours(provider):
                time, title = row["stats"]["median"], name + provider.removeprefix("fastmask").replace(" P", ", P")
                beside = f"{1e3 * baselines[0]:10.3f}" if baselines else f"{'':10}"
                faster = f"{baselines[0] / time:12.2f}" if baselines else ""
                shown = on_device.get((name, provider), "")
                lines.append(f"{title:44} {beside} {1e3 * time:10.3f}  {faster:12}  {shown}".rstrip())
    return "\n".join(lines)


def saved(results: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(results, indent=1))
