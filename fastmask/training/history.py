"""What a run leaves beside its weights: losses step by step, metrics epoch by epoch, and curves to look at.

With several ranks, losses are those of the first one's images, divided as all ranks' are.
"""

import collections
import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

STEPS, EPOCHS, CURVES = "steps.csv", "epochs.json", "curves.png"
LINES = {"box": "det_results.txt", "mask": "seg_results.txt"}
PLACES = ("step", "epoch", "batch", "rate")  # of a step, before its losses


class Row(NamedTuple):
    """A step's."""

    step: int
    epoch: int
    batch: int
    rate: float
    values: list[float]  # losses, their sum, the gradient's norm


class History:
    """The files of a folder, which are told each step and each epoch; from a step on they are written anew.

    Args:
        folder: that they are in.
        step: the first that is still to be made.
        epoch: whose epoch that is.
    """

    def __init__(self, folder: Path, step: int, epoch: int) -> None:
        self.folder = folder
        self.names: list[str] = []
        self.rows: list[Row] = []
        self.epochs: list[dict[str, Any]] = []
        if step and (folder / STEPS).exists():
            self._read(step)
        if epoch and (folder / EPOCHS).exists():
            self.epochs = [one for one in json.loads((folder / EPOCHS).read_text()) if one["epoch"] < epoch]
        draft = folder / f"{STEPS}.part"
        with open(draft, "w", newline="") as file:
            if self.names:
                csv.writer(file).writerows([[*PLACES, *self.names], *(_flat(row) for row in self.rows)])
        os.replace(draft, folder / STEPS)
        self.file = open(folder / STEPS, "a", newline="")  # noqa: SIM115  closed by close
        self.writer = csv.writer(self.file)

    def _read(self, step: int) -> None:
        """The steps before ``step``; the last line may be torn."""
        whole = (self.folder / STEPS).read_text().split("\n")[:-1]
        head, *lines = list(csv.reader(whole)) or [[]]
        self.names = head[len(PLACES) :]
        for line in lines:
            if len(line) == len(head) and int(line[0]) < step:
                number, epoch, batch = (int(one) for one in line[:3])
                rate, *values = (float(one) for one in line[3:])
                self.rows.append(Row(number, epoch, batch, rate, values))

    def add(self, row: Row, names: Sequence[str]) -> None:
        """A step; ``names`` are its losses'."""
        if not self.names:
            self.names = [*names, "loss", "gradient_norm"]
            self.writer.writerow([*PLACES, *self.names])
        self.rows.append(row)
        self.writer.writerow(_flat(row))
        self.file.flush()

    def mean_loss(self, epoch: int) -> float:
        """Of an epoch's steps."""
        place = self.names.index("loss")
        losses = [row.values[place] for row in self.rows if row.epoch == epoch]
        finite = [loss for loss in losses if math.isfinite(loss)]
        return sum(finite) / len(finite) if finite else math.inf

    def add_epoch(self, epoch: int, rate: float, metrics: Mapping[str, Sequence[float]]) -> None:
        """An epoch is over; ``metrics`` are COCO's twelve by "box" and "mask", where it was evaluated."""
        self.epochs.append(
            {"epoch": epoch, "loss": self.mean_loss(epoch), "rate": rate, **{k: list(v) for k, v in metrics.items()}}
        )
        draft = self.folder / f"{EPOCHS}.part"
        draft.write_text(json.dumps(self.epochs, indent=1))
        os.replace(draft, self.folder / EPOCHS)
        for kind, name in LINES.items():
            lines = [_line(one, one[kind]) for one in self.epochs if kind in one]
            if lines:
                (self.folder / name).write_text("\n".join(lines) + "\n")

    def close(self) -> None:
        self.file.close()


def _flat(row: Row) -> list[float]:
    return [row.step, row.epoch, row.batch, row.rate, *row.values]


def _line(epoch: dict[str, Any], metrics: Sequence[float]) -> str:
    """As the tutorials' scripts have it: the epoch, COCO's twelve metrics, the mean loss and the learning rate."""
    numbers = "  ".join(f"{figure:.4f}" for figure in [*metrics, epoch["loss"]])
    return f"epoch:{epoch['epoch']} {numbers}  {epoch['rate']:.6f}"


def draw_curves(history: History, path: Path) -> None:
    """Losses by step, the learning rate, and average precision by epoch, as an image.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    steps = [row.step for row in history.rows]
    for place, name in enumerate(history.names[:-1]):
        values = smooth([row.values[place] for row in history.rows])
        left.plot(steps, values, label=name, linewidth=2 if name == "loss" else 1, zorder=3 if name == "loss" else 2)
    left.set(xlabel="step", ylabel="loss (running mean)", ylim=(0, None))
    left.legend(fontsize=8)
    rate = left.twinx()
    rate.plot(steps, [row.rate for row in history.rows], color="gray", linestyle=":", linewidth=1)
    rate.set_ylabel("learning rate", color="gray")
    rate.set_ylim(0, None)
    for kind, style in (("box", "--"), ("mask", "-")):
        rows = [one for one in history.epochs if kind in one]
        for place, name in ((0, "AP"), (1, "AP50")):
            epochs, values = [one["epoch"] for one in rows], [one[kind][place] for one in rows]
            right.plot(epochs, values, style, marker=".", label=f"{kind} {name}", color=f"C{place}")
    right.set(xlabel="epoch", ylabel="average precision", ylim=(0, 1))
    right.xaxis.get_major_locator().set_params(integer=True)
    right.grid(alpha=0.3)
    if history.epochs and any(kind in history.epochs[-1] for kind in LINES):
        right.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def smooth(values: Sequence[float], share: float = 0.02) -> list[float]:
    """The running mean over a share of all; what is not finite is left out."""
    width = max(1, round(share * len(values)))
    window: collections.deque[float] = collections.deque(maxlen=width)
    found = []
    for value in values:
        if math.isfinite(value):
            window.append(value)
        found.append(sum(window) / len(window) if window else math.nan)
    return found
