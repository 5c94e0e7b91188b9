"""What a run leaves beside its weights: files that were torn, curves, TensorBoard."""

import sys
from pathlib import Path

import pytest

from fastmask.training.history import History, Row, draw_curves, smooth


def test_history_survives_torn_lines(tmp_path: Path) -> None:
    history = History(tmp_path, 0, 0)
    for step in range(4):
        history.add_step(Row(step, step // 2, step % 2, 0.1, [step + 0.5, step + 0.5, 1.0]), ["loss_mask"])
    history.close()
    text = (tmp_path / "steps.csv").read_text()
    (tmp_path / "steps.csv").write_text(text[:-2])  # a number that looks whole
    again = History(tmp_path, 4, 2)
    assert [row.step for row in again.rows] == [0, 1, 2]
    assert again.rows[2] == Row(2, 1, 0, 0.1, [2.5, 2.5, 1.0])
    again.close()
    assert (tmp_path / "steps.csv").read_text().splitlines() == text.splitlines()[:4]
    assert smooth([1.0, 2, 3, 4], 0.5) == [1.0, 1.5, 2.5, 3.5]
    assert smooth([1.0, float("nan"), 3, 5], 0.5) == [1.0, 1.0, 2.0, 4.0]
    (tmp_path / "steps.csv").write_text("")
    empty = History(tmp_path, 4, 2)
    assert (empty.names, empty.rows) == ([], [])
    empty.close()
    pytest.importorskip("matplotlib")
    draw_curves(again, tmp_path / "curves.png")


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from fastmask.training.tensorboard import open_writer, write_epoch, write_step

    writer = open_writer(tmp_path, 0)
    write_step(writer, Row(3, 0, 3, 0.25, [1.5, 2.5]), ["loss", "gradient_norm"])
    write_epoch(writer, 4, {"mask": [0.1 * i for i in range(12)]})
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {name: (events.Scalars(name)[0].step, events.Scalars(name)[0].value) for name in events.Tags()["scalars"]}
    assert found["lr"] == (3, 0.25)
    assert found["train/gradient_norm"] == (3, 2.5)
    assert found["mask/ap50"] == (4, pytest.approx(0.1))
    assert len(found) == 15
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"tensorboard must be installed: pip install 'fastmask-rcnn\[train\]'"):
        open_writer(tmp_path, 0)
