"""Mutated files end in problems or a ValueError, never in a traceback, a hang or gigabytes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import fuzz_readers

from fastmask import data

pytest.importorskip("pycocotools.mask", reason="it rasterizes")
MEMORY = Path("/dev/shm")  # thousands of small files take a minute on a disk


@pytest.mark.parametrize("number", [500, pytest.param(4000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("format", data.FORMATS)
def test_mutated_files(format: str, number: int, seed: int) -> None:
    """So many of a format, in a process with limits of its own."""
    command = [sys.executable, "-W", "ignore::UserWarning", "-W", "error::RuntimeWarning", fuzz_readers.__file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        command += [format, str(number), str(seed), folder]
        process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]
