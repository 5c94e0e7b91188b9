"""benchmarks/run_gpu.sh writes one JSON a part, whatever the machine has."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
ONE = {"TESTS": "tests/kernels/test_paste.py", "SELECTION": "the_threshold_itself"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment.pop('PATH', os.environ['PATH'])}"
    return subprocess.run(
        ["bash", "benchmarks/run_gpu.sh", *arguments],
        cwd=ROOT,
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_tests(tmp_path: Path) -> None:
    done = run(str(tmp_path), "tests", **ONE)
    result = json.loads((tmp_path / "tests.json").read_text())
    assert result["tests"] == 1
    assert (result["status"] == 0) == (done.returncode == 0) == torch.cuda.is_available()
    assert len(result["failed"]) == (0 if torch.cuda.is_available() else 1)
    assert result["torch"] == torch.__version__


@pytest.mark.skipif(shutil.which("compute-sanitizer") is not None, reason="minutes on a GPU: the script's own part")
def test_sanitize_says_where_it_cannot(tmp_path: Path) -> None:
    assert run(str(tmp_path), "sanitize").returncode == 0
    assert json.loads((tmp_path / "sanitize.json").read_text()) == {"skipped": "compute-sanitizer is not installed"}


def test_sanitize_runs_both_tools(tmp_path: Path) -> None:
    """Under a stand-in for compute-sanitizer, which runs the command and nothing else."""
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "$2" >> "$0.log"\nshift 4\nexec "$@"\n')
    tool.chmod(0o755)
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    done = run(str(tmp_path), "sanitize", **ONE, PATH=path)
    result = json.loads((tmp_path / "sanitize.json").read_text())
    assert Path(f"{tool}.log").read_text().split() == list(result) == ["memcheck", "racecheck"]
    for part in result.values():
        assert part["tests"] == 1
        assert (part["status"] == 0) == (done.returncode == 0) == torch.cuda.is_available()
    assert [file.name for file in tmp_path.glob("*.json")] == ["sanitize.json"]


def test_wrong_arguments(tmp_path: Path) -> None:
    done = run(str(tmp_path), "fly")
    assert done.returncode == 2
    assert "the part must be tests, ops, model, train, timeline or sanitize, got fly" in done.stderr
    assert "usage: benchmarks/run_gpu.sh DIR" in run().stderr
