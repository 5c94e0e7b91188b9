"""How a case is checked and timed, by pytest-benchmark and by ``fastmask bench`` alike."""

import functools
import importlib.metadata
import itertools
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastmask._version import __version__
from fastmask.benchmarks.case import Case, Entry
from fastmask.benchmarks.device_time import measure_device_time
from fastmask.kernels.tuning import values_on

Run = Callable[[], Any]

FLUSH = 2**28  # bytes that are written between rounds on a GPU, more than its caches hold


class Checked(NamedTuple):
    """A case on several sets of inputs, all warm; providers but the failed ones agreed, on a set like the first."""

    name: str
    entry: Entry
    device: torch.device
    sets: list[Case]
    first_call: dict[str, float]  # seconds of each provider's first call, which compiles and chooses
    warm_call: dict[str, float]  # of its last one before the rounds
    failed: dict[str, str]  # providers that raised something or disagreed: what is to be said of each


def checked(name: str, entry: Entry, device: torch.device, sets: int | None = None) -> Checked:
    """Build a case on its inputs (always the same: seed 0), let every provider answer, compare, and warm up.

    With 0 ``sets``, only compare.
    """
    failed: dict[str, str] = {}
    # TF32, PyTorch's default for convolutions, has ten bits: answers agree without it, times are with it
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        first_call = compared(name, entry.build(torch.Generator().manual_seed(0), device), device, failed)
    generator = torch.Generator().manual_seed(0)
    cases = [entry.build(generator, device) for _ in range(entry.sets if sets is None else sets)]
    warm_call = {}
    for provider in first_call:
        try:
            for case in (*cases, *cases[:1]):
                warm_call[provider] = seconds_of(case.providers[provider], device)
        except Exception as error:
            failed[provider] = f"failed: {said(error)}"
    return Checked(name, entry, device, cases, first_call, warm_call, failed)


def compared(name: str, case: Case, device: torch.device, failed: dict[str, str]) -> dict[str, float]:
    """Seconds of each provider's first call; those that raise or disagree with the first one go into ``failed``."""
    first_call, answers = {}, {}
    for provider, run in case.providers.items():
        start = time.perf_counter()
        try:
            answers[provider] = run()
            wait_for(device)
        except Exception as error:
            failed[provider] = f"failed: {said(error)}"
            continue
        first_call[provider] = time.perf_counter() - start
    (baseline, expected), *others = answers.items() if answers else [("nobody", None)]
    for provider, answer in others:
        rule = case.rules.get(provider, case.agree)
        check(provider, baseline, functools.partial(rule, answer, expected), failed)
    if "torchvision" not in answers and case.sample is not None:
        check("fastmask", "the reference", case.sample, failed)
    return {provider: seconds for provider, seconds in first_call.items() if provider not in failed}


def check(provider: str, baseline: str, rule: Run, failed: dict[str, str]) -> None:
    """A provider that a rule does not pass goes into ``failed``; the others of its case keep their rows."""
    try:
        rule()
    except AssertionError as error:
        failed[provider] = f"does not agree with {baseline}: {str(error).partition(chr(10))[0]}"
    except Exception as error:
        failed[provider] = f"cannot be compared with {baseline}: {said(error)}"


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def seconds_of(run: Run, device: torch.device) -> float:
    start = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - start


def rounds_of(case: Checked, provider: str, budget: float) -> int:
    """As many as a budget of seconds has room for; from 3 to the case's own number."""
    return max(3, min(case.entry.rounds, int(budget / max(case.warm_call[provider], 1e-9))))


def turns(case: Checked, provider: str) -> Run:
    """The next set of inputs at each call -> what runs the provider on it to the end; a GPU's caches are cold."""
    runs = itertools.cycle([one.providers[provider] for one in case.sets])
    device = case.device

    def prepared() -> Run:
        run = next(runs)
        if device.type == "cuda":
            flush_buffer(device).zero_()
            wait_for(device)

        def to_the_end() -> None:
            run()
            wait_for(device)

        return to_the_end

    return prepared


@functools.cache
def flush_buffer(device: torch.device) -> torch.Tensor:
    return torch.empty(FLUSH, dtype=torch.uint8, device=device)


def peak_memory(case: Checked, provider: str) -> int | None:
    """Bytes that one call needs beyond what is there before it.

    None where the device does not say, and for a Predictor, whose graphs hold theirs all the time.
    """
    if case.device.type != "cuda" or "Predictor" in provider or case.name.startswith("host"):
        return None
    wait_for(case.device)
    torch.cuda.reset_peak_memory_stats(case.device)
    before = torch.cuda.memory_allocated(case.device)
    case.sets[0].providers[provider]()
    wait_for(case.device)
    return torch.cuda.max_memory_allocated(case.device) - before


def device_time(case: Checked, provider: str) -> dict[str, Any] | None:
    """Seconds of one call on a GPU, "warm" and "flushed", or the "error" of its capture.

    None on other devices, and for providers that wait for the device.
    """
    run = case.sets[0].capturable.get(provider)
    if case.device.type != "cuda" or run is None:
        return None
    try:
        return measure_device_time(run, flush_buffer(case.device))
    except RuntimeError as error:
        return {"error": said(error)}


def facts(case: Checked, provider: str) -> dict[str, Any]:
    """What stands beside each time."""
    first = case.sets[0]
    return {
        "provider": provider,
        "inputs": first.inputs,
        "min_bytes": first.min_bytes,
        "scales": case.entry.scales,
        "first_call": case.first_call[provider],
        "peak_memory": peak_memory(case, provider),
        "device_time": device_time(case, provider),
        "copy_bandwidth": copy_bandwidth(case.device),
        "tuned": values_on(case.device),
        "device": name_of(case.device),
        **versions(),
    }


@functools.cache
def versions() -> dict[str, str | None]:
    """Of what is measured, and the commit where there is a checkout; ``+`` where it is changed."""
    found: dict[str, str | None] = {"fastmask": __version__, "torch": torch.__version__}
    for name in ("torchvision", "triton"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["commit"] = os.environ.get("FASTMASK_COMMIT") or commit_of(Path(__file__).resolve().parent.parent)
    return found


def commit_of(root: Path) -> str | None:
    """Of a checkout; ``+`` where it is changed; None where there is no checkout or no git."""
    if not (root / ".git").exists():
        return None
    answers = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        answers.append(done.stdout.strip())
    return answers[0][:12] + ("+" if answers[1] else "")


def name_of(device: torch.device) -> str:
    """The GPU's name, or the CPU's and the threads used of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@functools.cache
def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of copying a gigabyte on the device: the best of five."""
    source = torch.ones(2**28, device=device)
    target = torch.ones_like(source)
    seconds = []
    for _ in range(5):
        wait_for(device)
        start = time.perf_counter()
        target.copy_(source)
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)
