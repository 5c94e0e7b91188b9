"""What TensorBoard shows of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmask.evaluation import Metrics
from fastmask.training.history import Row


def open_board(folder: Path, step: int) -> Any:
    """A writer into a folder; what another run wrote from ``step`` on is hidden.

    Raises:
        ValueError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard must be installed: pip install 'fastmask-rcnn[train]'") from error
    return SummaryWriter(str(folder), purge_step=step)  # type: ignore[no-untyped-call]


def show_step(board: Any, row: Row, names: Sequence[str]) -> None:
    board.add_scalar("rate", row.rate, row.step)
    for name, value in zip(names, row.values, strict=True):
        board.add_scalar(f"train/{name}", value, row.step)


def show_epoch(board: Any, step: int, metrics: Mapping[str, Sequence[float]]) -> None:
    for kind, values in metrics.items():
        for name, value in zip(Metrics._fields, values, strict=True):
            board.add_scalar(f"{kind}/{name}", value, step)
    board.flush()
