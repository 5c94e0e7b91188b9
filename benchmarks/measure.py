"""Check and time a case, for pytest-benchmark and for ``fastmask bench`` alike."""

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
from fastmask.benchmarks.case import Case, CaseSpec
from fastmask.benchmarks.device_time import measure_device_time
from fastmask.kernels.tuning import values_on

Run = Callable[[], Any]

FLUSH = 2**28  # bytes written between rounds on a GPU, more than its caches hold


class PreparedCase(NamedTuple):
    """A case on several sets of inputs, warmed up; every provider but the failed ones matches the baseline."""

    name: str
    spec: CaseSpec
    device: torch.device
    sets: list[Case]
    first_call: dict[str, float]  # seconds of each provider's first call, which compiles and tunes
    warm_call: dict[str, float]  # seconds of its last call before the rounds
    failed: dict[str, str]  # why a provider raised an error or did not match


def prepare_case(name: str, spec: CaseSpec, device: torch.device, sets: int | None = None) -> PreparedCase:
    """Build a case on its inputs (always the same: seed 0), check every provider, and warm up.

    With 0 ``sets``, only check.
    """
    failed: dict[str, str] = {}
    # TF32, PyTorch's default for convolutions, has ten bits: results are compared without it and timed with it
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        first_call = check_providers(spec.build(torch.Generator().manual_seed(0), device), device, failed)
    generator = torch.Generator().manual_seed(0)
    cases = [spec.build(generator, device) for _ in range(spec.sets if sets is None else sets)]
    warm_call = {}
    for provider in first_call:
        try:
            for case in (*cases, *cases[:1]):
                warm_call[provider] = time_call(case.providers[provider], device)
        except Exception as error:
            failed[provider] = f"failed: {format_error(error)}"
    return PreparedCase(name, spec, device, cases, first_call, warm_call, failed)


def check_providers(case: Case, device: torch.device, failed: dict[str, str]) -> dict[str, float]:
    """Seconds of each provider's first call; those that raise an error or do not match go into ``failed``."""
    first_call, results = {}, {}
    for provider, run in case.providers.items():
        start = time.perf_counter()
        try:
            results[provider] = run()
            synchronize(device)
        except Exception as error:
            failed[provider] = f"failed: {format_error(error)}"
            continue
        first_call[provider] = time.perf_counter() - start
    (baseline, expected), *others = results.items() if results else [("nobody", None)]
    for provider, result in others:
        check = case.checks.get(provider, case.check)
        run_check(provider, baseline, functools.partial(check, result, expected), failed)
    if "torchvision" not in results and case.sample is not None:
        run_check("fastmask", "the reference", case.sample, failed)
    return {provider: seconds for provider, seconds in first_call.items() if provider not in failed}


def run_check(provider: str, baseline: str, check: Run, failed: dict[str, str]) -> None:
    """Put a provider that does not pass into ``failed``; the other providers of its case keep their rows."""
    try:
        check()
    except AssertionError as error:
        failed[provider] = f"does not match {baseline}: {str(error).partition(chr(10))[0]}"
    except Exception as error:
        failed[provider] = f"cannot be compared with {baseline}: {format_error(error)}"


def format_error(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def time_call(run: Run, device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def count_rounds(case: PreparedCase, provider: str, budget: float) -> int:
    """Rounds that fit a budget of seconds: at least 3, at most the case's own number."""
    return max(3, min(case.spec.rounds, int(budget / max(case.warm_call[provider], 1e-9))))


def make_setup(case: PreparedCase, provider: str) -> Run:
    """A function that takes the next set of inputs, clears a GPU's caches, and returns the call to time."""
    runs = itertools.cycle([inputs.providers[provider] for inputs in case.sets])
    device = case.device

    def set_up() -> Run:
        run = next(runs)
        if device.type == "cuda":
            flush_buffer(device).zero_()
            synchronize(device)

        def run_to_end() -> None:
            run()
            synchronize(device)

        return run_to_end

    return set_up


@functools.cache
def flush_buffer(device: torch.device) -> torch.Tensor:
    return torch.empty(FLUSH, dtype=torch.uint8, device=device)


def peak_memory(case: PreparedCase, provider: str) -> int | None:
    """Bytes that one call allocates at most.

    None on a CPU, and for a Predictor, whose CUDA graphs keep their memory.
    """
    if case.device.type != "cuda" or "Predictor" in provider or case.name.startswith("host"):
        return None
    synchronize(case.device)
    torch.cuda.reset_peak_memory_stats(case.device)
    before = torch.cuda.memory_allocated(case.device)
    case.sets[0].providers[provider]()
    synchronize(case.device)
    return torch.cuda.max_memory_allocated(case.device) - before


def device_time(case: PreparedCase, provider: str) -> dict[str, Any] | None:
    """Seconds of one call on a GPU, "warm" and "flushed", or the "error" of its capture.

    None on other devices, and for providers with host syncs.
    """
    run = case.sets[0].capturable.get(provider)
    if case.device.type != "cuda" or run is None:
        return None
    try:
        return measure_device_time(run, flush_buffer(case.device))
    except RuntimeError as error:
        return {"error": format_error(error)}


def describe_row(case: PreparedCase, provider: str) -> dict[str, Any]:
    """The ``extra_info`` of a row."""
    first = case.sets[0]
    return {
        "provider": provider,
        "inputs": first.inputs,
        "min_bytes": first.min_bytes,
        "scales": case.spec.scales,
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
    """Versions of fastmask and its dependencies, and the commit of a checkout; see :func:`find_commit`."""
    values: dict[str, str | None] = {"fastmask": __version__, "torch": torch.__version__}
    for name in ("torchvision", "triton"):
        try:
            values[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            values[name] = None
    values["commit"] = os.environ.get("FASTMASK_COMMIT") or find_commit(Path(__file__).resolve().parent.parent)
    return values


def find_commit(root: Path) -> str | None:
    """The commit of a checkout, with ``+`` if it is modified; None without a checkout or git."""
    if not (root / ".git").exists():
        return None
    outputs = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        outputs.append(done.stdout.strip())
    return outputs[0][:12] + ("+" if outputs[1] else "")


def name_of(device: torch.device) -> str:
    """The GPU's name, or the CPU's and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    threads = torch.get_num_threads()
    return f"{names[0] if names else platform.processor()}, {threads} thread{'' if threads == 1 else 's'}"


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@functools.cache
def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written, of a copy of a gigabyte on the device: the best of five."""
    source = torch.ones(2**28, device=device)
    target = torch.ones_like(source)
    seconds = []
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)
