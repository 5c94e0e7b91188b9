"""Tuning files: which one is read, and which of its values are used."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.slim import slim_model

import fastmask
from fastmask.kernels import tuning
from fastmask.kernels.tuning import tuned_value
from fastmask.models.prepare import choose_fuse

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
NAME = "NVIDIA H100 80GB HBM3"


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    for name in ("_tables", "_files"):
        monkeypatch.setattr(tuning, name, {})


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A file for the CPU, which ``FASTMASK_TUNING`` names."""

    def write_file(values: Any, **facts: Any) -> Path:
        path = tmp_path / "tuning.json"
        path.write_text(json.dumps({"format": tuning.FORMAT, **tuning.facts_of("cpu"), "values": values, **facts}))
        monkeypatch.setenv("FASTMASK_TUNING", str(path))
        return path

    return write_file


def test_values_of_a_file_are_read_once(write: Callable[..., Path]) -> None:
    path = write({"paste.programs": 8192, "roi_align_backward.tile": [4, 4]})
    assert tuned_value("paste.programs", 4096, CPU) == 8192
    assert tuned_value("roi_align_backward.tile", (4, 8), CPU) == (4, 4)
    assert tuned_value("rle.programs", 4096, CPU) == 4096
    path.unlink()  # what was captured in a graph and what is launched later must be the same
    assert tuned_value("paste.programs", 4096, CPU) == 8192
    assert tuning.values_on(CPU) == {"paste.programs": 8192, "roi_align_backward.tile": (4, 4)}


def test_off_and_no_file(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    write({"paste.programs": 8192})
    monkeypatch.setenv("FASTMASK_TUNING", "off")
    assert tuned_value("paste.programs", 4096, CPU) == 4096
    assert tuning.find_file(CPU) is tuning.find_file(GPU) is None
    monkeypatch.delenv("FASTMASK_TUNING")
    assert tuning.find_file(CPU) is None  # only GPUs are tuned


def test_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file a device's name and versions; nothing is written there, whether or not it can be."""
    monkeypatch.delenv("FASTMASK_TUNING")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: NAME)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert tuning.default_file(GPU).parent == tmp_path / "home" / ".cache" / "fastmask" / "tuning"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tuning.default_file(GPU)
    assert path.parent == tmp_path / "fastmask" / "tuning"
    assert path.name.startswith("NVIDIA-H100-80GB-HBM3_triton-")
    assert path == tuning.find_file(GPU) == tuning.file_to_write(GPU)
    assert tuned_value("paste.programs", 4096, GPU) == 4096
    assert list(tmp_path.iterdir()) == []

    tuning._tables.clear(), tuning._files.clear()
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"format": tuning.FORMAT, **tuning.facts_of(NAME), "values": {"paste.programs": 2048}}))
    before = path.stat().st_mtime_ns
    path.parent.chmod(0o555)
    for device in (GPU, torch.device("cuda", 1)):
        assert tuned_value("paste.programs", 4096, device) == 2048
    assert [*path.parent.iterdir()] == [path]
    assert path.stat().st_mtime_ns == before
    path.parent.chmod(0o755)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"device": NAME}, f"device must be 'cpu', got '{NAME}'"),
        ({"triton": "1.0"}, "triton must be '.*', got '1.0'"),
        ({"fastmask": "0.0.1"}, "fastmask must be '.*', got '0.0.1'"),
        ({"format": 2}, "format must be 1, got 2"),
    ],
    ids=["device", "triton", "fastmask", "format"],
)
def test_a_foreign_file_is_named_once_and_ignored(
    facts: dict[str, Any], message: str, write: Callable[..., Path]
) -> None:
    path = write({"paste.programs": 8192}, **facts)
    with pytest.warns(UserWarning, match=message) as caught:
        assert tuned_value("paste.programs", 4096, CPU) == 4096
    assert [str(path) in str(warning.message) for warning in caught] == [True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuned_value("paste.programs", 4096, CPU) == 4096


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"values": 3}', "{}", "\ud83d", "[" * 10**6], ids=lambda text: repr(text[:9])
)
def test_a_broken_file_is_named_and_ignored(text: str, write: Callable[..., Path]) -> None:
    write({}).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.warns(UserWarning, match="the file is ignored"):
        assert tuned_value("paste.programs", 4096, CPU) == 4096


def test_a_cache_that_is_closed_to_the_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(f"Permission denied: '{self}'")

    monkeypatch.delenv("FASTMASK_TUNING")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: NAME)
    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.warns(UserWarning, match="Permission denied"):
        assert tuned_value("paste.programs", 4096, GPU) == 4096


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTMASK_TUNING", str(tmp_path / "missing.json"))
    with pytest.warns(UserWarning, match=r"missing\.json"):
        assert tuned_value("paste.programs", 4096, CPU) == 4096


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("paste.programs", 4097),
        ("paste.programs", True),
        ("paste.programs", "4096"),
        ("paste.programs", None),
        ("paste.programs", [4096]),
        ("roi_align_backward.tile", [8, 8]),  # spills
        ("paste.speed", 1),
        ("paste.programs at 800x1344, batch 1, bfloat16", 8192),
        ("predictor.mask_buckets", True),
        ("predictor.mask_buckets at 800x1344, batch 1, bfloat16", 1),
    ],
)
def test_a_value_that_is_no_choice_is_named_and_ignored(name: str, value: Any, write: Callable[..., Path]) -> None:
    write({name: value, "rle.programs": 2048})
    with pytest.warns(UserWarning, match=f"{name}") as caught:
        assert tuned_value(name, "default", CPU) == "default"
    assert len(caught) == 1
    assert tuned_value("rle.programs", 4096, CPU) == 2048  # the others are used


def test_override_ends_with_the_block(write: Callable[..., Path]) -> None:
    write({"paste.programs": 8192})
    for known in (False, True):  # whether the file was read before
        assert (CPU in tuning._tables) == known
        with tuning.override(CPU, {"paste.programs": 2048}):
            assert tuned_value("paste.programs", 4096, CPU) == 2048
            assert tuned_value("rle.programs", 4096, CPU) == 4096
        assert tuned_value("paste.programs", 4096, CPU) == 8192


def test_settings_of_a_shape(write: Callable[..., Path]) -> None:
    write({"predictor.mask_buckets at 320x480, batch 2, bfloat16": True})
    wanted = ((320, 480), 2, torch.bfloat16)
    assert tuning.tuned_value_at("predictor.mask_buckets", False, CPU, *wanted) is True
    for other in (((480, 320), *wanted[1:]), ((320, 480), 1, torch.bfloat16), ("exact", *wanted[1:])):
        assert tuning.tuned_value_at("predictor.mask_buckets", False, CPU, *other) is False


def test_a_predictors_form_is_read_where_none_is_asked_for(write: Callable[..., Path]) -> None:
    write({"predictor.fuse at 128x160, batch 1, float32": "kernel"})
    model = slim_model(fastmask)
    assert fastmask.Predictor(model, (128, 160)).fuse == "kernel"
    assert fastmask.Predictor(model, (128, 160), fuse="off").fuse == "off"
    assert fastmask.Predictor(model, (160, 160)).fuse == choose_fuse(CPU, torch.float32)


@pytest.mark.gpu
def test_looking_values_up_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time as well, in a capture, of a file in the user's cache."""
    monkeypatch.delenv("FASTMASK_TUNING")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device = torch.device("cuda", torch.cuda.current_device())
    path, facts = tuning.default_file(device), tuning.facts_of(tuning.name_of(device))
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"format": tuning.FORMAT, **facts, "values": {"paste.programs": 8192}}))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.zeros(1, device=device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            out += tuned_value("paste.programs", 4096, device)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    graph.replay()
    assert out.item() == 8192
