"""The record of a run: losses of each step, metrics of each epoch, and a plot of both.

With several ranks, the losses are those of the first one's images, divided as all ranks' are. Epochs count from 1, in
the files as in the plot and on the screen; steps, and batches of an epoch, from 0.
"""

import collections
import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from fastmask.evaluation import AnyMetrics, KeypointMetrics, Metrics
from fastmask.files import replace_file, write_text

STEPS, EPOCHS, CURVES = "steps.csv", "epochs.json", "curves.png"
RESULTS = {"box": "det_results.txt", "mask": "seg_results.txt", "keypoints": "kpt_results.txt"}
COLUMNS = ("step", "epoch", "batch", "lr")  # of a step, before its losses


class Row(NamedTuple):
    """One step."""

    step: int  # from 0
    epoch: int  # from 1
    batch: int  # of the epoch, from 0
    lr: float
    values: list[float]  # losses, their sum, the gradient's norm


class History:
    """The record's files in a folder, written anew up to a step, and then step by step and epoch by epoch.

    Args:
        folder: where the files are.
        step: the first step that is still to be made.
        epoch: number of finished epochs.
        epoch_steps: steps of an epoch.
    """

    def __init__(self, folder: Path, step: int, epoch: int, epoch_steps: int) -> None:
        self.folder, self.epoch_steps = folder, epoch_steps
        self.names: list[str] = []
        self.rows: list[Row] = []
        self.epochs: list[dict[str, Any]] = []
        if step and (folder / STEPS).exists():
            self._read_steps(step)
        if epoch and (folder / EPOCHS).exists():
            self._read_epochs(epoch)
        with replace_file(folder / STEPS) as draft, open(draft, "w", newline="") as file:
            if self.names:
                csv.writer(file).writerows([[*COLUMNS, *self.names], *(_flatten(row) for row in self.rows)])
        self.file = open(folder / STEPS, "a", newline="")  # noqa: SIM115  closed by close
        self.writer = csv.writer(self.file)
        self.draws = True  # until a plot fails

    def _read_steps(self, step: int) -> None:
        """Read the steps before ``step``; the last line may be torn."""
        whole = (self.folder / STEPS).read_text().split("\n")[:-1]
        head, *lines = list(csv.reader(whole)) or [[]]
        self.names = head[len(COLUMNS) :]
        for line in lines:
            if len(line) == len(head) and int(line[0]) < step:
                number, epoch, batch = (int(text) for text in line[:3])
                lr, *values = (float(text) for text in line[3:])
                if epoch * self.epoch_steps + batch == number:  # counted from 0, by an earlier version
                    epoch += 1
                self.rows.append(Row(number, epoch, batch, lr, values))

    def _read_epochs(self, epoch: int) -> None:
        """Read the entries of the finished epochs; those of an earlier version are counted from 1, and written anew."""
        entries = json.loads((self.folder / EPOCHS).read_text())
        old = [entry for entry in entries if "steps" not in entry]  # which count from 0
        for entry in old:
            entry["epoch"] += 1
            entry["steps"] = entry["epoch"] * self.epoch_steps
        self.epochs = [entry for entry in entries if entry["epoch"] <= epoch]
        if old:
            self._write_epochs()
            tqdm.write(f"fastmask train: {self.folder}: its epochs counted from 0, and count from 1 now", sys.stderr)

    def add_step(self, row: Row, names: Sequence[str]) -> None:
        """Append a step, whose losses have these names."""
        if not self.names:
            self.names = [*names, "loss", "gradient_norm"]
            self.writer.writerow([*COLUMNS, *self.names])
        self.rows.append(row)
        self.writer.writerow(_flatten(row))
        self.file.flush()

    def mean_loss(self, epoch: int) -> float:
        """The mean of an epoch's finite losses; infinite where there is none."""
        place = self.names.index("loss")
        losses = [row.values[place] for row in self.rows if row.epoch == epoch]
        finite = [loss for loss in losses if math.isfinite(loss)]
        return sum(finite) / len(finite) if finite else math.inf

    def add_epoch(self, epoch: int, lr: float, metrics: Mapping[str, Sequence[float]]) -> None:
        """Append an epoch; ``metrics`` are COCO's by "box", "mask" and "keypoints", where it was evaluated."""
        values = {kind: list(metrics[kind]) for kind in metrics}
        steps = epoch * self.epoch_steps
        self.epochs.append({"epoch": epoch, "steps": steps, "loss": self.mean_loss(epoch), "lr": lr, **values})
        self._write_epochs()

    def _write_epochs(self) -> None:
        write_text(self.folder / EPOCHS, json.dumps(self.epochs, indent=1))
        for kind, name in RESULTS.items():
            lines = [_format_line(entry, entry[kind]) for entry in self.epochs if kind in entry]
            if lines:
                write_text(self.folder / name, "\n".join(lines) + "\n")

    def draw(self) -> None:
        """Plot the record into curves.png, where matplotlib is installed; name the reason once where that fails."""
        try:
            if self.draws:
                draw_curves(self, self.folder / CURVES)
        except Exception as error:  # whatever a broken installation raises: training goes on
            self.draws = False
            if not (isinstance(error, ModuleNotFoundError) and error.name == "matplotlib"):  # which is not needed
                warn_of_extra("matplotlib", CURVES, error)

    def close(self) -> None:
        self.file.close()


def read_metrics(entry: Mapping[str, Any]) -> dict[str, AnyMetrics]:
    """The metrics of an epoch by "box", "mask" and "keypoints", as far as it was evaluated."""
    shapes = {kind: KeypointMetrics if kind == "keypoints" else Metrics for kind in RESULTS if kind in entry}
    return {kind: shape(*entry[kind]) for kind, shape in shapes.items()}


def score_epoch(entry: Mapping[str, Any]) -> float:
    """Score that ranks epochs: the average precision of keypoints, else of masks, else of boxes, or else -loss."""
    kind = next((kind for kind in ("keypoints", "mask", "box") if kind in entry), None)
    return float(-entry["loss"] if kind is None else entry[kind][0])


def warn_of_extra(name: str, output: str, error: Exception) -> None:
    """Say that a package that training does not need fails, and what is not written therefore."""
    reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    tqdm.write(f"fastmask train: {name} fails, so that {output} is not written: {reason}", file=sys.stderr)


def _flatten(row: Row) -> list[float]:
    return [row.step, row.epoch, row.batch, row.lr, *row.values]


def _format_line(entry: Mapping[str, Any], metrics: Sequence[float]) -> str:
    """As torchvision's tutorials have it: the epoch, COCO's metrics, the mean loss and the learning rate."""
    numbers = "  ".join(f"{value:.4f}" for value in [*metrics, entry["loss"]])
    return f"epoch:{entry['epoch']} {numbers}  {entry['lr']:.6f}"


def draw_curves(history: History, path: Path) -> None:
    """Plot losses and the learning rate by step, and average precision by epoch, into an image file.

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
    lr = left.twinx()
    lr.plot(steps, [row.lr for row in history.rows], color="gray", linestyle=":", linewidth=1)
    lr.set_ylabel("learning rate", color="gray")
    lr.set_ylim(0, None)
    for kind, style in (("box", "--"), ("mask", "-"), ("keypoints", ":")):
        entries = [entry for entry in history.epochs if kind in entry]
        for place, name in ((0, "AP"), (1, "AP50")) if entries else ():
            epochs, values = [entry["epoch"] for entry in entries], [entry[kind][place] for entry in entries]
            right.plot(epochs, values, style, marker=".", label=f"{kind} {name}", color=f"C{place}")
    right.set(xlabel="epoch", ylabel="average precision", ylim=(0, 1))
    right.xaxis.get_major_locator().set_params(integer=True)
    right.grid(alpha=0.3)
    if history.epochs and any(kind in history.epochs[-1] for kind in RESULTS):
        right.legend(fontsize=8)
    with replace_file(path) as draft:
        figure.savefig(draft, dpi=110)
    pyplot.close(figure)


def smooth(values: Sequence[float], share: float = 0.02) -> list[float]:
    """The running mean over a share of all values; those that are not finite are left out."""
    window: collections.deque[float] = collections.deque(maxlen=max(1, round(share * len(values))))
    means = []
    for value in values:
        if math.isfinite(value):
            window.append(value)
        means.append(sum(window) / len(window) if window else math.nan)
    return means
