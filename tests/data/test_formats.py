"""COCO, VIA, labelme, mask images and YOLO: read, written, and converted from one to another."""

import itertools
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.images import draw_image_file

from fastmask import data
from fastmask.cocoapi import mask as coco_mask
from fastmask.data.parse import decode_counts, parse_rle
from fastmask.data.records import box_to_polygon, ellipse_to_polygon

COCO = pytest.importorskip("pycocotools.coco", reason="it reads what is written").COCO
FORMATS = data.FORMATS


def make_dataset(folder: Path, number: int = 4, per_image: int = 5) -> data.Dataset:
    """Images with random polygons, some of several parts; the second image has none."""
    records = []
    for i in range(number):
        file = draw_image_file(folder / f"p{i}.png", 90 + i, 120)
        instances = []
        for k in range(0 if i == 1 else per_image):
            parts = tuple(torch.rand(3 + k, 2).double().numpy() * [120, 90] for _ in range(1 + (k == 2)))
            instances.append(data.Instance(["cat", "dog", "Zürich tram"][k % 3], parts))
        records.append(data.Record(file, (90 + i, 120), tuple(instances)))
    names = dict.fromkeys(instance.category for record in records for instance in record.instances)
    return data.Dataset(records, {name: i for i, name in enumerate(names, 1)}, [])


def make_disjoint_dataset(folder: Path) -> data.Dataset:
    """Disjoint instances, as mask images need them; one with a hole, one in two parts."""
    dataset = make_dataset(folder, 2)
    square, inner = box_to_polygon(5.2, 5.4, 30.7, 40.1), box_to_polygon(10, 10, 20, 20)
    mask = data.Instance("ring", (square,)).to_mask(90, 120)
    mask[10:20, 12:17] = False
    ring = data.Instance("ring", rle=dict(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))))
    instances = (
        ring,
        data.Instance("dot", (inner + np.array([40, 5]), inner + np.array([60, 9]))),
        data.Instance("dot", (np.array([[50.5, 60], [110.2, 55], [90, 88.8]]),)),
    )
    records = [record._replace(instances=instances if i == 0 else ()) for i, record in enumerate(dataset.records)]
    return data.Dataset(records, {"ring": 1, "dot": 2}, [])


def target_path(folder: Path, format: str) -> Path:
    return folder / (format if format in ("labelme", "masks", "yolo") else f"{format}.json")


def check_same(actual: data.Dataset, expected: data.Dataset, masks: bool = False, off: int = 0) -> None:
    assert actual.problems == []
    assert [record.file.name for record in actual.records] == [record.file.name for record in expected.records]
    assert all(record.file.exists() for record in actual.records)
    if masks:  # mask images keep pixels, not polygons; YOLO rounds, and joins an object's polygons
        for mine, theirs in zip(actual.records, expected.records, strict=True):
            for first, second in zip(mine.instances, theirs.instances, strict=True):
                assert first.category == second.category
                assert (first.to_mask(*theirs.size) != second.to_mask(*theirs.size)).sum() <= off
        return
    assert [record.file.resolve() for record in actual.records] == [record.file for record in expected.records]
    for mine, theirs in zip(actual.records, expected.records, strict=True):
        assert mine.size in (theirs.size, None)
        for first, second in zip(mine.instances, theirs.instances, strict=True):
            assert first.category == second.category
            for polygon, original in zip(first.polygons, second.polygons, strict=True):
                np.testing.assert_allclose(polygon, original, rtol=0, atol=0.5)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(FORMATS, repeat=2)))
def test_round_trips(first: str, second: str, tmp_path: Path) -> None:
    """Every polygon and class survives one format, then another; the format is detected by content."""
    masks, yolo = "masks" in (first, second), "yolo" in (first, second)
    expected = make_disjoint_dataset(tmp_path) if masks else make_dataset(tmp_path)
    compare = {"masks": masks or yolo, "off": 2 * yolo}
    for number in (0, 1):
        (tmp_path / str(number)).mkdir()
    assert data.write_dataset(expected, target_path(tmp_path / "0", first), first) == []
    assert data.find_format(target_path(tmp_path / "0", first)) == first
    between = data.add_sizes(data.read_dataset(target_path(tmp_path / "0", first)))
    check_same(between, expected, **compare)
    assert data.write_dataset(between, target_path(tmp_path / "1", second), second) == []
    check_same(data.add_sizes(data.read_dataset(target_path(tmp_path / "1", second), second)), expected, **compare)


def test_coco_keeps_ids_crowds_and_masks(tmp_path: Path) -> None:
    """RLE in its three forms; pycocotools reads the file, and decodes the same masks."""
    file = draw_image_file(tmp_path / "a.png", 40, 50)
    mask = np.zeros((40, 50), np.uint8, order="F")
    mask[5:20, 7:30] = 1
    rle = coco_mask.encode(mask)
    runs = decode_counts(rle["counts"])
    assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs), mask.ravel(order="F"))
    forms: list[Any] = [rle, rle | {"counts": rle["counts"].decode()}, {"size": [40, 50], "counts": runs}]
    square = box_to_polygon(10, 10, 20, 20)
    instances = [data.Instance("cat", rle=form, id=70 + i) for i, form in enumerate(forms)]
    instances += [data.Instance("dog", (square,), crowd=True), data.Instance("dog", box=(1.0, 2.0, 5.0, 9.0), id=90)]
    dataset = data.Dataset([data.Record(file, (40, 50), tuple(instances), 12)], {"dog": 3, "cat": 17}, [])
    data.write_dataset(dataset, tmp_path / "coco.json", "coco")
    back = data.read_dataset(tmp_path / "coco.json")
    assert back.problems == []
    assert back.categories == dataset.categories
    assert back.records[0].id == 12
    assert [instance.id for instance in back.records[0].instances][:3] == [70, 71, 72]
    assert [instance.crowd for instance in back.records[0].instances] == [False, False, False, True, False]
    for instance in back.records[0].instances[:3]:
        assert np.array_equal(instance.to_mask(40, 50), mask.astype(bool))
        assert instance.bounds() == (7.0, 5.0, 30.0, 20.0)
    theirs = COCO(tmp_path / "coco.json")
    annotations = theirs.loadAnns(theirs.getAnnIds(imgIds=[12]))
    for instance, annotation in zip(back.records[0].instances[:4], annotations[:4], strict=True):
        assert np.array_equal(instance.to_mask(40, 50), theirs.annToMask(annotation).astype(bool))
        assert annotation["area"] in (mask.sum(), 100)


def test_rle_is_checked() -> None:
    """Before pycocotools, which would read out of bounds."""
    for mask in (torch.rand(30, 40) > 0.5, torch.rand(7, 1) > 0.9, torch.ones(500, 400) > 0):
        rle = coco_mask.encode(np.asfortranarray(mask.byte().numpy()))
        assert parse_rle(rle) == rle
    for counts in (None, "", "abc", [3, -3, 900], [1.5], [899], "\u20ac", b"0" * 99):
        with pytest.raises(ValueError, match="an RLE's"):
            parse_rle({"size": [30, 30], "counts": counts})
    for size in (None, [3], [0, 3], ["3", 3]):
        with pytest.raises(ValueError, match="an RLE's size"):
            parse_rle({"size": size, "counts": [9]})


def test_where_coco_has_its_images(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": []}
    path = tmp_path / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(content))
    assert data.read_dataset(path).records[0].file == tmp_path / "annotations" / "a.png"  # where it should be
    draw_image_file(tmp_path / "val2017" / "a.png")
    assert data.read_dataset(path).records[0].file == tmp_path / "val2017" / "a.png"
    assert data.read_dataset(path, images=tmp_path).records[0].file == tmp_path / "val2017" / "a.png"
    assert data.read_dataset(path, images=path.parent).records[0].file == path.parent / "a.png"


def via(*regions: Any, listed: bool = True) -> dict[str, Any]:
    made = [{"shape_attributes": shape, "region_attributes": attributes} for shape, attributes in regions]
    chosen = made if listed else {str(i): region for i, region in enumerate(made)}
    return {"a.png123": {"filename": "a.png", "size": 123, "regions": chosen, "file_attributes": {}}}


@pytest.mark.parametrize("listed", [True, False], ids=["version 2", "version 1"])
def test_via_shapes_and_classes(listed: bool, tmp_path: Path) -> None:
    polygon = {"name": "polygon", "all_points_x": [1, 9, 5], "all_points_y": [2, 2, 8]}
    rect = {"name": "rect", "x": 3, "y": 4, "width": 10, "height": 5}
    circle = {"name": "circle", "cx": 30, "cy": 20, "r": 9.5}
    ellipse = {"name": "ellipse", "cx": 30, "cy": 20, "rx": 12, "ry": 4, "theta": math.pi / 2}
    attributes = [{"animal": "cat"}, {"animal": " dog ", "note": ""}, {"animal": {"cat": False, "cow": True}}]
    attributes += [{"animal": 7}]
    content = via(*zip((polygon, rect, circle, ellipse), attributes, strict=True), listed=listed)
    (tmp_path / "via.json").write_text(json.dumps({"_via_img_metadata": content} if listed else content))
    dataset = data.read_dataset(tmp_path / "via.json")
    assert dataset.problems == []
    assert dataset.categories == {"cat": 1, "dog": 2, "cow": 3, "7": 4}
    bounds = [instance.bounds() for instance in dataset.records[0].instances]
    assert bounds[:2] == [(1, 2, 9, 8), (3, 4, 13, 9)]
    np.testing.assert_allclose(bounds[2:], [(20.5, 10.5, 39.5, 29.5), (26, 8, 34, 32)], atol=0.11)


def test_ellipses_are_round() -> None:
    for radius in (0.5, 10, 3000):
        corners = ellipse_to_polygon(5, 6, radius, radius)
        middles = (corners + np.roll(corners, 1, axis=0)) / 2
        assert np.abs(np.hypot(*(middles - [5, 6]).T) - radius).max() <= 0.1


def test_labelme_shapes(tmp_path: Path) -> None:
    draw_image_file(tmp_path / "a.png", 40, 50)
    mask = np.zeros((40, 50), np.uint8, order="F")
    mask[5:20, 7:30] = 1
    mask[9, 9] = 0
    record = data.Record(tmp_path / "a.png", (40, 50), (data.Instance("m", rle=coco_mask.encode(mask)),))
    data.write_dataset(data.Dataset([record], {"m": 1}, []), tmp_path / "labels", "labelme")
    path = tmp_path / "labels" / "a.json"
    content = json.loads(path.read_text())
    content["shapes"] += [
        {"label": "r", "shape_type": "rectangle", "points": [[20, 9], [3, 4]]},
        {"label": "c", "shape_type": "circle", "points": [[20, 20], [23, 24]]},
        {"label": "p", "points": [[0, 0], [5, 0], [5, 5]], "group_id": 4},
        {"label": "p", "points": [[9, 9], [12, 9], [12, 15]], "group_id": 4},
        {"label": "q", "points": [[9, 9], [12, 9], [12, 15]], "group_id": 4},
    ]
    path.write_text(json.dumps(content))
    dataset = data.read_dataset(tmp_path / "labels")
    assert dataset.problems == []
    instances = dataset.records[0].instances
    assert [instance.category for instance in instances] == ["m", "r", "c", "p", "q"]
    assert np.array_equal(instances[0].to_mask(40, 50), mask.astype(bool))
    assert instances[1].bounds() == (3, 4, 20, 9)
    np.testing.assert_allclose(instances[2].bounds(), (15, 15, 25, 25), atol=0.11)
    assert [len(instance.polygons) for instance in instances[3:]] == [2, 1]
    assert dataset.records[0].file.resolve() == tmp_path / "a.png"


def test_a_truncated_file_among_labelmes(tmp_path: Path) -> None:
    data.write_dataset(make_dataset(tmp_path), tmp_path / "labels", "labelme")
    (tmp_path / "labels" / "p2.json").write_text('{"shapes')
    dataset = data.read_dataset(tmp_path / "labels", "labelme")
    assert [problem.kind for problem in dataset.problems] == ["broken file"]
    assert len(dataset.records) == 3


def test_what_a_format_cannot_hold(tmp_path: Path) -> None:
    """It is named; 500 instances and an image of one pixel are no problem."""
    file = draw_image_file(tmp_path / "a.png", 1, 1)
    rle = coco_mask.encode(np.ones((1, 1), np.uint8, order="F"))
    instances = [data.Instance("a", (box_to_polygon(0, 0, 1, 1),))] * 500
    instances += [data.Instance("b", rle=rle), data.Instance("c", (box_to_polygon(0, 0, 1, 1),), crowd=True)]
    dataset = data.Dataset([data.Record(file, (1, 1), tuple(instances))], {"a": 1, "b": 2, "c": 3}, [])
    for format, lost in (("coco", 0), ("labelme", 1), ("via", 1)):
        problems = data.write_dataset(dataset, target_path(tmp_path, format), format)
        assert [problem.kind for problem in problems] == ["cannot be written"] * lost
        assert len(data.read_dataset(target_path(tmp_path, format)).records[0].instances) == 502 - lost


@pytest.mark.parametrize("format", FORMATS)
def test_boxes_alone_never_become_masks_in_silence(format: str, tmp_path: Path) -> None:
    """A box alone stays one, is left out and named, or is named as the rectangle that readers take for a mask."""
    file = draw_image_file(tmp_path / "a.png", 40, 50)
    instances = (data.Instance("a", (box_to_polygon(1, 1, 9, 9),)), data.Instance("b", box=(20.0, 10.0, 40.0, 30.0)))
    dataset = data.Dataset([data.Record(file, (40, 50), instances)], {"a": 1, "b": 2}, [])
    problems = data.write_dataset(dataset, target_path(tmp_path / "set", format), format)
    (record,) = data.add_sizes(data.read_dataset(target_path(tmp_path / "set", format))).records
    masks = {instance.category: instance.has_mask() for instance in record.instances}
    assert masks == {"a": True} | ({} if format == "masks" else {"b": format in ("labelme", "via")})
    assert [each.bounds() for each in record.instances if each.category == "b"] == [pytest.approx((20, 10, 40, 30))] * (
        "b" in masks
    )
    assert ["box alone" in problem.text for problem in problems] == [True] * (format != "coco")


@pytest.mark.parametrize("format", ["labelme", "via"])
def test_empty_masks_are_named(format: str, tmp_path: Path) -> None:
    file = draw_image_file(tmp_path / "a.png", 40, 50)
    instance = data.Instance("a", rle={"size": [40, 50], "counts": [2000]})
    dataset = data.Dataset([data.Record(file, (40, 50), (instance,))], {"a": 1}, [])
    (problem,) = data.write_dataset(dataset, target_path(tmp_path, format), format)
    assert problem.text == "a has no area"


@pytest.mark.skipif("FASTMASK_BALLOON" not in os.environ, reason="the photos are not part of the repository")
def test_balloons(tmp_path: Path) -> None:
    for split, (images, instances) in {"train": (61, 255), "val": (13, 50)}.items():
        dataset = data.add_sizes(data.read_dataset(Path(os.environ["FASTMASK_BALLOON"]) / split))
        assert dataset.problems == []
        assert (len(dataset.records), sum(len(record.instances) for record in dataset.records)) == (images, instances)
        for record in dataset.records:
            height, width = record.size
            for instance in record.instances:
                x1, y1, x2, y2 = instance.bounds()
                assert -1 <= x1 < x2 <= width + 1
                assert -1 <= y1 < y2 <= height + 1
