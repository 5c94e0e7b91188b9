"""Training from the first step, or the one that a run was interrupted at, to the last."""

import collections
import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from fastmask._version import __version__
from fastmask.data.loading import GroupedBatchSampler, SampleDataset
from fastmask.data.records import Dataset
from fastmask.distributed import ALONE, Ranks
from fastmask.evaluation import Evaluation, evaluate
from fastmask.evaluation.run import map_labels, number_records
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.models.detection.losses import Total
from fastmask.structures import Batch, Targets
from fastmask.training.checkpoints import BEST, LAST, load, save
from fastmask.training.config import Settings
from fastmask.training.history import CURVES, History, Row, draw_curves
from fastmask.training.loss_module import Average, Learner
from fastmask.training.step import Step
from fastmask.training.tensorboard import open_board, show_epoch, show_step

LAG = 8  # steps after which a GPU's losses are looked at
FREE = ("workers", "save", "compile")  # settings that may change where a run is taken up


class DivergedError(RuntimeError):
    """A gradient is not finite."""


class Waiting(NamedTuple):
    """A step whose losses are on their way to the host."""

    row: Row  # without its values
    values: Tensor
    records: list[int]
    problems: tuple[str, ...]
    done: "torch.cuda.Event | None"


class Run:
    """One training run in a folder; :meth:`finish` it.

    Args:
        model: on its device; it is put into training mode, and trained.
        loader: of :func:`fastmask.data.loading.training_loader`, with this rank's share.
        settings: of everything else.
        folder: for weights, losses and metrics.
        names: of labels, from 0, the background.
        valid: evaluated after each epoch; None: nothing is.
        own: the ranks.
        resume: go on from the folder's last checkpoint, if there is one.
        progress: show bars, on the first rank.
        tensorboard: write for it, into a folder of that name.

    Raises:
        ValueError: the folder's checkpoint is of other settings, or broken; or of another model.
    """

    def __init__(
        self,
        model: GeneralizedRCNN,
        loader: DataLoader[Any],
        settings: Settings,
        folder: Path,
        names: Sequence[str],
        valid: Dataset | None = None,
        own: Ranks = ALONE,
        resume: bool = False,
        progress: bool = True,
        tensorboard: bool = False,
    ) -> None:
        assert isinstance(loader.batch_sampler, GroupedBatchSampler)
        assert isinstance(loader.dataset, SampleDataset)
        self.samples = loader.dataset
        self.loader, self.sampler, self.settings, self.folder = loader, loader.batch_sampler, settings, folder
        self.names, self.valid, self.own, self.progress = list(names), valid, own, progress and own.rank == 0
        self.model = model.train()
        self.device = next(model.parameters()).device
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # whose streams events are recorded on, and memory is pinned for
        if valid is not None:  # before anything is trained
            map_labels(self.names, valid.categories)
            number_records(valid)
        self.sampler.set_epoch(0)
        self.length = len(self.sampler)
        self.steps = self.length * settings.epochs
        self.average = Average(model, settings.average) if settings.average else None
        self.epoch, self.batch, self.best = 0, 0, -math.inf
        self.step = Step(model, model, settings, self.average)
        content = own.from_first(lambda: load(folder / LAST) if resume and (folder / LAST).exists() else None)
        if content is not None:
            self._take_up(content)
        self.step.learner = self._learner()  # which, wrapped, waits for all ranks
        first = self.epoch * self.length + self.batch
        self.history = History(folder, first, self.epoch) if own.rank == 0 else None
        self.board = open_board(folder / "tensorboard", first) if tensorboard and own.rank == 0 else None
        self.waiting: collections.deque[Waiting] = collections.deque()

    def _learner(self) -> nn.Module:
        over = mean_over(self.own.world) if self.own.world > 1 else None
        learner: nn.Module = Learner(self.model, over, self.settings.half)
        if self.own.world > 1:
            learner = DistributedDataParallel(learner, [self.device] if self.device.type == "cuda" else None)
        return torch.compile(learner) if self.settings.compile else learner  # type: ignore[return-value]

    def finish(self) -> None:
        """All epochs that are left.

        Raises:
            DivergedError: a gradient was not finite, and the settings say to stop; it has changed no weights.
            MemoryError: a batch does not fit into the device's memory.
            ValueError: no image could be looked at.
            OSError: the folder cannot be written to.
        """
        try:
            while self.epoch < self.settings.epochs:
                self._run_epoch()
                if self.valid is not None:
                    self._save()  # what fails from here on loses no training
                evaluation = self._evaluated()
                self.epoch, self.batch = self.epoch + 1, 0
                self._conclude(evaluation)
        finally:
            if self.history is not None:
                self.history.close()
            if self.board is not None:
                self.board.close()

    def _run_epoch(self) -> None:
        from tqdm import tqdm

        self.sampler.set_epoch(self.epoch, self.batch)
        images = self.settings.batch * self.own.world
        bar = tqdm(
            total=self.length * images,
            initial=self.batch * images,
            desc=f"epoch {self.epoch + 1}/{self.settings.epochs}",
            unit="img",
            disable=not self.progress,
        )
        with bar:
            for batch in self.loader:
                number = self.epoch * self.length + self.batch
                rate = self.settings.rate_at(number, self.steps, self.own.world)
                values = self._stepped(batch, rate, number)
                row = Row(number, self.epoch, self.batch, rate, [])
                self._look_at(row, values, batch)
                self.batch += 1
                bar.update(images)
                for loss in self._arrived(LAG if self.device.type == "cuda" else 0):
                    bar.set_postfix(loss=f"{loss:.3f}", rate=f"{rate:.1e}", refresh=False)
                if self.settings.save and self.batch % self.settings.save == 0 and self.batch < self.length:
                    self._save()
            for _ in self._arrived(0):
                pass

    def _stepped(self, batch: Batch, rate: float, number: int) -> Tensor:
        try:
            seed = (self.settings.seed * 1_000_003 + number) * 4096 + self.own.rank
            return self.step(moved(batch, self.device), rate, seed % 2**63)
        except torch.OutOfMemoryError as error:
            objects = batch.targets.labels.shape[1]
            raise MemoryError(
                f"images {list(batch.pixels.shape)} with up to {objects} objects need more memory than {self.device} "
                f"has: lower the batch or the size, or use bfloat16 ({str(error).splitlines()[0]})"
            ) from error

    def _look_at(self, row: Row, values: Tensor, batch: Batch) -> None:
        """Let a step's losses come to the host, whenever they are there."""
        done = None
        if self.device.type == "cuda":
            values = values.to("cpu", non_blocking=True)
            done = torch.cuda.Event()
            done.record(torch.cuda.current_stream(self.device))
        self.waiting.append(Waiting(row, values, batch.indices.tolist(), batch.problems, done))

    def _arrived(self, lag: int) -> Iterator[float]:
        """The losses of all steps but the last ``lag``, each looked at and written down."""
        from tqdm import tqdm

        while len(self.waiting) > lag:
            one = self.waiting.popleft()
            if one.done is not None:
                one.done.synchronize()
            values = one.values.tolist()
            for problem in one.problems:
                tqdm.write(f"fastmask train: replaced by another image: {problem}")
            if not math.isfinite(values[-1]):
                self._say_diverged(one, values)
            row = one.row._replace(values=values)
            if self.history is not None:
                self.history.add(row, self.step.names)
            if self.history is not None and self.board is not None:
                show_step(self.board, row, self.history.names)
            yield values[-2]

    def _say_diverged(self, one: Waiting, values: Sequence[float]) -> None:
        from tqdm import tqdm

        files = ", ".join(str(self.samples.find_file(place)) for place in one.records)
        losses = ", ".join(f"{name} {value:.3g}" for name, value in zip(self.step.names, values, strict=False))
        text = f"a gradient is not finite at step {one.row.step} ({losses}) with {files}"
        if self.settings.nan == "stop":
            raise DivergedError(f"{text}: lower the rate, or clip gradients, or skip such steps")
        tqdm.write(f"fastmask train: skipped: {text}")

    def _evaluated(self) -> Evaluation | None:
        if self.valid is None:
            return None
        model = self.model if self.average is None else self.average.model
        if self.own.world > 1:  # each rank has norms' statistics of its own images; the first one's are kept
            for buffer in (*self.model.buffers(), *model.buffers()):
                dist.broadcast(buffer, 0)
        evaluation = evaluate(model, self.valid, names=self.names, progress=self.progress, own=self.own)  # type: ignore[arg-type]
        self.model.train()
        return evaluation

    def _conclude(self, evaluation: Evaluation | None) -> None:
        """Write an epoch down, and its weights."""
        if self.history is None:
            return
        metrics = {} if evaluation is None else {kind: list(one) for kind, one in evaluation.metrics.items()}
        rate = self.history.rows[-1].rate
        self.history.add_epoch(self.epoch - 1, rate, metrics)
        if self.board is not None:
            show_epoch(self.board, self.epoch * self.length - 1, metrics)
        score = -self.history.epochs[-1]["loss"] if not metrics else metrics.get("mask", metrics["box"])[0]
        if score > self.best:
            self.best = score
            weights = self.model if self.average is None else self.average.model
            content = {"model": weights.state_dict(), "epoch": self.epoch, "metrics": metrics}
            save(content | self._meta(), self.folder / BEST)
        self._save()
        with contextlib.suppress(ImportError):  # matplotlib is not needed to train
            draw_curves(self.history, self.folder / CURVES)
        if self.progress:
            said = ", ".join(f"{kind} AP {one[0]:.3f} AP50 {one[1]:.3f}" for kind, one in metrics.items())
            print(f"epoch {self.epoch}: loss {self.history.epochs[-1]['loss']:.4f}{', ' + said if said else ''}")

    def _save(self) -> None:
        """All that :meth:`_take_up` needs; losses that are still on their way are waited for."""
        for _ in self._arrived(0):
            pass
        if self.own.rank > 0:
            return
        content = {
            "model": self.model.state_dict(),
            "optimizer": self.step.optimizer.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "best": self.best,
            "settings": self._known(),
            "fastmask": __version__,
        }
        if self.average is not None:
            content |= {"average": self.average.model.state_dict(), "updates": self.average.updates}
        save(content | self._meta(), self.folder / LAST)

    def _meta(self) -> dict[str, Any]:
        """What :class:`fastmask.models.Checkpoint` tells whoever loads the weights."""
        transform = self.model.transform
        options = {"min_size": int(transform.min_size[-1]), "max_size": int(transform.max_size)}
        return {"categories": self.names, "options": options}

    def _known(self) -> dict[str, Any]:
        """What the losses depend on, beside the images."""
        own = {name: value for name, value in self.settings.as_dict().items() if name not in FREE}
        return own | {
            "world": self.own.world,
            "names": self.names,
            "size": str(self.samples.size),
            "masks": self.samples.masks,
            "images": len(self.samples),
            "augmentation": str(self.samples.augmentation),
        }

    def _take_up(self, content: dict[str, Any]) -> None:
        other = {
            name: (content["settings"].get(name), value)
            for name, value in self._known().items()
            if content["settings"].get(name) != value
        }
        if other:
            changes = ", ".join(f"{name} {then} (now {now})" for name, (then, now) in other.items())
            raise ValueError(f"{self.folder / LAST} must be of the same run to be taken up, got {changes}")
        try:
            self.model.load_state_dict(content["model"])
            self.step.optimizer.load_state_dict(content["optimizer"])
            if self.average is not None:
                self.average.model.load_state_dict(content["average"])
                self.average.updates = content["updates"]
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{self.folder / LAST} is of another model: {str(error).splitlines()[-1]}") from error
        self.epoch, self.batch, self.best = content["epoch"], content["batch"], content["best"]


def mean_over(world: int) -> Total:
    """With it, the mean of all ranks' gradients is the gradient of all their samples' mean."""

    def over(number: Tensor) -> Tensor:
        total = number.to(torch.float32)  # exact, for so many as there can be
        dist.all_reduce(total)
        return total / world

    return over


def moved(batch: Batch, device: torch.device) -> Batch:
    """On a device; what a CPU only reads stays."""
    masks = batch.targets.masks
    targets = Targets(
        batch.targets.boxes.to(device, non_blocking=True),
        batch.targets.labels.to(device, non_blocking=True),
        None if masks is None else masks.to(device, non_blocking=True),
        batch.targets.count.to(device, non_blocking=True),
    )
    pixels, sizes = (one.to(device, non_blocking=True) for one in (batch.pixels, batch.sizes))
    return batch._replace(pixels=pixels, sizes=sizes, targets=targets)


def write_settings(folder: Path, settings: Settings, more: dict[str, Any]) -> None:
    """Beside the weights, for whoever asks later; with versions."""
    versions = {"fastmask": __version__, "torch": torch.__version__}
    (folder / "settings.json").write_text(json.dumps({**settings.as_dict(), **more, **versions}, indent=1))
