"""benchmarks/run_gpu.sh: links restored, parts interrupted at their limit, saved as they go, not run twice."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmask.benchmarks import gpu_parts
from fastmask.benchmarks.gpu_parts import PARTS, Part, Setting
from fastmask.cli import bench

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(root / "benchmarks" / "run_gpu.sh"), *arguments],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_tests(tmp_path: Path) -> None:
    """Two at a time with xdist; without a GPU each test that needs it fails, by name."""
    selection = {"TESTS": "tests/kernels/test_paste.py", "SELECTION": "the_threshold_itself"}
    done = run(str(tmp_path), "tests-kernels", **selection)
    result = json.loads((tmp_path / "tests.json").read_text())["tests-kernels"]
    assert result["tests"] == 1, done.stdout
    assert result["finished"]
    assert (result["status"] == 0) == (done.returncode == 0) == torch.cuda.is_available()
    assert [name.partition("::")[2] for name in result["failed"]] == (
        [] if torch.cuda.is_available() else ["test_the_threshold_itself[cuda]"]
    )
    assert result["torch"] == torch.__version__
    assert "test_the_threshold_itself[cuda]" in (tmp_path / "log.txt").read_text() or torch.cuda.is_available()


def test_wrong_arguments() -> None:
    done = run("somewhere", "fly")
    assert done.returncode == 2
    assert "the part must be one of selftest, tests-kernels, timeline, kernels, ops, model, tests" in done.stderr
    assert "got fly" in done.stderr
    assert "usage: benchmarks/run_gpu.sh" in run().stderr


def test_lost_links_are_restored(tmp_path: Path) -> None:
    """A copy of the checkout without its links, and a Python without site-packages."""
    for folder in ("fastmask", "kernels", "export", "benchmarks"):
        (tmp_path / folder).mkdir()
        shutil.copy(ROOT / folder / "__init__.py", tmp_path / folder)
    shutil.copy(ROOT / "fastmask" / "_version.py", tmp_path / "fastmask")
    for name in ("run_gpu.sh", "gpu_parts.py"):
        shutil.copy(ROOT / "benchmarks" / name, tmp_path / "benchmarks")
    python = tmp_path.parent / f"{tmp_path.name}-python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -B "$@"\n')
    python.chmod(0o755)
    environment = {"PYTHON": str(python), "PYTHONPATH": ""}
    done = run("--help", root=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("run_gpu.sh: fastmask/kernels, fastmask/benchmarks and fastmask/export were linked")
    assert run("--help", root=tmp_path, **environment).stdout.startswith("usage: ")
    (tmp_path / "export" / "__init__.py").unlink()
    done = run("--help", root=tmp_path, **environment)
    assert done.returncode == 2
    assert f"fastmask cannot be imported from {tmp_path}:" in done.stderr


def mock_part(name: str, code: str, limit: float = 30) -> Part:
    """A part of a few lines of Python, with its file as ``path``."""

    def command(setting: Setting, limit: float) -> list[str]:
        start = "import json, pathlib, sys, time\npath = pathlib.Path(sys.argv[1])\n"
        return [sys.executable, "-S", "-c", start + code, str(setting.folder / f"{name}.json")]

    return Part(f"{name}.json", limit, command)


GOOD = "path.write_text(json.dumps({'finished': True})); print('good was here')"
ROW = "path.write_text(json.dumps({'finished': True, 'no row': ['NMS: it is wrong']}))"
SLOW = """
path.write_text(json.dumps({"finished": False}))
try:
    time.sleep(60)
except KeyboardInterrupt:
    path.write_text(json.dumps({"finished": False, "left": 1}))
"""
STUBBORN = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Part]:
    parts = {"good": mock_part("good", GOOD), "row": mock_part("row", ROW), "slow": mock_part("slow", SLOW, 4)}
    monkeypatch.setattr(gpu_parts, "PARTS", parts)
    for name in ("LIMIT", "CALL", "DEVICE"):
        monkeypatch.delenv(name, raising=False)
    return parts


@pytest.mark.slow
def test_parts_are_interrupted_saved_and_not_run_twice(
    parts: dict[str, Part], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALL", "100")
    arguments = [str(tmp_path), "good", "row", "slow"]
    assert gpu_parts.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "good was here" in printed
    assert printed == (tmp_path / "log.txt").read_text()
    assert "row            0.0 min, finished, 1 without success" in printed
    assert "slow           0.1 min, interrupted" in printed
    assert json.loads((tmp_path / "slow.json").read_text())["left"] == 1  # interrupted in time to save its results
    parts["slow"] = mock_part("slow", "assert path.exists();" + GOOD)
    assert gpu_parts.main(arguments) == 1
    printed = capsys.readouterr().out
    assert "good           finished before\nrow            finished before, 1 without success\nslow " in printed
    assert "slow           0.0 min, finished" in printed
    parts["row"] = mock_part("row", "assert not path.exists();" + GOOD)
    assert gpu_parts.main([*arguments, "--again"]) == 1  # slow's is gone as well
    assert "row            0.0 min, finished\n" in capsys.readouterr().out


@pytest.mark.slow
def test_no_part_outlasts_the_call(
    parts: dict[str, Part], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that ignores interrupts, nor its children."""
    monkeypatch.setenv("CALL", "1")
    monkeypatch.setattr(gpu_parts, "MIN_SECONDS", 0.5)
    monkeypatch.setattr(gpu_parts, "GRACE", 2)
    parts["deaf"] = mock_part("deaf", STUBBORN, 100)
    start = time.monotonic()
    assert gpu_parts.main([str(tmp_path), "deaf", "good"]) == 1
    assert time.monotonic() - start < 20
    printed = capsys.readouterr().out
    assert "deaf, at most 1 seconds" in printed
    assert "good           not begun: 0 seconds are left; call again" in printed


def setting_of(folder: Path, **environment: str) -> Setting:
    return Setting(folder, "cpu", False, False, environment)


def test_every_command_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options exist; all parts together leave eight files, the log among them."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    for name, part in PARTS.items():
        command = part.command(setting_of(tmp_path), 10)
        if "bench" in command:
            args = parser.parse_args(command[4:])
            assert args.json == tmp_path / part.file
            assert args.limit == 8
        elif "pytest" in command:
            assert (command[0] == "compute-sanitizer") == (name in gpu_parts.TOOLS)
            assert all((ROOT / word).exists() for word in command if word.startswith("tests"))
    usual = {part.file for name, part in PARTS.items() if name not in gpu_parts.ON_REQUEST}
    assert len(usual | {"log.txt"}) <= 8
    assert list(PARTS)[:5] == ["selftest", "tests-kernels", "timeline", "kernels", "ops"]


REPORT = """<testsuites><testsuite errors="0" failures="1" skipped="2" tests="9" time="3.5">
<testcase classname="tests.test_nms" name="test_ties[cuda]"><failure message="assert 1 == 2">trace</failure></testcase>
<testcase classname="tests.test_nms" name="test_other[cuda]"/></testsuite></testsuites>"""


def test_saved_sections_of_tests(tmp_path: Path) -> None:
    """One section per part; a crash is distinguished from failures."""
    setting = setting_of(tmp_path)
    for name, status, text in (("memcheck", 9, REPORT), ("initcheck", -11, None)):
        command = PARTS[name].command(setting, 10)
        (report,) = (Path(word.partition("=")[2]) for word in command if word.startswith("--junitxml="))
        if text is not None:
            report.write_text(text)
        PARTS[name].finish(setting, status)
        assert not report.exists()
    result: dict[str, Any] = json.loads((tmp_path / "tests.json").read_text())
    assert result["memcheck"]["failed"] == {"tests.test_nms::test_ties[cuda]": "assert 1 == 2"}
    assert (result["memcheck"]["tests"], result["memcheck"]["finished"]) == (9, True)
    assert (result["initcheck"]["crashed"], result["initcheck"]["finished"]) == (True, False)
    assert gpu_parts.read_outcome(PARTS["memcheck"], setting) == (True, ", 1 without success")
    assert gpu_parts.read_outcome(PARTS["initcheck"], setting) == (False, "")
    if shutil.which("compute-sanitizer") is None:
        assert gpu_parts.main([str(tmp_path), "racecheck"]) == 0
        result = json.loads((tmp_path / "tests.json").read_text())
        assert result["racecheck"] == {"skipped": "compute-sanitizer is not installed", "finished": True}
        assert "memcheck" in result
