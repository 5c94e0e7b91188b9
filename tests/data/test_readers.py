"""What readers make of unusual annotations: what is unambiguous is read, all else is named, nothing is invented."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.images import draw_image_file
from PIL import Image

from fastmask import data
from fastmask.cli import main
from fastmask.cocoapi import mask as coco_mask
from fastmask.data.parse import MAX_PIXELS, parse_rle

pytest.importorskip("pycocotools.mask", reason="it makes and checks RLE")
SQUARE = [1, 1, 9, 1, 9, 9, 1, 9]
POINTS = [[20, 20], [30, 20], [30, 28], [20, 28]]


def read_coco(folder: Path, *annotations: Any, **content: Any) -> data.Dataset:
    """One image of 40 x 50 pixels with id 1, one category cat with id 5, and the annotations on top of good ones."""
    good = [{"id": i, "image_id": 1, "category_id": 5, "segmentation": [SQUARE]} for i in range(len(annotations))]
    images = [{"id": 1, "file_name": "a.png", "height": 40, "width": 50}]
    made = [before | after for before, after in zip(good, annotations, strict=True)]
    content = {"images": images, "annotations": made, "categories": [{"id": 5, "name": "cat"}]} | content
    (folder / "coco.json").write_text(json.dumps(content))
    return data.read_dataset(folder / "coco.json")


def texts(dataset: data.Dataset) -> list[str]:
    return [problem.text for problem in dataset.problems]


def test_crowds(tmp_path: Path) -> None:
    """A string, a bool or a float is read as 0 or 1; anything else is named, and is no crowd by chance."""
    flags = {"0": False, "1": True, " true ": True, "False": False}
    values = [*flags, True, False, 1.0, 0.0, 0, 1, None]
    dataset = read_coco(tmp_path, *({"iscrowd": value} for value in values))
    assert dataset.problems == []
    expected = [flags[value] if isinstance(value, str) else bool(value) for value in values]
    assert [instance.crowd for instance in dataset.records[0].instances] == expected
    wrong = [2, "yes", [1], 0.5, "", {}]
    dataset = read_coco(tmp_path, *({"iscrowd": value} for value in wrong))
    assert texts(dataset) == [f"iscrowd must be 0 or 1, got {value!r}" for value in wrong]
    assert dataset.records[0].instances == ()


def test_ids_that_are_text(tmp_path: Path) -> None:
    """ "7" is 7; other text is an id as well, whose image and category get numbers."""
    images = [{"id": "1", "file_name": "a.png"}, {"id": "frame-2", "file_name": "b.png"}, {"id": 3.0, "file_name": "c"}]
    categories = [{"id": "dog", "name": "dog"}, {"id": "5", "name": "cat"}, {"id": 9, "name": "cow"}]
    places = [(1, "dog"), ("frame-2", 5), ("frame-2", "9"), (3, 9.0), ("01", 5), (True, 5)]
    annotations = [{"id": "8", "image_id": image, "category_id": category} for image, category in places]
    dataset = read_coco(tmp_path, *annotations, images=images, categories=categories)
    found = [[instance.category for instance in record.instances] for record in dataset.records]
    assert found == [["dog"], ["cat", "cow"], ["cow"]]
    assert [record.id for record in dataset.records] == [1, None, 3]
    assert dataset.categories == {"cat": 5, "cow": 9, "dog": 10}
    kinds = [problem.kind for problem in dataset.problems]
    assert kinds == ["duplicate id"] * 4 + ["broken annotation", "unknown image"]  # "01" is not 1, nor is true
    assert {instance.id for record in dataset.records for instance in record.instances} == {8}


def test_categories_that_are_missing(tmp_path: Path) -> None:
    """One problem for all; the ids are the names."""
    for categories in ([], None, {"5": "cat"}, [{"name": "cat"}]):
        dataset = read_coco(tmp_path, {}, {"category_id": 7}, categories=categories)
        assert dataset.categories == {"5": 5, "7": 7}
        assert sum("categories must have names and ids, got none" in text for text in texts(dataset)) == 1
        assert len(dataset.records[0].instances) == 2
    dataset = read_coco(tmp_path, {}, categories=[{"id": 5, "name": None}, {"id": 5, "name": "dog"}])
    assert dataset.categories == {"5": 5}
    assert texts(dataset)[1] == "the category id 5 is taken"


FORMS = {
    "flat": SQUARE,
    "pairs": [[1, 1], [9, 1], [9, 9], [1, 9]],
    "nested": [[SQUARE]],
    "nested pairs": [[[1, 1], [9, 1], [9, 9], [1, 9]]],
    "nested twice": [[[[1, 1], [9, 1], [9, 9], [1, 9]]]],
    "an RLE in a list": [{"size": [40, 50], "counts": [41, 8, *[32, 8] * 7, 1671]}],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_segmentations(form: str, tmp_path: Path) -> None:
    dataset = read_coco(tmp_path, {}, {"segmentation": FORMS[form], "bbox": [1, 1, 8, 8]})
    assert dataset.problems == []
    plain, other = dataset.records[0].instances
    assert np.array_equal(plain.to_mask(40, 50), other.to_mask(40, 50))


def test_segmentations_of_which_a_part_is_broken(tmp_path: Path) -> None:
    """The good parts stay, the others are named: polygons, a box or an area."""
    rings = [[[[1, 1], [9, 1], [9, 9]], [[3, 2], [6, 2], [6, 5]]]]
    dataset = read_coco(
        tmp_path,
        {"segmentation": [SQUARE, [1, 2, 3, 4], [20, 20, 30, 20, 30, 30]]},
        {"segmentation": [[1, 2, None, 3, 4, 5], SQUARE]},
        {"bbox": [1, 2, "x", 4]},
        {"area": [5]},
        {"segmentation": [[1, 2], [3, 4, 5]], "bbox": [1, 2, 3, 4]},
        {"segmentation": "polygon", "bbox": [1, 2, 3, 4]},
        {"segmentation": rings, "bbox": [1, 2, 3, 4]},
        {"segmentation": None, "bbox": [0, 0, 1e300, 4]},
    )
    assert texts(dataset) == [
        "left out of it: segmentation[1]: a polygon must have three points, got 2",
        "left out of it: segmentation[0]: a polygon must be finite, got NaN or infinity",
        "left out of it: w must be a finite number, got 'x'",
        "left out of it: area must be a finite number, got [5]",
        "segmentation[0]: a polygon must have three points, got 1",
        "segmentation must be polygons or an RLE, got 'polygon'",
        "segmentation must be a list of polygons, got a list of rings, which may be holes",
        "bbox must be within 262144 pixels, got [0, 0, 1e+300, 4]",
    ]
    assert [len(instance.polygons) for instance in dataset.records[0].instances] == [2, 1, 1, 1]


def test_lists_that_are_none_and_sizes_that_are_huge(tmp_path: Path) -> None:
    """They are named, and nothing is allocated for them."""
    assert texts(read_coco(tmp_path, annotations=None)) == ["annotations must be a list, got None"]
    assert texts(read_coco(tmp_path, images=None))[0] == "images must be a list, got None"
    size = {"height": 10**6, "width": 10**6}
    dataset = read_coco(tmp_path, {}, images=[{"id": 1, "file_name": "a.png"} | size])
    assert texts(dataset) == [f"height and width must be at most {MAX_PIXELS} pixels, got 1000000 x 1000000"]
    assert (dataset.records[0].size, len(dataset.records[0].instances)) == (None, 1)
    strange = [{"id": 1, "file_name": "a.png", "height": height, "width": 50} for height in ("40", 40.0, "x", -1, None)]
    sizes = [read_coco(tmp_path, images=[image]).records[0].size for image in strange]
    assert sizes == [(40, 50), (40, 50), None, None, None]
    huge = [{"size": [70000, 70000], "counts": [70000 * 70000]}, {"size": [2**40, 1], "counts": [2**40]}]
    zigzag = [value for i in range(100) for value in (i, 200_000 * (i % 2))]
    dataset = read_coco(tmp_path, *({"segmentation": each} for each in (*huge, [zigzag])))
    assert texts(dataset) == [
        f"an RLE's size must be at most {MAX_PIXELS} pixels, got 70000 x 70000",
        f"an RLE's size must be at most {MAX_PIXELS} pixels, got {2**40} x 1",
        "segmentation[0]: a polygon's perimeter must be at most 4194304 pixels, got 2.00002e+07",
    ]


def test_rle_that_pycocotools_would_read_beyond() -> None:
    """An incomplete last run, a NUL, and characters that are not COCO's."""
    whole = coco_mask.encode(np.asfortranarray(np.eye(9, dtype=np.uint8)))
    for counts in (whole["counts"] + b"P", b"\0" + whole["counts"], whole["counts"] + b"\xff", "\u0141"):
        with pytest.raises(ValueError, match="an RLE's counts must be runs, got"):
            parse_rle({"size": [9, 9], "counts": counts})


def encode_mask(mask: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_unions_of_labelme_shapes(tmp_path: Path) -> None:
    """Of one label and group_id: masks, polygons, rectangles and circles; also where the size is the image's alone."""
    draw_image_file(tmp_path / "a.png", 40, 50)
    first, second = np.ones((4, 6), bool), np.ones((5, 5), bool)
    second[0, 0] = False
    masks = [
        {"label": "m", "shape_type": "mask", "points": [[x, y], [x + 9, y + 9]], "mask": encode_mask(mask)}
        for mask, x, y in ((first, 2, 3), (second, 30, 30))
    ]
    polygon = {"label": "m", "points": POINTS}
    rectangle = {"label": "m", "shape_type": "rectangle", "points": [[20, 20], [30, 28]]}
    shapes = [(masks[0], masks[1]), (masks[0], polygon), (rectangle, masks[1]), (polygon, masks[0], masks[1])]
    shapes += [(masks[0],), (masks[1],), (polygon,)]
    grouped = [shape | {"group_id": i} for i, group in enumerate(shapes) for shape in group]
    grouped[1]["group_id"] = "0"  # the same as 0
    content: dict[str, Any] = {"imagePath": "a.png", "imageHeight": 40, "imageWidth": 50, "shapes": grouped}
    for size in ({}, {"imageHeight": None, "imageWidth": None}):
        (tmp_path / "a.json").write_text(json.dumps(content | size))
        dataset = data.read_dataset(tmp_path)
        assert dataset.problems == []
        made = [instance.to_mask(40, 50) for instance in dataset.records[0].instances]
        one, two, three = made[4:]
        assert (one.sum(), two.sum(), three.sum()) == (24, 24, 80)
        for union, parts in zip(made[:4], ([one, two], [one, three], [two, three], [one, two, three]), strict=True):
            assert np.array_equal(union, np.logical_or.reduce(parts))
    (tmp_path / "a.png").unlink()
    dataset = data.read_dataset(tmp_path)
    assert len(dataset.problems) == 8
    assert set(texts(dataset)) == {
        "a mask must be in an image of known size, got none in the file, and no readable image"
    }
    assert len(dataset.records[0].instances) == 4  # the polygons stay
    (tmp_path / "a.json").write_text(json.dumps(content | {"imageHeight": 10**6, "imageWidth": 10**6, "shapes": None}))
    assert [text.split(",")[0] for text in texts(data.read_dataset(tmp_path))] == [
        f"height and width must be at most {MAX_PIXELS} pixels",
        "shapes must be a list",
    ]
    (tmp_path / "a.json").write_text(
        json.dumps({"shapes": [polygon | {"group_id": [1]}, polygon, {"label": 0, "points": POINTS}]})
    )
    dataset = data.read_dataset(tmp_path)
    assert texts(dataset) == ["group_id must be an integer or text, got [1]"]
    assert [instance.category for instance in dataset.records[0].instances] == ["m", "0"]


def read_via(folder: Path, *attributes: Any, name: str | None = None, **entries: Any) -> data.Dataset:
    shape = {"name": "polygon", "all_points_x": [1, 9, 5], "all_points_y": [2, 2, 8]}
    regions = [{"shape_attributes": shape, "region_attributes": values} for values in attributes]
    (folder / "via.json").write_text(json.dumps({"a": {"filename": "a.png", "regions": regions}} | entries))
    return data.read_dataset(folder / "via.json", attribute=name)


def test_the_attribute_that_is_the_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One for all regions of a file; it is named, and can be chosen; a region without it is left out and named."""
    fruits = [{"type": "good", "fruit": "pear"}, {"type": "", "fruit": "fig"}, {"type": "bad", "fruit": ""}]
    rule = r"must have one region attribute .*--class-attribute.*, got type \(good, bad\), fruit \(pear, fig\)"
    with pytest.raises(ValueError, match=rule):
        read_via(tmp_path, *fruits)
    dataset = read_via(tmp_path, *fruits, name="fruit")
    assert list(dataset.categories) == ["pear", "fig"]
    assert texts(dataset) == ["region_attributes must have fruit, got type"]
    assert dataset.notes == ("via.json: the class of a region is its attribute fruit",)
    for classes, chosen in (
        ([{"class": "a", "note": "x"}, {"class": "b"}], "class"),
        ([{"animal": "a", "note": ""}, {"animal": "b", "note": " "}], "animal"),
        ([{"kind": {"a": True, "b": False}}, {"kind": {"a": "", "b": "true"}}], "kind"),
    ):
        dataset = read_via(tmp_path, *classes)
        assert list(dataset.categories) == ["a", "b"]
        assert dataset.notes == (f"via.json: the class of a region is its attribute {chosen}",)
    for classes in ([{"class": "a", "label": "b"}], [{"name": "a"}, {"kind": "b"}], [{"kind": "a"}, {"type": "b"}]):
        with pytest.raises(ValueError, match="must have one region attribute"):
            read_via(tmp_path, *classes)
    with pytest.raises(ValueError, match="must have one value of kind in each region, got fig, pear in one"):
        read_via(tmp_path, {"kind": {"apple": True}}, {"kind": {"fig": True, "pear": True}})
    with pytest.raises(ValueError, match=r"must be one of type \(good, bad\), fruit \(pear, fig\), got 'size'"):
        read_via(tmp_path, *fruits, name="size")
    assert texts(read_via(tmp_path, {}, name="size")) == ["region_attributes must have size, got none"]
    assert list(read_via(tmp_path, {}, {"kind": ""}).categories) == ["object"]
    assert main(["data", "check", str(tmp_path / "via.json")]) == 1  # the image is missing
    assert "no region has an attribute: all are of the class object\n" in capsys.readouterr().out
    data.write_dataset(dataset, tmp_path / "coco.json", "coco")
    with pytest.raises(
        ValueError, match="attribute must not be given for the format coco, which has none, got 'fruit'"
    ):
        data.read_dataset(tmp_path / "coco.json", attribute="fruit")


def test_via_entries_without_regions(tmp_path: Path) -> None:
    """The file is VIA's still; they are named."""
    entries: dict[str, Any] = {
        "b": {"filename": "b.png"},
        "c": {"filename": "c.png", "regions": None},
        "d": None,
        "e": {},
    }
    dataset = read_via(tmp_path, {"class": "cat"}, **entries)
    assert [len(record.instances) for record in dataset.records] == [1, 0, 0]
    assert texts(dataset) == [
        "its regions must be a list, got none",
        "its regions must be a list, got None",
        *["it must have a filename"] * 2,
    ]
