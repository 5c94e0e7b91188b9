"""Images beside their ground truth and a model's predictions."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastmask.cocoapi import mask as coco
from fastmask.data.contact_sheet import draw_record, tile_images
from fastmask.data.crop import plan_resize
from fastmask.data.records import Instance, Record
from fastmask.structures import CocoResult

HEADING = 26  # pixels


def draw_comparison(
    records: Sequence[Record],
    results: Sequence[Sequence[CocoResult]],
    names: Sequence[str],
    columns: int = 1,
    side: int = 384,
) -> Image.Image:
    """Draw images in rows of ``columns``, each beside its ground truth, if any has some, and its predictions.

    Args:
        records: the images.
        results: of each image, the detections to draw.
        names: of labels, from 0, the background.
        columns: images in a row.
        side: the shorter side of an image in pixels; the longer one is at most twice that.
    """
    annotated = any(record.instances for record in records)
    panels = []
    for record, detections in zip(records, results, strict=True):
        image = record.load()
        crop = plan_resize((image.height, image.width), side, 2 * side)
        panels.append(crop.apply_image(image))
        if annotated:
            panels.append(draw_record(record, image, names, crop, colors=range(len(record.instances))))
        instances = tuple(_make_instance(detection, names) for detection in detections)
        scores = [detection["score"] for detection in detections]
        colors = _choose_colors(record.instances, instances, scores, crop.original)
        panels.append(draw_record(record._replace(instances=instances), image, names, crop, scores, colors))
    headings = ["image", "truth", "prediction"] if annotated else ["image", "prediction"]
    return _add_headings(headings * columns, tile_images(panels, len(headings) * columns))


def _make_instance(result: CocoResult, names: Sequence[str]) -> Instance:
    x, y, width, height = result["bbox"]
    box, keypoints = (x, y, x + width, y + height), None
    if "keypoints" in result:
        keypoints = np.reshape(np.array(result["keypoints"], np.float64), (-1, 3))
        keypoints[:, 2] = 2  # which were scores
    return Instance(names[result["category_id"]], rle=result.get("segmentation"), box=box, keypoints=keypoints)


def _choose_colors(
    truth: Sequence[Instance], detections: Sequence[Instance], scores: Sequence[float], size: tuple[int, int]
) -> list[int]:
    """The color index of each detection: that of the ground-truth instance it matches best, or one of its own."""
    colors = list(range(len(truth), len(truth) + len(detections)))
    if not truth or not detections:
        return colors
    rles, truth_rles = ([instance.to_rle(*size) for instance in group] for group in (detections, truth))
    ious = coco.iou(rles, truth_rles, [0] * len(truth))
    for i in np.argsort(-np.array(scores), kind="stable"):
        best = int(ious[i].argmax())
        if ious[i, best] > 0.5:
            colors[i] = best
            ious[:, best] = 0
    return colors


def _add_headings(headings: Sequence[str], sheet: Image.Image) -> Image.Image:
    """The sheet with a heading above each column."""
    headed = Image.new("RGB", (sheet.width, sheet.height + HEADING), "white")
    headed.paste(sheet, (0, HEADING))
    canvas, font = ImageDraw.Draw(headed), ImageFont.load_default(HEADING * 0.65)
    for column, heading in enumerate(headings):
        center = (column + 0.5) * sheet.width / len(headings)
        canvas.text((center, HEADING / 2), heading, fill="black", font=font, anchor="mm")
    return headed
