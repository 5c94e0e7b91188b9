"""Image files that a caller names, their ids, and the files that overlays are written to."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

# taken from a folder; a file that is named may have any suffix
SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
OVERLAY_SUFFIX = ".predicted.png"


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Files as given, each once; a folder stands for the images directly in it, by name, overlays left out.

    Raises:
        ValueError: a folder holds no images.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        for file in _list_folder(path) if os.path.isdir(path) else [path]:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _list_folder(folder: Path) -> list[Path]:
    """The images in a folder."""
    inside = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    inside = [path for path in inside if not path.name.startswith(".") and not path.name.endswith(OVERLAY_SUFFIX)]
    if not inside:
        raise ValueError(f"{folder} must hold images, got none")
    return inside


def image_ids(paths: Sequence[Path]) -> list[int]:
    """COCO's own ids where all files are named by them (000000397133.jpg), else 1, 2, 3, ..."""
    stems = [path.stem for path in paths]
    ids = [int(stem) for stem in stems if stem.isdecimal()]
    return ids if len(ids) == len(stems) == len(set(ids)) else list(range(1, len(paths) + 1))


def overlay_paths(paths: Sequence[Path], folder: Path) -> list[Path]:
    """A file in ``folder`` for each image, named after it; never an image itself, and no two alike."""
    taken = {os.path.realpath(path) for path in paths}
    overlays = []
    for path in paths:
        stem = path.stem[:200]  # of the 255 bytes that a name may have
        overlay, number = folder / f"{stem}{OVERLAY_SUFFIX}", 2
        while os.path.realpath(overlay) in taken:
            overlay, number = folder / f"{stem}-{number}{OVERLAY_SUFFIX}", number + 1
        taken.add(os.path.realpath(overlay))
        overlays.append(overlay)
    return overlays
