"""``pytest benchmarks --benchmark-only``: ops and a whole model beside torchvision's, on the same inputs, in one run.

Agreement is checked before anything is timed; a disagreement is an error, not a row.
"""

import functools
import platform
from pathlib import Path

import pytest
import torch
import torchvision
from pytest_benchmark.fixture import BenchmarkFixture

from fastmask.benchmarks.cases import CASES, Case


@functools.lru_cache(maxsize=1)
def checked_case(name: str, device: torch.device) -> Case:
    """The case on its inputs (always the same: seed 0), after both sides have run and agreed."""
    case = CASES[name](torch.Generator().manual_seed(0), device)
    case.agree(case.fastmask(), case.torchvision())
    return case


def name_of(device: torch.device) -> str:
    """The GPU's name, or the CPU's and the threads used of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


@pytest.mark.parametrize("provider", ["torchvision", "fastmask"])
@pytest.mark.parametrize("name", CASES)
def test_case(benchmark: BenchmarkFixture, pytestconfig: pytest.Config, name: str, provider: str) -> None:
    device = torch.device(pytestconfig.getoption("--device"))
    case = checked_case(name, device)
    run = getattr(case, provider)

    def run_on_device() -> None:
        run()
        torch.cuda.synchronize(device)

    benchmark.group = name
    benchmark.extra_info.update(
        provider=provider,
        inputs=case.inputs,
        device=name_of(device),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
    )
    benchmark.pedantic(run_on_device if device.type == "cuda" else run, rounds=case.rounds, warmup_rounds=2)
