"""Image and video files that a caller names, their ids, and the names of what is written for them."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fastmask.files import walk_folders
from fastmask.image_io import SUFFIXES, is_image, is_jpeg

VIDEO_SUFFIXES = {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
VIDEO_SUFFIXES |= {".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
OVERLAY_SUFFIXES = {"jpeg": ".predicted.jpg", "png": ".predicted.png"}  # by format
FORMATS = ("auto", *OVERLAY_SUFFIXES)
VIDEO_OVERLAY_SUFFIX = ".predicted.mp4"
CROP_SUFFIX = ".crop.png"
CROPS = "crops"  # the folder of crops, beside the results


def find_images(paths: Iterable[str | os.PathLike[str]], recursive: bool = False) -> list[Path]:
    """Files as given, each once; a folder stands for the images in it, by name, overlays and crops left out.

    Args:
        paths: of files and folders. A file that is missing is kept, where others are there.
        recursive: take the images of folders inside folders, too; links to folders are followed, hidden ones left out.

    Raises:
        ValueError: a folder holds no images, or nothing of that name is there.
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        for file in _list_folder(path, recursive) if os.path.isdir(path) else [path]:
            found.setdefault(os.path.realpath(file), file)
    if found and not any(map(os.path.exists, found.values())):
        names = ", ".join(map(str, list(found.values())[:3])) + (", ..." if len(found) > 3 else "")
        raise ValueError(f"images must be files or folders that are there, got {names}: no such file")
    return list(found.values())


def _list_folder(folder: Path, recursive: bool) -> list[Path]:
    """The images in a folder."""
    places = walk_folders(folder) if recursive else [folder]
    inside = [file for place in places for file in sorted(place.iterdir()) if _is_wanted(file)]
    if not inside:
        deeper = not recursive and any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())
        hint = ": --recursive (recursive=True) looks into its folders" if deeper else ""
        videos = count_videos([folder], recursive)
        raise ValueError(f"{folder} must hold images, got none{f'; {videos}' if videos else hint}")
    return inside


def count_videos(paths: Iterable[str | os.PathLike[str]], recursive: bool = False) -> str:
    """Say how many videos there are in folders, from which images alone are taken; empty where there are none."""
    folders = [Path(path) for path in paths if os.path.isdir(path)]
    seen: set[str] = set()
    places = [place for folder in folders for place in walk_folders(folder, seen)] if recursive else folders
    videos = [file for place in places for file in sorted(place.iterdir()) if is_video_file(file)]
    if not videos:
        return ""
    names = ", ".join(map(str, videos[:3])) + (", ..." if len(videos) > 3 else "")
    return f"{len(videos)} video{'s' * (len(videos) > 1)} in folders ({names}) must be named to be predicted"


def is_video_file(path: Path) -> bool:
    """Whether a file's ending is a video's, and it is no overlaid video."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.endswith(VIDEO_OVERLAY_SUFFIX) and path.is_file()


def _is_wanted(path: Path) -> bool:
    """Whether a file is an image by its ending or, without one, by its content; a file that is named may have any."""
    if path.name.startswith(".") or path.name.endswith((*OVERLAY_SUFFIXES.values(), CROP_SUFFIX)):
        return False
    if path.suffix:
        return path.suffix.lower() in SUFFIXES and path.is_file()
    return path.is_file() and is_image(path)


def image_ids(paths: Sequence[Path]) -> list[int]:
    """COCO's own ids where all files are named by them (000000397133.jpg), else 1, 2, 3, ..."""
    stems = [path.stem for path in paths]
    ids = [int(stem) for stem in stems if stem.isdecimal()]
    return ids if len(ids) == len(stems) == len(set(ids)) else list(range(1, len(paths) + 1))


def choose_suffix(image: Path, format: str = "auto") -> str:
    """The ending of an image's overlay; "auto" is JPEG of a JPEG, else PNG."""
    if format == "auto":
        format = "jpeg" if is_jpeg(image) else "png"
    return OVERLAY_SUFFIXES[format]


def name_outputs(
    paths: Sequence[Path], folder: Path, roots: Sequence[Path] = (), choose: Callable[[Path], str] = choose_suffix
) -> list[Path]:
    """A path inside ``folder`` for each image, without ending, for what is written of it; no two are alike.

    It is the image's name, below the folders that the image is in inside of one of ``roots``, if any. The overlay of
    that name, whose ending ``choose`` returns, is never an image itself.
    """
    taken = {os.path.realpath(path) for path in paths}
    names: dict[Path, None] = {}
    for path in paths:
        inside = [path.parent.relative_to(root) for root in roots if path.parent.is_relative_to(root)]
        place = min((place for place in inside if ".." not in place.parts), key=lambda p: len(p.parts), default=Path())
        stem, suffix = path.stem[:200], choose(path)  # of the 255 bytes that a name may have
        name, number = place / stem, 2
        while name in names or os.path.realpath(f"{folder / name}{suffix}") in taken:
            name, number = place / f"{stem}-{number}", number + 1
        taken.add(os.path.realpath(f"{folder / name}{suffix}"))
        names[name] = None
    return list(names)
