"""What a run leaves beside its weights: files that were torn, curves, TensorBoard."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from fastmask.training.callback import flatten_metrics
from fastmask.training.history import History, Row, draw_curves, smooth
from fastmask.training.tensorboard import open_board


def test_history_survives_torn_lines(tmp_path: Path) -> None:
    history = History(tmp_path, 0, 0, 2)
    for step in range(4):
        history.add_step(Row(step, step // 2 + 1, step % 2, 0.1, [step + 0.5, step + 0.5, 1.0]), ["loss_mask"])
    history.close()
    text = (tmp_path / "steps.csv").read_text()
    (tmp_path / "steps.csv").write_text(text[:-2])  # a number that looks whole
    again = History(tmp_path, 4, 2, 2)
    assert [row.step for row in again.rows] == [0, 1, 2]
    assert again.rows[2] == Row(2, 2, 0, 0.1, [2.5, 2.5, 1.0])
    again.close()
    assert (tmp_path / "steps.csv").read_text().splitlines() == text.splitlines()[:4]
    assert smooth([1.0, 2, 3, 4], 0.5) == [1.0, 1.5, 2.5, 3.5]
    assert smooth([1.0, float("nan"), 3, 5], 0.5) == [1.0, 1.0, 2.0, 4.0]
    (tmp_path / "steps.csv").write_text("")
    empty = History(tmp_path, 4, 2, 2)
    assert (empty.names, empty.rows) == ([], [])
    empty.close()
    pytest.importorskip("matplotlib")
    draw_curves(again, tmp_path / "curves.png")


def test_curves_name_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figures: list[Any] = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    history = History(tmp_path, 0, 0, 1)
    history.add_step(Row(0, 1, 0, 0.1, [1.5, 1.5, 1.0]), ["loss_mask"])
    history.epochs = [{"epoch": 1, "box": [0.1] * 12, "mask": [0.1] * 12}]
    draw_curves(history, tmp_path / "curves.png")
    history.close()
    monkeypatch.undo()
    pyplot.close(figures[0])
    (legend,) = (axes.get_legend() for axes in figures[0].axes if axes.get_ylabel() == "average precision")
    assert [text.get_text() for text in legend.get_texts()] == ["box AP", "box AP50", "mask AP", "mask AP50"]


@pytest.mark.parametrize("first", [0, 1], ids=["all epochs", "the first epoch is lost"])
def test_epochs_of_earlier_versions_count_from_1(
    first: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They counted from 0 in the files. Each is read once as such, whichever of them a crash left as it was."""
    rows = [f"{step},{step // 2},{step % 2},0.1,1.5,1.5,1.0" for step in range(2 * first, 5)]
    entries = [{"epoch": epoch, "loss": 1.5, "lr": 0.1, "box": [0.1] * 12} for epoch in range(first, 2)]
    (tmp_path / "steps.csv").write_text("\n".join(["step,epoch,batch,lr,loss_mask,loss,gradient_norm", *rows, ""]))
    (tmp_path / "epochs.json").write_text(json.dumps(entries))
    expected = [(step, step // 2 + 1, step % 2) for step in range(2 * first, 5)]
    for _ in range(2):
        history = History(tmp_path, 5, 2, 2)
        assert [row[:3] for row in history.rows] == expected
        assert [(entry["epoch"], entry["steps"]) for entry in history.epochs] == [(1, 2), (2, 4)][first:]
        assert json.loads((tmp_path / "epochs.json").read_text()) == history.epochs
        assert (tmp_path / "det_results.txt").read_text().startswith(f"epoch:{first + 1} ")
        history.close()
    said = f"fastmask train: {tmp_path}: its epochs counted from 0, and count from 1 now\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("error", ["RuntimeError('no\\nfont')", "ImportError('no ABI')", "SystemError('no API')"])
def test_extras_that_are_broken(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever they raise as they are imported, they are named once and the run goes on; what is missing is not."""
    for name in ("matplotlib", "tensorboard"):
        for module in [each for each in sys.modules if name in each.split(".")]:
            monkeypatch.delitem(sys.modules, module)
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    history = History(tmp_path, 0, 0, 2)
    history.draw()
    history.draw()
    said = error.replace("('", ": ").partition("\\n")[0].partition("')")[0]
    assert capsys.readouterr().err == f"fastmask train: matplotlib fails, so that curves.png is not written: {said}\n"
    if not error.startswith("ImportError"):  # what was asked for and is not installed is an error
        assert open_board(tmp_path / "board", 0) is None
        assert f"tensorboard fails, so that board/ is not written: {said}\n" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    missing = History(tmp_path, 0, 0, 2)
    missing.draw()
    assert capsys.readouterr().err == ""


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = open_board(tmp_path, 0)
    board.on_step(3, {"loss": 1.5, "gradient_norm": 2.5, "lr": 0.25})
    board.on_epoch(1, 4, flatten_metrics({"loss": 1.0, "lr": 0.5, "mask": [0.1 * i for i in range(12)]}))
    board.writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {name: (events.Scalars(name)[0].step, events.Scalars(name)[0].value) for name in events.Tags()["scalars"]}
    assert found["lr"] == (3, 0.25)
    assert found["train/gradient_norm"] == (3, 2.5)
    assert found["mask/ap50"] == (4, pytest.approx(0.1))
    assert len(found) == 15
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"TensorBoard must be installed: pip install 'fastmask-rcnn\[train\]'"):
        open_board(tmp_path, 0)
