"""Whole runs: taken up where they were interrupted, killed while they write, on two ranks, and what they leave."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from helpers.slim import slim_model
from PIL import Image
from torch import nn

import fastmask
from fastmask.data.augment import Augmentation
from fastmask.data.loading import training_loader
from fastmask.demo import synthetic_dataset
from fastmask.models import load_checkpoint
from fastmask.training import DivergedError, Run, Settings, checkpoints

SMALL = {"rpn_post_nms_top_n_train": 100, "box_batch_size_per_image": 32, "rpn_batch_size_per_image": 64}
NAMES = ["__background__", "ellipse", "triangle", "quadrilateral", "grain"]


def made(folder: Path, seed: int, resume: bool = False, valid: bool = False, **options: Any) -> Run:
    """Six synthetic images, two at once: three steps an epoch."""
    torch.manual_seed(seed)
    model = slim_model(fastmask, "BatchNorm2d", **SMALL)
    folder.mkdir(exist_ok=True)
    settings = Settings(**{"epochs": 3, "batch": 2, "optimizer": "adamw", "average": 0.9, "seed": seed, **options})
    augmentation = Augmentation(zoom=(0.5, 1.5), canvas=(96, 96), color=0.3, paste=0.3)
    loader = training_loader(synthetic_dataset(6, seed, (96, 128)), 2, augmentation, seed=seed)
    held_out = synthetic_dataset(2, seed + 1, (96, 128)) if valid else None
    return Run(model, loader, settings, folder, NAMES, held_out, resume=resume, progress=False)


def rows(folder: Path) -> list[list[str]]:
    with open(folder / "steps.csv", newline="") as file:
        return list(csv.reader(file))


class InterruptedRunError(Exception):
    pass


def interrupt_at(run: Run, step: int) -> None:
    """Raise where a step would be made, as a kill in the middle of an epoch."""
    stepped = run._stepped

    def stopped(batch: object, rate: float, number: int) -> object:
        if number == step:
            raise InterruptedRunError
        return stepped(batch, rate, number)

    run._stepped = stopped


@pytest.mark.parametrize("save", [0, 1], ids=["saved at epochs", "saved at each step"])
def test_a_run_that_is_taken_up_is_the_same(save: int, tmp_path: Path, seed: int) -> None:
    """Losses, weights and averages, bit by bit."""
    whole = made(tmp_path / "whole", seed, save=save)
    whole.finish()
    for step in (4, 7):
        run = made(tmp_path / "parts", seed, resume=True, save=save)
        interrupt_at(run, step)
        with pytest.raises(InterruptedRunError):
            run.finish()
    last = made(tmp_path / "parts", seed, resume=True, save=save)
    assert (last.epoch, last.batch) == ((2, 1) if save else (2, 0))
    last.finish()
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert len(rows(tmp_path / "whole")) == 10
    for name in ("last.pth", "best.pth"):
        one, other = (torch.load(tmp_path / folder / name) for folder in ("whole", "parts"))
        for key, value in one["model"].items():
            assert torch.equal(value, other["model"][key]), key
    again = made(tmp_path / "parts", seed, resume=True, save=save)
    again.finish()  # there is nothing left
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


def test_a_kill_while_a_checkpoint_is_written(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save({"model": {}, "optimizer": {}, "epoch": 1, "batch": 0}, tmp_path / "last.pth")
    before = (tmp_path / "last.pth").read_bytes()

    def torn(content: object, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save({"model": {}}, tmp_path / "last.pth")
    assert (tmp_path / "last.pth").read_bytes() == before
    assert checkpoints.load(tmp_path / "last.pth")["epoch"] == 1
    (tmp_path / "torn.pth").write_bytes(before[:-30])
    with pytest.raises(ValueError, match=r"torn.pth cannot be read as a checkpoint"):
        checkpoints.load(tmp_path / "torn.pth")


def test_checkpoints_of_something_else(tmp_path: Path, seed: int) -> None:
    torch.save({"model": {}}, tmp_path / "last.pth")
    with pytest.raises(ValueError, match=r"last.pth must be a checkpoint of fastmask train, got another file"):
        made(tmp_path, seed, resume=True)
    made(tmp_path, seed, epochs=1).finish()
    with pytest.raises(ValueError, match=r"must be of the same run to be taken up, got epochs 1 \(now 2\)"):
        made(tmp_path, seed, resume=True, epochs=2)
    made(tmp_path, seed, resume=True, epochs=1, workers=0, save=7)  # which change nothing


def test_what_a_run_leaves(tmp_path: Path, seed: int) -> None:
    made(tmp_path, seed, valid=True, epochs=2).finish()
    epochs = json.loads((tmp_path / "epochs.json").read_text())
    assert [one["epoch"] for one in epochs] == [0, 1]
    steps = [dict(zip(rows(tmp_path)[0], row, strict=True)) for row in rows(tmp_path)[1:]]
    for number, one in enumerate(epochs):
        own = [float(row["loss"]) for row in steps if row["epoch"] == str(number)]
        assert one["loss"] == pytest.approx(sum(own) / 3)
        assert one["rate"] == float(steps[3 * number + 2]["rate"])
    for file, kind in (("det_results.txt", "box"), ("seg_results.txt", "mask")):
        lines = (tmp_path / file).read_text().splitlines()
        assert len(lines) == 2
        numbers = [float(word) for word in lines[1].removeprefix("epoch:1 ").split()]
        assert numbers == pytest.approx([*epochs[1][kind], epochs[1]["loss"], epochs[1]["rate"]], abs=1e-4)
    best = torch.load(tmp_path / "best.pth")
    assert best["categories"] == NAMES
    for library in (torchvision, fastmask):
        slim_model(library, "BatchNorm2d").load_state_dict(best["model"])
    load_checkpoint(slim_model(fastmask, "BatchNorm2d"), tmp_path / "last.pth")
    pytest.importorskip("matplotlib")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 600


class Poisoned(nn.Module):
    """A learner that fails at one step."""

    def __init__(self, learner: nn.Module, step: int) -> None:
        super().__init__()
        self.learner, self.calls, self.step = learner, 0, step

    def forward(self, *batch: Any) -> dict[str, torch.Tensor]:
        losses = self.learner(*batch)
        self.calls += 1
        return losses | {"loss_mask": losses["loss_mask"] / (self.calls != self.step)}


class Broken(nn.Module):
    """A learner with NaN in its norms at its first step, and so in all that follows."""

    def __init__(self, learner: nn.Module) -> None:
        super().__init__()
        self.learner, self.calls = learner, 0

    def forward(self, pixels: torch.Tensor, *batch: Any) -> dict[str, torch.Tensor]:
        model = self.learner.model
        self.calls += 1
        hook = model.backbone.body.conv1.register_forward_hook(lambda module, seen, out: out * float("nan"))
        if self.calls > 1:
            hook.remove()
        losses = self.learner(pixels, *batch)
        hook.remove()
        return losses


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_first_step_that_is_skipped(optimizer: str, tmp_path: Path, seed: int) -> None:
    """Nothing of it stays: no momentum, no statistics, nothing in the average."""
    run = made(tmp_path, seed, nan="skip", epochs=1, optimizer=optimizer, rate=1e-3)
    run.step.learner = Broken(run.step.learner)
    run.finish()
    for name in ("last.pth", "best.pth"):
        for value in torch.load(tmp_path / name)["model"].values():
            assert value.isfinite().all()
    for state in run.step.optimizer.state.values():
        assert all(value.isfinite().all() for value in state.values())


def test_validation_is_looked_at_first(tmp_path: Path, seed: int) -> None:
    """Before an epoch is spent; and what fails while it is evaluated loses no training."""
    torch.manual_seed(seed)
    run = made(tmp_path, seed, valid=True, epochs=1)
    other = synthetic_dataset(2, seed)._replace(categories={"cat": 1})
    with pytest.raises(ValueError, match=r"names must have one of the dataset's categories \(cat"):
        Run(run.model, run.loader, run.settings, tmp_path, NAMES, other, progress=False)

    def failing() -> None:
        raise InterruptedRunError

    run._evaluated = failing
    with pytest.raises(InterruptedRunError):
        run.finish()
    again = made(tmp_path, seed, valid=True, epochs=1, resume=True)
    assert (again.epoch, again.batch) == (0, 3)
    again.finish()
    assert len(rows(tmp_path)) == 4
    assert "mask" in json.loads((tmp_path / "epochs.json").read_text())[0]


def test_gradients_that_are_not_finite(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The images are named; the run stops, or goes on."""
    run = made(tmp_path / "stop", seed)
    run.step.learner = Poisoned(run.step.learner, 2)
    with pytest.raises(DivergedError, match=r"a gradient is not finite at step 1 .* with 00000\d.png, 00000\d.png:"):
        run.finish()
    assert all(value.isfinite().all() for value in run.model.state_dict().values())
    run = made(tmp_path / "skip", seed, nan="skip", epochs=1)
    run.step.learner = Poisoned(run.step.learner, 2)
    run.finish()
    assert "skipped: a gradient is not finite at step 1" in capsys.readouterr().out
    assert all(value.isfinite().all() for value in run.model.state_dict().values())
    assert len(rows(tmp_path / "skip")) == 4
    (epoch,) = json.loads((tmp_path / "skip" / "epochs.json").read_text())
    assert 0 < epoch["loss"] < 100


def test_too_little_memory_says_what_to_lower(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path, seed)

    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    monkeypatch.setattr(run.step, "learner", full)
    with pytest.raises(MemoryError, match=r"images \[2, 3, 96, 96\] with up to \d+ objects need more memory than cpu"):
        run.finish()


def program(name: str) -> str:
    return str(Path(__file__).parent.parent / "helpers" / name)


def environment() -> dict[str, str]:
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    tests = str(Path(__file__).parent.parent)
    return os.environ | {"PATH": paths, "OMP_NUM_THREADS": "1", "PYTHONPATH": tests}


def test_two_ranks_give_the_gradients_of_one(tmp_path: Path, seed: int) -> None:
    """float64, gloo; images with other numbers of objects on each rank."""
    found = {}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    for name, launcher in (("one", [sys.executable]), ("two", torchrun)):
        command = [*launcher, program("gradients.py"), str(tmp_path / name), str(seed)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        found[name] = torch.load(tmp_path / name)
    one, two = found.values()
    assert sorted(one["records"]) == sorted(two["records"]) == [0, 1, 2, 3]
    assert one["losses"] == pytest.approx(two["losses"], abs=1e-9)
    assert one["gradients"].keys() == two["gradients"].keys()
    assert len(one["gradients"]) > 30
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=0, atol=1e-6)


def test_killed_and_taken_up(tmp_path: Path, seed: int) -> None:
    """The command, killed by the system in the middle of an epoch."""
    from fastmask.demo import save_synthetic

    save_synthetic(synthetic_dataset(8, seed, (96, 128), "mixed"), tmp_path / "set")
    options = ["train", "--data-path", str(tmp_path / "set"), "--model", "slim", "--weights", "none", "--device", "cpu"]
    options += ["--epochs", "3", "--batch-size", "1", "--workers", "1", "--optimizer", "adamw", "--seed", str(seed)]
    options += ["--min-size", "64", "96", "--ema", "0.9", "--paste", "0.5", "--save-steps", "3"]
    command = [sys.executable, program("slim_command.py"), *options, "--out"]

    def finished(folder: str, *more: str) -> None:
        done = subprocess.run(
            [*command, str(tmp_path / folder), *more], env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    finished("whole")
    killed = subprocess.Popen(
        [*command, str(tmp_path / "killed")], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    steps = tmp_path / "killed" / "steps.csv"
    until = time.monotonic() + 120
    while not steps.exists() or len(steps.read_text().splitlines()) < 14:  # the second epoch
        assert killed.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(rows(tmp_path / "killed")) < 25
    finished("killed", "--resume")
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert len(rows(tmp_path / "whole")) == 25


def test_compiled_and_in_bfloat16(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of a compiled learner, without a break, are those of the plain one; autocast rounds them a little."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda learner: compiled(learner, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    losses = {}
    for name, options in (("plain", {}), ("compiled", {"compile": True}), ("half", {"half": True})):
        run = made(tmp_path / name, seed, epochs=1, **options)
        for part in (run.model.rpn, run.model.roi_heads):  # the same samples in all: the first candidates
            part.fg_bg_sampler.keys = lambda labels: torch.linspace(1, 0.1, labels.shape[1]).expand(labels.shape)
        interrupt_at(run, 1)
        with pytest.raises(InterruptedRunError):
            run.finish()
        losses[name] = [float(value) for value in rows(tmp_path / name)[1][4:-1]]
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-3)
    # of the total, which is the last: a few samples, which rounding may replace, decide a part
    assert losses["half"] == pytest.approx(losses["plain"], abs=0.05 * losses["plain"][-1])
    assert losses["half"] != losses["plain"]
