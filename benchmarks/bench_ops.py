"""``pytest benchmarks --benchmark-only``: ops and a whole model beside torchvision's, on the same inputs, in one run.

Agreement is checked before anything is timed; a disagreement is an error, not a row.
"""

import functools
import platform
import time
from pathlib import Path

import pytest
import torch
import torchvision
from pytest_benchmark.fixture import BenchmarkFixture

from fastmask.benchmarks.cases import CASES, Case


@functools.lru_cache(maxsize=1)
def checked_case(name: str, device: torch.device) -> tuple[Case, dict[str, float]]:
    """The case on its inputs (always the same: seed 0) after both sides have run and agreed; seconds of these runs."""
    case = CASES[name](torch.Generator().manual_seed(0), device)
    answers, seconds = [], {}
    # TF32, PyTorch's default for convolutions, has ten bits: answers agree without it, times are with it
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for provider in ("fastmask", "torchvision"):
            wait_for(device)
            start = time.perf_counter()
            answers.append(getattr(case, provider)())
            wait_for(device)
            seconds[provider] = time.perf_counter() - start
    case.agree(*answers)
    return case, seconds


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


@pytest.mark.parametrize("provider", ["torchvision", "fastmask"])
@pytest.mark.parametrize("name", CASES)
def test_case(benchmark: BenchmarkFixture, pytestconfig: pytest.Config, name: str, provider: str) -> None:
    device = torch.device(pytestconfig.getoption("--device"))
    case, first_call = checked_case(name, device)
    run = getattr(case, provider)

    def run_to_the_end() -> None:
        run()
        wait_for(device)

    benchmark.group = name
    benchmark.extra_info.update(
        provider=provider,
        inputs=case.inputs,
        least_bytes=case.least_bytes,
        first_call=first_call[provider],
        copy_bandwidth=copy_bandwidth(device),
        device=name_of(device),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
    )
    benchmark.pedantic(run_to_the_end, rounds=case.rounds, warmup_rounds=2)
