"""Broken annotations are named, counted and left out, and never raise a traceback."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fastmask import data
from fastmask.cli import main


def via(*regions: Any, listed: bool = True) -> dict[str, Any]:
    made = [{"shape_attributes": shape, "region_attributes": attributes} for shape, attributes in regions]
    chosen = made if listed else {str(i): region for i, region in enumerate(made)}
    return {"a.png123": {"filename": "a.png", "size": 123, "regions": chosen, "file_attributes": {}}}


SQUARE = [[1, 1], [9, 1], [9, 9]]
BROKEN: list[tuple[dict[str, Any], str, str]] = [
    (
        via(({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1, 2]}, {})),
        "region 0",
        "three points, got 2",
    ),
    (
        via(({"name": "polygon", "all_points_x": [1], "all_points_y": [1, 2]}, {})),
        "region 0",
        "as many all_points_x",
    ),
    (
        via(({"name": "polygon", "all_points_x": [1, 2, 1e9], "all_points_y": [1, 2, 3]}, {})),
        "region 0",
        "must be within 262144 pixels, got 1e+09",
    ),
    (
        via(({"name": "polygon", "all_points_x": [1, 2, 10**400], "all_points_y": [1, 2, 3]}, {})),
        "region 0",
        "a polygon must be numbers",
    ),
    (
        via(({"name": "polygon", "all_points_x": [1, 2, math.nan], "all_points_y": [1, 2, 3]}, {})),
        "region 0",
        "must be finite, got NaN",
    ),
    (via(({"name": "point", "cx": 1, "cy": 2}, {})), "region 0", "got 'point'"),
    (via(({"name": "circle", "cx": 1, "cy": "2", "r": 3}, {})), "region 0", "cy must be a finite number, got '2'"),
    (
        via(({"name": "rect", "x": 1, "y": 1, "width": math.inf, "height": 2}, {})),
        "region 0",
        "width must be a finite",
    ),
    ({"shapes": [{"label": "a", "points": [[1, 1], [2, math.nan], [3, 3]]}]}, "shape 0", "must be finite"),
    ({"shapes": [{"points": SQUARE}]}, "shape 0", "must have a label"),
    ({"shapes": [{"label": "a", "shape_type": "line", "points": SQUARE}]}, "shape 0", "got 'line'"),
    ({"shapes": [{"label": "a", "points": [["a", 1]]}]}, "shape 0", "a polygon must be numbers"),
    (
        {"shapes": [{"label": "a", "shape_type": "circle", "points": "12"}]},
        "shape 0",
        "points must be a list, got '12'",
    ),
    ({"shapes": [{"label": "a", "shape_type": "circle", "points": SQUARE}]}, "shape 0", "circle must have two points"),
    (
        {
            "imageHeight": 9,
            "imageWidth": 9,
            "shapes": [{"label": "a", "shape_type": "mask", "points": SQUARE[:2], "mask": "x"}],
        },
        "shape 0",
        "image in base64",
    ),
]


@pytest.mark.parametrize(("content", "where", "message"), BROKEN, ids=[message for *_, message in BROKEN])
def test_broken_annotations_are_named(content: dict[str, Any], where: str, message: str, tmp_path: Path) -> None:
    """And left out; the others are read."""
    if "shapes" in content:
        content = content | {"shapes": [*content["shapes"], {"label": "b", "points": SQUARE}]}
    else:
        good = {"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 5, 1]}
        content["a.png123"]["regions"].append({"shape_attributes": good, "region_attributes": {}})
    (tmp_path / "a.json").write_text(json.dumps(content))
    dataset = data.read_dataset(tmp_path / "a.json")
    (problem,) = dataset.problems
    assert where in problem.where
    assert message in problem.text
    assert len(dataset.records[0].instances) == 1


def test_broken_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [{"id": 1, "file_name": "a.png"}, {"id": 1, "file_name": "b.png"}, {"file_name": "c.png"}, "d"]
    good = {"id": 1, "image_id": 1, "category_id": 5, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    annotations = [
        good,
        good,
        good | {"id": 2, "category_id": 6},
        good | {"id": 3, "image_id": 9},
        good | {"id": 4, "segmentation": [[1, 2, 3]]},
        good | {"id": 5, "segmentation": {"size": [3, 3], "counts": None}},
        good | {"id": 6, "segmentation": None, "bbox": [1, 2, 3]},
        good | {"id": 7, "segmentation": None},
        good | {"id": 8, "segmentation": None, "bbox": [1, 2, math.nan, 4]},
        good | {"id": 9, "segmentation": None, "bbox": [1, 2, 10**400, 4]},
        good | {"id": 10, "category_id": 2**70},
        "nothing",
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "cat"}, {"name": "dog"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    dataset = data.read_dataset(tmp_path / "coco.json")
    assert [(problem.kind, problem.where.partition(": ")[2]) for problem in dataset.problems] == [
        ("broken category", "categories[1]"),
        ("duplicate id", "annotations[1]"),
        *(("broken annotation", f"annotations[{i}]") for i in (2, 4, 5, 6, 7, 8, 9, 10, 11)),
        ("duplicate id", "images[1]"),
        ("broken image entry", "images[2]"),
        ("broken image entry", "images[3]"),
        ("unknown image", ""),
    ]
    assert len(dataset.records) == 1
    assert main(["data", "convert", str(tmp_path / "coco.json"), str(tmp_path / "via.json"), "--to", "via"]) == 1
    printed = capsys.readouterr()
    assert "1 images (0 without objects), 2 objects" in printed.out
    assert "problems: broken annotation 9, duplicate id 2, broken image entry 2, broken category 1" in printed.out
    assert "missing image" in printed.err


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "torn.json").write_text('{"images": [')
    (tmp_path / "other.json").write_text("[1, 2]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "empty").mkdir()
    for name, message in {
        "torn.json": "torn.json must be JSON, got a broken file",
        "other.json": "other.json must be annotations of coco, via, labelme, masks, yolo, got none of them",
        "deep.json": "deep.json must be JSON",
        "empty": "empty must hold JSON files, mask images or a data.yaml, got none",
        "none.json": "none.json: no such file or directory",
    }.items():
        assert main(["data", "convert", str(tmp_path / name), str(tmp_path / "out.json"), "--to", "coco"]) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1
    with pytest.raises(ValueError, match="must be annotations of the format via, got none"):
        data.read_dataset(tmp_path / "other.json", "via")


def test_categories_of_the_same_name(tmp_path: Path) -> None:
    """They get different names; categories are sorted by id."""
    categories = [{"id": 3, "name": "x"}, {"id": 1, "name": "y"}, {"id": 2, "name": "x"}]
    (tmp_path / "coco.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    dataset = data.read_dataset(tmp_path / "coco.json")
    assert [problem.kind for problem in dataset.problems] == ["duplicate name"]
    assert list(dataset.categories.items()) == [("y", 1), ("x (2)", 2), ("x", 3)]


def test_broken_via(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, message in (
        ({"a": {"filename": "a.png", "regions": 5}}, "broken image entry: a.png: its regions must be a list"),
        ({"_via_img_metadata": [1]}, "must have an object as its _via_img_metadata, got list"),
        (
            via(({"name": "circle", "cx": 1, "cy": 2, "r": 1e17}, {"fastmask_object": {"a": 1}})),
            "missing image",
        ),
    ):
        (tmp_path / "via.json").write_text(json.dumps(content))
        assert main(["data", "check", str(tmp_path / "via.json")]) in (1, 2)
        assert message in capsys.readouterr().err


def test_a_broken_file_beside_a_good_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    good = {"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 5, 1]}
    (tmp_path / "z.json").write_text(json.dumps(via((good, {}))))
    dataset = data.read_dataset(tmp_path)
    assert [problem.kind for problem in dataset.problems] == ["broken file"]
    assert len(dataset.records) == 1
