"""Image files by the names in annotation files: one rule for all formats."""

import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from fastmask.data.parse import parse_text, shorten
from fastmask.data.records import Problem
from fastmask.image_io import read_image_size

BESIDE = ("annotations", "annotation", "labels")  # names of folders of annotations, whose images are in folders beside
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}  # names of splits
DRIVE = re.compile("[A-Za-z]:/")


class ImageFiles(NamedTuple):
    """Where the images of an annotation file are."""

    files: dict[str, Path]  # by name; of a missing image, where it should be
    faults: dict[str, str]  # names that are not followed, and why
    outside: list[str]  # names of images that are followed, although they lead out of the data set

    def describe_outside(self, where: str) -> list[Problem]:
        """The problem of all names that lead out of the data set, if there are any."""
        text = f"names of images must stay in the data set, got {len(self.outside)} that do not, first "
        return [Problem("outside the folder", where, text + shorten(self.outside[0]))] if self.outside else []


def find_images(names: Iterable[str], folder: Path, images: Path | None, more: Sequence[Path] = ()) -> ImageFiles:
    r"""Find the image files of the names in the annotation file of a folder.

    A backslash separates folders, unless a file has it in its name. A relative name is a file in ``folder``, in
    ``images`` in it, or in one of ``more``; where ``folder`` is named ``annotations``, also beside it. An absolute name
    is a file of this machine. Otherwise, and with ``images`` always, the longest end of the name that is a file there
    is the image: of ``C:\upload\7\a.jpg`` ``7/a.jpg``, else ``a.jpg``. Names that would share a file so are refused,
    and so are names of anything but images outside of the data set, which is ``folder`` and what lies beside it.

    Args:
        names: the names.
        folder: folder of the annotation file.
        images: folder of the images; None: as above.
        more: further folders of a format's own layout, also with ``images``.
    """
    folders = [folder, folder / "images", *more] if images is None else [images, *more]
    if images is None and folder.name.lower() in BESIDE:
        folders += [folder.parent, folder.parent / "images"]
    existing = [each for each in dict.fromkeys(folders) if each.is_dir()]
    files: dict[str, Path] = {}
    faults: dict[str, str] = {}
    outside: list[str] = []
    shortened: dict[Path, list[str]] = {}
    for name in dict.fromkeys(names):
        fault = check_name(name)
        if fault is not None:
            faults[name] = fault
            continue
        text = name.replace("\\", "/")
        parts = [part for part in posixpath.normpath(text).split("/") if part]
        absolute = text.startswith("/") or DRIVE.match(text) is not None
        climbs = parts[0] == ".."
        candidates = [each / name for each in existing] if "\\" in name and not absolute and not climbs else []
        if not absolute and not (climbs and images is not None):
            candidates += [each.joinpath(*parts) for each in existing]
        elif images is None and os.path.isabs(name):
            candidates.append(Path(name))
        file = next((each for each in candidates if os.path.isfile(each)), None)
        if file is not None and (absolute or climbs) and not _is_inside(file, folder):
            if not is_image(file):
                faults[name] = f"its name must be of an image in the data set, got {shorten(name)}"
                continue
            outside += [name] if climbs else []  # an absolute name means what it says
        ends = [part for part in parts if part != ".." and not DRIVE.match(f"{part}/")]
        if file is None and (images is not None or absolute or climbs or "\\" in name):
            paths = (each.joinpath(*ends[start:]) for start in range(len(ends)) for each in existing)
            file = next((path for path in paths if os.path.isfile(path)), None)
            if file is not None:
                shortened.setdefault(file, []).append(name)
        if file is None and climbs and not _is_inside(folder.joinpath(*parts), folder):
            faults[name] = f"its name must be of an image in the data set, got {shorten(name)}"
            continue
        files[name] = file or folders[0].joinpath(*(ends[-1:] if absolute or climbs else ends))
    return ImageFiles(files, faults | _find_shared(files, shortened), outside)


def parse_name(value: Any) -> str | None:
    """A name of a file, which may have bytes that are no text; None if it is none."""
    return (value or None) if isinstance(value, str) else parse_text(value)


def check_name(name: str) -> str | None:
    """Why no file can have this name; None if one can."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    try:
        sizes = [len(os.fsencode(part)) for part in parts]
    except UnicodeEncodeError:
        sizes = []
    if not sizes or "\0" in name or max(sizes) > 255 or sum(sizes) > 2000 or len(name) > 4000:
        return f"its name must be of a file, got {shorten(name)}"
    return None


def _is_inside(file: Path, folder: Path) -> bool:
    """Whether a path is in the data set of a folder: in it, or in a folder beside it; links count as what they name."""
    whole, inner = os.path.abspath(file), os.path.abspath(folder)
    root = os.path.dirname(inner)
    root = inner if os.path.dirname(root) == root else root  # not all of the machine
    try:
        return os.path.commonpath([whole, root]) == root
    except ValueError:  # of two drives
        return False


def _find_shared(files: Mapping[str, Path], shortened: Mapping[Path, list[str]]) -> dict[str, str]:
    """Faults of names whose ends are the same file."""
    owners: dict[Path, set[str]] = {file: set(names) for file, names in shortened.items()}
    for name, file in files.items() if shortened else ():
        if file in owners:
            owners[file].add(name)
    faults = {}
    for file, names in shortened.items():
        for name in names if len(owners[file]) > 1 else ():
            other = next(each for each in sorted(owners[file]) if each != name)
            faults[name] = f"its name must end as one file of its own, got {shorten(name)} beside {shorten(other)}"
    return faults


def is_image(file: Path) -> bool:
    """Whether a file has the ending of an image, or begins as one."""
    if file.suffix.lower() in Image.registered_extensions():
        return True
    try:
        read_image_size(file)
    except (OSError, ValueError):
        return False
    return True


def find_by_stem(folders: Sequence[Path]) -> dict[str, Path]:
    """The files of folders by name without ending; images come before others, earlier folders before later ones."""
    entries = [file for folder in folders if folder.is_dir() for file in sorted(folder.iterdir()) if file.is_file()]
    endings, files = Image.registered_extensions(), dict[str, Path]()
    for file in sorted(entries, key=lambda file: file.suffix.lower() not in endings):
        if file.suffix.lower() != ".json":
            files.setdefault(file.stem, file)
    return files
