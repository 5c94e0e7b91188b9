"""Scalars of a run for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmask.training.callback import Callback
from fastmask.training.history import warn_of_extra


class TensorBoard(Callback):
    """Writes losses of steps and COCO's metrics of epochs to a SummaryWriter."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name if name == "lr" else f"train/{name}", value, step)

    def on_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if "/" in name:
                self.writer.add_scalar(name, value, step)
        self.writer.flush()


def open_board(folder: Path, step: int) -> TensorBoard | None:
    """Open a SummaryWriter into a folder; what an earlier run wrote from ``step`` on is hidden.

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
    return TensorBoard(SummaryWriter(str(folder), purge_step=step))  # type: ignore[no-untyped-call]
