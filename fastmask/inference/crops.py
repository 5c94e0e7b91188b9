"""Detections cut out of their image, each in a file of its own."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from fastmask.cocoapi import mask as coco
from fastmask.inference.image_files import CROP_SUFFIX
from fastmask.structures import Prediction
from fastmask.visualize import save_overlay


def save_crops(image: Image.Image, prediction: Prediction, name: Path) -> None:
    """Write each detection's box as PNG, ``NAME.1.crop.png`` the first, with its mask, if it has one, as alpha.

    Crops of that name from an earlier run are removed. A box without a pixel of the image has the pixel next to it.

    Args:
        image: RGB.
        prediction: of the image, with masks as RLE.
        name: path of the files, without number and ending.
    """
    name.parent.mkdir(parents=True, exist_ok=True)
    boxes = prediction["boxes"].tolist()
    for number, box in enumerate(boxes, 1):
        x1, y1 = (min(max(math.floor(low), 0), side - 1) for low, side in zip(box[:2], image.size, strict=True))
        x2, y2 = (min(math.ceil(high), side) for high, side in zip(box[2:], image.size, strict=True))
        area = (x1, y1, max(x2, x1 + 1), max(y2, y1 + 1))
        crop = image.crop(area)
        if "masks" in prediction:
            mask = np.asarray(coco.decode(prediction["masks"][number - 1]), np.uint8)
            crop.putalpha(Image.fromarray(mask[area[1] : area[3], area[0] : area[2]] * np.uint8(255)))
        save_overlay(crop, _crop_path(name, number))
    number = len(boxes) + 1
    while (old := _crop_path(name, number)).exists():
        old.unlink()
        number += 1


def _crop_path(name: Path, number: int) -> Path:
    return name.with_name(f"{name.name}.{number}{CROP_SUFFIX}")
