"""How a case is checked and timed, by pytest-benchmark and by ``fastmask bench`` alike."""

import functools
import importlib.metadata
import itertools
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastmask import __version__
from fastmask.benchmarks.case import Case, Entry

Run = Callable[[], Any]

FLUSH = 2**28  # bytes that are written between rounds on a GPU, more than its caches hold


class Checked(NamedTuple):
    """A case on several sets of inputs, on the first of which all providers have agreed."""

    name: str
    entry: Entry
    device: torch.device
    sets: list[Case]
    first_call: dict[str, float]  # seconds of each provider's first call, which compiles and chooses


def checked(name: str, entry: Entry, device: torch.device, sets: int | None = None) -> Checked:
    """Build a case on its inputs (always the same: seed 0), and let every provider answer once.

    Raises:
        AssertionError: they do not agree.
    """
    generator = torch.Generator().manual_seed(0)
    cases = [entry.build(generator, device) for _ in range(sets or entry.sets)]
    case, first_call = cases[0], {}
    expected: Any = None
    # TF32, PyTorch's default for convolutions, has ten bits: answers agree without it, times are with it
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for number, (provider, run) in enumerate(case.providers.items()):
            start = time.perf_counter()
            answer = run()
            wait_for(device)
            first_call[provider] = time.perf_counter() - start
            if number == 0:
                expected = answer
                continue
            try:
                case.rules.get(provider, case.agree)(answer, expected)
            except AssertionError as error:
                raise AssertionError(
                    f"{name}: {provider} does not agree with {next(iter(case.providers))}: {error}"
                ) from None
    if "torchvision" not in case.providers and case.sample is not None:
        try:
            case.sample()
        except AssertionError as error:
            raise AssertionError(f"{name}: fastmask does not agree with the reference: {error}") from None
    return Checked(name, entry, device, cases, first_call)


def rounds_of(case: Checked, provider: str, budget: float) -> int:
    """As many as a budget of seconds has room for, judging by the first call; from 3 to the case's own number."""
    return max(3, min(case.entry.rounds, int(budget / max(case.first_call[provider], 1e-9))))


def turns(case: Checked, provider: str) -> Run:
    """The next set of inputs at each call -> what runs the provider on it to the end; caches are cold."""
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
    """Bytes that one call needs beyond what is there before it; None where the device does not say."""
    if case.device.type != "cuda":
        return None
    wait_for(case.device)
    torch.cuda.reset_peak_memory_stats(case.device)
    before = torch.cuda.memory_allocated(case.device)
    case.sets[0].providers[provider]()
    wait_for(case.device)
    return torch.cuda.max_memory_allocated(case.device) - before


def facts(case: Checked, provider: str) -> dict[str, Any]:
    """What stands beside each time."""
    first = case.sets[0]
    return {
        "provider": provider,
        "inputs": first.inputs,
        "least_bytes": first.least_bytes,
        "scales": case.entry.scales,
        "first_call": case.first_call[provider],
        "peak_memory": peak_memory(case, provider),
        "copy_bandwidth": copy_bandwidth(case.device),
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
    root = Path(__file__).resolve().parent.parent
    found["commit"] = None
    if (root / ".git").exists():
        commit, changed = (
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, check=False
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
        found["commit"] = commit[:12] + ("+" if changed else "")
    return found


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
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
