"""Polygons of masks: pycocotools rasterizes them to the same masks."""

import time
from pathlib import Path

import numpy as np
import pytest
from helpers.images import draw_image_file

from fastmask import data
from fastmask.cli import main
from fastmask.cocoapi import mask as coco_mask
from fastmask.data.crossings import find_crossing
from fastmask.data.polygons import signed_area
from fastmask.data.records import Polygon, encode_polygons

pytest.importorskip("pycocotools.mask", reason="it rasterizes")


def rasterize(polygons: list[Polygon], height: int, width: int) -> np.ndarray:
    """The mask [h, w] of polygons by pycocotools."""
    return np.asarray(coco_mask.decode(encode_polygons(polygons, height, width)), bool)


def encode(mask: np.ndarray) -> dict[str, object]:
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.97])
def test_random_masks(share: float, seed: int) -> None:
    """Noise has components inside holes of components, holes beside holes, and corners that touch."""
    generator = np.random.default_rng(seed)
    for height, width in ((1, 1), (1, 9), *((7, 5),) * 50, *((24, 31),) * 5):
        mask = generator.random((height, width)) < share
        polygons = data.trace_polygons(mask)
        if not mask.any():
            assert polygons == []
            continue
        assert np.array_equal(rasterize(polygons, height, width), mask)
        assert sum(signed_area(polygon) for polygon in polygons) == mask.sum()
        assert [find_crossing(polygon) for polygon in polygons] == [None] * len(polygons)


def test_rings() -> None:
    """A component in the hole of another one is a polygon of its own; numbers other than 0 are inside."""
    rings = np.zeros((11, 12), np.int32)
    for i, value in enumerate((7, 0, -1, 0)):
        rings[i : 11 - i, i + 1 : 12 - i] = value
    outer, inner = data.trace_polygons(rings)
    assert len(outer) == len(inner) == 4 + 1 + 5 + 1  # the boundary, the cut's end, the hole and the cut's end again
    assert outer.dtype == np.float64
    assert outer.min(axis=0).tolist() == [1, 0]
    assert data.trace_polygons(np.zeros((4, 4), bool)) == []
    assert np.array_equal(data.trace_polygons(np.eye(2, dtype=bool))[1], [[1, 1], [2, 1], [2, 2], [1, 2]])
    for mask, tolerance, message in (
        (np.zeros(4), 0.0, r"mask must be \[h, w\], got \(4,\)"),
        (np.zeros((4, 4)), -1.0, "tolerance must be finite and at least 0, got -1"),
        (np.zeros((4, 4)), float("nan"), "tolerance must be finite and at least 0, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            data.trace_polygons(mask, tolerance)


def test_large_mask() -> None:
    """A disk of 4000 x 4000 pixels with 1,800 holes, in two seconds of CPU."""
    y, x = np.ogrid[:4000, :4000]
    mask = (x - 2000) ** 2 + (y - 2000) ** 2 < 1900**2
    mask &= np.tile(np.hypot(*np.mgrid[-40:40, -40:40]) >= 20, (50, 50))
    start = time.process_time()
    polygons = data.trace_polygons(mask)
    assert time.process_time() - start < 2
    assert sum(signed_area(polygon) for polygon in polygons) == mask.sum()
    assert sum(map(len, polygons)) > 100_000


def distance_to(points: np.ndarray, polygon: Polygon) -> float:
    """The largest distance of points [n, 2] from a polygon's boundary."""
    side = np.roll(polygon, -1, axis=0) - polygon
    to = points[:, None] - polygon
    share = np.clip((to * side).sum(2) / np.maximum((side**2).sum(1), 1e-9), 0, 1)
    return float(np.linalg.norm(to - share[..., None] * side, axis=2).min(axis=1).max())


def test_tolerance(seed: int) -> None:
    """No corner of the mask is farther from the polygon; a cut stays; what would lose its area stays exact."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:80, :90]
    mask = (np.hypot(x - 40, y - 40) < 35) & (np.hypot(x - 45, y - 42) > 12)
    (exact,) = data.trace_polygons(mask)
    for tolerance in (0.8, 1.5, 4.0):
        (simple,) = data.trace_polygons(mask, tolerance)
        assert len(simple) < len(exact) / 2
        assert distance_to(exact, simple) <= tolerance + 1e-9
        ends, counts = np.unique(simple, axis=0, return_counts=True)
        assert len(ends[counts == 2]) == 2
    pixels = np.zeros((9, 9), bool)
    pixels[::3, ::3] = True
    assert np.array_equal(rasterize(data.trace_polygons(pixels, 5.0), 9, 9), pixels)
    for _ in range(20):
        noise = generator.random((12, 12)) < 0.6
        assert all(signed_area(polygon) > 0 for polygon in data.trace_polygons(noise, 1.0))


def test_masks_to_polygons(tmp_path: Path, seed: int) -> None:
    """Masks become polygons in COCO's file and read back the same; crowds and what cannot be a polygon stay RLE."""
    generator = np.random.default_rng(seed)
    masks = [np.kron(generator.random((6, 7)) < 0.5, np.ones((5, 5), bool)) for _ in range(4)]
    square = np.array([[1, 1], [5, 1], [5, 5]], float)
    instances = [data.Instance("cat", rle=encode(mask)) for mask in masks]
    instances.append(data.Instance("cat", rle=encode(masks[0]), crowd=True))
    instances += [data.Instance("dog", rle=encode(mask)) for mask in (masks[0][1:], masks[0] & False)]
    instances += [data.Instance("dog", (square,)), data.Instance("dog", box=(1, 2, 3, 4))]
    record = data.Record(tmp_path / "a.png", (30, 35), tuple(instances))
    dataset = data.Dataset([record], {"cat": 1, "dog": 2}, [])
    converted = data.masks_to_polygons(dataset)
    rest = "still RLE: 1 crowds, 1 empty masks, 1 masks of another size than the image"
    assert converted.notes == (f"4 masks are polygons now, exactly; {rest}",)
    assert converted.records[0].instances[4:] == record.instances[4:]
    data.write_dataset(converted, tmp_path / "coco.json", "coco")
    (back,) = data.read_dataset(tmp_path / "coco.json").records
    for mask, instance in zip(masks, back.instances[:4], strict=True):
        assert instance.rle is None
        assert np.array_equal(instance.to_mask(30, 35), mask)
        assert instance.area == mask.sum()
    (note,) = data.masks_to_polygons(dataset, 4.0).notes
    assert note.startswith("4 masks are polygons now, simplified by at most 4 pixels; the lowest IoU with a mask is 0.")
    assert "a.png, object " in note
    comb = np.ones((2100, 2100), bool)
    comb[1:, ::2] = False
    record = data.Record(tmp_path / "a.png", comb.shape, (data.Instance("cat", rle=encode(comb)),))
    converted = data.masks_to_polygons(dataset._replace(records=[record]))
    assert converted.records[0].instances == record.instances
    assert converted.notes == ("0 masks are polygons now, exactly; still RLE: 1 masks of too long polygons",)
    with pytest.raises(ValueError, match="tolerance must be finite"):
        data.masks_to_polygons(dataset, -1.0)


def test_convert_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--polygons writes polygons instead of masks, and says so; options that mean nothing are refused."""
    mask = np.zeros((20, 30), bool)
    mask[2:9, 3:9] = True
    mask[4, 5] = False
    draw_image_file(tmp_path / "a.png", 20, 30)
    record = data.Record(tmp_path / "a.png", (20, 30), (data.Instance("cat", rle=encode(mask)),))
    source = tmp_path / "in.json"
    data.write_dataset(data.Dataset([record], {"cat": 1}, []), source, "coco")
    for format, target in (("coco", "out.json"), ("labelme", "out")):
        assert main(["data", "convert", str(source), str(tmp_path / target), "--to", format, "--polygons"]) == 0
        assert "1 masks are polygons now, exactly\n" in capsys.readouterr().out
        (instance,) = data.read_dataset(tmp_path / target).records[0].instances
        assert len(instance.polygons) == 1
        assert np.array_equal(instance.to_mask(20, 30), mask)
    for more, message in (
        (["--to", "masks", "--polygons"], "--polygons must be without --to masks, which holds no polygons"),
        (["--to", "coco", "--tolerance", "1"], "--tolerance needs --polygons, got 1 without"),
        (["--to", "coco", "--polygons", "--tolerance", "-1"], "tolerance must be finite and at least 0, got -1.0"),
    ):
        assert main(["data", "convert", str(source), str(tmp_path / "new"), *more]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()
