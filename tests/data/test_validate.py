"""``fastmask data check``: each kind of problem is named, no valid data is; the contact sheet shows the masks."""

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.images import draw_image_file
from PIL import ExifTags, Image

from fastmask import data
from fastmask.cli import main
from fastmask.data.contact_sheet import draw_contact_sheet
from fastmask.data.crossings import find_crossing
from fastmask.data.records import box_to_polygon, ellipse_to_polygon
from fastmask.data.validate import validate_dataset

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


def compare_all_sides(polygon: np.ndarray) -> tuple[int, int] | None:
    """The first crossing by comparing each side with all later ones."""

    def side(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        along, to = b - a, c - a
        return np.sign(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])

    starts = polygon[np.any(polygon != np.roll(polygon, 1, axis=0), axis=1)]
    ends = np.roll(starts, -1, axis=0)
    for i in range(len(starts) - 1):
        a, b, c, d = starts[i], ends[i], starts[i + 1 :], ends[i + 1 :]
        crossing = (side(a, b, c) * side(a, b, d) < 0) & (side(c, d, a) * side(c, d, b) < 0)
        if crossing.any():
            return i, i + 1 + int(crossing.argmax())
    return None


def test_crossings_of_long_polygons(seed: int) -> None:
    """The same as comparing all sides: of contours, some of which cross late, of walks and of corners on a grid."""
    generator = np.random.default_rng(seed)
    crossings = []
    for number in (1, 2, 60, 66, 150, 333, 800):
        angles = np.sort(generator.random(number)) * 2 * np.pi
        circle = 100 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        contour = circle * generator.uniform(0.5, 1, (number, 1))
        swapped = circle.copy()
        swapped[-5:-3] = swapped[-5:-3][::-1]
        noisy = contour + generator.normal(0, 0.05, (number, 2))
        grid = generator.integers(0, 9, (number, 2)).astype(float)
        for polygon in (contour, swapped, noisy, np.cumsum(noisy, axis=0), grid, generator.random((number, 2))):
            crossings.append(find_crossing(polygon))
            assert crossings[-1] == compare_all_sides(polygon)
    assert None in crossings
    assert max(i for i, _ in filter(None, crossings)) > 700


def test_the_time_of_30_000_corners() -> None:
    """Of a contour, of teeth beside each other, and of a star of long sides in all directions."""
    angles = np.arange(30_000) * 2 * np.pi / 30_000
    contour = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 1000
    teeth = np.stack([np.repeat(np.arange(15_000) * 0.1, 2), np.tile([0, 500, 500, 0], 7500)], axis=1)
    star = contour * (1 + np.arange(30_000)[:, None] * 7919 % 1000 / 1000)
    started = time.process_time()
    assert find_crossing(contour) is None
    assert find_crossing(teeth) is None
    assert find_crossing(star) is None
    assert time.process_time() - started < 5  # comparing all sides takes more than this for each


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
