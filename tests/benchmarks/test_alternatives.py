"""benchmarks/alternatives.py: constants that exist are in force where they are tried; a wrong result has no time."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmask.benchmarks import alternatives
from fastmask.benchmarks.alternatives import Alternatives, Run
from fastmask.kernels.launch import HAS_TRITON

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="without Triton there are no kernels")


@pytest.mark.parametrize("name", alternatives.CASES)
def test_choices_are_of_constants_and_no_defaults(name: str) -> None:
    case = alternatives.CASES[name]
    module = importlib.import_module(f"fastmask.kernels.{case.module}")
    for choice in case.choices:
        assert any(getattr(module, constant) != value for constant, value in choice.items())


@pytest.mark.parametrize("name", alternatives.CASES)
def test_every_case_can_be_built(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small image and a CPU, where no constant of a kernel matters: the first choice stands for all."""
    monkeypatch.setattr(alternatives, "PADDED_SIZE", (64, 96))
    monkeypatch.setattr(alternatives, "IMAGE_SIZE", (60, 90))
    case = alternatives.CASES[name]
    case = case._replace(choices=case.choices[:1])
    assert list(alternatives.try_case(case, 1, torch.device("cpu"), lambda run: 1e-6).values()) == [1.0, 1.0]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from fastmask.kernels.triton import top_anchors as module

    before = module.CHUNK

    def build(batch: int, device: torch.device) -> Run:
        def run() -> torch.Tensor:
            if module.CHUNK == 3:
                raise RuntimeError("too much shared memory")
            return torch.full((4,), 2.0 if module.CHUNK != 2 else 3.0)

        return run

    def broken(batch: int, device: torch.device) -> Run:
        raise RuntimeError("no memory")

    choices = tuple({"CHUNK": value} for value in (1, 2, 3))
    cases: dict[str, Any] = {
        "one": Alternatives("triton.top_anchors", build, choices),
        "broken": Alternatives("triton.top_anchors", broken, choices),
        "other": Alternatives("triton.top_anchors", build, choices),
    }
    monkeypatch.setattr(alternatives, "CASES", cases)
    arguments = [str(tmp_path / "a.json"), "--device", "cpu", "--batch", "1", "--only", "one|broken"]
    assert alternatives.main(arguments, lambda run: 1e-6 * module.CHUNK) == 1  # of the broken one
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["finished"]
    times = content["one, batch 1"]
    assert (times["default"], times["CHUNK 1"]) == (before, 1.0)
    assert times["CHUNK 2"].startswith("does not match: Tensor-likes are not close!")
    assert times["CHUNK 3"] == "fails: RuntimeError: too much shared memory"
    assert content["broken, batch 1"] == {"default": "fails: RuntimeError: no memory"}
    assert "other, batch 1" not in content
    assert before == module.CHUNK
    assert "CHUNK 2" in capsys.readouterr().out
    assert alternatives.main([*arguments[:-1], "one"], lambda run: 1e-6) == 0
