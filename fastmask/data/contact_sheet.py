"""Contact sheets: many annotated images in one."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmask.cocoapi import mask as coco
from fastmask.data.crop import Crop, plan_resize
from fastmask.data.records import Dataset, Instance, Record
from fastmask.skeletons import Skeleton
from fastmask.visualize import draw_detections

GAP = 4  # pixels between images


def draw_contact_sheet(dataset: Dataset, columns: int = 6, rows: int = 4, side: int = 320) -> Image.Image:
    """Evenly chosen images with masks, boxes and classes, in ``columns`` x ``rows`` cells of ``side`` pixels.

    Fewer images share the sheet's space in fewer and larger cells; none is enlarged beyond its own size.
    """
    names = ["", *dataset.categories]
    images = []
    number = min(columns * rows, len(dataset.records))
    space = (columns * side, rows * side)
    counts = range(1, min(columns, max(number, 1)) + 1)
    lines = {n: max(-(-number // n), 1) for n in counts}  # of n images; the largest cells, the fewest empty ones
    side, _, columns = max((min(space[0] // n, space[1] // m), -n * m, n) for n, m in lines.items())
    for i in np.linspace(0, len(dataset.records) - 1, number).round().astype(int).tolist():
        record = dataset.records[i]
        try:
            image = record.load()
        except (OSError, ValueError):
            continue
        size = (image.height, image.width)
        crop = plan_resize(size, min(size), side)
        images.append(draw_record(record, image, names, crop, skeletons=dataset.skeletons))
    return tile_images(images, min(columns, max(len(images), 1)), side)


def draw_record(
    record: Record,
    image: Image.Image,
    names: Sequence[str],
    crop: Crop,
    scores: Sequence[float] | None = None,
    colors: Sequence[int] | None = None,
    skeletons: Mapping[str, Skeleton] | None = None,
) -> Image.Image:
    """A crop of an image with its instances drawn on it; those whose mask has another size are left out.

    Args:
        record: whose instances are drawn.
        image: of the record, whole.
        names: of categories; a label is the index of its name.
        crop: of the image.
        scores: of instances that are detections.
        colors: an index of the palette for each instance; None: 0, 1, 2, ...
        skeletons: of keypoints, by category; COCO's where 17 keypoints have none.
    """
    fits = [instance.rle is None or tuple(instance.rle["size"]) == crop.original for instance in record.instances]
    instances = list(itertools.compress(record.instances, fits))
    detections = {
        "boxes": np.array([crop.apply_box(instance) for instance in instances]),
        "labels": np.array([names.index(instance.category) for instance in instances]),
        "masks": [coco.encode(np.asfortranarray(crop.apply_mask(instance), np.uint8)) for instance in instances],
    }
    if any(instance.keypoints is not None for instance in instances):
        detections["keypoints"] = [_crop_keypoints(crop, instance) for instance in instances]
    if scores is not None:
        detections["scores"] = np.array(list(itertools.compress(scores, fits)))
    colors = None if colors is None else list(itertools.compress(colors, fits))
    by_label = {names.index(name): skeleton for name, skeleton in (skeletons or {}).items() if name in names}
    return draw_detections(crop.apply_image(image), detections, names, colors, by_label)


def _crop_keypoints(crop: Crop, instance: Instance) -> NDArray[np.float64]:
    """The keypoints [K, 3] of an instance in a crop, none if it has none."""
    if instance.keypoints is None:
        return np.zeros((0, 3))
    return crop.apply_keypoints(instance.keypoints, Skeleton(len(instance.keypoints)))


def tile_images(images: Sequence[Image.Image], columns: int, side: int = 0) -> Image.Image:
    """Images in rows on white, in cells as large as the largest (``side`` pixels where there are none)."""
    across, down = (max((getattr(image, axis) for image in images), default=side) + GAP for axis in ("width", "height"))
    sheet = Image.new("RGB", (columns * across, -(-max(len(images), 1) // columns) * down), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * across + GAP // 2, i // columns * down + GAP // 2))
    return sheet
