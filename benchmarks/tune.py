"""``fastmask tune``'s work: time each choice of each knob beside the default, and keep what is the same and faster.

A choice is believed only after its result agrees with the default's (tune_cases.rule_of). Both are then timed in turns,
so that a clock that drifts drifts for both. It is kept if it is faster by MARGIN on a workload, with quartiles that
do not overlap, and slower on none; of several, the fastest. Values that are kept are in force while later knobs are
timed. The file is replaced as a whole after each knob, so one that is read is never half written.
"""

import contextlib
import datetime
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from fastmask.benchmarks.device_time import capture_calls, time_replays
from fastmask.benchmarks.measure import said, seconds_of, versions
from fastmask.benchmarks.tune_cases import WORKLOADS, Build, Shapes, Workload, rule_of
from fastmask.kernels import tuning
from fastmask.kernels.knobs import Knob, Value, name_at

MARGIN = 0.03  # that a choice must be faster by
LOSS = 0.01  # that it may be slower by on another workload
ROUNDS = 15  # in which the default and a choice are timed in turns
BURST = 4  # replays of a graph in a round: launching one hides behind the one before

# prepares a call, on a device -> what times it, in seconds
Timer = Callable[[Callable[[], Any], bool, torch.device], Callable[[], float]]
Quartiles = tuple[float, float, float]


class Trial(NamedTuple):
    """A choice beside the default."""

    value: Value
    seconds: dict[str, tuple[Quartiles, Quartiles]]  # of the default and of the choice, by workload
    refused: str  # why it was not believed, or not kept; empty if it may be


class Outcome(NamedTuple):
    """What became of a knob."""

    name: str
    default: Value
    trials: list[Trial]
    kept: Trial | None
    error: str = ""  # why it could not be tuned


def on_device(run: Callable[[], Any], capturable: bool, device: torch.device) -> Callable[[], float]:
    """The Timer of a GPU: graphs without the host, or where the host waits, calls to their end."""
    if capturable:
        graph = capture_calls(run)
        return lambda: statistics.median(time_replays(graph, BURST))
    for _ in range(2):  # capture and choose
        seconds_of(run, device)
    return lambda: seconds_of(run, device)


def tune(
    knobs: Sequence[Knob],
    device: torch.device,
    shapes: Shapes,
    path: Path,
    *,
    limit: float = math.inf,
    timer: Timer = on_device,
    workloads: Mapping[str, Build] = WORKLOADS,
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Tune one knob after the other, and save each.

    Args:
        knobs: their values are chosen anew; others that are in the file stay in force.
        device: with its index.
        shapes: that they are timed at.
        path: the file, of this device and these versions, or none yet; see :func:`check_file`.
        limit: seconds, after which no knob is begun.
        timer, workloads, clock: what is timed, and how; for tests.
    """
    outcomes, begun = [], clock()
    name = tuning.name_of(device)
    values = _known(path, name)
    for knob in knobs:
        values.pop(_full_name(knob, shapes), None)
    built: tuple[str, list[Workload]] = ("", [])
    progress = tqdm(knobs, unit="knob")
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        for knob in progress:
            progress.set_postfix_str(knob.name)
            full = _full_name(knob, shapes)
            if clock() - begun > limit:
                outcomes.append(Outcome(full, knob.default, [], None, f"not begun after {limit:.0f} seconds"))
                continue
            try:
                with tuning.override(device, values):
                    if built[0] != knob.op:
                        built = (knob.op, [])  # the inputs before are let go first
                        built = (knob.op, workloads[knob.op](shapes, device))
                outcome = tune_knob(knob, full, built[1], device, values, timer)
            except Exception as error:  # of the default; other knobs go on
                outcome = Outcome(full, knob.default, [], None, said(error))
            outcomes.append(outcome)
            if outcome.error:
                continue
            if outcome.kept is not None:
                values[full] = outcome.kept.value
            save(path, name, outcome, shapes)
    return outcomes


def _full_name(knob: Knob, shapes: Shapes) -> str:
    return knob.name if knob.module else name_at(knob.name, shapes.size, shapes.batch, shapes.dtype)


def tune_knob(
    knob: Knob, name: str, workloads: Sequence[Workload], device: torch.device, values: Mapping[str, Any], timer: Timer
) -> Outcome:
    """Try a knob's choices; ``values`` are in force beside them. Raises what the default raises."""
    if not workloads:
        return Outcome(name, knob.default, [], None, "there is nothing to time it on")
    rule, expected, defaults = rule_of(knob), [], []
    with tuning.override(device, values):
        for workload in workloads:
            run = workload.make()
            expected.append(run())
            defaults.append(timer(run, workload.capturable, device))

    def attempt(choice: Value) -> Trial:
        seconds: dict[str, tuple[Quartiles, Quartiles]] = {}
        refused = ""
        try:
            with tuning.override(device, {**values, name: choice}):
                runs = [workload.make() for workload in workloads]
                for run, wanted in zip(runs, expected, strict=True):
                    rule(run(), wanted)
                for workload, run, default in zip(workloads, runs, defaults, strict=True):
                    seconds[workload.name] = in_turns(default, timer(run, workload.capturable, device))
        except AssertionError as error:
            refused = f"disagrees: {' '.join(str(error).split())[:200]}"
        except Exception as error:  # such as too much shared memory for this GPU
            refused = f"fails: {said(error)}"
        return Trial(choice, seconds, refused or verdict(seconds))

    trials = [attempt(choice) for choice in knob.choices if choice != knob.default]
    accepted = [trial for trial in trials if not trial.refused]
    return Outcome(name, knob.default, trials, min(accepted, key=ratio, default=None))


def in_turns(default: Callable[[], float], choice: Callable[[], float]) -> tuple[Quartiles, Quartiles]:
    """Quartiles of both; which one is first alternates, and the first round warms up."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        for which in (0, 1) if number % 2 else (1, 0):
            times[which].append((default, choice)[which]())
    return quartiles(times[0][1:]), quartiles(times[1][1:])


def quartiles(times: Sequence[float]) -> Quartiles:
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    return q1, median, q3


def verdict(seconds: Mapping[str, tuple[Quartiles, Quartiles]]) -> str:
    """Why a choice is not kept, or nothing."""
    gains = False
    for name, (default, choice) in seconds.items():
        change = choice[1] / default[1] - 1
        if change > LOSS and choice[0] > default[2]:
            return f"slower by {change:.1%}: {name}"
        gains |= change < -MARGIN and choice[2] < default[0]
    return "" if gains else f"not faster by {MARGIN:.0%} and more than the spread"


def ratio(trial: Trial) -> float:
    """Time over the default's, the geometric mean of workloads."""
    return statistics.geometric_mean(choice[1] / default[1] for default, choice in trial.seconds.values())


def check_file(path: Path, device: torch.device) -> None:
    """Raises ValueError if a file is there that is not this device's, or OSError if it can't be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder of the tuning file must be writable, got {path.parent}")
    if path.exists():
        try:
            tuning.read_tuning(path, tuning.name_of(device))
        except ValueError as error:
            raise ValueError(f"the tuning file must be new or this device's, got {path}: {error}") from None


def _known(path: Path, name: str) -> dict[str, Any]:
    return tuning.read_values(path, name)[0] if path.exists() else {}


def save(path: Path, name: str, outcome: Outcome, shapes: Shapes) -> None:
    """Put a knob's outcome into the file, beside what is there by now."""
    found = tuning.read_tuning(path, name) if path.exists() else {"values": {}, "measured": {}}
    values, measured = dict(found["values"]), dict(found.get("measured", {}))
    values.pop(outcome.name, None)
    if outcome.kept is not None:
        values[outcome.name] = outcome.kept.value
    measured[outcome.name] = {
        "default": outcome.default,
        "trials": [trial._asdict() for trial in outcome.trials],
        "size": shapes.size,
        "batch": shapes.batch,
        "dtype": str(shapes.dtype),
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **versions(),
    }
    facts = {"format": tuning.FORMAT, **versions(), **tuning.facts_of(name)}
    write_whole(path, json.dumps(facts | {"values": values, "measured": measured}, indent=1) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Who reads the file meanwhile sees it as it was or as it is now."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(text)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def listing(knobs: Sequence[Knob]) -> str:
    """What would be tried, for the screen."""
    lines = [
        f"{knob.name:24} {', '.join(map(str, knob.choices))} [{knob.default}]: {WORKLOADS[knob.op].__doc__}"
        for knob in knobs
    ]
    return "\n".join(lines)


def rows(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str, str, str, str]]:
    """The table: knob, default, best choice, times of both, and whether it is kept."""
    for outcome in outcomes:
        timed = [trial for trial in outcome.trials if trial.seconds and not trial.refused.startswith(("fails", "dis"))]
        best = outcome.kept or min(timed, key=ratio, default=None)
        if best is None:
            reasons = outcome.error or "; ".join(f"{trial.value} {trial.refused}" for trial in outcome.trials)
            yield outcome.name, str(outcome.default), "", "", f"no: {reasons}"
            continue
        times = ", ".join(f"{1e6 * d[1]:.4g} -> {1e6 * c[1]:.4g}" for d, c in best.seconds.values())
        others = "; ".join(
            f"{trial.value} {trial.refused}" for trial in outcome.trials if trial.refused and trial not in timed
        )
        kept = "yes" if outcome.kept is not None else f"no: {best.refused}"
        yield outcome.name, str(outcome.default), str(best.value), times, f"{kept}{'; ' if others else ''}{others}"


def table(outcomes: Sequence[Outcome]) -> str:
    """For the screen."""
    lines = [("knob", "default", "best", "microseconds", "kept"), *rows(outcomes)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]]) for line in lines
    )
