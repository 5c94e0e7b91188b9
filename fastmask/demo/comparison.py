"""An image beside what is on it and what a model finds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastmask.cocoapi import mask as coco
from fastmask.data.contact_sheet import draw_record, tiled
from fastmask.data.crop import plan_resize
from fastmask.data.records import Object, Record

HEADING = 26  # pixels
Entry = dict[str, Any]  # of COCO's results


def draw_comparison(
    records: Sequence[Record], found: Sequence[Sequence[Entry]], names: Sequence[str], columns: int = 1, side: int = 384
) -> Image.Image:
    """Images in rows of ``columns``, each beside its annotations, if it has any, and beside what was found.

    Args:
        records: the images.
        found: of each one, in COCO's results format, what is to be shown.
        names: by label, from 0, the background.
        columns: images in a row.
        side: of an image on the sheet, the shorter one in pixels; the longer one is at most twice that.
    """
    annotated = any(record.objects for record in records)
    panels = []
    for record, entries in zip(records, found, strict=True):
        image = record.load()
        view = plan_resize((image.height, image.width), side, 2 * side)
        panels.append(view.image(image))
        if annotated:
            panels.append(draw_record(record, image, names, view, colors=range(len(record.objects))))
        objects = tuple(_object(entry, names) for entry in entries)
        scores = [entry["score"] for entry in entries]
        colors = _colors(record.objects, objects, scores, view.original)
        panels.append(draw_record(record._replace(objects=objects), image, names, view, scores, colors))
    headings = ["image", "truth", "prediction"] if annotated else ["image", "prediction"]
    return _under(headings * columns, tiled(panels, len(headings) * columns))


def _object(entry: Entry, names: Sequence[str]) -> Object:
    x, y, width, height = entry["bbox"]
    return Object(names[entry["category_id"]], rle=entry.get("segmentation"), box=(x, y, x + width, y + height))


def _colors(
    truth: Sequence[Object], found: Sequence[Object], scores: Sequence[float], size: tuple[int, int]
) -> list[int]:
    """Of each detection, the number of the annotated object that it covers best, and shares a color with."""
    colors = list(range(len(truth), len(truth) + len(found)))
    if not truth or not found:
        return colors
    overlaps = coco.iou([one.encoded(*size) for one in found], [one.encoded(*size) for one in truth], [0] * len(truth))
    for i in np.argsort(-np.array(scores), kind="stable"):
        best = int(overlaps[i].argmax())
        if overlaps[i, best] > 0.5:
            colors[i] = best
            overlaps[:, best] = 0
    return colors


def _under(headings: Sequence[str], sheet: Image.Image) -> Image.Image:
    """A sheet with a line above it, a heading over the middle of each column."""
    headed = Image.new("RGB", (sheet.width, sheet.height + HEADING), "white")
    headed.paste(sheet, (0, HEADING))
    canvas, font = ImageDraw.Draw(headed), ImageFont.load_default(HEADING * 0.65)
    for place, heading in enumerate(headings):
        middle = (place + 0.5) * sheet.width / len(headings)
        canvas.text((middle, HEADING / 2), heading, fill="black", font=font, anchor="mm")
    return headed
