"""How far a run is, in words: the time that is left, on a terminal and in a log file."""

import io
import re
import sys

import pytest

from fastmask.training.progress import RunProgress


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "log file"])
def test_time_left(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 s a step, 4 steps an epoch, and 20 s between epochs: it knows the latter once an epoch is finished."""
    now, stream = [1000.0], Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    progress = RunProgress(3, 4, 2, True, clock=lambda: now[0])
    told, ends = [], []
    for epoch in range(1, 3):  # resumed after the first one and a step
        with progress.train_epoch(epoch, 1 if epoch == 1 else 0):
            for step in range(1 if epoch == 1 else 0, 4):
                now[0] += 10
                progress.update(iter([2.5] * (step != 1)), 1e-3)
                told.append(progress._left(progress.epoch, progress.batch))
        now[0] += 20
        ends.append(progress.finish_epoch())
    assert told == [60, 50, 40, 50, 40, 30, 20]
    assert re.fullmatch(r"00:50 elapsed, about 01:00 left \(until (\d{4}-\d\d-\d\d )?\d\d:\d\d\)", ends[0])
    assert ends[1] == "01:50 elapsed"
    said = stream.getvalue()
    assert said.count("\r") > 0 if terminal else said == ""
    assert not terminal or "epoch 3/3: 100%" in said


def test_lines_of_a_log_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At most one a minute within an epoch, and none where nothing is to be shown."""
    for shown in (True, False):
        now = [0.0]
        progress = RunProgress(1, 20, 2, shown, clock=lambda now=now: now[0])
        with progress.train_epoch(0, 0):
            for _ in range(20):
                now[0] += 7
                progress.update(iter([0.5]), 0.01)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" (until")[0] for line in lines] == [
        "epoch 1/1: 18 of 40 images, loss 0.500, lr 1.0e-02, 01:03 elapsed, about 01:17 left",
        "epoch 1/1: 36 of 40 images, loss 0.500, lr 1.0e-02, 02:06 elapsed, about 00:14 left",
    ]
