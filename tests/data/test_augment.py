"""What training does to images: boxes of what is cut, objects pasted on others, colors; bad settings."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmask.cocoapi import mask as coco
from fastmask.data import Record
from fastmask.data.augment import Augmentation, Sample, bounds_of, pasted, recolored, seen
from fastmask.data.crop import Crop, plan_resize
from fastmask.data.records import Object, box_polygon
from fastmask.demo import CLASSES, Scenes

LABELS = {name: label for label, name in enumerate(CLASSES, 1)}


def drawn_sample(seed: int, number: int, size: tuple[int, int] = (96, 128)) -> Sample:
    record = Scenes(number + 1, seed, size)[number]
    return seen(record, record.load(), plan_resize(size, min(size), 10**6), LABELS, number, masks=True)


def test_what_is_seen(seed: int) -> None:
    """Unmoved, it is what was drawn."""
    record = Scenes(1, seed, (96, 128))[0]
    sample = drawn_sample(seed, 0)
    assert sample.masks is not None
    np.testing.assert_array_equal(sample.pixels, np.array(record.image))
    assert sample.labels.tolist() == [LABELS[one.category] for one in record.objects]
    for one, box, mask in zip(record.objects, sample.boxes, sample.masks, strict=True):
        np.testing.assert_array_equal(mask, one.mask(96, 128))
        np.testing.assert_array_equal(box, bounds_of(mask))


def test_boxes_of_what_is_cut() -> None:
    """A triangle's right half: its box is around what is left; others keep theirs, fractions and all."""
    triangle = np.array([[10.0, 10], [50, 30], [10, 50]])
    objects = (
        Object("ellipse", (triangle,)),
        Object("grain", (box_polygon(42.25, 12.5, 57.75, 20.5),)),
        Object("triangle", (triangle,), crowd=True),
        Object("triangle", box=(70, 70, 70.4, 90)),
        Object("quadrilateral", (box_polygon(0, 0, 20, 20),)),
    )
    record = Record(Path("none.png"), (100, 100), objects)
    view = Crop((100, 100), (100, 100), 0, 30, (100, 70), mirrored=False)
    sample = seen(record, Image.new("RGB", (100, 100)), view, LABELS, 3, masks=True)
    assert sample.labels.tolist() == [1, 4]
    np.testing.assert_allclose(sample.boxes[0], [0, 20, 20, 40], atol=1)
    np.testing.assert_array_equal(sample.boxes[1], np.float32([12.25, 12.5, 27.75, 20.5]))
    assert sample.record == 3
    boxes_only = seen(record, Image.new("RGB", (100, 100)), view, LABELS, 3, masks=False)
    assert boxes_only.masks is None
    np.testing.assert_array_equal(boxes_only.boxes[0], [0, 10, 20, 50])


def test_what_is_too_thin_to_be_seen() -> None:
    """A line of pixels, and a polygon without area, leave no mask: they are left out."""
    line = np.eye(400, dtype=np.uint8)
    objects = (
        Object("ellipse", rle=coco.encode(np.asfortranarray(line))),
        Object("grain", (np.array([[10.0, 10], [200, 200], [10, 10]]),)),
        Object("triangle", (box_polygon(0, 0, 100, 100),)),
    )
    record = Record(Path("none.png"), (400, 400), objects)
    view = plan_resize((400, 400), 100, 400)
    assert seen(record, Image.new("RGB", (400, 400)), view, LABELS, 0, masks=True).labels.tolist() == [2]
    assert Augmentation(min_size=320).sizes == (320,)
    assert Augmentation(min_size=tuple(np.arange(640, 801, 80))).sizes == (640, 720, 800)


def test_pasting(seed: int) -> None:
    onto, other = drawn_sample(seed, 0), drawn_sample(seed, 1, (120, 100))
    assert onto.masks is not None
    assert other.masks is not None
    chosen = np.arange(len(other.labels)) % 2 == 0
    result = pasted(onto, other, chosen)
    assert result.masks is not None
    assert not (result.masks.sum(0) > 1).any()
    cover = other.masks[chosen].any(0)[:96]
    np.testing.assert_array_equal(result.pixels[:, :100][cover], other.pixels[:96][cover])
    np.testing.assert_array_equal(result.pixels[:, :100][~cover], onto.pixels[:, :100][~cover])
    np.testing.assert_array_equal(result.pixels[:, 100:], onto.pixels[:, 100:])
    expected = [(mask[:, :100] & ~cover, label) for mask, label in zip(onto.masks, onto.labels, strict=True)]
    expected += [(mask[:96], label) for mask, label in zip(other.masks[chosen], other.labels[chosen], strict=True)]
    visible = [(mask, label) for mask, label in expected if mask.any()]
    outside = [mask[:, 100:].any() for mask in onto.masks]
    if not any(outside):
        assert result.labels.tolist() == [label for _, label in visible]
    for mask, box in zip(result.masks, result.boxes, strict=True):
        np.testing.assert_array_equal(box, bounds_of(mask))


def test_pasting_nothing_and_everything(seed: int) -> None:
    onto, other = drawn_sample(seed, 0), drawn_sample(seed, 1)
    nothing = pasted(onto, other, np.zeros(len(other.labels), bool))
    np.testing.assert_array_equal(nothing.pixels, onto.pixels)
    np.testing.assert_array_equal(nothing.boxes, onto.boxes)
    whole = other._replace(masks=np.ones((1, 96, 128), bool), boxes=np.float32([[0, 0, 128, 96]]), labels=np.array([2]))
    hidden = pasted(onto, whole, np.ones(1, bool))
    assert hidden.labels.tolist() == [2]
    np.testing.assert_array_equal(hidden.pixels, other.pixels)
    none = onto._replace(masks=np.zeros((0, 96, 128), bool), boxes=onto.boxes[:0], labels=onto.labels[:0])
    assert len(pasted(none, none, np.zeros(0, bool)).labels) == 0


def test_colors(seed: int) -> None:
    pixels = drawn_sample(seed, 0).pixels
    weak = recolored(pixels, 1e-9, np.random.default_rng(seed)).astype(int)
    assert np.abs(weak - pixels).mean() < 4  # by way of HSV in bytes
    strong = [recolored(pixels, 1.0, np.random.default_rng([seed, i])) for i in range(6)]
    assert np.ptp([one.mean() for one in strong]) > 10
    np.testing.assert_array_equal(strong[2], recolored(pixels, 1.0, np.random.default_rng([seed, 2])))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mirror": 1.5}, r"mirror must be in \[0, 1\], got 1.5"),
        ({"sizes": ()}, r"sizes must be pixels, got \(\)"),
        ({"sizes": (0,)}, r"sizes must be pixels, got \(0,\)"),
        ({"zoom": (0, 1)}, r"zoom must be \(least, most\), above 0, got \(0, 1\)"),
        ({"zoom": (1,)}, r"zoom must be \(least, most\), above 0, got \(1,\)"),
        ({"zoom": (1, float("inf"))}, r"zoom must be \(least, most\), above 0, got \(1, inf\)"),
        ({"canvas": (64,)}, r"canvas must be \(height, width\), got \(64,\)"),
        ({"longest": 0}, "longest must be at least 1, got 0"),
        ({"paste": float("nan")}, r"paste must be in \[0, 1\], got nan"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)
