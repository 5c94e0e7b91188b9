"""Where the benchmarks run."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="of the benchmarks: cpu, cuda, cuda:1, ...")
