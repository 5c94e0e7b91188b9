"""Checkpoints that a run resumes from, and that torchvision and all our commands load as weights."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmask.files import replace_file
from fastmask.training.config import TrainConfig

LAST, BEST = "last.pth", "best.pth"
FREE = ("epochs", "workers", "save_every", "compile")  # settings that may change where a run resumes


def save(content: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain values to a file; where that is interrupted, the previous file stays whole.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        with replace_file(path) as draft:
            torch.save(dict(content), draft)
    except RuntimeError as error:  # torch's, where the disk is full
        raise OSError(f"{path} cannot be written: {error}") from error


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict, contiguous: safetensors and flat views take nothing else."""
    state = model.state_dict()
    for key, value in state.items():
        state[key] = value.contiguous()
    return state


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint that :func:`save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint of a run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # unpickling raises whatever it trips over
        raise ValueError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not {"model", "optimizer", "epoch", "batch"} <= content.keys():
        raise ValueError(f"{path} must be a checkpoint of fastmask train, got another file")
    return content


def check_same_run(path: Path, content: Mapping[str, Any], settings: Mapping[str, Any], config: TrainConfig) -> None:
    """Check that a checkpoint may be resumed.

    Args:
        path: path of the checkpoint.
        content: what :func:`load` read from it.
        settings: what determines the run's losses now.
        config: settings of the run now.

    Raises:
        ValueError: a setting other than those of :data:`FREE` is another one now, or more epochs are trained already.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}  # of files older than a setting
    saved = {"model": content.get("builder")} | content["settings"]
    changes = [
        f"{name} {was} (now {now})"
        for name, now in settings.items()
        if (was := saved.get(name, defaults.get(name, now))) != now and not (name == "model" and None in (was, now))
    ]
    if changes:
        raise ValueError(f"{path} must be of the same run to be resumed, got {', '.join(changes)}")
    trained = content["epoch"] + (content["batch"] > 0)
    if config.epochs < trained:
        raise ValueError(f"epochs must be at least {trained}, which {path} has trained, got {config.epochs}")
