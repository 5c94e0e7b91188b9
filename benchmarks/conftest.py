"""Options of the benchmarks: device and cases."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="of the benchmarks: cpu, cuda, cuda:1, ...")
    parser.addoption("--full", action="store_true", help="all cases of the benchmarks, not only the default ones")
    parser.addoption("--quick", action="store_true", help="few rounds of the benchmarks, on one set of inputs")
