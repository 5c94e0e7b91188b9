"""What a CPU core does for each picture while GPUs predict: reading it, drawing what was found."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fastmask import ops
from fastmask.benchmarks.case import Case, Entry
from fastmask.benchmarks.inputs import PICTURE, blob_masks, textured
from fastmask.images import read_image
from fastmask.visualize import draw_detections, save_overlay

OBJECTS = 20


def alone(ours: object, theirs: object) -> None:
    """Nothing to agree with."""


def read(generator: torch.Generator, device: torch.device) -> Case:
    folder = tempfile.TemporaryDirectory()  # gone with the case
    path = Path(folder.name) / "picture.jpg"
    pixels = (textured(generator, PICTURE) * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, quality=90)

    def run(folder: object = folder) -> object:  # which lives as long as this
        return read_image(path)

    return Case({"fastmask": run}, alone, f"JPEG of {PICTURE}, quality 90, one core")


def draw(generator: torch.Generator, device: torch.device) -> Case:
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "picture.png"
    picture = Image.fromarray((textured(generator, PICTURE) * 255).byte().permute(1, 2, 0).numpy())
    masks, boxes = blob_masks(generator, torch.device("cpu"), OBJECTS, PICTURE)
    found: dict[str, Any] = {
        "boxes": boxes,
        "labels": torch.ones(OBJECTS, dtype=torch.int64),
        "scores": torch.rand(OBJECTS, generator=generator),
    }
    found["masks"] = ops.encode_masks(masks, boxes, PICTURE)

    def run(folder: object = folder) -> None:
        save_overlay(draw_detections(picture, found, None), path)

    return Case({"fastmask": run}, alone, f"{OBJECTS} masks on {PICTURE}, saved as PNG, one core")


ENTRIES: dict[str, Entry] = {
    "host: read a picture": Entry(read, sets=1, providers=("fastmask",)),
    "host: draw and save an overlay": Entry(draw, sets=1, providers=("fastmask",)),
}
