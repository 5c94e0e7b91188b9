"""What training leaves out is counted and named; boxes without a mask train boxes alone and are no mask's truth."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.slim import slim_model
from torch import nn

import fastmask
from fastmask.cli import main
from fastmask.data import Dataset, read_dataset
from fastmask.data.augment import Augmentation, copy_paste
from fastmask.data.loading import training_loader
from fastmask.data.records import count_left_out, crowds_to_objects
from fastmask.demo import save_synthetic, synthetic_dataset
from fastmask.evaluation import evaluate_results
from fastmask.inference.coco_results import to_coco_results


@pytest.fixture
def mixed(tmp_path: Path, seed: int) -> tuple[Path, Dataset]:
    """COCO: an image of crowds alone, one without objects, a missing file, and objects with a box alone."""
    save_synthetic(synthetic_dataset(5, seed, (64, 96)), tmp_path)
    path = tmp_path / "annotations.json"
    content = json.loads(path.read_text())
    first, second, third, fourth, _ = (image["id"] for image in content["images"])
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(annotation["image_id"] == first)
        if annotation["image_id"] == third:
            annotation["segmentation"] = []
        if annotation["image_id"] == fourth and annotation["id"] % 2:
            del annotation["segmentation"]
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != second]
    path.write_text(json.dumps(content))
    (tmp_path / "images" / content["images"][4]["file_name"].rpartition("/")[2]).unlink()
    return path, read_dataset(path)


def test_counts(mixed: tuple[Path, Dataset], capsys: pytest.CaptureFixture[str]) -> None:
    path, dataset = mixed
    crowds = len(dataset.records[0].instances)
    alone = sum(not item.has_mask() for record in dataset.records for item in record.instances)
    expected = {"crowds": crowds, "images without objects": 1, "images of crowds alone": 1, "missing images": 1}
    expected |= {"masks (of objects with a box alone)": alone}
    assert count_left_out(dataset) == {name: number for name, number in expected.items() if number}
    assert count_left_out(dataset, keep_empty=True).keys() == expected.keys() - {
        "images without objects",
        "images of crowds alone",
    }
    objects = crowds_to_objects(dataset)
    assert count_left_out(objects).keys() == expected.keys() - {"crowds", "images of crowds alone"}
    assert main(["data", "check", str(path)]) == 1
    assert f"left out of training: {crowds} crowds, 1 images without objects" in capsys.readouterr().out
    assert main(["data", "check", str(path), "--crowds-as-objects"]) == 1
    assert "crowds" not in capsys.readouterr().out


def test_training_says_what_it_leaves_out(
    mixed: tuple[Path, Dataset], slim_file: tuple[Path, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = mixed
    val = json.loads(path.read_text())
    val["categories"].append({"id": 99, "name": "moon"})
    val["annotations"] = [annotation | {"iscrowd": 0} for annotation in val["annotations"]]
    val["annotations"][0]["category_id"] = val["annotations"][1]["category_id"] = 99
    (tmp_path / "val.json").write_text(json.dumps(val))
    model = ["--weights", str(slim_file[0]), "--model", "slim", "--min-size", "64", "--workers", "0"]
    train = json.loads(path.read_text())
    train["categories"] += [{"id": 4 + i, "name": f"unused {i}"} for i in range(4 - len(train["categories"]))]
    path.write_text(json.dumps(train))  # as many classes as the slim model has
    command = ["train", "--data-path", str(path), "--val", str(tmp_path / "val.json"), *model, "--epochs", "1"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().err
    assert "left out of train: " in printed
    assert " crowds, 1 images without objects, 1 images of crowds alone, 1 missing images" in printed
    assert "val has objects of classes that are not trained, which all count as missed: moon 2" in printed
    assert main([*command, "--out", str(tmp_path / "all"), "--keep-empty", "--crowds-as-objects"]) == 0
    printed = capsys.readouterr().err
    assert "left out of train: 1 missing images" in printed


def test_boxes_alone_train_no_mask(mixed: tuple[Path, Dataset]) -> None:
    """The mask loss is that of the objects with masks; with none it is 0, and boxes have their losses."""
    _, dataset = mixed
    model = slim_model(fastmask, min_size=64, max_size=96, rpn_post_nms_top_n_train=60).train()
    for part in (model.rpn, model.roi_heads):
        part.fg_bg_sampler.keys = lambda labels: torch.linspace(1, 0.1, labels.shape[1]).expand(labels.shape)
    loader = training_loader(dataset._replace(records=dataset.records[2:4]), 2, Augmentation((64,), 96, flip=0))
    (batch,) = loader
    assert batch.targets.has_mask is not None
    assert not batch.targets.has_mask.all()
    pixels = batch.pixels.float() / 255

    def losses(targets: Any) -> dict[str, torch.Tensor]:
        return model.losses(pixels, batch.sizes, targets)

    found, filled = losses(batch.targets), losses(batch.targets._replace(has_mask=None))
    for name, loss in found.items():
        assert loss.isfinite()
        assert (loss == filled[name]) == (name != "loss_mask")
    masks = batch.targets.masks.clone()
    for i, first in enumerate(batch.targets.first_mask.tolist()):
        for k in range(int(batch.targets.count[i])):
            if not batch.targets.has_mask[i, k]:
                masks[first + k] = 1
    assert losses(batch.targets._replace(masks=masks))["loss_mask"] == found["loss_mask"]  # they are not read
    none = losses(batch.targets._replace(has_mask=torch.zeros_like(batch.targets.has_mask)))
    assert none["loss_mask"] == 0
    assert none["loss_box_reg"] > 0


def test_boxes_alone_are_not_pasted(mixed: tuple[Path, Dataset]) -> None:
    _, dataset = mixed
    loader = training_loader(dataset._replace(records=dataset.records[2:4]), 1, Augmentation((64,), 96, flip=0))
    samples = [loader.dataset._load_sample(i, np.random.default_rng(0)) for i in range(2)]
    bare, some = samples
    assert not bare.has_mask.any()
    same = copy_paste(some, bare, np.ones(len(bare.labels), bool))
    assert np.array_equal(same.pixels, some.pixels)
    assert len(same.labels) == len(same.has_mask) == len(some.labels)
    pasted = copy_paste(bare, some, np.ones(len(some.labels), bool))
    number = len(some.labels) if some.has_mask is None else int(some.has_mask.sum())
    assert len(pasted.labels) == len(bare.labels) + number
    assert np.array_equal(pasted.boxes[: len(bare.labels)], bare.boxes)
    assert pasted.has_mask.tolist() == [False] * len(bare.labels) + [True] * number


def test_boxes_alone_are_no_truth_of_masks(seed: int) -> None:
    """Box AP counts them; mask AP is that of the others, as if these were not annotated."""
    dataset = synthetic_dataset(3, seed, (64, 96))
    records = [record._replace(image=None, size=(64, 96)) for record in dataset.records]
    boxes = [
        record._replace(instances=tuple(
            item._replace(box=item.bounds(), polygons=(), rle=None) if k == 0 else item
            for k, item in enumerate(record.instances)
        ))
        for record in records
    ]  # fmt: skip
    results: list[Any] = []
    for number, record in enumerate(records, 1):
        found = {
            "boxes": torch.tensor([item.bounds() for item in record.instances]).reshape(-1, 4),
            "labels": torch.tensor([dataset.categories[item.category] for item in record.instances]),
            "scores": torch.rand(len(record.instances)),
            "masks": [item.to_rle(64, 96) for item in record.instances],
        }
        results += to_coco_results(number, found)
    fewer = [record._replace(instances=record.instances[1:]) for record in records]
    mixed, without = (
        evaluate_results(results, dataset._replace(records=each), progress=False) for each in (boxes, fewer)
    )
    assert mixed.metrics["mask"] == without.metrics["mask"]
    assert mixed.metrics["box"].ap == pytest.approx(1)
    none = [record._replace(instances=record.instances[:1]) for record in boxes]
    assert set(evaluate_results(results, dataset._replace(records=none), progress=False).metrics) == {"box"}


def test_check_says_what_only_val_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        save_synthetic(synthetic_dataset(2, 5, (40, 48)), tmp_path / split)
    assert main(["data", "check", str(tmp_path)]) == 0
    annotations = tmp_path / "val" / "annotations.json"
    content = json.loads(annotations.read_text())
    name = next(
        entry["name"] for entry in content["categories"] if entry["id"] == content["annotations"][0]["category_id"]
    )
    number = sum(entry["category_id"] == content["annotations"][0]["category_id"] for entry in content["annotations"])
    annotations.write_text(annotations.read_text().replace(f'"{name}"', '"moon"'))
    capsys.readouterr()
    assert main(["data", "check", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert f"val: objects of classes that are not trained, which all count as missed: moon {number}" in err
    assert "problems: untrained class 1" in out
