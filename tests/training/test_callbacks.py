"""Callbacks and a user's transform in a run: their calls, resumed runs, what they raise."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.slim import slim_model
from torch import Tensor

import fastmask
from fastmask.cli import main
from fastmask.data.user_transform import TransformError
from fastmask.demo import synthetic_dataset
from fastmask.training import Callback, TrainConfig, TrainResult, train

SMALL = {"rpn_post_nms_top_n_train": 100, "box_batch_size_per_image": 32, "rpn_batch_size_per_image": 64}


class Recorder(Callback):
    """Writes down all calls; raises at a step, if one is given."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: dict[int, Mapping[str, float]] = {}
        self.epochs: list[tuple[int, int, Mapping[str, float]]] = []
        self.stop_at = stop_at

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        if step == self.stop_at:
            raise KeyError("enough")
        self.steps[step] = values

    def on_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        self.epochs.append((epoch, step, metrics))


class OnlySteps(Callback):
    """Its other method does nothing."""

    def __init__(self) -> None:
        self.number = 0

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        self.number += 1


def invert(image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Half of the images."""
    return (255 - image if torch.rand(()) < 0.5 else image), target


def run(folder: Path, seed: int, evaluated: bool = False, **how: Any) -> TrainResult:
    torch.manual_seed(seed)
    config = TrainConfig(2, optimizer="adamw", seed=seed, workers=0, min_size=(64,), max_size=96)
    data, val = synthetic_dataset(4, seed, (64, 80)), synthetic_dataset(2, seed + 1, (64, 80))
    data, val = (each._replace(categories={**each.categories, "other": 4}) for each in (data, val))
    model = slim_model(fastmask, **SMALL)
    return train(model, data, folder, config, val=val if evaluated else None, progress=False, **how)


def test_calls(tmp_path: Path, seed: int) -> None:
    """They have what the run's files have; a run that a callback ended goes on where it was, bitwise."""
    seen, few = Recorder(), OnlySteps()
    result = run(tmp_path / "whole", seed, True, callbacks=(seen, few), transform=invert)
    assert (sorted(seen.steps), few.number) == ([0, 1, 2, 3], 4)
    head, *rows = [line.split(",") for line in (tmp_path / "whole" / "steps.csv").read_text().splitlines()]
    for row in rows:
        values = dict(zip(head, map(float, row), strict=True))
        step = int(values.pop("step"))
        assert seen.steps[step] == {name: values[name] for name in values if name not in ("epoch", "batch")}
    assert [call[:2] for call in seen.epochs] == [(1, 1), (2, 3)]
    for (_, _, metrics), entry in zip(seen.epochs, result.epochs, strict=True):
        assert (metrics["loss"], metrics["lr"]) == (entry["loss"], entry["lr"])
        assert [metrics["mask/ap50"], metrics["box/ar_large"]] == [entry["mask"][1], entry["box"][11]]
        assert len(metrics) == 2 + 12 + 12
    with pytest.raises(KeyError, match="enough"):
        run(tmp_path / "stopped", seed, callbacks=[Recorder(stop_at=2)], transform=invert)
    with pytest.raises(
        ValueError, match=r"of the same run to be resumed, got transform .*test_callbacks.invert \(now None"
    ):
        run(tmp_path / "stopped", seed, resume=True)
    again = Recorder()
    run(tmp_path / "stopped", seed, callbacks=[again], transform=invert, resume=True)
    assert again.steps == {step: seen.steps[step] for step in (2, 3)}
    assert [call[:2] for call in again.epochs] == [(2, 3)]
    assert again.epochs[0][2] == {name: seen.epochs[1][2][name] for name in ("loss", "lr")}


def test_what_is_refused(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, name in (([print], "builtin_function_or_method"), ([Recorder], "Recorder")):
        with pytest.raises(ValueError, match=f"callbacks must be objects with on_step and on_epoch, got {name}"):
            run(tmp_path / "wrong", seed, callbacks=wrong)
    with pytest.raises(TransformError, match="transform must return an image and a target, got NoneType"):
        run(tmp_path / "none", seed, transform=lambda image, target: None)
    settings = tmp_path / "none" / "settings.json"
    assert json.loads(settings.read_text())["transform"].endswith("<lambda>")
    assert main(["train", "--config", str(settings), "--out", str(tmp_path / "other")]) == 2
    assert "a function of Python: fastmask.training.train takes it" in capsys.readouterr().err
