"""Files are written whole or not at all, and never over what another made or over what is read."""

import json
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from fastmask import data, files
from fastmask.cli import main
from fastmask.demo import save_synthetic, synthetic_dataset
from fastmask.models.checkpoint import save_weights

FORMATS = {"coco": "a.json", "via": "b.json", "labelme": "labels", "masks": "masks"}


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can be larger than that many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "first \u00e9")
    assert path.read_text(encoding="utf-8") == "first \u00e9"
    with full_disk(1000), pytest.raises(OSError, match="too large"):
        files.write_text(path, "x" * 2000)
    with pytest.raises(ZeroDivisionError), files.replace_file(path) as draft:
        draft.write_text(f"torn {1 / 0}")
    with pytest.raises(FileNotFoundError), files.replace_file(path):  # nothing was written
        pass
    assert content_of(tmp_path) == {"a.txt": "first \u00e9".encode()}
    files.write_text(path, "second")
    assert content_of(tmp_path) == {"a.txt": b"second"}


def test_what_is_there_and_what_is_read(tmp_path: Path) -> None:
    new, old, link = (tmp_path / name for name in ("new", "old", "link"))
    old.write_text("1")
    link.symlink_to(old)
    files.check_free([new], force=False)
    with pytest.raises(FileExistsError, match=r"old and 1 more must not be there already; --force"):
        files.check_free([new, old, link], force=False)
    files.check_free([new, old, link], force=True)
    with pytest.raises(ValueError, match="link must be another file than what is read"):
        files.check_free([new, link], force=True, inputs=[old])


@pytest.fixture
def dataset(tmp_path: Path, seed: int) -> data.Dataset:
    return save_synthetic(synthetic_dataset(2, seed, (64, 96)), tmp_path / "set")


@pytest.mark.parametrize("format", FORMATS)
def test_annotations_are_not_replaced(format: str, dataset: data.Dataset, tmp_path: Path) -> None:
    target = tmp_path / "out" / FORMATS[format]
    data.write_dataset(dataset, target, format)
    before = content_of(tmp_path)
    fewer = dataset._replace(records=[record._replace(instances=()) for record in dataset.records])
    with pytest.raises(FileExistsError, match="must not be there already"):
        data.write_dataset(fewer, target, format)
    with pytest.raises(ValueError, match="must be another file than what is read"):
        data.write_dataset(fewer, target, format, force=True, source=target)
    with full_disk(20), pytest.raises(OSError, match="too large"):
        data.write_dataset(fewer, target, format, force=True)
    assert content_of(tmp_path) == before
    data.write_dataset(fewer, target, format, force=True)
    assert content_of(tmp_path).keys() == before.keys()
    assert content_of(tmp_path) != before


@pytest.mark.parametrize("format", FORMATS)
def test_converting_onto_the_source(
    format: str, dataset: data.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "out" / FORMATS[format]
    data.write_dataset(dataset, source, format)
    before = content_of(tmp_path)
    for options in ([], ["--force"]):
        assert main(["data", "convert", str(source), str(source), "--to", format, *options]) == 2
        assert "must be another file than what is read" in capsys.readouterr().err
    assert main(["data", "convert", str(source), str(tmp_path / "set" / "annotations.json"), "--to", "coco"]) == 2
    assert "annotations.json must not be there already; --force" in capsys.readouterr().err
    assert content_of(tmp_path) == before


def test_images_are_never_replaced(dataset: data.Dataset, tmp_path: Path) -> None:
    """A second set of masks in a folder that holds other images of the same names, and the folder's own images."""
    data.write_dataset(dataset, tmp_path / "masks", "masks")
    own = data.read_dataset(tmp_path / "masks")
    assert own.records[0].file.parent.name == "JPEGImages"
    data.write_dataset(own, tmp_path / "masks", "masks", force=True)  # copies would be the images themselves
    record = dataset.records[0]._replace(
        file=tmp_path / "masks" / "SegmentationObject" / f"{own.records[0].file.stem}.png"
    )
    with pytest.raises(ValueError, match="must be another file than what is read"):
        data.write_dataset(dataset._replace(records=[record]), tmp_path / "masks", "masks", force=True)


def test_names_differ_in_more_than_the_case_of_letters(tmp_path: Path) -> None:
    record = synthetic_dataset(1, 0, (64, 64)).records[0]
    records = [record._replace(file=Path(name)) for name in ("x/a.png", "y/a.jpg", "A.png", "b.png")]
    assert data.records.name_records(records) == ["a", "a_", "A__", "b"]


def test_commands_leave_files_of_others(
    slim_file: tuple[Path, nn.Module], dataset: data.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the names that they write to; what an earlier run made is replaced, and so is all with --force."""
    image, annotations = str(dataset.records[0].file), str(tmp_path / "set" / "annotations.json")
    out = tmp_path / "out"
    out.mkdir()
    model = ["--weights", str(slim_file[0]), "--model", "slim"]
    classes = ["--classes", "one=ellipse"]
    cases = (
        ("sheet.png", ["data", "check", annotations, "--contact-sheet", str(out / "sheet.png")]),
        ("annotations.json", ["data", "draw", str(out), "--number", "1"]),
        ("comparison.png", ["compare", image, *model, "--size", "128", "160", "--out", str(out / "comparison.png")]),
        ("detections.json", ["evaluate", annotations, *model, *classes, "--out", str(out)]),
        ("predictions.json", ["predict", image, *model, "--out", str(out)]),
        ("best.pth", ["train", "--data-path", annotations, *model, "--epochs", "1", "--out", str(out)]),
        ("selftest.json", ["selftest", "--json", str(out / "selftest.json")]),
        ("demo.png", ["demo", "--image", image, "--out", str(out)]),
        ("bench.json", ["bench", "--quick", "--only", "NMS", "--json", str(out / "bench.json")]),
    )
    for name, command in cases:
        (out / name).write_text('["mine"]')
        assert main(command) == 2, name
        printed = capsys.readouterr().err
        assert name in printed
        assert "must" in printed
        assert content_of(out) == {name: b'["mine"]'}, name
        (out / name).unlink()


def test_outputs_of_an_earlier_run_are_replaced(
    slim_file: tuple[Path, nn.Module], dataset: data.Dataset, tmp_path: Path
) -> None:
    annotations, image, out = (
        str(tmp_path / "set" / "annotations.json"),
        str(dataset.records[0].file),
        str(tmp_path / "out"),
    )
    model = ["--weights", str(slim_file[0]), "--model", "slim"]
    for command in (
        ["evaluate", annotations, *model, "--classes", "one=ellipse", "--out", out],
        ["predict", image, *model, "--out", out],
        ["predict", image, *model, "--score", "1", "--out", out],  # no detections
        [
            "compare",
            image,
            *model,
            "--size",
            "128",
            "160",
            "--force",
            "--out",
            str(tmp_path / "out" / "comparison.png"),
        ],
    ):
        assert main(command) == 0
        assert main(command) == 0
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_weights_and_overlays_are_whole(dataset: data.Dataset, tmp_path: Path) -> None:
    import torch

    from fastmask.training import checkpoints
    from fastmask.visualize import save_overlay

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8))
    weights = {"a": torch.rand(2000)}
    for write, name in (
        (lambda path: save_weights(weights, path), "a.safetensors"),
        (lambda path: checkpoints.save(weights, path), "a.pth"),
        (lambda path: save_overlay(noise, path), "a.png"),
    ):
        path = tmp_path / name
        write(path)
        before = content_of(tmp_path)
        with full_disk(1000), pytest.raises(OSError, match=r"too large|cannot be written"):
            write(path)
        assert content_of(tmp_path) == before


def test_yaml_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("\ufeffnames: {0: \u732b, 1: 'no'}\nlr: 1e-3\n", encoding="utf-8")
    assert files.read_yaml(path) == {"names": {0: "\u732b", 1: "no"}, "lr": "1e-3"}  # YAML 1.1's numbers need a point
    for text in (b"a: [1", b"a: !!python/object/apply:os.getcwd []", b"\xff\xfe\xfd", b"[" * 20_000):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"a\.yaml must be a YAML file: ."):
            files.read_yaml(path)
    path.write_text("lr: 1\nsizes: {lr: 2}\nlr: 3")
    with pytest.raises(ValueError, match=r"a\.yaml must be a YAML file: line 3 has 'lr' once more"):
        files.read_yaml(path)
    with pytest.raises(FileNotFoundError):
        files.read_yaml(tmp_path / "b.yaml")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match=r"a\.yaml needs PyYAML: pip install 'fastmask-rcnn\[yaml\]'"):
        files.read_yaml(path)
