"""``pytest benchmarks --benchmark-only``: ops and a whole model beside their baselines, on the same inputs, in one run.

Results are checked before anything is timed; a provider that does not match the baseline is an error, not a row.
"""

import functools

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastmask.benchmarks.cases import CASES
from fastmask.benchmarks.measure import count_rounds, describe_row, make_setup, prepare_case
from fastmask.benchmarks.runner import BUDGET, expected_providers

prepare_once = functools.lru_cache(maxsize=1)(prepare_case)  # for all rows of a case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each provider of each case."""
    option = metafunc.config.getoption
    device = torch.device(option("--device"))
    rows = [
        pytest.param(name, provider, id=f"{name}-{provider}")
        for name, spec in CASES.items()
        if spec.default or option("--full")
        for provider in expected_providers(spec, device)
    ]
    metafunc.parametrize(("name", "provider"), rows)


def test_case(benchmark: BenchmarkFixture, pytestconfig: pytest.Config, name: str, provider: str) -> None:
    quick = pytestconfig.getoption("--quick")
    sets = 0 if benchmark.disabled else 1 if quick else None
    case = prepare_once(name, CASES[name], torch.device(pytestconfig.getoption("--device")), sets)
    if provider in case.failed:
        pytest.fail(f"{name}: {provider} {case.failed[provider]}")
    if benchmark.disabled:  # only the check
        benchmark(lambda: None)
        return
    benchmark.group = name
    benchmark.extra_info.update(describe_row(case, provider))
    set_up = make_setup(case, provider)
    rounds = count_rounds(case, provider, BUDGET[quick])
    benchmark.pedantic(lambda run: run(), setup=lambda: ((set_up(),), {}), rounds=rounds)
