"""Time cases one after the other, without pytest; results have pytest-benchmark's format."""

import datetime
import math
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fastmask.benchmarks import measure
from fastmask.benchmarks.case import Case, CaseSpec
from fastmask.benchmarks.measure import PreparedCase, format_error
from fastmask.benchmarks.results_io import Row, save_results

BUDGET = {False: 20.0, True: 1.0}  # seconds of a row's rounds, by --quick; there are three in any case


def run_cases(
    specs: Mapping[str, CaseSpec],
    device: torch.device,
    quick: bool,
    path: Path | None = None,
    limit: float = math.inf,
    earlier: Sequence[Row] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Time every provider of every case.

    Args:
        specs: the cases, by name.
        device: of all of them.
        quick: few rounds, on one set of inputs.
        path: written after each provider, so that an interrupted run leaves its rows.
        limit: seconds, after which no case is begun.
        earlier: rows of an interrupted run; a case whose rows are all there, from the same device, versions and commit,
            is not run again.

    Returns:
        The results, and a message for each row that is missing: a provider that does not match or fails, a case that
        was not begun.
    """
    failures: list[str] = []
    rows: list[Row] = []
    now = datetime.datetime.now(datetime.UTC).isoformat()
    results: dict[str, Any] = {"benchmarks": rows, "datetime": now, "no row": failures, "finished": False}
    start, late = time.monotonic(), False
    machine = {"device": measure.name_of(device), **measure.versions()}
    usable = [row for row in earlier if machine.items() <= row["extra_info"].items()]
    progress = tqdm(specs.items(), unit="case", disable=None)  # none in a log file
    for name, spec in progress:
        progress.set_postfix_str(name)
        reused = [row for row in usable if row["group"] == name]
        if {row["extra_info"]["provider"] for row in reused} >= set(expected_providers(spec, device)):
            rows += reused
            continue
        if time.monotonic() - start > limit:
            failures.append(f"{name}: not begun after {limit:.0f} seconds")
            rows += reused
            late = True
            continue
        try:
            case = measure.prepare_case(name, spec, device, 1 if quick else None)
        except Exception as error:  # of building it; the other cases go on
            failures.append(f"{name}: {format_error(error)}")
            continue
        failures += [f"{name}: {provider} {reason}" for provider, reason in case.failed.items()]
        for provider in case.sets[0].providers:
            if provider not in case.failed:
                times = time_rounds(case, provider, BUDGET[quick])
                info = measure.describe_row(case, provider)
                rows.append({"group": name, "stats": summarize_times(times), "extra_info": info})
                if "error" in (info["device_time"] or {}):
                    failures.append(f"{name}: {provider} has no device time: {info['device_time']['error']}")
            if path is not None:
                save_results(results, path)
    results["finished"] = not late
    if path is not None:
        save_results(results, path)
    return results, failures


def expected_providers(spec: CaseSpec, device: torch.device) -> tuple[str, ...]:
    """A case's providers on a device."""
    return (*spec.providers, *(spec.on_cuda if device.type == "cuda" else ()))


def drop_providers(spec: CaseSpec, pattern: str) -> CaseSpec:
    """The case without the providers whose names match a pattern."""

    def keep(name: str) -> bool:
        return re.search(pattern, name, re.IGNORECASE) is None

    def build(generator: torch.Generator, device: torch.device) -> Case:
        case = spec.build(generator, device)
        return case._replace(providers={name: run for name, run in case.providers.items() if keep(name)})

    return spec._replace(
        build=build, providers=tuple(filter(keep, spec.providers)), on_cuda=tuple(filter(keep, spec.on_cuda))
    )


def time_rounds(case: PreparedCase, provider: str, budget: float) -> list[float]:
    """Seconds of each round."""
    set_up, times = measure.make_setup(case, provider), []
    for _ in range(measure.count_rounds(case, provider, budget)):
        run = set_up()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def summarize_times(times: list[float]) -> dict[str, float]:
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3, "rounds": len(times)}
