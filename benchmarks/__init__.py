"""What fastmask is measured with, installed as ``fastmask.benchmarks``: cases, pytest-benchmark suite, report."""
