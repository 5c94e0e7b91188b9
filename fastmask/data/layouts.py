"""Where the annotations of a data set are: a file, a folder, or a file or folder for each of its splits."""

import re
from pathlib import Path

from fastmask.data.mask_layout import find_lists, is_masks
from fastmask.data.paths import BESIDE, SPLITS as NAMES

YAML = (".yaml", ".yml")


def find_annotations(path: Path) -> Path:
    """The file or folder that holds the annotations of a data set: ``path``, or ``annotations`` or ``labels`` in it."""
    if not path.is_dir() or is_masks(path) or find_json(path):
        return path
    return next((path / name for name in BESIDE if find_json(path / name)), path)


def find_splits(path: Path) -> dict[str, Path]:
    """The annotations of each split (train, val) of a folder; of none where it is one data set.

    Splits are COCO's ``instances_train*.json`` and ``instances_val*.json`` in ``annotations`` or in the folder itself;
    or ``train.json`` and ``val.json`` in ``annotations``, alone; or folders ``train`` and ``val`` with annotations in
    them; or lists of mask images, ``train.txt`` and ``val.txt``. Validation may also be named ``valid``,
    ``validation`` or, where there is no other, ``test``.

    Raises:
        ValueError: a split has several files.
    """
    if not path.is_dir() or is_masks(path):
        return find_lists(path)
    files = {folder: find_json(folder) for folder in (path / "annotations", path)}
    inner = {file.stem.lower(): file for file in files[path / "annotations"]}
    plain = inner if all(any(stem in names for names in NAMES.values()) for stem in inner) else {}
    found: dict[str, Path] = {}
    for split, names in NAMES.items():
        candidates = [_choose_file(files[folder], name) for folder in files for name in names]
        candidates += [plain.get(name) for name in names]
        folders = [find_annotations(path / name) for name in names if (path / name).is_dir()]
        candidates += [folder for folder in folders if is_masks(folder) or find_json(folder)]
        existing = [each for each in candidates if each is not None]
        if existing:
            found[split] = existing[0]
    return found


def find_yaml(path: Path) -> list[Path]:
    """YOLO's data.yaml: the file itself; of a folder, those of this name or with its keys. PyYAML is not needed."""
    if path.is_file():
        return [path] if path.suffix.lower() in YAML else []
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in YAML) if path.is_dir() else []
    return [file for file in files if file.is_file() and (file.stem == "data" or _has_yolo_keys(file))]


def _has_yolo_keys(file: Path) -> bool:
    """Whether a YAML file has classes and a split, by lines that begin so."""
    try:
        with open(file, "rb") as content:
            text = content.read(2**20)
    except OSError:
        return False
    return all(re.search(keys, text, re.MULTILINE) for keys in (rb"^(names|nc)\s*:", rb"^(train|val|test)\s*:"))


def choose_images(images: Path | None, split: str) -> Path | None:
    """The folder of a split's images in a folder of images: one of the split's name, else the folder itself."""
    names = NAMES.get(split, ()) if images is not None else ()
    return next((images / name for name in names if images is not None and (images / name).is_dir()), images)


def _choose_file(files: list[Path], name: str) -> Path | None:
    """The only file of a split, if there is one."""
    chosen = [file for file in files if file.stem.lower().startswith(f"instances_{name}")]
    if len(chosen) > 1:
        raise ValueError(f"{chosen[0].parent} must have one file instances_{name}*.json, got {len(chosen)}")
    return chosen[0] if chosen else None


def find_json(folder: Path) -> list[Path]:
    """The JSON files in a folder, sorted by name; none where it is no folder."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in files if file.suffix.lower() == ".json" and file.is_file())
