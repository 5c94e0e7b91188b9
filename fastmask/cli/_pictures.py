"""Which pictures a command line means, and what is called after them."""

import os
from collections.abc import Sequence
from pathlib import Path


def find_pictures(arguments: Sequence[Path]) -> list[Path]:
    """Files as given, each once; a folder stands for the pictures directly in it, by name."""
    from PIL import Image

    kinds = Image.registered_extensions()
    found: dict[Path, None] = {}
    for path in arguments:
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in kinds) if path.is_dir() else [path]
        found.update(dict.fromkeys(inside))
    return list(found)


def image_ids(paths: Sequence[Path]) -> list[int]:
    """COCO's own ids where all the files are called by them (000000397133.jpg), else 1, 2, 3, ..."""
    stems = [path.stem for path in paths]
    ids = [int(stem) for stem in stems if stem.isdecimal()]
    return ids if len(ids) == len(stems) == len(set(ids)) else list(range(1, len(paths) + 1))


def outputs_for(paths: Sequence[Path], folder: Path, suffix: str) -> list[Path]:
    """A file in ``folder`` for each picture, named after it; never a picture itself, and no two alike."""
    taken = {os.path.realpath(path) for path in paths}
    outputs = []
    for path in paths:
        output, number = folder / f"{path.stem}{suffix}", 2
        while os.path.realpath(output) in taken:
            output, number = folder / f"{path.stem}-{number}{suffix}", number + 1
        taken.add(os.path.realpath(output))
        outputs.append(output)
    return outputs
