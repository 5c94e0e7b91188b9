"""How far a run is: a bar on a terminal, lines in a log file, and the time that all epochs still take."""

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

SECONDS_A_LINE = 60


class RunProgress:
    """Shows and times the epochs of a run.

    The time that is left is that of the steps that are left, by the mean of all steps so far, and of what comes between
    epochs (evaluation, checkpoints), by its mean in the epochs that are finished; before the first one is, without it.

    Args:
        epochs: number of epochs in all.
        epoch_steps: steps of an epoch.
        images: of a step, on all ranks.
        shown: whether to show anything.
        clock: seconds.
    """

    def __init__(
        self, epochs: int, epoch_steps: int, images: int, shown: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.epochs, self.epoch_steps, self.images, self.shown, self.clock = epochs, epoch_steps, images, shown, clock
        self.start: float | None = None  # of this process's first step: a resumed run's time before is not known
        self.steps, self.finished = 0, 0  # in this process
        self.step_seconds, self.between = 0.0, 0.0  # of all steps, and between the epochs that are finished
        self.next_line, self.loss = 0.0, ""

    @contextlib.contextmanager
    def train_epoch(self, epoch: int, batch: int) -> Iterator[None]:
        """Time a block that trains an epoch, by its number from 0, from a batch on; it calls :meth:`update`."""
        start = self.clock()
        self.start = start if self.start is None else self.start
        self.epoch, self.batch, self.seconds_before, self.epoch_start = epoch, batch, self.step_seconds, start
        self.next_line = start + SECONDS_A_LINE
        terminal = sys.stderr.isatty()
        self.lines = self.shown and not terminal
        self.bar = tqdm(
            total=self.epoch_steps * self.images,
            initial=batch * self.images,
            desc=self._title(),
            unit="img",
            disable=not (self.shown and terminal),
        )
        with self.bar:
            yield
        self.step_seconds = self.seconds_before + self.clock() - start

    def update(self, losses: Iterator[float], lr: float) -> None:
        """Count a step, whose losses, and those of steps before it, may still be on their way."""
        for loss in losses:
            self.loss = f"{loss:.3f}"
        self.batch, self.steps = self.batch + 1, self.steps + 1
        now = self.clock()
        self.step_seconds = self.seconds_before + now - self.epoch_start
        self.bar.update(self.images)
        elapsed, left = self._elapsed(), self._left(self.epoch, self.batch)
        self.bar.set_postfix(loss=self.loss, lr=f"{lr:.1e}", run=f"{_format(elapsed)}<{_format(left)}", refresh=False)
        if self.lines and now >= self.next_line:
            done = f"{self.batch * self.images} of {self.epoch_steps * self.images} images"
            text = f"{self._title()}: {done}, loss {self.loss}, lr {lr:.1e}, {_describe(elapsed, left)}"
            print(text, file=sys.stderr, flush=True)
            self.next_line = now + SECONDS_A_LINE

    def finish_epoch(self) -> str:
        """Count an epoch as finished -> the time that has passed, and that is left, as text."""
        self.finished += 1
        self.between = self._elapsed() - self.step_seconds
        return _describe(self._elapsed(), self._left(self.epoch + 1, 0))

    def _title(self) -> str:
        return f"epoch {self.epoch + 1}/{self.epochs}"

    def _elapsed(self) -> float:
        assert self.start is not None
        return self.clock() - self.start

    def _left(self, epoch: int, batch: int) -> float:
        """Seconds from a batch of an epoch, from 0, to the end of all epochs."""
        steps = (self.epochs - epoch) * self.epoch_steps - batch
        between = self.between / self.finished if self.finished else 0.0
        return steps * self.step_seconds / max(self.steps, 1) + (self.epochs - epoch) * between


def _format(seconds: float) -> str:
    return str(tqdm.format_interval(seconds))


def _describe(elapsed: float, left: float) -> str:
    if left <= 0:
        return f"{_format(elapsed)} elapsed"
    now = datetime.datetime.now()
    end = now + datetime.timedelta(seconds=left)
    until = end.strftime("%H:%M" if end.date() == now.date() else "%Y-%m-%d %H:%M")
    return f"{_format(elapsed)} elapsed, about {_format(left)} left (until {until})"
