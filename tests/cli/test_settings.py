"""Options of ``fastmask train`` from files: YAML, JSON, a run's own settings; what the command line leaves out."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.pages import find_blocks
from torch import nn

from fastmask.cli import main, make_parsers, train as command
from fastmask.cli._settings import SETTINGS, add_negations, read_settings
from fastmask.demo import save_synthetic, synthetic_dataset
from fastmask.training import api


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    return make_parsers()[1]["train"]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fastmask train")
    command.add_arguments(parser)
    return command.parse(parser, lambda: parser.parse_args(words))


def test_the_command_line_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever its options are; flags are turned off by --no-NAME; what is required may be in the file."""
    pytest.importorskip("yaml", reason="it reads the file")
    text = "data-path: photos\nepochs: 3\nlr: 1e-3\nmin_size: [64, 96]\nsize: [128, 96]\nbf16: true\nval: ~\n"
    path = str(write(tmp_path / "a.yaml", text + "keep-empty: true\nout: runs/one\nmax_size: '96'\nflip: 1\n"))
    args = parse("--epochs", "5", "--config", path, "--no-bf16", "--size", "64", "64")
    assert (args.data_path, args.out, args.val) == (Path("photos"), Path("runs/one"), None)  # of the working directory
    assert (args.epochs, args.lr, args.max_size, args.flip, args.batch_size) == (5, 1e-3, 96, 1.0, 2)
    assert (args.min_size, args.size, args.bf16, args.keep_empty) == ([64, 96], [64, 64], False, True)
    with pytest.raises(SystemExit, match="2"):
        parse("--config", str(write(tmp_path / "b.yaml", "lr: 1")), "--epochs", "1")
    assert capsys.readouterr().err.endswith("in the file of --config: --data-path\n")


def test_the_page_shows_a_settings_file(tmp_path: Path, parser: argparse.ArgumentParser) -> None:
    pytest.importorskip("yaml", reason="it reads the file")
    (text,) = find_blocks("fastmask/training/README.md", "yaml")
    values = read_settings(write(tmp_path / "a.yaml", text), parser)
    assert (values["lr"], values["min_size"], values["keep_empty"]) == (1e-3, [192, 256], True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"learning_rate": 1}', r"must have names of options, got 'learning_rate': did you mean 'lr'\?"),
        ('{"weigth_decay": 1}', r"got 'weigth_decay': did you mean 'weight_decay'\?"),
        ('{"config": "b.yaml"}', "must have names of options, got 'config'"),
        ('{"epochs": 3.0}', "epochs must be an integer, got 3.0"),
        ('{"epochs": true}', "epochs must be an integer, got True"),
        ('{"lr": "fast"}', "lr must be a number, got 'fast'"),
        ('{"min-size": []}', r"min-size must be a list of one or more, got \[\]"),
        ('{"size": [64]}', r"size must be a list of 2, got \[64\]"),
        ('{"zoom": [1, "2x"]}', r"zoom must be a number, got \[1, '2x'\]"),
        ('{"bf16": 1}', "bf16 must be true or false, got 1"),
        ('{"out": 2026}', "out must be text, in quotes where it looks like something else, got 2026"),
        ('{"schedule": "linear"}', "schedule must be one of step, cosine, got 'linear'"),
        ('{"lr": {"peak": 1}}', "lr must be a number, got a mapping"),
        ('{"batch-size": 1, "batch_size": 2}', "must have each option once, got batch_size in both spellings"),
        ('{"lr": 1, "lr": 2}', "must be a JSON file: it has 'lr' twice"),
        ('{"lr": ', "must be a JSON file: "),
        ("[" * 20_000, "must be a JSON file: "),
        ("[1]", r"must have options and their values, got \[1\]"),
        ('{"arguments": {"model": "None"}}', "got one of an earlier version: leave out its 'arguments'"),
    ],
)
def test_what_is_wrong_in_a_file(text: str, message: str, parser: argparse.ArgumentParser, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_settings(write(tmp_path / "a.json", text), parser)
    assert str(caught.value).startswith(str(tmp_path / "a.json"))


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (
        tmp_path / "none.yaml",
        write(tmp_path / "a.json", '{"val": "<Dataset>", "data_path": "a", "epochs": 1}'),
    ):
        assert main(["train", "--config", str(path)]) == 2
        printed = capsys.readouterr().err
        assert (printed.count("\n"), str(path) in printed) == (1, True)
    assert printed == f"fastmask train: --val must be given: {path} has <Dataset>, of Python\n"


def test_negations_are_of_flags_alone() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep-empty", action="store_true")
    parser.add_argument("--lr")
    add_negations(parser)
    assert parser.parse_args(["--keep-empty", "--no-keep-empty"]).keep_empty is False
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--no-lr"])


def test_a_run_is_resumed_and_repeated_by_its_settings(
    slim_file: tuple[Path, nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``train --resume`` takes what is not given from the run, ``--config`` takes its settings.json unchanged."""
    save_synthetic(synthetic_dataset(2, 1, (64, 96), "mixed"), tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    options = {"model": "slim", "weights": "none", "device": "cpu", "workers": 0, "min-size": 64, "epochs": 1}
    write(tmp_path / "a.json", json.dumps({"data_path": "set", "seed": 3, "optimizer": "adamw"} | options))
    assert main(["train", "--config", "a.json", "--out", "one"]) == 0
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")  # its paths mean the same here
    (tmp_path / "one").rename(tmp_path / "two")
    resume = ["train", "--resume", "--out", str(tmp_path / "two"), "--epochs", "2"]
    assert main([*resume, "--lr", "0.5"]) == 2
    assert "must be of the same run to be resumed, got --lr None (now 0.5)" in capsys.readouterr().err
    assert main(resume) == 0
    assert not (tmp_path / "one").exists()
    settings = json.loads((tmp_path / "two" / SETTINGS).read_text())
    expected = {"data_path": str(tmp_path / "set"), "seed": 3, "optimizer": "adamw", "epochs": 2, "lr": None}
    assert settings.items() >= expected.items()
    again = vars(parse("--config", str(tmp_path / "two" / SETTINGS)))
    given = vars(parse("--config", str(tmp_path / "a.json"), "--epochs", "2", "--out", str(tmp_path / "two")))
    changed = {"config", "data_path"}
    assert {key: again[key] for key in again.keys() - changed} == {key: given[key] for key in given.keys() - changed}
    assert SETTINGS == api.SETTINGS


def test_settings_of_runs_in_python(tmp_path: Path) -> None:
    """Objects are named as such; a file from before options were in it leaves all to the command line."""
    values: dict[str, Any] = {"data_path": synthetic_dataset(0), "weights": "none", "device": torch.device("cpu")}
    api._write_settings(tmp_path, values | {"out": tmp_path}, 0.1)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    expected = {"data_path": "<Dataset>", "weights": "none", "device": "cpu", "out": str(tmp_path), "peak_lr": 0.1}
    assert settings.items() >= expected.items()
    words = ["--resume", "--out", str(tmp_path), "--epochs", "1", "--data-path"]
    assert parse(*words, "set").data_path == Path("set")
    write(tmp_path / SETTINGS, json.dumps({"lr": 0.1, "arguments": {}, "fastmask": "0.1.0"}))
    assert parse(*words, "set").lr is None
