"""Timeline and kernel times: every stage is timed, and the times so far are saved."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.slim import slim_pair

import fastmask
from fastmask.benchmarks import kernel_times, stages, timeline
from fastmask.benchmarks.kernel_times import Span
from fastmask.models.prepare import choose_fuse


def test_timeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On the slim model."""
    model = slim_pair()[1]
    monkeypatch.setattr(timeline, "calibrated_model", lambda *_: model)
    monkeypatch.setattr(timeline, "PADDED_SIZE", (128, 160))
    monkeypatch.setattr(timeline, "IMAGE_SIZE", (120, 150))
    assert timeline.main([str(tmp_path / "time.json"), "--rounds", "2"]) == 0
    times = json.loads((tmp_path / "time.json").read_text())["milliseconds"]
    assert next(iter(times["stages"])) == "backbone"
    assert len(times["stages"]) == 10
    assert all(value > 0 for part in times.values() for value in part.values())
    if importlib.util.find_spec("matplotlib") is not None:
        assert (tmp_path / "time.png").stat().st_size > 1000
    assert "| RoIAlign 14 x 14 |" in capsys.readouterr().out
    command = [str(tmp_path / "two.json"), "--rounds", "1", "--dtype", "float64", "float32", "--no-plot"]
    monkeypatch.setattr(timeline, "build_selections", lambda device: {})
    monkeypatch.setattr(timeline, "build_calls", interrupt)
    with pytest.raises(KeyboardInterrupt):  # once in each type's choices
        timeline.main(command)
    left = json.loads((tmp_path / "two.json").read_text())
    assert list(left) == ["float64"]
    assert not left["float64"]["finished"]
    assert left["float64"]["milliseconds"]["stages"].keys() == times["stages"].keys()
    monkeypatch.setattr(timeline, "build_calls", lambda *_: {})
    assert timeline.main(command) == 0
    left = json.loads((tmp_path / "two.json").read_text())
    assert [result["finished"] for result in left.values()] == [True, True]
    assert not (tmp_path / "two-float64.png").exists()


def test_kernel_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On the slim model and a CPU: operations in order, and their sums by name."""
    model = slim_pair()[1]
    monkeypatch.setattr(kernel_times, "calibrated_model", lambda *_: model)
    monkeypatch.setattr(kernel_times, "PADDED_SIZE", (128, 160))
    monkeypatch.setattr(kernel_times, "IMAGE_SIZE", (120, 150))
    monkeypatch.setattr(kernel_times, "CALLS", 2)
    path = tmp_path / "kernels.json"
    assert kernel_times.main([str(path), "--device", "cpu", "--batch", "1", "--fuse", "auto", "kernel"]) == 0
    content = json.loads(path.read_text())
    assert content["finished"]
    own = choose_fuse(torch.device("cpu"), torch.bfloat16)
    for form in (own, "kernel"):
        part = content[f"batch 1, bfloat16, {form}"]
        starts = [start for _, start, _ in part["in order"]]
        assert starts == sorted(starts)
        assert starts[0] == 0
        assert sum(calls for name, (calls, *_) in part["by name"].items() if "convolution" in name) >= 10
        assert f"batch 1, {form}: " in capsys.readouterr().out or form == "kernel"
    assert "fastmask::bias_act_" in content["batch 1, bfloat16, kernel"]["by name"]


def test_sums_of_kernels() -> None:
    calls = [[Span("a", 0, 3), Span("b", 4, 5), Span("a", 5, 6)], [Span("a", 0, 4), Span("b", 4, 6), Span("a", 6, 8)]]
    summary = kernel_times.summarize(calls)
    assert summary["by name"] == {"a": [2, 5.0], "b": [1, 1.5]}
    assert (summary["kernels a call"], summary["busy"], summary["from first to last"]) == (3, 6.5, 7.0)


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("trim", [False, True])
def test_stages_match_the_program(trim: bool) -> None:
    model = fastmask.models.prepare.prepare_for_inference(slim_pair()[1], torch.float32)
    program = fastmask.inference.program.Program(model, "rle", 0.5, 2048, trim=trim)
    sizes = torch.tensor([[120, 150]])
    inputs = fastmask.inference.program.Inputs(torch.randn(1, 3, 128, 160), sizes, sizes.clone())
    with torch.no_grad():
        outputs: dict[str, Any] = {}
        for stage in stages.build_stages(program, inputs, outputs).values():
            stage()
        assert torch.equal(outputs["packed"].data, program(inputs).data)
