"""Keypoints: read from COCO, written and read back, checked, cropped, mirrored, pasted over, and loaded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images import draw_image_file
from PIL import Image

from fastmask import data
from fastmask.cli import main
from fastmask.data.augment import Augmentation, copy_paste, make_sample
from fastmask.data.contact_sheet import draw_contact_sheet
from fastmask.data.crop import Crop, plan_resize
from fastmask.data.loading import training_loader
from fastmask.data.records import count_left_out
from fastmask.data.validate import validate_dataset
from fastmask.demo import synthetic_dataset
from fastmask.skeletons import PERSON, Skeleton

COCO = pytest.importorskip("pycocotools.coco", reason="it reads what is written").COCO
CAT = {"id": 5, "name": "cat", "keypoints": ["tail", "left_ear", "right_ear"], "skeleton": [[1, 2], [3, 1]]}
POINTS = [10, 12.5, 2, 20, 11, 1, 0, 0, 0]


def read_coco(folder: Path, *annotations: dict[str, Any], **content: Any) -> data.Dataset:
    """One image of 40 x 50 pixels, and objects of the category cat with keypoints and what is given besides."""
    good = {"image_id": 1, "category_id": 5, "bbox": [8, 9, 20, 20], "keypoints": POINTS, "num_keypoints": 2}
    made = [{"id": i, **good, **each} for i, each in enumerate(annotations, 1)]
    images = [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}]
    (folder / "coco.json").write_text(
        json.dumps({"images": images, "annotations": made, "categories": [CAT]} | content)
    )
    return data.read_dataset(folder / "coco.json")


def test_read_and_written_back(tmp_path: Path) -> None:
    """What pycocotools reads in the file we write is what the file we read had."""
    draw_image_file(tmp_path / "a.png", 40, 50)
    dataset = read_coco(
        tmp_path, {}, {"keypoints": None, "num_keypoints": None}, {"keypoints": [0] * 9, "num_keypoints": "0"}
    )
    assert dataset.problems == []
    assert dataset.skeletons == {"cat": Skeleton(3, ("tail", "left_ear", "right_ear"), ((0, 1), (2, 0)))}
    first, second, third = dataset.records[0].instances
    np.testing.assert_array_equal(first.keypoints, np.reshape(POINTS, (3, 3)))
    assert [each.count_keypoints() for each in (first, second, third)] == [2, 0, 0]
    assert second.keypoints is None
    assert data.write_dataset(dataset, tmp_path / "out" / "coco.json", "coco") == []
    theirs = COCO(tmp_path / "out" / "coco.json")
    assert theirs.loadCats(5) == [CAT]
    written = theirs.loadAnns(theirs.getAnnIds())
    assert [each["keypoints"] for each in written] == [POINTS, [0] * 9, [0] * 9]
    assert [each["num_keypoints"] for each in written] == [2, 0, 0]
    back = data.read_dataset(tmp_path / "out" / "coco.json")
    assert (back.problems, back.skeletons) == ([], dataset.skeletons)


def test_pairs_that_names_do_not_give(tmp_path: Path) -> None:
    dataset = read_coco(tmp_path, {})
    for skeleton, texts in (
        (Skeleton(3, ("a", "left_b", "right_b"), pairs=((2, 1),)), []),
        (Skeleton(3, ("a", "b", "c"), pairs=((1, 2),)), ["its pairs of keypoints, as names give others"]),
        (Skeleton(3, limbs=((0, 1),)), ["its limbs, as its keypoints have no names"]),
    ):
        lost = data.write_dataset(
            dataset._replace(skeletons={"cat": skeleton}), tmp_path / "b.json", "coco", force=True
        )
        assert [(problem.kind, problem.text) for problem in lost] == [("cannot be written", text) for text in texts]


def test_what_is_broken_is_named_and_left_out(tmp_path: Path) -> None:
    """The object stays, with its box, and without its keypoints."""
    nan = float("nan")
    wrong: list[tuple[Any, str]] = [
        (POINTS[:6], "keypoints must be 3, as its category has, got 2"),
        (POINTS[:8], "keypoints must be x, y, v, x, y, v, ..., got 8 numbers"),
        ("nose", "keypoints must be x, y, v, x, y, v, ..., got 'nose'"),
        ({"x": 1}, "keypoints must be x, y, v, x, y, v, ..., got {'x': 1}"),
        ([nan, *POINTS[1:]], "keypoints must be within 262144 pixels, got nan"),
        ([1e300, *POINTS[1:]], "keypoints must be within 262144 pixels, got 1e+300"),
        ([*POINTS[:2], 3, *POINTS[3:]], "a keypoint's visibility must be 0, 1 or 2, got 3"),
        ([*POINTS[:2], -1, *POINTS[3:]], "a keypoint's visibility must be 0, 1 or 2, got -1"),
        ([*POINTS[:2], 0.5, *POINTS[3:]], "a keypoint's visibility must be 0, 1 or 2, got 0.5"),
        (["10", *POINTS[1:]], "keypoints must be numbers, got '10'"),
        ([True, *POINTS[1:]], "keypoints must be numbers, got True"),
    ]
    dataset = read_coco(tmp_path, *({"keypoints": values} for values, _ in wrong))
    assert [problem.text for problem in dataset.problems] == [f"left out of it: {text}" for _, text in wrong]
    assert all(instance.keypoints is None for instance in dataset.records[0].instances)
    dataset = read_coco(tmp_path, {"num_keypoints": 3}, {"num_keypoints": "2"})
    rule = "left out of it: num_keypoints must be 2, as many have a visibility above 0, got 3"
    assert [problem.text for problem in dataset.problems] == [rule]
    assert [instance.count_keypoints() for instance in dataset.records[0].instances] == [2, 2]


def test_categories(tmp_path: Path) -> None:
    """Names and limbs that are broken are named; without names the first object tells how many keypoints there are."""
    for values, text in (
        (["a", "a", "b"], "its keypoints must be a list of names, each once, got ['a', 'a', 'b']"),
        (["a", None], "its keypoints must be a list of names, each once, got ['a', None]"),
        ("tail", "its keypoints must be a list of names, each once, got 'tail'"),
    ):
        dataset = read_coco(tmp_path, {}, {"keypoints": POINTS[:3]}, categories=[CAT | {"keypoints": values}])
        assert [problem.text for problem in dataset.problems] == [
            text,
            "left out of it: keypoints must be 3, as its category has, got 1",
        ]
        assert dataset.skeletons == {"cat": Skeleton(3)}
        assert dataset.notes == ("coco.json: the 3 keypoints of cat have no names: mirrored, they stay in order",)
    for limbs, got in (([[1, 2], [0, 1]], "[0, 1]"), ([[1, 4]], "[1, 4]"), ([[1]], "[1]"), ("1-2", "'1-2'")):
        dataset = read_coco(tmp_path, {}, categories=[CAT | {"skeleton": limbs}])
        rule = f"its skeleton must be pairs of numbers from 1 to 3, got {got}"
        assert [problem.text for problem in dataset.problems] == [rule]
        assert dataset.skeletons == {"cat": Skeleton(3, ("tail", "left_ear", "right_ear"))}
    person = {"id": 5, "name": "person"}
    dataset = read_coco(tmp_path, {"keypoints": [3, 4, 2] * 17, "num_keypoints": 17}, categories=[person])
    assert dataset.notes == ("coco.json: the 17 keypoints of person have no names: they are taken for COCO's",)
    assert dataset.skeletons["person"].find_pairs() == PERSON.find_pairs()


def test_left_and_right() -> None:
    """COCO's eight pairs; words in any of the usual spellings; pairs that are given; a side without the other."""
    assert PERSON.find_pairs() == tuple((i, i + 1) for i in range(1, 17, 2))
    assert PERSON.limbs[0] == (15, 13)  # left_ankle, left_knee: COCO's [16, 14]
    assert PERSON.find_one_sided() == []
    for left, right in (("left eye", "right eye"), ("L_Eye", "R_Eye"), ("eye-l", "eye-r"), ("leftEye", "rightEye")):
        assert Skeleton(3, (right, "nose", left)).mirror_order() == [2, 1, 0]
    assert Skeleton(2, ("eyeLeft", "eyeRight")).mirror_order() == [1, 0]
    assert Skeleton(4, ("bottom", "leftover", "rightover", "ear")).mirror_order() == [0, 1, 2, 3]
    assert Skeleton(3, ("a", "b", "c"), pairs=((0, 2),)).mirror_order() == [2, 1, 0]
    assert Skeleton(3, ("left_ear", "nose", "right_eye")).find_one_sided() == ["left_ear", "right_eye"]


def test_check_and_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keypoints outside of the image and names of one side are problems; other formats lose keypoints, counted."""
    draw_image_file(tmp_path / "a.png", 40, 50)
    names = ["tail", "left_ear", "right_eye"]
    dataset = read_coco(
        tmp_path,
        {"keypoints": [50, 40, 2, 60, 11, 1, 99, 99, 0]},
        {"bbox": [1, 1, 9, 9]},
        {"bbox": [2, 2, 9, 9], "keypoints": [0] * 9, "num_keypoints": 0},
        categories=[CAT | {"keypoints": names}],
    )
    found = [(problem.kind, problem.text) for problem in validate_dataset(dataset)]
    assert found == [
        ("one-sided keypoints", "without the other side: left_ear, right_eye"),
        ("keypoints outside", "1 of its keypoints, such as (60.0, 11.0), in an image of (40, 50)"),
    ]
    assert main(["data", "check", str(tmp_path / "coco.json"), "--contact-sheet", str(tmp_path / "sheet.png")]) == 1
    assert "left out of training: 3 masks (of objects with a box alone), 1 keypoints" in capsys.readouterr().out
    bare = [each._replace(keypoints=None) for each in dataset.records[0].instances]
    without = draw_contact_sheet(dataset._replace(records=[dataset.records[0]._replace(instances=tuple(bare))]))
    assert not np.array_equal(np.array(Image.open(tmp_path / "sheet.png")), np.array(without))
    for format in ("via", "labelme", "masks", "yolo"):
        lost = data.write_dataset(dataset, tmp_path / f"out-{format}", format)
        texts = [problem.text for problem in lost]
        assert texts[-1] == "the keypoints of 3 objects"
        assert lost[-1].kind == "cannot be written"


def test_resized_cropped_and_mirrored(tmp_path: Path) -> None:
    """x is mirrored about the image's middle as the pixels are, sides change places, and what leaves is zeros."""
    dataset = read_coco(tmp_path, {"keypoints": [10, 12, 2, 20, 11, 1, 49, 39, 2], "num_keypoints": 3})
    image = Image.new("RGB", (50, 40))
    record, labels = dataset.records[0], {"cat": 1}
    double = plan_resize((40, 50), 80, 100, flipped=True)
    sample = make_sample(record, image, double, labels, 0, False, dataset.skeletons)
    assert sample.keypoints is not None
    assert sample.keypoints.tolist() == [[[80, 24, 2], [2, 78, 2], [60, 22, 1]]]
    corner = Crop((40, 50), (40, 50), 5, 15, (30, 30), flipped=False)
    sample = make_sample(record, image, corner, labels, 0, False, dataset.skeletons)
    assert sample.keypoints is not None
    assert sample.keypoints.tolist() == [[[0, 0, 0], [5, 6, 1], [0, 0, 0]]]
    assert make_sample(record, image, corner, labels, 0, False).keypoints is None
    with pytest.raises(ValueError, match=r"keypoints of cat must be \[17, 3\], as its skeleton, got \[3, 3\]"):
        make_sample(record, image, corner, labels, 0, False, {"cat": PERSON})


def test_a_mirrored_pixel_is_where_its_keypoint_is(seed: int) -> None:
    """A white pixel under each keypoint is still there after zoom, crop and mirroring."""
    generator = np.random.default_rng(seed)
    for _ in range(20):
        pixels = np.zeros((60, 80, 3), np.uint8)
        x, y = generator.uniform(8, 72), generator.uniform(8, 52)
        pixels[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] = 255
        keypoints = np.array([[x, y, 2.0], [80 - x, y, 0.0]])
        record = data.Record(Path("a"), (60, 80), (data.Instance("p", box=(0, 0, 80, 60), keypoints=keypoints),))
        crop = Augmentation(zoom=(0.8, 2), canvas=(64, 64)).draw_crop((60, 80), generator, (64, 64))
        skeletons = {"p": Skeleton(2, ("left", "right"))}
        sample = make_sample(record, Image.fromarray(pixels), crop, {"p": 1}, 0, False, skeletons)
        assert sample.keypoints is not None
        for point_x, point_y, visibility in sample.keypoints.reshape(-1, 3).tolist():
            if visibility:
                assert sample.pixels[min(int(point_y), 63), min(int(point_x), 63), 0] > 100


def test_pasting_hides_keypoints(seed: int) -> None:
    """They stay, with visibility 1; pasted ones outside of the target are zeros."""
    dataset = synthetic_dataset(2, seed, scene="figures")
    samples = [
        make_sample(record, record.load(), plan_resize((192, 192), 192, 192), {"person": 1}, i, True, dataset.skeletons)
        for i, record in enumerate(dataset.records)
    ]
    target, source = samples
    small = target._replace(pixels=target.pixels[:150, :140], masks=target.masks[:, :150, :140])
    result = copy_paste(small, source, np.ones(len(source.labels), bool))
    assert result.keypoints is not None
    assert len(result.keypoints) == len(result.labels)
    pasted = result.keypoints[-len(source.labels) :]
    inside = (source.keypoints[:, :, 0] <= 140) & (source.keypoints[:, :, 1] <= 150)
    whole = source.masks[:, :150, :140].any((1, 2)).all()
    if whole:  # none is dropped
        np.testing.assert_array_equal(pasted, np.where(inside[:, :, None], source.keypoints, 0))
    cover = source.masks.any(0)
    kept = copy_paste(target, source, np.ones(len(source.labels), bool)).keypoints[: -len(source.labels)]
    before = [points for points, mask in zip(target.keypoints, target.masks, strict=True) if (mask & ~cover).any()]
    for points, now in zip(before, kept, strict=True):
        for (x, y, visibility), (new_x, new_y, new_visibility) in zip(points, now, strict=True):
            covered = visibility and cover[int(y), int(x)]
            assert (new_x, new_y, new_visibility) == (x, y, 1 if covered else visibility)


def test_loader(tmp_path: Path, seed: int) -> None:
    """Padded keypoints; images with too few of them are left out, and counted."""
    dataset = synthetic_dataset(6, seed, scene="figures")
    records = list(dataset.records)
    dataset = dataset._replace(records=records)
    as_they_are = Augmentation((192,), 192, flip=0)
    for batch in training_loader(dataset, 3, as_they_are, keypoints=True):
        assert batch.targets.keypoints is not None
        assert batch.targets.keypoints.shape == (*batch.targets.labels.shape, 17, 3)
        for i, number in enumerate(batch.indices.tolist()):
            count = int(batch.targets.count[i])
            expected = np.array([each.keypoints for each in records[number].instances], np.float32)
            np.testing.assert_array_equal(batch.targets.keypoints[i, :count], expected)
            assert not batch.targets.keypoints[i, count:].any()
    (batch,) = training_loader(dataset, 6, as_they_are)
    assert batch.targets.keypoints is None
    for i in range(3):
        draw_image_file(tmp_path / f"{i}.png", 40, 50)
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 50} for i in range(4)]
    none = {"keypoints": [0] * 9, "num_keypoints": 0}
    objects = [{"image_id": 0}, {"image_id": 0} | none, {"image_id": 1} | none, {"image_id": 2, "iscrowd": 1}]
    several = read_coco(tmp_path, *objects, images=images)
    for fewest, kept in ((0, {0, 1}), (1, {0}), (2, {0})):
        loader = training_loader(several, 2, as_they_are, masks=False, keypoints=True, min_keypoints=fewest)
        assert set(loader.dataset.indices.tolist()) == kept
        left_out = count_left_out(several, min_keypoints=fewest)
        assert left_out.get(f"images of fewer than {fewest} keypoints", 0) == 2 - len(kept)
        assert left_out["keypoints (of objects without any)"] == 2
    both = training_loader(several, 2, as_they_are, masks=False, keypoints=True, keep_empty=True)
    assert set(both.dataset.indices.tolist()) == {0, 2, 3}
    with pytest.raises(ValueError, match="must have images with objects of 3 keypoints or more, got none"):
        training_loader(several, 2, keypoints=True, min_keypoints=3)
    with pytest.raises(ValueError, match="dataset must have keypoints to train a keypoint branch, got none in any"):
        training_loader(synthetic_dataset(2), 2, keypoints=True)
    mixed = dataset._replace(skeletons={"person": PERSON, "cat": Skeleton(3)})
    with pytest.raises(ValueError, match="one number of keypoints in all categories, got person 17, cat 3"):
        training_loader(mixed, 2, keypoints=True)


def test_figures(seed: int) -> None:
    """Keypoints are on the figure: visible ones on its visible part, hidden ones where another figure covers it."""
    dataset = synthetic_dataset(8, seed, scene="figures")
    assert dataset.skeletons == {"person": PERSON}
    flags, records = set(), list(dataset.records)
    for record in records:
        masks = np.array([instance.to_mask(192, 192) for instance in record.instances])
        assert masks.sum(0).max() == 1
        for i, instance in enumerate(record.instances):
            assert instance.keypoints is not None
            for x, y, visibility in instance.keypoints.tolist():
                flags.add(visibility)
                if visibility == 0:
                    assert (x, y) == (0, 0)
                    continue
                owner = np.flatnonzero(masks[:, int(y), int(x)]).tolist()
                assert owner == [i] if visibility == 2 else len(owner) == 1 and owner[0] > i
    assert {0, 2} <= flags
    left, right = PERSON.names.index("left_shoulder"), PERSON.names.index("right_shoulder")
    for record in records:  # they are seen from the front
        for instance in record.instances:
            if instance.keypoints[left, 2] and instance.keypoints[right, 2]:
                assert instance.keypoints[left, 0] > instance.keypoints[right, 0]
