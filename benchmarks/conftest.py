"""Where the benchmarks run, and which."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="of the benchmarks: cpu, cuda, cuda:1, ...")
    parser.addoption("--full", action="store_true", help="the whole matrix of the benchmarks, not the usual selection")
    parser.addoption("--quick", action="store_true", help="few rounds of the benchmarks, on one set of inputs")
