"""Weights by name: read from, and written to, a hub on this machine, through huggingface_hub itself."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.hub import TOKEN, Hub, Repository, serve_hub
from helpers.images import draw_image_file
from torch import Tensor

from fastmask import Predictor
from fastmask.cli import main
from fastmask.cli._model import add_model_arguments, add_predictor_arguments, make_predictor
from fastmask.distributed import SINGLE_RANK
from fastmask.models import Checkpoint, detection, from_checkpoint, load_checkpoint, push_weights
from fastmask.models._hub import FORM, HubFile, parse_hub_name
from fastmask.models.detection.slim import WEIGHTS_FILE

COMMIT = "0123456789abcdef0123456789abcdef01234567"
METRICS = {"box": [0.5, 0.75, 0.25, -1.0], "mask": [0.125, 0.25, 0.0625, 1.0]}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with me/shapes, whose weights are SHAPES_V1, where huggingface_hub looks for the real one."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with serve_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        server.repositories["me/shapes"] = Repository()
        server.repositories["me/shapes"].commit({"model.safetensors": WEIGHTS_FILE.read_bytes()})
        yield server


def equal(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in state.items())


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("hf://me/a.b-c", HubFile("me/a.b-c", "model.safetensors", "main")),
        ("hf://me/a@v1.0", HubFile("me/a", "model.safetensors", "v1.0")),
        (f"hf://me/a/x.safetensors@{COMMIT}", HubFile("me/a", "x.safetensors", COMMIT)),
        ("hf://me/a/x/y.safetensors@refs/pr/3", HubFile("me/a", "x/y.safetensors", "refs/pr/3")),
        ("hf://me/a@v1/x/y.safetensors", HubFile("me/a", "x/y.safetensors", "v1")),  # as the hub writes it
    ],
)
def test_names(name: str, file: HubFile) -> None:
    assert parse_hub_name(name) == file
    assert parse_hub_name(str(file)) == file


@pytest.mark.parametrize(
    "name",
    [
        *("hf://", "hf://me", "hf://me/a@", "hf://me/a/", "hf://me/a@v1/x.safetensors@v2", "hf://me/a b", "hf:///me/a"),
        *("hf://me/a/model.pth", "hf://me/a/pytorch_model.bin@main", "hf://me/a/../b.safetensors"),
    ],
)
def test_other_names_and_files_are_refused_before_anything_is_downloaded(name: str) -> None:
    for read in (Checkpoint, from_checkpoint, Predictor.from_pretrained):
        with pytest.raises(ValueError, match=r"^weights must be hf://owner/name\[/FILE") as error:
            read(name)
        assert str(error.value).endswith(f", got {name}")
        assert FORM in str(error.value)


def test_weights_by_name(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """In every argument that takes a file; each commit is downloaded once, and named."""
    repository, file = hub.repositories["me/shapes"], Checkpoint(WEIGHTS_FILE)
    first = repository.commits[0][0]
    pinned = f"hf://me/shapes/model.safetensors@{first}"
    model = detection.maskrcnn_slim_fpn(weights="hf://me/shapes", **file.meta["options"])
    assert capsys.readouterr().err == f"fastmask: hf://me/shapes is {pinned}\n"
    assert len([request for request in hub.requests if request.startswith("GET /me/shapes/")]) == 1
    checkpoint = Checkpoint("hf://me/shapes")
    assert (str(checkpoint), checkpoint.meta) == (pinned, file.meta)
    assert equal(checkpoint.get_state_dict(), file.get_state_dict())
    hub.requests.clear()
    for built in (from_checkpoint(pinned, builder="maskrcnn_slim_fpn"), model):
        load_checkpoint(built, f"hf://me/shapes@{first}/model.safetensors")
        assert equal(built.state_dict(), model.state_dict())
    predictor = Predictor.from_pretrained("maskrcnn_slim_fpn", pinned)
    assert predictor.categories == file.meta["categories"]
    assert not hub.requests, "a commit in the cache needs no network"

    repository.tags["v1"] = first
    second = repository.commit({"model.safetensors": WEIGHTS_FILE.read_bytes(), "other.txt": b""})
    assert str(Checkpoint("hf://me/shapes")) == f"hf://me/shapes/model.safetensors@{second}"
    assert str(Checkpoint("hf://me/shapes@v1")) == pinned


def test_predictions_keep_the_commit(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupted run goes on with the weights it began with, or not at all: they are among its settings."""
    words = ["predict", str(draw_image_file(tmp_path / "image.png")), "--model", "maskrcnn_slim_fpn"]
    words += ["--no-overlays", "--score", "0", "--out", str(tmp_path / "out"), "--weights"]
    assert main([*words, "hf://me/shapes"]) == 0
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert found
    commit = hub.repositories["me/shapes"].commits[0][0]
    assert f"fastmask: hf://me/shapes is hf://me/shapes/model.safetensors@{commit}\n" in capsys.readouterr().err
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    add_predictor_arguments(parser)
    settings = make_predictor(parser.parse_args(["--weights", "hf://me/shapes", *words[2:4]]), SINGLE_RANK)[2]
    assert settings["weights"] == f"hf://me/shapes/model.safetensors@{commit}"
    for wrong, message in {
        "hf://me": "--weights must be hf://owner/name[/FILE.safetensors][@REVISION], got hf://me",
        "hf://me/none": "--weights must be in a repository that you may read (hf auth login), got hf://me/none",
    }.items():
        capsys.readouterr()
        assert main([*words, wrong]) == 2
        assert capsys.readouterr().err == f"fastmask predict: {message}\n"


@pytest.mark.slow
def test_commands_in_processes_of_their_own(hub: Hub, tmp_path: Path) -> None:
    """By the variables that huggingface_hub reads; two ranks look the revision up once; settings keep the commit."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    environment |= {"HF_HUB_DISABLE_XET": "1"}

    def run(*words: object, launcher: tuple[str, ...] = ()) -> str:
        command = [sys.executable, *launcher, "-m", "fastmask", *map(str, words)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    for split, number in (("train", 4), ("val", 2)):
        run("data", "draw", f"shapes/{split}", "--number", number)
    printed = run("push", WEIGHTS_FILE, "me/new", "--model", "maskrcnn_slim_fpn")
    pinned = f"hf://me/new/model.safetensors@{hub.repositories['me/new'].commits[-1][0]}"
    assert pinned in printed.splitlines()
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    printed = run("predict", "shapes/val/images", "--weights", "hf://me/new", "--no-overlays", launcher=torchrun)
    assert printed.count(f"fastmask: hf://me/new is {pinned}\n") == 1
    hub.requests.clear()
    run("train", "--data-path", "shapes", "--weights", "hf://me/new", "--epochs", 1, "--workers", 0)
    assert not [request for request in hub.requests if request.startswith("GET /me/")], "it is in the cache"
    assert json.loads((tmp_path / "training" / "settings.json").read_text())["weights"] == pinned
    run("push", "training/best.pth", "me/trained", "--private")
    assert b"## Metrics" in hub.repositories["me/trained"].commits[-1][1]["README.md"]
    assert "mask" in run("evaluate", "shapes/val", "--weights", "hf://me/trained")


def test_what_the_hub_lacks_is_named(hub: Hub) -> None:
    hub.repositories["me/hidden"] = Repository(private=True)
    hub.repositories["me/hidden"].commit({})
    for name, message in {
        "hf://me/none": "weights must be in a repository that you may read (hf auth login), got hf://me/none",
        "hf://me/hidden": "weights must be in a repository that you may read (hf auth login), got hf://me/hidden",
        "hf://me/shapes@v9": "weights must be of a commit, tag or branch of me/shapes, got v9 in hf://me/shapes@v9",
        "hf://me/shapes/a.safetensors": "weights must be a file of me/shapes, got a.safetensors; "
        "it has model.safetensors",
    }.items():
        with pytest.raises(ValueError, match=r"^weights must be") as error:
            Checkpoint(name)
        assert str(error.value) == message


def test_without_a_network(hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the cache is taken, and its commit named; of other weights it is said which file to put where."""
    from huggingface_hub import constants

    commit = hub.repositories["me/shapes"].commits[0][0]
    Checkpoint("hf://me/shapes")
    capsys.readouterr()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    Checkpoint("hf://me/shapes")
    printed = capsys.readouterr().err
    pinned = f"hf://me/shapes/model.safetensors@{commit}"
    assert printed == f"fastmask: hf://me/shapes is {pinned}, when it was last reached\n"
    url = f"{hub.url}/me/other/resolve"
    with pytest.raises(ConnectionError, match=r"^hf://me/other cannot be downloaded \(.*offline") as error:
        Checkpoint("hf://me/other")
    assert str(error.value).endswith(f": put {url}/main/model.safetensors anywhere, and give its path")
    with pytest.raises(ConnectionError) as error:
        Checkpoint(f"hf://me/other@{COMMIT}")
    said, _, where = str(error.value).partition(" at ")
    assert said.endswith(f": put {url}/{COMMIT}/model.safetensors")
    Path(where).parent.mkdir(parents=True)
    Path(where).write_bytes(WEIGHTS_FILE.read_bytes())
    assert Checkpoint(f"hf://me/other@{COMMIT}").meta["num_classes"] == 4
    assert "\n" not in str(error.value)


def test_pushed_weights_come_back(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With all that the file tells; nothing is overwritten unless that is asked for."""
    state, meta = Checkpoint(WEIGHTS_FILE).get_state_dict(), Checkpoint(WEIGHTS_FILE).meta
    content = {"model": state, "builder": "maskrcnn_slim_fpn", "metrics": METRICS, "epoch": 3}
    torch.save(content | {name: meta[name] for name in ("categories", "options")}, tmp_path / "best.pth")
    with pytest.raises(ValueError, match=r"you may write to \(hf auth login\), got me/new"):
        push_weights(tmp_path / "best.pth", "me/new")
    (tmp_path / "token").write_text(TOKEN)
    pinned = push_weights(tmp_path / "best.pth", "me/new", private=True)
    assert hub.repositories["me/new"].private
    commit, files = hub.repositories["me/new"].commits[-1]
    assert pinned == f"hf://me/new/model.safetensors@{commit}"
    back = Checkpoint(pinned)
    assert equal(back.get_state_dict(), state)
    assert (back.meta["builder"], back.meta["metrics"]) == ("maskrcnn_slim_fpn", METRICS)
    assert back.meta["categories"] == meta["categories"]
    assert back.meta["options"].items() >= meta["options"].items()
    card = files["README.md"].decode()
    for part in ("pipeline_tag: image-segmentation", '("hf://me/new")', "| 3 | quadrilateral |", "| min_size | 192 |"):
        assert part in card
    assert "| box | 0.500 | 0.750 | 0.250 |\n| mask | 0.125 | 0.250 | 0.062 |" in card

    capsys.readouterr()  # bars of downloads
    assert main(["push", str(tmp_path / "best.pth"), "me/new"]) == 2
    message = f"me/new must not have README.md and model.safetensors already (commit {commit})"
    assert capsys.readouterr().err == f"fastmask push: {message}; --force (force=True) replaces them\n"
    assert main(["push", str(tmp_path / "best.pth"), "me/shapes", "--private", "--force"]) == 2
    assert "private must not be asked for with me/shapes, which is there" in capsys.readouterr().err
    assert main(["push", str(WEIGHTS_FILE), "me/new", "--force", "--model", "maskrcnn_slim_fpn"]) == 0
    commit, files = hub.repositories["me/new"].commits[-1]
    assert capsys.readouterr().out == f"hf://me/new/model.safetensors@{commit}\n"
    assert b"## Metrics" not in files["README.md"]


def test_wrong_arguments_of_push(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("huggingface_hub")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "odd.pth")
    for words, message in {
        (str(tmp_path / "none.pth"), "me/new"): "none.pth: no such file",
        (str(WEIGHTS_FILE), "new"): "repository must be owner/name, got new",
        (str(tmp_path / "odd.pth"), "me/new"): "--model must be named for",
    }.items():
        assert main(["push", *words]) == 2
        assert message in capsys.readouterr().err


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    needs = "needs huggingface_hub: pip install 'fastmask-rcnn[hub]'\n"
    assert main(["push", str(WEIGHTS_FILE), "me/new"]) == 2
    assert capsys.readouterr().err == f"fastmask push: fastmask push {needs}"
    assert main(["export", "a.onnx", "--weights", "hf://me/shapes"]) == 2
    assert capsys.readouterr().err == f"fastmask export: hf://me/shapes {needs}"
