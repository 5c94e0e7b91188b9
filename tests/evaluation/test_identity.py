"""Whose image and whose class a detection is: by names where there are names, and an error where they do not match."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.slim import slim_model
from torch import nn

import fastmask
from fastmask.cli import main
from fastmask.data import Dataset, read_dataset
from fastmask.demo import save_synthetic, synthetic_dataset
from fastmask.evaluation import evaluate, evaluate_results
from fastmask.evaluation.identity import find_images, rename_classes


def make_results(dataset: Dataset, folder: str = "photos") -> list[dict[str, Any]]:
    """The ground truth as `fastmask predict` would write it of a folder with these images: numbered by name."""
    results = []
    for i, record in enumerate(sorted(dataset.records, key=lambda record: record.file.name), 1):
        for instance in record.instances:
            x1, y1, x2, y2 = instance.bounds()
            rle = instance.to_rle(*record.size)
            result = {"image_id": i, "category_id": dataset.categories[instance.category], "score": 0.9}
            result |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "file_name": f"{folder}/{record.file.name}"}
            results.append(result | {"segmentation": rle | {"counts": rle["counts"].decode()}})
    return results


@pytest.fixture
def shuffled(tmp_path: Path, seed: int) -> tuple[Path, Dataset]:
    """An annotation file whose image ids are not in the order of file names."""
    save_synthetic(synthetic_dataset(5, seed, (64, 96)), tmp_path)
    path = tmp_path / "annotations.json"
    content = json.loads(path.read_text())
    ids = [image["id"] for image in content["images"]]
    new = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    for image in content["images"]:
        image["id"] = new[image["id"]]
    for annotation in content["annotations"]:
        annotation["image_id"] = new[annotation["image_id"]]
    random.Random(seed).shuffle(content["images"])
    path.write_text(json.dumps(content))
    return path, read_dataset(path)


@pytest.mark.parametrize("folder", ["photos", "/data/upload/images", r"C:\Users\me\images"])
def test_images_are_told_by_file_name(
    shuffled: tuple[Path, Dataset], tmp_path: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, dataset = shuffled
    results = make_results(dataset, folder)
    metrics = evaluate_results(results, dataset, progress=False).metrics
    assert metrics["box"].ap == metrics["mask"].ap == pytest.approx(1)
    (tmp_path / "predictions.json").write_text(json.dumps(results))
    assert main(["evaluate", str(path), "--results", str(tmp_path / "predictions.json"), "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["metrics"]["mask"]["ap"] == pytest.approx(1)
    by_number = [{key: value for key, value in result.items() if key != "file_name"} for result in results]
    assert evaluate_results(by_number, dataset, progress=False).metrics["box"].ap < 0.9  # ids without names are trusted


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png", "c.png"], r"results\[1\] must have the file_name of one of the 3 images, got 'c.png', .* none"),
        (["b.png", "a.png"], r"results\[0\] must have the file_name .*, got 'b.png', which is of 2"),
        (["a.png", "other/a.png"], "results must name each image once, got 'a.png' and 'other/a.png' of one image"),
        (["a.png", None], r"results must all have a file_name, or none, got none in results\[1\]"),
    ],
)
def test_names_that_do_not_fit(names: list[str | None], message: str) -> None:
    records = [
        record._replace(file=Path(name))
        for record, name in zip(synthetic_dataset(3, 0, (64, 64)).records, ("a.png", "x/b.png", "y/b.png"), strict=True)
    ]
    with pytest.raises(ValueError, match=message):
        find_images([{"file_name": name} for name in names], records, [1, 2, 3])


def test_folders_tell_files_of_one_name_apart() -> None:
    records = synthetic_dataset(3, 0, (64, 64)).records
    records = [record._replace(file=Path(f"/set/{name}/b.png")) for record, name in zip(records, "xyz", strict=True)]
    results = [{"file_name": "run/z/b.png"}, {"file_name": "x/b.png"}, {"file_name": "x/b.png"}]
    assert find_images(results, records, [1, 2, 3]) == {"run/z/b.png": 3, "x/b.png": 1}
    assert find_images([{"image_id": 1}], records, [1, 2, 3]) == {}


def test_categories_that_the_data_lacks(
    shuffled: tuple[Path, Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, dataset = shuffled
    results = make_results(dataset)
    stray = [results[0] | {"category_id": 77}, results[0] | {"category_id": 78}, results[1] | {"category_id": 77}]
    evaluation = evaluate_results(results + stray, dataset, progress=False)
    assert evaluation.left_out == {"category 77": 2, "category 78": 1}
    assert evaluation.metrics["box"].ap == pytest.approx(1)
    with pytest.raises(
        ValueError, match=r"results must be of the dataset's categories \[1, .*, got category 77, category 78"
    ):
        evaluate_results(stray, dataset, progress=False)
    for given, code in ((results + stray, 0), (stray, 2)):
        (tmp_path / "results.json").write_text(json.dumps(given))
        assert (
            main(["evaluate", str(path), "--results", str(tmp_path / "results.json"), "--out", str(tmp_path)]) == code
        )
        assert "category 77" in capsys.readouterr().err


def test_classes_of_another_model(
    slim_file: tuple[Path, nn.Module], tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """No name in common is an error, `--classes` maps names, and what only one side has is named and counted."""
    save_synthetic(synthetic_dataset(4, seed, (64, 96)), tmp_path / "set")
    path = tmp_path / "set" / "annotations.json"
    text = path.read_text()
    dataset = read_dataset(path)
    used = [
        name
        for name in dataset.categories
        if any(item.category == name for r in dataset.records for item in r.instances)
    ]
    first, others = used[0], used[1:]
    path.write_text(
        text.replace(f'"{first}"', '"dog"').replace('"name": "', '"name": "my ').replace('"my dog"', '"dog"')
    )
    command = [
        "evaluate",
        str(path),
        "--weights",
        "SHAPES_V1",
        "--model",
        "maskrcnn_slim_fpn",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 2
    assert "--weights must know a class of the data (" in (said := capsys.readouterr().err)
    assert said.endswith(": --classes MODEL=DATA maps names\n")
    views = ["--nms", "soft_linear", "--flip", "--test-sizes", "96"]
    assert main([*command, "--score", "0.01", "--classes", f"{first}=dog", *views]) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith("with nms soft_linear, flip, test sizes 96\n")
    for name in others:
        number = sum(item.category == name for record in dataset.records for item in record.instances)
        assert f"{number} objects missed: the model has no my {name}" in printed.err
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    settings = {name: content["settings"][name] for name in ("nms", "flip_test", "test_sizes", "score")}
    assert settings == {"nms": "soft_linear", "flip_test": True, "test_sizes": [96], "score": 0.01}
    assert content["unknown"] == {
        f"my {name}": n
        for name, n in (
            (o, sum(item.category == o for record in dataset.records for item in record.instances)) for o in others
        )
    }
    assert content["left_out"].keys() <= dataset.categories.keys() - {first}
    for wrong, message in (
        ("cat", "--classes must be MODEL=DATA"),
        ("cat=dog", "classes of the model"),
        (f"{first}=cat", "of the data"),
    ):
        assert main([*command, "--classes", wrong]) == 2
        assert message in capsys.readouterr().err
    torch.save(slim_file[1].state_dict(), tmp_path / "bare.pth")
    for options in (["--weights", str(tmp_path / "bare.pth"), "--model", "slim"], ["--results", "none.json"]):
        assert main([*command, *options, "--classes", f"{first}=dog"]) == 2
        assert "--classes must not be given" in capsys.readouterr().err


def test_detections_of_classes_that_the_data_lacks(slim_file: tuple[Path, nn.Module], seed: int) -> None:
    model = slim_model(fastmask).eval()
    model.load_state_dict(slim_file[1].state_dict())
    model.roi_heads.score_thresh = 0.01  # of every class there are some
    dataset = synthetic_dataset(2, seed, (96, 128))
    counted = []
    for names in (["-", "ellipse", "cat", "dog"], None):  # of five classes
        results: list[Any] = []
        counted.append((evaluate(model, dataset, names=names, progress=False, results=results), len(results)))
    (named, some), (numbered, more) = counted
    assert named.left_out.keys() <= {"cat", "dog", "label 4"}
    assert numbered.left_out.keys() <= {"label 4"}
    assert sum(named.left_out.values()) + some == sum(numbered.left_out.values()) + more
    assert named.unknown.keys() == {c.name for c in named.categories if c.instances} - {"ellipse"}
    assert numbered.unknown == {}


def test_renaming() -> None:
    names = ["-", "cat", "dog", "cow"]
    assert rename_classes(names, {"cat": "Katze", "cow": "Kuh"}, {"Katze": 1, "Kuh": 2}) == ["-", "Katze", "dog", "Kuh"]
    with pytest.raises(ValueError, match="classes must give each class of the data set once, got 'dog' for several"):
        rename_classes(names, {"cat": "dog"}, {"dog": 1})
    with pytest.raises(ValueError, match=r"classes must name classes of the model \(cat, dog, cow\), got 'horse'"):
        rename_classes(names, {"horse": "dog"}, {"dog": 1})
