"""``pytest benchmarks --benchmark-only``: ops and a whole model beside their baselines, on the same inputs, in one run.

Agreement is checked before anything is timed; a provider that disagrees is an error, not a row.
"""

import functools

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastmask.benchmarks.cases import CASES
from fastmask.benchmarks.measure import Checked, checked, facts, rounds_of, turns

BUDGET = {"quick": 1.0, "whole": 20.0}  # seconds of a row's rounds, three of which there are in any case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One row a provider of each chosen case."""
    option = metafunc.config.getoption
    on_cuda = torch.device(option("--device")).type == "cuda"
    rows = [
        pytest.param(name, provider, id=f"{name}-{provider}")
        for name, entry in CASES.items()
        if entry.chosen or option("--full")
        for provider in (*entry.providers, *(entry.on_cuda if on_cuda else ()))
    ]
    metafunc.parametrize(("name", "provider"), rows)


@functools.lru_cache(maxsize=1)
def checked_case(name: str, device: torch.device, sets: int | None) -> Checked:
    """Kept for all rows of a case."""
    return checked(name, CASES[name], device, sets)


def test_case(benchmark: BenchmarkFixture, pytestconfig: pytest.Config, name: str, provider: str) -> None:
    quick = pytestconfig.getoption("--quick")
    sets = 0 if benchmark.disabled else 1 if quick else None
    case = checked_case(name, torch.device(pytestconfig.getoption("--device")), sets)
    if provider in case.failed:
        pytest.fail(f"{name}: {provider} {case.failed[provider]}")
    if benchmark.disabled:  # the agreement alone
        benchmark(lambda: None)
        return
    benchmark.group = name
    benchmark.extra_info.update(facts(case, provider))
    prepared = turns(case, provider)
    rounds = rounds_of(case, provider, BUDGET["quick" if quick else "whole"])
    benchmark.pedantic(lambda run: run(), setup=lambda: ((prepared(),), {}), rounds=rounds)
