"""Checkpoints that a run resumes from, and that torchvision and all our commands load as weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmask.files import replace_file

LAST, BEST = "last.pth", "best.pth"


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
