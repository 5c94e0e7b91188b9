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
def checked_case(name: str) -> Case:
    """The case on its inputs (always the same: seed 0), after both sides have run and agreed."""
    case = CASES[name](torch.Generator().manual_seed(0))
    case.agree(case.fastmask(), case.torchvision())
    return case


def processor() -> str:
    """The CPU's name and the threads used of it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


@pytest.mark.parametrize("provider", ["torchvision", "fastmask"])
@pytest.mark.parametrize("name", CASES)
def test_case(benchmark: BenchmarkFixture, name: str, provider: str) -> None:
    case = checked_case(name)
    benchmark.group = name
    benchmark.extra_info.update(
        provider=provider,
        inputs=case.inputs,
        device=processor(),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
    )
    benchmark.pedantic(getattr(case, provider), rounds=case.rounds, warmup_rounds=2)
