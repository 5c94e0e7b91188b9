"""Whole runs: resumed where they were interrupted, killed while they write, on two ranks, and what they leave."""

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
from helpers.gradients import compute
from helpers.slim import slim_model
from PIL import Image
from torch import nn

import fastmask
from fastmask.cli import main
from fastmask.demo import synthetic_dataset
from fastmask.distributed import join_ranks
from fastmask.models import load_checkpoint
from fastmask.training import DivergedError, TrainConfig, Trainer, checkpoints
from fastmask.training.checkpoints import LAST

SMALL = {"rpn_post_nms_top_n_train": 100, "box_batch_size_per_image": 32, "rpn_batch_size_per_image": 64}
NAMES = ["__background__", "ellipse", "triangle", "quadrilateral"]


def make_trainer(folder: Path, seed: int, resume: bool = False, val: bool = False, **options: Any) -> Trainer:
    """Six synthetic images, two at once: three steps an epoch."""
    torch.manual_seed(seed)
    model = slim_model(fastmask, "BatchNorm2d", **SMALL)
    folder.mkdir(exist_ok=True)
    settings = {"epochs": 3, "optimizer": "adamw", "ema_decay": 0.9, "seed": seed, "workers": 0}
    settings |= {"zoom": (0.5, 1.5), "size": (96, 96), "color": 0.3, "paste": 0.3}
    data, val_data = (synthetic_dataset(number, seed + i, (96, 128)) for i, number in enumerate((6, 2)))
    config = TrainConfig(**settings | options)
    return Trainer(model, config, folder, data, val_data if val else None, resume=resume, progress=False)


def read_rows(folder: Path) -> list[list[str]]:
    with open(folder / "steps.csv", newline="") as file:
        return list(csv.reader(file))


class InterruptedRunError(Exception):
    pass


def interrupt_at(trainer: Trainer, step: int) -> None:
    """Raise where a step would be made, as a kill in the middle of an epoch."""
    run_step = trainer._run_step

    def interrupt(batch: object, lr: float, number: int) -> object:
        if number == step:
            raise InterruptedRunError
        return run_step(batch, lr, number)

    trainer._run_step = interrupt


@pytest.mark.parametrize("save_every", [0, 1], ids=["saved at epochs", "saved at each step"])
def test_a_resumed_run_is_bitwise_the_same(save_every: int, tmp_path: Path, seed: int) -> None:
    """Losses, weights and their averages."""
    whole = make_trainer(tmp_path / "whole", seed, save_every=save_every)
    whole.fit()
    for step in (4, 7):
        trainer = make_trainer(tmp_path / "parts", seed, resume=True, save_every=save_every)
        interrupt_at(trainer, step)
        with pytest.raises(InterruptedRunError):
            trainer.fit()
    last = make_trainer(tmp_path / "parts", seed, resume=True, save_every=save_every)
    assert (last.epoch, last.batch) == ((2, 1) if save_every else (2, 0))
    last.fit()
    assert read_rows(tmp_path / "parts") == read_rows(tmp_path / "whole")
    assert len(read_rows(tmp_path / "whole")) == 10
    for name in ("last.pth", "best.pth"):
        one, other = (torch.load(tmp_path / folder / name) for folder in ("whole", "parts"))
        for key, value in one["model"].items():
            assert torch.equal(value, other["model"][key]), key
    again = make_trainer(tmp_path / "parts", seed, resume=True, save_every=save_every)
    again.fit()  # there is nothing left
    assert read_rows(tmp_path / "parts") == read_rows(tmp_path / "whole")


def test_a_kill_while_a_checkpoint_is_written(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save({"model": {}, "optimizer": {}, "epoch": 1, "batch": 0}, tmp_path / "last.pth")
    before = (tmp_path / "last.pth").read_bytes()

    def torn(content: object, file: Path) -> None:
        file.write_bytes(b"half")
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
        make_trainer(tmp_path, seed, resume=True)
    make_trainer(tmp_path, seed, epochs=1).fit()
    with pytest.raises(ValueError, match=r"must be of the same run to be resumed, got color 0.3 \(now 0.2\)"):
        make_trainer(tmp_path, seed, resume=True, color=0.2)
    make_trainer(tmp_path, seed, resume=True, epochs=2, workers=1, save_every=7)  # which may change
    last = torch.load(tmp_path / "last.pth")
    for name in ("model", "keep_empty"):  # as older versions wrote it
        del last["settings"][name]
    torch.save({name: value for name, value in last.items() if name not in ("builder", "norm_eps")}, tmp_path / LAST)
    make_trainer(tmp_path, seed, resume=True)
    with pytest.raises(ValueError, match=r"got keep_empty False \(now True\)"):
        make_trainer(tmp_path, seed, resume=True, keep_empty=True)


def test_what_a_run_leaves(tmp_path: Path, seed: int) -> None:
    make_trainer(tmp_path, seed, val=True, epochs=2).fit()
    epochs = json.loads((tmp_path / "epochs.json").read_text())
    assert [(entry["epoch"], entry["steps"]) for entry in epochs] == [(1, 3), (2, 6)]
    steps = [dict(zip(read_rows(tmp_path)[0], row, strict=True)) for row in read_rows(tmp_path)[1:]]
    for number, entry in enumerate(epochs):
        losses = [float(row["loss"]) for row in steps if row["epoch"] == str(number + 1)]
        assert entry["loss"] == pytest.approx(sum(losses) / 3)
        assert entry["lr"] == float(steps[3 * number + 2]["lr"])
    for file, kind in (("det_results.txt", "box"), ("seg_results.txt", "mask")):
        lines = (tmp_path / file).read_text().splitlines()
        assert len(lines) == 2
        numbers = [float(word) for word in lines[1].removeprefix("epoch:2 ").split()]
        assert numbers == pytest.approx([*epochs[1][kind], epochs[1]["loss"], epochs[1]["lr"]], abs=1e-4)
    best = torch.load(tmp_path / "best.pth")
    assert best["categories"] == NAMES
    for library in (torchvision, fastmask):
        slim_model(library, "BatchNorm2d").load_state_dict(best["model"])
    load_checkpoint(slim_model(fastmask, "BatchNorm2d"), tmp_path / "last.pth")
    pytest.importorskip("matplotlib")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 600


class Poisoned(nn.Module):
    """A loss module that fails at one step."""

    def __init__(self, loss_module: nn.Module, step: int) -> None:
        super().__init__()
        self.loss_module, self.calls, self.step = loss_module, 0, step

    def forward(self, *batch: Any) -> dict[str, torch.Tensor]:
        losses = self.loss_module(*batch)
        self.calls += 1
        return losses | {"loss_mask": losses["loss_mask"] / (self.calls != self.step)}


class Broken(nn.Module):
    """A loss module with NaN in its norms at its first step, and so in all that follows."""

    def __init__(self, loss_module: nn.Module) -> None:
        super().__init__()
        self.loss_module, self.calls = loss_module, 0

    def forward(self, pixels: torch.Tensor, *batch: Any) -> dict[str, torch.Tensor]:
        model = self.loss_module.model
        self.calls += 1
        hook = model.backbone.body.conv1.register_forward_hook(lambda module, seen, out: out * float("nan"))
        if self.calls > 1:
            hook.remove()
        losses = self.loss_module(pixels, *batch)
        hook.remove()
        return losses


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_first_step_that_is_skipped(optimizer: str, tmp_path: Path, seed: int) -> None:
    """Nothing of it stays: no momentum, no statistics, nothing in the average."""
    trainer = make_trainer(tmp_path, seed, on_nonfinite="skip", epochs=1, optimizer=optimizer, lr=1e-3)
    trainer.step.loss_module = Broken(trainer.step.loss_module)
    trainer.fit()
    for name in ("last.pth", "best.pth"):
        for value in torch.load(tmp_path / name)["model"].values():
            assert value.isfinite().all()
    for state in trainer.step.optimizer.state.values():
        assert all(value.isfinite().all() for value in state.values())


def test_validation_is_checked_first(tmp_path: Path, seed: int) -> None:
    """Before an epoch is spent; and what fails while it is evaluated loses no training."""
    torch.manual_seed(seed)
    trainer = make_trainer(tmp_path, seed, val=True, epochs=1)
    other = synthetic_dataset(2, seed)._replace(categories={"cat": 1})
    with pytest.raises(ValueError, match=r"names must have one of the dataset's categories \(cat"):
        Trainer(trainer.model, trainer.config, tmp_path, synthetic_dataset(6, seed, (96, 128)), other, progress=False)

    def failing() -> None:
        raise InterruptedRunError

    trainer._evaluate = failing
    with pytest.raises(InterruptedRunError):
        trainer.fit()
    again = make_trainer(tmp_path, seed, val=True, epochs=1, resume=True)
    assert (again.epoch, again.batch) == (0, 3)
    again.fit()
    assert len(read_rows(tmp_path)) == 4
    assert "mask" in json.loads((tmp_path / "epochs.json").read_text())[0]


def test_models_that_cannot_be_evaluated(tmp_path: Path, seed: int) -> None:
    """A part that is replaced for inference alone may be trained, but the first epoch would end with the evaluation."""
    trainer, data = make_trainer(tmp_path, seed), synthetic_dataset(2, seed, (96, 128))
    trainer.model.roi_heads.postprocess_detections = trainer.model.roi_heads.postprocess_detections
    Trainer(trainer.model, trainer.config, tmp_path, data, progress=False)
    with pytest.raises(ValueError, match=r"roi_heads\.postprocess_detections"):
        Trainer(trainer.model, trainer.config, tmp_path, data, data, progress=False)


def test_gradients_that_are_not_finite(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The images are named; the run stops, or goes on."""
    trainer = make_trainer(tmp_path / "stop", seed)
    trainer.step.loss_module = Poisoned(trainer.step.loss_module, 2)
    with pytest.raises(DivergedError, match=r"a gradient is not finite at step 1 .* with 00000\d.png, 00000\d.png:"):
        trainer.fit()
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    trainer = make_trainer(tmp_path / "skip", seed, on_nonfinite="skip", epochs=1)
    trainer.step.loss_module = Poisoned(trainer.step.loss_module, 2)
    trainer.fit()
    assert "skipped: a gradient is not finite at step 1" in capsys.readouterr().out
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    assert len(read_rows(tmp_path / "skip")) == 4
    (epoch,) = json.loads((tmp_path / "skip" / "epochs.json").read_text())
    assert 0 < epoch["loss"] < 100


def test_too_little_memory_says_what_to_lower(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, seed)

    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    monkeypatch.setattr(trainer.step, "loss_module", full)
    with pytest.raises(MemoryError, match=r"images \[2, 3, 96, 96\] with up to \d+ objects need more memory than cpu"):
        trainer.fit()


def program(name: str) -> str:
    return str(Path(__file__).parent.parent / "helpers" / name)


def environment() -> dict[str, str]:
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    tests = str(Path(__file__).parent.parent)
    return os.environ | {"PATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": tests}


def test_two_ranks_give_the_gradients_of_one(tmp_path: Path, seed: int) -> None:
    """float64, gloo; images with other numbers of objects on each rank."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*torchrun, program("gradients.py"), str(tmp_path / "two"), str(seed)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    with join_ranks() as alone:
        compute(alone, str(tmp_path / "one"), seed)
    one, two = (torch.load(tmp_path / name) for name in ("one", "two"))
    assert sorted(one["records"]) == sorted(two["records"]) == [0, 1, 2, 3]
    assert one["losses"] == pytest.approx(two["losses"], abs=1e-9)
    assert one["gradients"].keys() == two["gradients"].keys()
    assert len(one["gradients"]) > 30
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("slim_file")
@pytest.mark.slow
def test_killed_and_resumed(tmp_path: Path, seed: int) -> None:
    """The command, killed by the system in the middle of an epoch, in a process of its own."""
    from fastmask.demo import save_synthetic

    save_synthetic(synthetic_dataset(8, seed, (96, 128), "mixed"), tmp_path / "set")
    options = ["train", "--data-path", str(tmp_path / "set"), "--model", "slim", "--weights", "none", "--device", "cpu"]
    options += ["--epochs", "3", "--batch-size", "1", "--workers", "1", "--optimizer", "adamw", "--seed", str(seed)]
    options += ["--min-size", "64", "96", "--ema-decay", "0.9", "--paste", "0.5", "--save-every", "3", "--out"]
    assert main([*options, str(tmp_path / "whole")]) == 0
    command = [sys.executable, program("slim_command.py"), *options, str(tmp_path / "killed")]
    killed = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    steps = tmp_path / "killed" / "steps.csv"
    until = time.monotonic() + 120
    while not steps.exists() or len(steps.read_text().splitlines()) < 14:  # the second epoch
        assert killed.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(read_rows(tmp_path / "killed")) < 25
    assert main([*options, str(tmp_path / "killed"), "--resume"]) == 0
    assert read_rows(tmp_path / "killed") == read_rows(tmp_path / "whole")
    assert len(read_rows(tmp_path / "whole")) == 25


def test_compiled_and_in_bfloat16(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of a compiled loss module, without a break, are those of the plain one; autocast rounds them a little."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda loss_module: compiled(loss_module, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    losses = {}
    for name, options in (("plain", {}), ("compiled", {"compile": True}), ("bf16", {"bf16": True})):
        trainer = make_trainer(tmp_path / name, seed, epochs=1, **options)
        for part in (trainer.model.rpn, trainer.model.roi_heads):  # the same samples in all: the first candidates
            part.fg_bg_sampler.keys = lambda labels: torch.linspace(1, 0.1, labels.shape[1]).expand(labels.shape)
        interrupt_at(trainer, 1)
        with pytest.raises(InterruptedRunError):
            trainer.fit()
        losses[name] = [float(value) for value in read_rows(tmp_path / name)[1][4:-1]]
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-3)
    # of the total, which is the last: a few samples, which rounding may replace, decide a part
    assert losses["bf16"] == pytest.approx(losses["plain"], abs=0.05 * losses["plain"][-1])
    assert losses["bf16"] != losses["plain"]
