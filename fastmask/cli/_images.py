"""Which images a command line means, and what is called after them."""

import os
from collections.abc import Sequence
from pathlib import Path

# what is taken from a folder; a file that is named may be of any kind
KINDS = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
MADE = ".predicted.png"  # what an image's overlay ends in


def find_images(arguments: Sequence[Path]) -> list[Path]:
    """Files as given, each once; a folder stands for the images directly in it, by name, overlays left out.

    Raises:
        ValueError: a folder holds no images.
    """
    found: dict[str, Path] = {}
    for path in arguments:
        for file in _inside(path) if os.path.isdir(path) else [path]:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _inside(folder: Path) -> list[Path]:
    """The images in a folder."""
    inside = sorted(path for path in folder.iterdir() if path.suffix.lower() in KINDS and path.is_file())
    inside = [path for path in inside if not path.name.startswith(".") and not path.name.endswith(MADE)]
    if not inside:
        raise ValueError(f"{folder} must hold images, got none")
    return inside


def image_ids(paths: Sequence[Path]) -> list[int]:
    """COCO's own ids where all the files are called by them (000000397133.jpg), else 1, 2, 3, ..."""
    stems = [path.stem for path in paths]
    ids = [int(stem) for stem in stems if stem.isdecimal()]
    return ids if len(ids) == len(stems) == len(set(ids)) else list(range(1, len(paths) + 1))


def overlays_of(paths: Sequence[Path], folder: Path) -> list[Path]:
    """A file in ``folder`` for each image, named after it; never an image itself, and no two alike."""
    taken = {os.path.realpath(path) for path in paths}
    overlays = []
    for path in paths:
        stem = path.stem[:200]  # of the 255 bytes that a name may have
        overlay, number = folder / f"{stem}{MADE}", 2
        while os.path.realpath(overlay) in taken:
            overlay, number = folder / f"{stem}-{number}{MADE}", number + 1
        taken.add(os.path.realpath(overlay))
        overlays.append(overlay)
    return overlays
