"""Annotated images to look at, many on one sheet."""

import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fastmask.cocoapi import mask as coco
from fastmask.data.crop import Crop, plan_resize
from fastmask.data.records import Dataset, Record
from fastmask.visualize import draw_detections

GAP = 4  # pixels between images


def draw_contact_sheet(dataset: Dataset, columns: int = 6, rows: int = 4, side: int = 320) -> Image.Image:
    """Some of the images, evenly chosen, at most ``side`` pixels on each side, with masks, boxes and classes."""
    names = ["", *dataset.categories]
    drawn = []
    number = min(columns * rows, len(dataset.records))
    for i in np.linspace(0, len(dataset.records) - 1, number).round().astype(int).tolist():
        record = dataset.records[i]
        try:
            image = record.load()
        except (OSError, ValueError):
            continue
        size = (image.height, image.width)
        drawn.append(draw_record(record, image, names, plan_resize(size, min(size), side)))
    return tiled(drawn, columns, side)


def draw_record(
    record: Record,
    image: Image.Image,
    names: Sequence[str],
    view: Crop,
    scores: Sequence[float] | None = None,
    colors: Sequence[int] | None = None,
) -> Image.Image:
    """A view of an image with its objects, as detections where they have scores; masks that do not fit left out."""
    whole = [one.rle is None or tuple(one.rle["size"]) == view.original for one in record.objects]
    fitting = list(itertools.compress(record.objects, whole))
    found = {
        "boxes": np.array([view.box(one) for one in fitting]),
        "labels": np.array([names.index(one.category) for one in fitting]),
        "masks": [coco.encode(np.asfortranarray(view.mask(one), np.uint8)) for one in fitting],
    }
    if scores is not None:
        found["scores"] = np.array(list(itertools.compress(scores, whole)))
    own = None if colors is None else list(itertools.compress(colors, whole))
    return draw_detections(view.image(image), found, names, own)


def tiled(images: Sequence[Image.Image], columns: int, side: int = 0) -> Image.Image:
    """Images in rows on white, each in a place that holds the largest (``side`` where there are none)."""
    across, down = (max((getattr(one, axis) for one in images), default=side) + GAP for axis in ("width", "height"))
    sheet = Image.new("RGB", (columns * across, -(-max(len(images), 1) // columns) * down), "white")
    for place, one in enumerate(images):
        sheet.paste(one, (place % columns * across + GAP // 2, place // columns * down + GAP // 2))
    return sheet
