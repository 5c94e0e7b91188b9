"""What a user's code is told while a model trains."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from fastmask.evaluation import KeypointMetrics, Metrics


@runtime_checkable
class Callback(Protocol):
    """An object whose methods the first rank calls; subclasses need only those that they use.

    What a callback raises ends training as any other error; checkpoints of before stay, so that ``resume=True`` goes
    on. A resumed run repeats the steps since its checkpoint, with their numbers.
    """

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """Called once for each step, in order; on a GPU up to 8 steps later, as its losses arrive.

        Args:
            step: from 0.
            values: the losses by name, "loss" (their sum), "gradient_norm" and "lr"; not finite where a step was
                skipped.
        """

    def on_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """Called after each epoch, once it is evaluated and its weights are saved.

        Args:
            epoch: from 1.
            step: the epoch's last.
            metrics: "loss" (the mean of the epoch's), "lr" (the last step's) and, of an epoch that was evaluated,
                COCO's metrics as "box/ap", "box/ap50", ..., "mask/ap", ..., "keypoints/ap", ...; -1 without any ground
                truth.
        """


def check_callbacks(callbacks: Iterable[Any]) -> list[Callback]:
    """The callbacks as a list; ValueError if one lacks a method."""
    given = list(callbacks)
    for callback in given:
        if isinstance(callback, type) or not isinstance(callback, Callback):
            name = callback.__name__ if isinstance(callback, type) else type(callback).__name__
            raise ValueError(f"callbacks must be objects with on_step and on_epoch, got {name}")
    return given


def flatten_metrics(entry: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of :meth:`Callback.on_epoch` from an epoch's entry in epochs.json."""
    metrics: dict[str, float] = {"loss": entry["loss"], "lr": entry["lr"]}
    for kind, shape in (("box", Metrics), ("mask", Metrics), ("keypoints", KeypointMetrics)):
        if kind in entry:
            names = [f"{kind}/{field}" for field in shape._fields]
            metrics |= dict(zip(names, entry[kind], strict=True))
    return metrics
