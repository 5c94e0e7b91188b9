"""``fastmask tune``: its arguments and table; how other commands show tuned values; a real GPU."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.slim import slim_pair

from fastmask import cli
from fastmask.benchmarks import measure, results_io, tune
from fastmask.benchmarks.tune import Outcome, Trial
from fastmask.benchmarks.tune_cases import Shapes
from fastmask.kernels import launch, tuning
from fastmask.kernels.knobs import KNOBS, Knob


@pytest.fixture(autouse=True)
def _evict(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    for name in ("_tables", "_files"):
        monkeypatch.setattr(tuning, name, {})


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its arguments and output, on a mocked GPU with a mocked result."""
    assert cli.main(["tune", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == [*KNOBS]
    assert "roi_align_backward.tile  (4, 8), (4, 4), (2, 8)" in printed
    for arguments, message in (
        (["--device", "cpu"], "there is nothing to tune on cpu: a CUDA or ROCm GPU is needed"),
        (["--only", "flying"], "--only must match a knob's name, got 'flying'"),
        (["--only", "("], ""),
        (["--size", "100", "160"], "--size must be multiples of 32"),
        (["--batch", "0"], "--batch at least 1"),
    ):
        assert cli.main(["tune", *arguments]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr("fastmask.cli.tune.find_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    calls: list[Any] = []

    def mocked_tune(
        knobs: Sequence[Knob], device: torch.device, shapes: Shapes, path: Path, limit: float
    ) -> list[Outcome]:
        calls.extend([[knob.name for knob in knobs], device, shapes.size, path, limit])
        quartiles = {"one": ((9e-6, 10e-6, 11e-6), (6e-6, 7e-6, 8e-6))}
        return [
            Outcome("paste.programs", 4096, [Trial(8192, quartiles, "")], Trial(8192, quartiles, "")),
            Outcome("paste.lines", 8, [Trial(4, quartiles, "not faster")], None, error),
        ]

    monkeypatch.setattr(tune, "tune", mocked_tune)
    for error in ("", "it failed"):
        command = ["tune", "--only", "paste", "--minutes", "2", "--output", str(tmp_path / "tuning.json")]
        assert cli.main(command) == bool(error)
        printed = capsys.readouterr().out
        assert "paste.programs  4096     8192  10 -> 7" in printed
        assert printed.endswith(f"{tmp_path}/tuning.json, which FASTMASK_TUNING={tmp_path}/tuning.json would use\n")
    names = [name for name in KNOBS if name.startswith("paste")]
    assert calls[:5] == [names, torch.device("cuda", 0), (800, 1344), tmp_path / "tuning.json", 120]


def test_there_is_nothing_to_tune_without_kernels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "SWITCHED_OFF", frozenset(launch.OPS))
    assert cli.main(["tune"]) == 2
    assert "nothing to tune, as ops take eager PyTorch for all ops (FASTMASK_KERNELS)" in capsys.readouterr().err


def test_env_and_bench_show_tuned_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tuning.json"

    def lines() -> Iterator[str]:
        tuning._tables.clear(), tuning._files.clear()
        cli.main(["env"])
        return (line for line in capsys.readouterr().out.splitlines() if line.startswith("tuning "))

    assert [*lines()] == ["tuning         cpu: defaults: FASTMASK_TUNING is off"]
    tune.save_outcome(path, "cpu", Outcome("paste.programs", 4096, [], Trial(16384, {}, "")), Shapes())
    monkeypatch.setenv("FASTMASK_TUNING", str(path))
    assert [*lines()] == [f"tuning         cpu: paste.programs 16384, from {path}"]
    monkeypatch.delenv("FASTMASK_TUNING")
    assert [*lines()] == ["tuning         cpu: defaults: only GPUs are tuned"]
    monkeypatch.setenv("FASTMASK_TUNING", str(path))
    tuning._tables.clear()
    results = tmp_path / "results.json"
    monkeypatch.setattr(measure, "copy_bandwidth", lambda device: 1e9)  # seconds
    assert cli.main(["bench", "--quick", "--only", "NMS, 1k", "--device", "cpu", "--json", str(results)]) == 0
    assert ", paste.programs 16384. " in capsys.readouterr().out
    (row, *_) = json.loads(results.read_text())["benchmarks"]
    assert row["extra_info"]["tuned"] == {"paste.programs": 16384}
    assert results_io.tuned_values({}) == ""


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Real times, of a knob that compiles and of one that does not; the file can be read."""
    path = tmp_path / "tuning.json"
    command = ["tune", "--only", "paste", "--size", "256", "320", "--output", str(path)]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "paste.programs" in printed
    assert "does not match" not in printed
    assert "fails" not in printed
    device = torch.device("cuda", torch.cuda.current_device())
    values, problems = tuning.read_values(path, tuning.name_of(device))
    assert problems == []
    assert values.keys() <= {"paste.programs", "paste.lines"}
    measured = json.loads(path.read_text())["measured"]
    assert {len(measured[name]["trials"]) for name in ("paste.programs", "paste.lines")} == {2, 3}
    monkeypatch.setenv("FASTMASK_TUNING", str(path))
    tuning._tables.clear()
    assert tuning.values_on(device) == values


@pytest.mark.gpu
def test_a_predictors_calls_are_timed_on_a_gpu(tmp_path: Path) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    model = slim_pair()[1].to(device)
    shapes = Shapes((128, 160), 1, torch.float32, lambda: model)
    (outcome,) = tune.tune([KNOBS["predictor.mask_buckets"]], device, shapes, tmp_path / "tuning.json")
    (trial,) = outcome.trials
    assert outcome.error == ""
    assert not trial.rejected.startswith(("fails", "does not match")), trial.rejected
    assert all(choice[1] > 0 for _, choice in trial.seconds.values())
