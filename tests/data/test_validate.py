"""``fastmask data check``: each kind of problem is named, no valid data is; the contact sheet shows the masks."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.images import draw_image_file
from PIL import ExifTags, Image

from fastmask import data
from fastmask.cli import main
from fastmask.data.contact_sheet import draw_contact_sheet
from fastmask.data.records import box_to_polygon, ellipse_to_polygon
from fastmask.data.validate import find_crossing, validate_dataset

coco_mask = pytest.importorskip("pycocotools.mask", reason="it checks masks")
SQUARE = box_to_polygon(10, 10, 30, 30)


def make_dataset(record: data.Record, *more: data.Record) -> data.Dataset:
    return data.Dataset([record, *more], {"cat": 1, "dog": 2}, [])


def make_record(folder: Path, *instances: data.Instance) -> data.Record:
    return data.Record(draw_image_file(folder / "a.png", 60, 80), (60, 80), instances)


def test_valid_data_has_no_problems(tmp_path: Path) -> None:
    rle = dict(coco_mask.encode(np.asfortranarray(np.ones((60, 80), np.uint8))))
    instances = [
        data.Instance("cat", (SQUARE,)),
        data.Instance("cat", (np.concatenate([SQUARE, SQUARE[:1]]) + 1,)),  # closed, as some tools write it
        data.Instance("dog", (box_to_polygon(-0.5, 0, 80.5, 60.5),)),
        data.Instance("dog", (ellipse_to_polygon(40, 30, 20, 10, 1.0), SQUARE)),
        data.Instance("dog", rle=rle),
        data.Instance("cat", box=(1, 2, 3, 4), crowd=True),
    ]
    assert validate_dataset(make_dataset(make_record(tmp_path, *instances))) == []


BOWTIE = np.array([[10, 10], [30, 30], [30, 10], [10, 30]], float)


@pytest.mark.parametrize(
    ("instance", "kind", "text"),
    [
        (data.Instance("cat", box=(30, 10, 20, 20)), "inverted box", "its box is (30, 10, 20, 20)"),
        (data.Instance("cat", box=(20, 10, 20, 20)), "empty box", "its box is (20, 10, 20, 20)"),
        (data.Instance("cat", (SQUARE + 60,)), "outside", "to (90.0, 90.0) in an image of (60, 80)"),
        (data.Instance("cat", (SQUARE - 12,)), "outside", "it reaches from (-2.0, -2.0)"),
        (data.Instance("cat", (BOWTIE,)), "self-crossing", "sides 0 and 2 of a polygon cross"),
        (
            data.Instance("cat", rle=dict(coco_mask.encode(np.asfortranarray(np.ones((50, 80), np.uint8))))),
            "mask of another size",
            "its mask is [50, 80], the image [60, 80]",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 25 else "",
)
def test_instances(instance: data.Instance, kind: str, text: str, tmp_path: Path) -> None:
    (problem,) = validate_dataset(make_dataset(make_record(tmp_path, data.Instance("dog", (SQUARE,)), instance)))
    assert problem.kind == kind
    assert problem.where.endswith("a.png: object 1 (cat)")
    assert text in problem.text


def test_images(tmp_path: Path) -> None:
    whole = make_record(tmp_path, data.Instance("cat", (SQUARE,)), data.Instance("cat", (SQUARE,)))
    torn = tmp_path / "torn.png"
    torn.write_bytes(whole.file.read_bytes()[:300])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (80, 60)).save(tmp_path / "turned.jpg", exif=exif)
    records = [
        whole,
        data.Record(tmp_path / "none.png", None, ()),
        data.Record(torn, None, ()),
        data.Record(whole.file, (61, 80), ()),
        data.Record(tmp_path / "turned.jpg", (60, 80), ()),
        data.Record(tmp_path / "turned.jpg", (80, 60), ()),
    ]
    problems = validate_dataset(data.Dataset(records, {"cat": 1}, [data.Problem("broken annotation", "x", "y")]))
    assert [problem.kind for problem in problems] == [
        "broken annotation",
        "duplicate",
        "duplicate",
        "duplicate",
        "missing image",
        "broken image",
        "wrong size",
        "EXIF orientation",
    ]
    assert problems[3].text == "2 objects cat have the same box"


def test_crossings() -> None:
    """The same as testing every pair of sides."""

    def cross(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> bool:
        matrix = np.stack([b - a, c - d], axis=1)
        if abs(np.linalg.det(matrix)) < 1e-12:
            return False
        s, t = np.linalg.solve(matrix, c - a)
        return 0 < s < 1 and 0 < t < 1

    for number in (3, 4, 5, 6, 9):
        for _ in range(20):
            polygon = torch.rand(number, 2).double().numpy()
            sides = list(zip(polygon, np.roll(polygon, -1, axis=0), strict=True))
            pairs = [(i, j) for i, j in itertools.combinations(range(number), 2) if j - i not in (1, number - 1)]
            expected = next(((i, j) for i, j in pairs if cross(*sides[i], *sides[j])), None)
            assert find_crossing(polygon) == expected
    assert find_crossing(ellipse_to_polygon(0, 0, 500, 300)) is None
    assert find_crossing(np.zeros((5, 2))) is None


def test_contact_sheet(tmp_path: Path) -> None:
    """It shows masks; unreadable images are left out, and fewer images have larger cells, without empty ones."""
    records = [make_record(tmp_path, data.Instance("cat", (SQUARE,)), data.Instance("dog", (SQUARE + 20,)))]
    records += [data.Record(tmp_path / "none.png", None, ()), data.Record(records[0].file, (60, 80), ())]
    sheet = np.asarray(draw_contact_sheet(make_dataset(*records), columns=3, side=90)).astype(int)
    assert sheet.shape == (64, 168, 3)  # as large as the images
    drawn, plain = sheet[2:62, 2:82], sheet[2:62, 86:166]
    changed = (drawn != plain).any(2)
    assert changed[12:28, 12:28].mean() > 0.9
    assert not changed[52:58, 2:28].any()
    for number, size in {1: (162, 124), 2: (248, 95), 4: (248, 190)}.items():  # in a sheet of 4 cells of 120 pixels
        photos = [draw_image_file(tmp_path / f"{i}.png", 120, 158) for i in range(number)]
        few = draw_contact_sheet(make_dataset(*(data.Record(photo, None, ()) for photo in photos)), 2, 2, 120)
        assert few.size == size


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = make_record(tmp_path, data.Instance("cat", (SQUARE,)), data.Instance("dog", (BOWTIE,)))
    data.write_dataset(make_dataset(record), tmp_path / "coco.json", "coco")
    sheet = tmp_path / "sheet.png"
    assert main(["data", "check", str(tmp_path / "coco.json"), "--contact-sheet", str(sheet)]) == 1
    printed = capsys.readouterr()
    assert "1 images (0 without objects), 2 objects" in printed.out
    assert "classes: cat 1, dog 1" in printed.out
    assert "problems: self-crossing 1" in printed.out
    assert "fastmask data: self-crossing: " in printed.err
    assert sheet.exists()
