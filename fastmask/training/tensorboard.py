"""Scalars of a run for TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmask.evaluation import KeypointMetrics, Metrics
from fastmask.training.history import Row, warn_of_extra


def open_writer(folder: Path, step: int) -> Any:
    """Return a SummaryWriter into a folder; what an earlier run wrote from ``step`` on is hidden.

    None where tensorboard is installed and cannot be imported, which is said: training goes on without it.

    Raises:
        ValueError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("TensorBoard must be installed: pip install 'fastmask-rcnn[train]'") from error
    except Exception as error:  # such as a TypeError of protobuf's
        warn_of_extra("tensorboard", f"{folder.name}/", error)
        return None
    return SummaryWriter(str(folder), purge_step=step)  # type: ignore[no-untyped-call]


def write_step(writer: Any, row: Row, names: Sequence[str]) -> None:
    writer.add_scalar("lr", row.lr, row.step)
    for name, value in zip(names, row.values, strict=True):
        writer.add_scalar(f"train/{name}", value, row.step)


def write_epoch(writer: Any, step: int, metrics: Mapping[str, Sequence[float]]) -> None:
    for kind, values in metrics.items():
        fields = KeypointMetrics._fields if kind == "keypoints" else Metrics._fields
        for name, value in zip(fields, values, strict=True):
            writer.add_scalar(f"{kind}/{name}", value, step)
    writer.flush()
