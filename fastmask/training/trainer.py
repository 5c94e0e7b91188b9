"""The training loop, from the first or resumed step to the last."""

import collections
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from fastmask._version import __version__
from fastmask.data.augment import Transform
from fastmask.data.loading import GroupedBatchSampler, SampleDataset, training_loader
from fastmask.data.records import Dataset
from fastmask.data.splits import label_names
from fastmask.data.user_transform import TransformError
from fastmask.distributed import SINGLE_RANK, Ranks
from fastmask.evaluation import Evaluation, evaluate
from fastmask.models._metadata import describe_model
from fastmask.models.detection._channels import count_channels
from fastmask.models.detection._overrides import check_static
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.structures import Batch
from fastmask.training.callback import Callback, check_callbacks, flatten_metrics
from fastmask.training.check_data import check_data
from fastmask.training.checkpoints import BEST, FREE, LAST, check_same_run, load, save, weights_of
from fastmask.training.config import TrainConfig
from fastmask.training.ema import ModelEma
from fastmask.training.history import History, Row, read_metrics, score_epoch
from fastmask.training.loss_module import LossModule, mean_over_ranks
from fastmask.training.progress import RunProgress
from fastmask.training.result import DivergedError, TrainResult
from fastmask.training.step import TrainStep, load_optimizer, move_batch
from fastmask.training.tensorboard import open_board

LAG = 8  # steps after which a GPU's losses are read


class PendingStep(NamedTuple):
    """A step whose losses are on their way to the host."""

    row: Row  # without its values
    values: Tensor
    records: list[int]
    problems: tuple[str, ...]
    done: "torch.cuda.Event | None"


class Trainer:
    """One training run in a folder.

    Args:
        model: the model on its device; it is put into training mode, and trained.
        config: the settings.
        folder: where weights, losses and metrics go.
        train_data: the images that are trained on.
        val_data: the images that are evaluated after each epoch; None: none are.
        ranks: the ranks of the job, each with its own copy of the model.
        resume: resume from the folder's last checkpoint, if there is one.
        progress: print and show bars, on the first rank.
        tensorboard: write for TensorBoard, too, into a folder of that name.
        builder: the name of the model's builder, which the checkpoints then have.
        transform: called on each augmented sample, see :class:`fastmask.data.augment.Augmentation`.
        callbacks: see :class:`fastmask.training.Callback`.

    Raises:
        ValueError: the data cannot be used with the settings or the model, or the folder's checkpoint is broken or of
            other settings or of another model; raised on all ranks.
    """

    def __init__(
        self,
        model: GeneralizedRCNN,
        config: TrainConfig,
        folder: Path,
        train_data: Dataset,
        val_data: Dataset | None = None,
        ranks: Ranks = SINGLE_RANK,
        resume: bool = False,
        progress: bool = True,
        tensorboard: bool = False,
        builder: str | None = None,
        transform: Transform | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> None:
        callbacks = check_callbacks(callbacks)
        check_static(model, training=True, transform=True)
        if val_data is not None:  # or else the first epoch would end with it
            check_static(model, training=False, transform=True)
        self.config, self.folder, self.val_data, self.ranks, self.builder = config, folder, val_data, ranks, builder
        self.names = label_names(train_data)
        self.model = model.train()
        self.device = next(model.parameters()).device
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # whose streams events are recorded on, and memory is pinned for
        self.loader = ranks.run_on_all(
            lambda: training_loader(
                train_data,
                config.batch_size,
                config.augmentation(model.transform, transform),
                size=None if config.zoom else config.size,
                masks=model.roi_heads.has_mask(),
                keep_empty=config.keep_empty,
                seed=config.seed,
                workers=config.workers,
                rank=ranks.rank,
                world_size=ranks.world_size,
                channels=count_channels(model),
                keypoints=model.roi_heads.has_keypoint(),
                min_keypoints=config.min_keypoints,
            )
        )
        assert isinstance(self.loader.batch_sampler, GroupedBatchSampler)
        assert isinstance(self.loader.dataset, SampleDataset)
        self.sampler, self.samples = self.loader.batch_sampler, self.loader.dataset
        check_data(model, self.names, train_data, val_data)  # before anything is trained
        self.sampler.set_epoch(0)
        self.epoch_steps = len(self.sampler)
        self.steps = self.epoch_steps * config.epochs
        images = config.batch_size * ranks.world_size
        self.progress = RunProgress(config.epochs, self.epoch_steps, images, progress and ranks.rank == 0)
        self.ema = ModelEma(model, config.ema_decay) if config.ema_decay else None
        self.epoch, self.batch, self.best = 0, 0, -math.inf
        self.step = TrainStep(model, model, config, self.ema)
        last = folder / LAST
        content = ranks.run_on_first(lambda: load(last) if resume and last.exists() else None)
        if content is not None:
            self._resume(content)
        self.step.loss_module = self._make_loss_module()  # which, wrapped, waits for all ranks
        first = self.epoch * self.epoch_steps + self.batch
        place = (self.epoch, self.epoch_steps)
        self.history = ranks.run_on_all(lambda: History(folder, first, *place) if ranks.rank == 0 else None)
        board = folder / "tensorboard" if tensorboard and ranks.rank == 0 else None
        self.board = ranks.run_on_all(lambda: open_board(board, first) if board else None)
        self.callbacks = callbacks + ([self.board] if self.board else [])
        self.pending: collections.deque[PendingStep] = collections.deque()

    def _make_loss_module(self) -> nn.Module:
        several = self.ranks.world_size > 1
        normalizer = mean_over_ranks(self.ranks.world_size) if several else None
        module: nn.Module = LossModule(self.model, normalizer, self.config.bf16)
        if several:
            module = DistributedDataParallel(module, [self.device] if self.device.type == "cuda" else None)
        return torch.compile(module) if self.config.compile else module  # type: ignore[return-value]

    def fit(self) -> TrainResult:
        """Train all epochs that are left.

        Returns:
            The result, the same on all ranks.

        Raises:
            DivergedError: a gradient was not finite, and ``on_nonfinite`` is "stop"; it has changed no weights.
            MemoryError: a batch does not fit into the device's memory.
            OSError: images cannot be read, or the folder cannot be written to.
            TransformError: the transform returned no sample; what it raises itself, and callbacks, is raised as it is.
        """
        try:
            while self.epoch < self.config.epochs:
                self._train_epoch()
                if self.val_data is not None:
                    self._save()  # what fails from here on loses no training
                evaluation = self._evaluate()
                self.epoch, self.batch = self.epoch + 1, 0
                self._finish_epoch(evaluation)
        finally:
            if self.history is not None:
                self.history.close()
            if self.board is not None:
                self.board.writer.close()
        return self.ranks.run_on_first(self._result)

    def _train_epoch(self) -> None:
        self.sampler.set_epoch(self.epoch, self.batch)
        with self.progress.train_epoch(self.epoch, self.batch):
            for batch in self._load_batches():
                number = self.epoch * self.epoch_steps + self.batch
                lr = self.config.lr_at(number, self.steps, self.ranks.world_size)
                values = self._run_step(batch, lr, number)
                self._queue_losses(Row(number, self.epoch + 1, self.batch, lr, []), values, batch)
                self.batch += 1
                self.progress.update(self._read_losses(LAG if self.device.type == "cuda" else 0), lr)
                every = self.config.save_every
                if every and self.batch % every == 0 and self.batch < self.epoch_steps:
                    self._save()
            for _ in self._read_losses(0):
                pass

    def _load_batches(self) -> Iterator[Batch]:
        try:
            yield from self.loader
        except TransformError:
            raise
        except ValueError as error:  # a worker's has its traceback before its message
            raise OSError(str(error).strip().splitlines()[-1]) from error

    def _run_step(self, batch: Batch, lr: float, number: int) -> Tensor:
        try:
            seed = (self.config.seed * 1_000_003 + number) * 4096 + self.ranks.rank
            return self.step(move_batch(batch, self.device), lr, seed % 2**63)
        except torch.OutOfMemoryError as error:
            objects = batch.targets.labels.shape[1]
            raise MemoryError(
                f"images {list(batch.pixels.shape)} with up to {objects} objects need more memory than {self.device} "
                f"has: lower batch_size or the images' size, or set bf16 ({str(error).splitlines()[0]})"
            ) from error

    def _queue_losses(self, row: Row, values: Tensor, batch: Batch) -> None:
        """Start a step's losses on their way to the host, without waiting for them."""
        done = None
        if self.device.type == "cuda":
            values = values.to("cpu", non_blocking=True)
            done = torch.cuda.Event()
            done.record(torch.cuda.current_stream(self.device))
        self.pending.append(PendingStep(row, values, batch.indices.tolist(), batch.problems, done))

    def _read_losses(self, lag: int) -> Iterator[float]:
        """Read, check and record the losses of all pending steps but the last ``lag``."""
        while len(self.pending) > lag:
            step = self.pending.popleft()
            if step.done is not None:
                step.done.synchronize()
            values = step.values.tolist()
            for problem in step.problems:
                tqdm.write(f"fastmask train: replaced by another image: {problem}")
            if not math.isfinite(values[-1]):
                self._report_nonfinite(step, values)
            row = step.row._replace(values=values)
            if self.history is not None:
                self.history.add_step(row, self.step.names)
                for callback in self.callbacks:
                    callback.on_step(row.step, {**dict(zip(self.history.names, values, strict=True)), "lr": row.lr})
            yield values[-2]

    def _report_nonfinite(self, step: PendingStep, values: Sequence[float]) -> None:
        files = ", ".join(str(self.samples.find_file(record)) for record in step.records)
        losses = ", ".join(f"{name} {value:.3g}" for name, value in zip(self.step.names, values, strict=False))
        text = f"a gradient is not finite at step {step.row.step} ({losses}) with {files}"
        if self.config.on_nonfinite == "stop":
            raise DivergedError(f"{text}: lower lr, set max_grad_norm, or skip such steps with on_nonfinite")
        tqdm.write(f"fastmask train: skipped: {text}")

    def _evaluate(self) -> Evaluation | None:
        if self.val_data is None:
            return None
        model = self._best_model()
        if self.ranks.world_size > 1:  # each rank has norms' statistics of its own images; the first one's are kept
            for buffer in (*self.model.buffers(), *model.buffers()):
                dist.broadcast(buffer, 0)
        try:
            bar = self.progress.shown and sys.stderr.isatty()
            evaluation = evaluate(model, self.val_data, names=self.names, progress=bar, ranks=self.ranks)
        except ValueError as error:  # of some rank's files: the data was checked before
            raise OSError(str(error)) from error
        if self.progress.shown and not self.progress.finished:  # once
            for text in evaluation.problems:
                tqdm.write(f"fastmask train: {text}; its objects count as missed", file=sys.stderr)
        self.model.train()
        return evaluation

    def _best_model(self) -> GeneralizedRCNN:
        """The model whose weights are evaluated and kept."""
        return self.model if self.ema is None else self.ema.model  # type: ignore[return-value]

    def _finish_epoch(self, evaluation: Evaluation | None) -> None:
        """Record an epoch, and save its weights."""
        if self.history is None:
            return
        metrics = {} if evaluation is None else {kind: list(values) for kind, values in evaluation.metrics.items()}
        self.history.add_epoch(self.epoch, self.history.rows[-1].lr, metrics)
        entry = self.history.epochs[-1]
        if score_epoch(entry) > self.best:
            self.best = score_epoch(entry)
            content = {"model": weights_of(self._best_model()), "epoch": self.epoch, "metrics": metrics}
            save(content | self._metadata(), self.folder / BEST)
        self._save()
        self.history.draw()
        if self.progress.shown:
            precisions = [f", {kind} AP {values[0]:.3f} AP50 {values[1]:.3f}" for kind, values in metrics.items()]
            text = f"epoch {self.epoch}: loss {entry['loss']:.4f}{''.join(precisions)}"
            print(f"{text}, {self.progress.finish_epoch()}", flush=True)
        for callback in self.callbacks:
            callback.on_epoch(self.epoch, entry["steps"] - 1, flatten_metrics(entry))

    def _save(self) -> None:
        """Save all that :meth:`_resume` needs, once the losses that are on their way have arrived."""
        for _ in self._read_losses(0):
            pass
        if self.ranks.rank > 0:
            return
        content = {
            "model": weights_of(self.model),
            "optimizer": self.step.optimizer.state_dict(),
            "epoch": self.epoch,
            "batch": self.batch,
            "best": self.best,
            "settings": self._settings(),
            "fastmask": __version__,
        }
        if self.ema is not None:
            content |= {"ema": weights_of(self.ema.model), "ema_updates": self.ema.updates}
        save(content | self._metadata(), self.folder / LAST)

    def _metadata(self) -> dict[str, Any]:
        """What :class:`fastmask.models.Checkpoint` tells whoever loads the weights."""
        keypoints = self.samples.skeletons  # None without a branch for them
        return describe_model(self.model, self.builder, self.names, keypoints)

    def _settings(self) -> dict[str, Any]:
        """Settings that determine the losses, besides the images."""
        settings = {name: value for name, value in vars(self.config).items() if name not in FREE}
        return (
            settings
            | self.samples.augmentation.settings()
            | {
                "masks": self.samples.masks,
                "names": self.names,
                "model": self.builder,
                "images": len(self.samples),
                "world_size": self.ranks.world_size,
            }
        )

    def _resume(self, content: dict[str, Any]) -> None:
        last = self.folder / LAST
        check_same_run(last, content, self._settings(), self.config)
        try:
            self.model.load_state_dict(content["model"])
            load_optimizer(self.step.optimizer, content["optimizer"])
            if self.ema is not None:
                self.ema.model.load_state_dict(content["ema"])
                self.ema.updates = content["ema_updates"]
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{last} is of another model: {str(error).splitlines()[-1]}") from error
        self.epoch, self.batch, self.best = content["epoch"], content["batch"], content["best"]

    def _result(self) -> TrainResult:
        assert self.history is not None
        epochs = self.history.epochs
        best = max(epochs, key=score_epoch, default={})
        weights = self.folder / BEST
        return TrainResult(weights if weights.exists() else self.folder / LAST, read_metrics(best), epochs)
