"""Augmentation: boxes of cropped instances, copy-paste, color jitter; invalid settings."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmask.cocoapi import mask as coco
from fastmask.data import Record
from fastmask.data.augment import Augmentation, Sample, copy_paste, jitter_color, make_sample, mask_to_box
from fastmask.data.crop import Crop, plan_resize
from fastmask.data.records import Instance, box_to_polygon
from fastmask.demo import CLASSES, Scenes

LABELS = {name: label for label, name in enumerate(CLASSES, 1)}


def draw_sample(seed: int, number: int, size: tuple[int, int] = (96, 128)) -> Sample:
    record = Scenes(number + 1, seed, size)[number]
    return make_sample(record, record.load(), plan_resize(size, min(size), 10**6), LABELS, number, masks=True)


def test_identity(seed: int) -> None:
    """Without scaling, a sample is the synthetic image and its annotations."""
    record = Scenes(1, seed, (96, 128))[0]
    sample = draw_sample(seed, 0)
    assert sample.masks is not None
    np.testing.assert_array_equal(sample.pixels, np.array(record.image))
    assert sample.labels.tolist() == [LABELS[instance.category] for instance in record.instances]
    for instance, box, mask in zip(record.instances, sample.boxes, sample.masks, strict=True):
        np.testing.assert_array_equal(mask, instance.to_mask(96, 128))
        np.testing.assert_array_equal(box, mask_to_box(mask))


def test_boxes_of_cropped_instances() -> None:
    """The right half of a triangle gets the box around it; whole instances keep their fractional boxes."""
    triangle = np.array([[10.0, 10], [50, 30], [10, 50]])
    instances = (
        Instance("ellipse", (triangle,)),
        Instance("grain", (box_to_polygon(42.25, 12.5, 57.75, 20.5),)),
        Instance("triangle", (triangle,), crowd=True),
        Instance("triangle", box=(70, 70, 70.4, 90)),
        Instance("quadrilateral", (box_to_polygon(0, 0, 20, 20),)),
    )
    record = Record(Path("none.png"), (100, 100), instances)
    crop = Crop((100, 100), (100, 100), 0, 30, (100, 70), flipped=False)
    sample = make_sample(record, Image.new("RGB", (100, 100)), crop, LABELS, 3, masks=True)
    assert sample.labels.tolist() == [1, 4]
    np.testing.assert_allclose(sample.boxes[0], [0, 20, 20, 40], atol=1)
    np.testing.assert_array_equal(sample.boxes[1], np.float32([12.25, 12.5, 27.75, 20.5]))
    assert sample.record == 3
    boxes_only = make_sample(record, Image.new("RGB", (100, 100)), crop, LABELS, 3, masks=False)
    assert boxes_only.masks is None
    np.testing.assert_array_equal(boxes_only.boxes[0], [0, 10, 20, 50])


def test_instances_thinner_than_a_pixel() -> None:
    """A line of pixels and a polygon without area have no mask after scaling, and are dropped."""
    line = np.eye(400, dtype=np.uint8)
    instances = (
        Instance("ellipse", rle=coco.encode(np.asfortranarray(line))),
        Instance("grain", (np.array([[10.0, 10], [200, 200], [10, 10]]),)),
        Instance("triangle", (box_to_polygon(0, 0, 100, 100),)),
    )
    record = Record(Path("none.png"), (400, 400), instances)
    crop = plan_resize((400, 400), 100, 400)
    assert make_sample(record, Image.new("RGB", (400, 400)), crop, LABELS, 0, masks=True).labels.tolist() == [2]
    assert Augmentation(min_size=320).min_size == (320,)
    assert Augmentation(min_size=tuple(np.arange(640, 801, 80))).min_size == (640, 720, 800)


def test_copy_paste(seed: int) -> None:
    target, other = draw_sample(seed, 0), draw_sample(seed, 1, (120, 100))
    assert target.masks is not None
    assert other.masks is not None
    chosen = np.arange(len(other.labels)) % 2 == 0
    result = copy_paste(target, other, chosen)
    assert result.masks is not None
    assert not (result.masks.sum(0) > 1).any()
    cover = other.masks[chosen].any(0)[:96]
    np.testing.assert_array_equal(result.pixels[:, :100][cover], other.pixels[:96][cover])
    np.testing.assert_array_equal(result.pixels[:, :100][~cover], target.pixels[:, :100][~cover])
    np.testing.assert_array_equal(result.pixels[:, 100:], target.pixels[:, 100:])
    expected = [(mask[:, :100] & ~cover, label) for mask, label in zip(target.masks, target.labels, strict=True)]
    expected += [(mask[:96], label) for mask, label in zip(other.masks[chosen], other.labels[chosen], strict=True)]
    visible = [(mask, label) for mask, label in expected if mask.any()]
    outside = [mask[:, 100:].any() for mask in target.masks]
    if not any(outside):
        assert result.labels.tolist() == [label for _, label in visible]
    for mask, box in zip(result.masks, result.boxes, strict=True):
        np.testing.assert_array_equal(box, mask_to_box(mask))


def test_copy_paste_of_nothing_and_of_everything(seed: int) -> None:
    target, other = draw_sample(seed, 0), draw_sample(seed, 1)
    nothing = copy_paste(target, other, np.zeros(len(other.labels), bool))
    np.testing.assert_array_equal(nothing.pixels, target.pixels)
    np.testing.assert_array_equal(nothing.boxes, target.boxes)
    whole = other._replace(masks=np.ones((1, 96, 128), bool), boxes=np.float32([[0, 0, 128, 96]]), labels=np.array([2]))
    hidden = copy_paste(target, whole, np.ones(1, bool))
    assert hidden.labels.tolist() == [2]
    np.testing.assert_array_equal(hidden.pixels, other.pixels)
    none = target._replace(masks=np.zeros((0, 96, 128), bool), boxes=target.boxes[:0], labels=target.labels[:0])
    assert len(copy_paste(none, none, np.zeros(0, bool)).labels) == 0


def test_color_jitter(seed: int) -> None:
    pixels = draw_sample(seed, 0).pixels
    weak = jitter_color(pixels, 1e-9, np.random.default_rng(seed)).astype(int)
    assert np.abs(weak - pixels).mean() < 4  # the conversion to 8-bit HSV
    strong = [jitter_color(pixels, 1.0, np.random.default_rng([seed, i])) for i in range(20)]
    assert np.ptp([image.mean() for image in strong]) > 10
    np.testing.assert_array_equal(strong[2], jitter_color(pixels, 1.0, np.random.default_rng([seed, 2])))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_color_jitter_of_other_channels(channels: int, seed: int) -> None:
    """Of each channel alone, by the same factors: equal channels stay equal, and one of zeros is not filled."""
    plane = draw_sample(seed, 0).pixels[:, :, :1]
    pixels = np.repeat(plane, channels, axis=2)
    strong = [jitter_color(pixels, 1.0, np.random.default_rng([seed, i])) for i in range(20)]
    assert np.ptp([image.mean() for image in strong]) > 10
    for image in strong:
        assert image.shape == pixels.shape
        assert (image == image[:, :, :1]).all()
    np.testing.assert_array_equal(jitter_color(pixels, 0.0, np.random.default_rng(seed)), pixels)
    pixels[:, :, -1] = 0
    assert not jitter_color(pixels, 1.0, np.random.default_rng(seed))[:, :, -1].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.5}, r"flip must be in \[0, 1\], got 1.5"),
        ({"min_size": ()}, r"min_size must be pixels, got \(\)"),
        ({"min_size": (0,)}, r"min_size must be pixels, got \(0,\)"),
        ({"zoom": (0, 1)}, r"zoom must be \(min, max\), above 0, got \(0, 1\)"),
        ({"zoom": (1,)}, r"zoom must be \(min, max\), above 0, got \(1,\)"),
        ({"zoom": (1, float("inf"))}, r"zoom must be \(min, max\), above 0, got \(1, inf\)"),
        ({"canvas": (64,)}, r"canvas must be \(height, width\), got \(64,\)"),
        ({"max_size": 0}, "max_size must be at least 1, got 0"),
        ({"paste": float("nan")}, r"paste must be in \[0, 1\], got nan"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**settings)
