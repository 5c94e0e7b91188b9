"""Work of a CPU core for each image: reading it, drawing its detections, or building a training sample."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastmask import ops
from fastmask.benchmarks.case import Case, CaseSpec
from fastmask.benchmarks.inputs import IMAGE_SIZE, blob_masks, textured_image
from fastmask.data.augment import Augmentation
from fastmask.data.loading import Key, SampleDataset
from fastmask.data.records import Instance, Record, ellipse_to_polygon
from fastmask.image_io import read_image
from fastmask.visualize import draw_detections, save_overlay

OBJECTS = 20
TRAINED = 7  # ground-truth instances of an image, as COCO has on average


def refuse_check(ours: object, theirs: object) -> None:
    """These cases have one provider: whoever adds a baseline must say how results are compared."""
    raise AssertionError("there is no check for a second provider")


def save_photo(generator: torch.Generator, folder: str) -> Path:
    path = Path(folder) / "image.jpg"
    pixels = (textured_image(generator, IMAGE_SIZE) * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, quality=90)
    return path


def read(generator: torch.Generator, device: torch.device) -> Case:
    folder = tempfile.TemporaryDirectory()  # deleted with the case
    path = save_photo(generator, folder.name)

    def run(folder: object = folder) -> object:  # keeps the folder
        return read_image(path)

    return Case({"fastmask": run}, refuse_check, f"JPEG of {IMAGE_SIZE}, quality 90, one core")


def draw(generator: torch.Generator, device: torch.device, ending: str = "png") -> Case:
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / f"image.{ending}"
    image = Image.fromarray((textured_image(generator, IMAGE_SIZE) * 255).byte().permute(1, 2, 0).numpy())
    masks, boxes = blob_masks(generator, torch.device("cpu"), OBJECTS, IMAGE_SIZE)
    detections: dict[str, Any] = {
        "boxes": boxes,
        "labels": torch.ones(OBJECTS, dtype=torch.int64),
        "scores": torch.rand(OBJECTS, generator=generator),
    }
    detections["masks"] = ops.encode_masks(masks, boxes, IMAGE_SIZE)

    name = "JPEG" if ending == "jpg" else "PNG"

    def run(folder: object = folder) -> None:
        save_overlay(draw_detections(image, detections, None), path)

    return Case({"fastmask": run}, refuse_check, f"{OBJECTS} masks on {IMAGE_SIZE}, saved as {name}, one core")


def sample(generator: torch.Generator, device: torch.device) -> Case:
    """A sample as the loader's workers build it, with the paper's augmentation."""
    folder = tempfile.TemporaryDirectory()
    _, boxes = blob_masks(generator, torch.device("cpu"), TRAINED, IMAGE_SIZE)
    outlines = [
        ellipse_to_polygon((x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2)
        for x1, y1, x2, y2 in boxes.tolist()
    ]
    instances = tuple(Instance("thing", (outline,)) for outline in outlines)
    record = Record(save_photo(generator, folder.name), IMAGE_SIZE, instances)
    samples = SampleDataset([record], np.zeros(1, np.int64), {"thing": 1}, Augmentation(), 0, True, None)

    def run(folder: object = folder) -> object:
        return samples[Key(0, 0)]

    return Case(
        {"fastmask": run},
        refuse_check,
        f"JPEG of {IMAGE_SIZE} and {TRAINED} polygons, resized, masks painted, one core",
    )


SPECS: dict[str, CaseSpec] = {
    "host: read an image": CaseSpec(read, sets=1, providers=("fastmask",)),
    "host: draw and save an overlay": CaseSpec(draw, sets=1, providers=("fastmask",)),
    "host: draw and save an overlay as JPEG": CaseSpec(
        functools.partial(draw, ending="jpg"), sets=1, providers=("fastmask",)
    ),
    "host: a training sample": CaseSpec(sample, sets=1, providers=("fastmask",)),
}
