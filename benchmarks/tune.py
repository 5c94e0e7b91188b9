"""``fastmask tune``: time each choice of each knob beside the default, and keep the fastest one that matches it.

A choice is timed only after its result matches the default's (tune_cases.choose_check). Both are then timed in turns,
so that clock drift affects both alike. A choice is accepted if it is faster by MARGIN on some workload, with disjoint
quartiles, and slower on none; of several, the fastest. Accepted values are in force while later knobs are timed. The
file is replaced atomically after each knob, so a reader never sees half of it.
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
from fastmask.benchmarks.measure import format_error, time_call, versions
from fastmask.benchmarks.tune_cases import WORKLOADS, Build, Shapes, Workload, choose_check
from fastmask.kernels import tuning
from fastmask.kernels.knobs import Knob, Value, name_at

MARGIN = 0.03  # minimum gain of a choice on some workload
LOSS = 0.01  # maximum loss on another workload
ROUNDS = 15  # of the default and a choice, timed in turns
BURST = 4  # replays of a graph in a round; each launch overlaps with the replay before

# prepares a call on a device -> a function that times it, in seconds
Timer = Callable[[Callable[[], Any], bool, torch.device], Callable[[], float]]
Quartiles = tuple[float, float, float]


class Trial(NamedTuple):
    """A choice beside the default."""

    value: Value
    seconds: dict[str, tuple[Quartiles, Quartiles]]  # of the default and of the choice, by workload
    rejected: str  # why it cannot be accepted; empty if it can


class Outcome(NamedTuple):
    """The result of tuning a knob."""

    name: str
    default: Value
    trials: list[Trial]
    accepted: Trial | None
    error: str = ""  # why it could not be tuned


def make_timer(run: Callable[[], Any], capturable: bool, device: torch.device) -> Callable[[], float]:
    """The Timer of a GPU: CUDA graphs without the host; calls to their end where they have host syncs."""
    if capturable:
        graph = capture_calls(run)
        return lambda: statistics.median(time_replays(graph, BURST))
    for _ in range(2):  # capture and tune
        time_call(run, device)
    return lambda: time_call(run, device)


def tune(
    knobs: Sequence[Knob],
    device: torch.device,
    shapes: Shapes,
    path: Path,
    *,
    limit: float = math.inf,
    timer: Timer = make_timer,
    workloads: Mapping[str, Build] = WORKLOADS,
    clock: Callable[[], float] = time.monotonic,
) -> list[Outcome]:
    """Tune one knob after the other, and save each outcome.

    Args:
        knobs: the knobs to tune; the file's values of others stay in force.
        device: with its index.
        shapes: the model's.
        path: a tuning file of this device and these versions, or a new one; see :func:`check_file`.
        limit: seconds, after which no knob is begun.
        timer, workloads, clock: replaced by tests.
    """
    outcomes, start = [], clock()
    name = tuning.name_of(device)
    values = _load_values(path, name)
    for knob in knobs:
        values.pop(_full_name(knob, shapes), None)
    built: tuple[str, list[Workload]] = ("", [])
    progress = tqdm(knobs, unit="knob", disable=None)  # none in a log file
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        for knob in progress:
            progress.set_postfix_str(knob.name)
            full = _full_name(knob, shapes)
            if clock() - start > limit:
                outcomes.append(Outcome(full, knob.default, [], None, f"not begun after {limit:.0f} seconds"))
                continue
            try:
                with tuning.override(device, values):
                    if built[0] != knob.op:
                        built = (knob.op, [])  # frees the inputs before
                        built = (knob.op, workloads[knob.op](shapes, device))
                outcome = tune_knob(knob, full, built[1], device, values, timer)
            except Exception as error:  # of the default; other knobs go on
                outcome = Outcome(full, knob.default, [], None, format_error(error))
            outcomes.append(outcome)
            if outcome.error:
                continue
            if outcome.accepted is not None:
                values[full] = outcome.accepted.value
            save_outcome(path, name, outcome, shapes)
    return outcomes


def _full_name(knob: Knob, shapes: Shapes) -> str:
    return knob.name if knob.module else name_at(knob.name, shapes.size, shapes.batch, shapes.dtype)


def tune_knob(
    knob: Knob, name: str, workloads: Sequence[Workload], device: torch.device, values: Mapping[str, Any], timer: Timer
) -> Outcome:
    """Try a knob's choices with ``values`` in force; the default's exceptions are not caught."""
    if not workloads:
        return Outcome(name, knob.default, [], None, "no workload uses it")
    check, expected, defaults = choose_check(knob), [], []
    with tuning.override(device, values):
        for workload in workloads:
            run = workload.make()
            expected.append(run())
            defaults.append(timer(run, workload.capturable, device))

    def attempt(choice: Value) -> Trial:
        seconds: dict[str, tuple[Quartiles, Quartiles]] = {}
        rejected = ""
        try:
            with tuning.override(device, {**values, name: choice}):
                runs = [workload.make() for workload in workloads]
                for run, result in zip(runs, expected, strict=True):
                    check(run(), result)
                for workload, run, default in zip(workloads, runs, defaults, strict=True):
                    seconds[workload.name] = time_in_turns(default, timer(run, workload.capturable, device))
        except AssertionError as error:
            rejected = f"does not match: {' '.join(str(error).split())[:200]}"
        except Exception as error:  # such as too much shared memory for this GPU
            rejected = f"fails: {format_error(error)}"
        return Trial(choice, seconds, rejected or find_rejection(seconds))

    trials = [attempt(choice) for choice in knob.choices if choice != knob.default]
    accepted = [trial for trial in trials if not trial.rejected]
    return Outcome(name, knob.default, trials, min(accepted, key=ratio, default=None))


def time_in_turns(default: Callable[[], float], choice: Callable[[], float]) -> tuple[Quartiles, Quartiles]:
    """Quartiles of both; which one is first alternates, and the first round warms up."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        for which in (0, 1) if number % 2 else (1, 0):
            times[which].append((default, choice)[which]())
    return quartiles(times[0][1:]), quartiles(times[1][1:])


def quartiles(times: Sequence[float]) -> Quartiles:
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    return q1, median, q3


def find_rejection(seconds: Mapping[str, tuple[Quartiles, Quartiles]]) -> str:
    """Why a choice cannot be accepted; empty if it can."""
    gains = False
    for name, (default, choice) in seconds.items():
        change = choice[1] / default[1] - 1
        if change > LOSS and choice[0] > default[2]:
            return f"slower by {change:.1%}: {name}"
        gains |= change < -MARGIN and choice[2] < default[0]
    return "" if gains else f"not faster by {MARGIN:.0%} and more than the spread"


def ratio(trial: Trial) -> float:
    """Geometric mean over workloads of the time over the default's."""
    return statistics.geometric_mean(choice[1] / default[1] for default, choice in trial.seconds.values())


def check_file(path: Path, device: torch.device) -> None:
    """Raise ValueError if the file is another device's, or OSError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder of the tuning file must be writable, got {path.parent}")
    if path.exists():
        try:
            tuning.read_tuning(path, tuning.name_of(device))
        except ValueError as error:
            raise ValueError(f"the tuning file must be new or this device's, got {path}: {error}") from None


def _load_values(path: Path, name: str) -> dict[str, Any]:
    return tuning.read_values(path, name)[0] if path.exists() else {}


def save_outcome(path: Path, name: str, outcome: Outcome, shapes: Shapes) -> None:
    """Add a knob's outcome to the file as it is now."""
    content = tuning.read_tuning(path, name) if path.exists() else {"values": {}, "measured": {}}
    values, measured = dict(content["values"]), dict(content.get("measured", {}))
    values.pop(outcome.name, None)
    if outcome.accepted is not None:
        values[outcome.name] = outcome.accepted.value
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
    write_atomically(path, json.dumps(facts | {"values": values, "measured": measured}, indent=1) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file atomically: a reader sees the old text or the new one."""
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


def format_knobs(knobs: Sequence[Knob]) -> str:
    """A list of knobs and choices, for the screen."""
    lines = [
        f"{knob.name:24} {', '.join(map(str, knob.choices))} [{knob.default}]: {WORKLOADS[knob.op].__doc__}"
        for knob in knobs
    ]
    return "\n".join(lines)


def format_rows(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, str, str, str, str]]:
    """Rows of knob, default, best choice, times of both, and whether it is accepted."""
    for outcome in outcomes:
        timed = [
            trial
            for trial in outcome.trials
            if trial.seconds and not trial.rejected.startswith(("fails", "does not match"))
        ]
        best = outcome.accepted or min(timed, key=ratio, default=None)
        if best is None:
            reasons = outcome.error or "; ".join(f"{trial.value} {trial.rejected}" for trial in outcome.trials)
            yield outcome.name, str(outcome.default), "", "", f"no: {reasons}"
            continue
        times = ", ".join(f"{1e6 * d[1]:.4g} -> {1e6 * c[1]:.4g}" for d, c in best.seconds.values())
        others = "; ".join(
            f"{trial.value} {trial.rejected}" for trial in outcome.trials if trial.rejected and trial not in timed
        )
        accepted = "yes" if outcome.accepted is not None else f"no: {best.rejected}"
        yield outcome.name, str(outcome.default), str(best.value), times, f"{accepted}{'; ' if others else ''}{others}"


def format_table(outcomes: Sequence[Outcome]) -> str:
    """A table of outcomes, for the screen."""
    lines = [("knob", "default", "best", "microseconds", "accepted"), *format_rows(outcomes)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]]) for line in lines
    )
