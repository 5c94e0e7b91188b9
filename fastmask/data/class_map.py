"""Names, numbers and colors of the classes in mask images.

- ``labelmap.txt`` (CVAT): ``name:r,g,b:parts:actions`` per line, from number 0 on; background and void by name.
- ``class_names.txt`` (labelme): a name per line, from ``_background_``, number 0, on.
- ``labels.txt``: a name per line, from number 1 on; or labelme's, from ``__ignore__`` or ``_background_`` on.
- Pascal VOC's twenty names in a folder named ``VOC2...``, without any of these.

Where no file has colors, they are those of Pascal VOC's color map.
Sources: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html,
https://docs.cvat.ai/docs/dataset_management/formats/format-smask, https://github.com/wkentaro/labelme.
"""

import re
from pathlib import Path
from typing import NamedTuple

from fastmask.data.mask_layout import LABELS, NAMES
from fastmask.data.parse import shorten

BORDER = 255  # number of void pixels
BACKGROUND_NAMES = ("background", "_background_", "__background__")
VOID_NAMES = ("__ignore__", "ignore", "ignored", "void")
VOC = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"]
VOC += ["horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"]


class ClassMap(NamedTuple):
    """The classes of mask images, by the numbers of gray and palette images, and by color."""

    where: str  # the file of the names, "" without one
    names: dict[int, str]  # in order, without background and void
    background: frozenset[int]
    void: frozenset[int]
    colors: dict[int, int]  # numbers by color, as pack_color has it
    by_color: bool  # palette images are read by color as well, not by number
    closed: bool  # numbers without a name are no classes

    def describe(self, number: int) -> str:
        """The name of a class, "background", or "class 9" of a number without a name."""
        return self.names.get(number) or ("background" if number in self.background else f"class {number}")


def pack_color(red: int, green: int, blue: int) -> int:
    """A color as one integer."""
    return red << 16 | green << 8 | blue


def starts_numbering(name: str) -> bool:
    """Whether the first line of ``labels.txt`` is labelme's, so that the classes after it count from 0."""
    return name in (VOID_NAMES[0], *BACKGROUND_NAMES[1:])


def make_voc_colors() -> list[int]:
    """Pascal VOC's 256 colors: the bits of a number in threes, from the lowest on, are the highest of each channel."""
    colors = []
    for number in range(256):
        channels = [sum((number >> 3 * i + channel & 1) << 7 - i for i in range(3)) for channel in range(3)]
        colors.append(pack_color(*channels))
    return colors


def read_class_map(root: Path) -> ClassMap:
    """The classes of a folder of mask images.

    Raises:
        ValueError: there are several files of names, or it is not text, or a line of it is broken.
    """
    files = [root / name for name in NAMES if (root / name).is_file()]
    if len(files) > 1:
        raise ValueError(f"{root} must have one file of class names, got {', '.join(file.name for file in files)}")
    if not files:
        return _make_map("", dict(enumerate(VOC, 1)) if root.name.startswith("VOC2") else {})
    (file,) = files
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").rstrip().split("\n")]
    except ValueError as error:
        raise ValueError(f"{file} must be text in UTF-8, got {error}") from error
    if file.name == NAMES[0]:
        return _read_labelmap(file, lines)
    first = 1
    if lines[0] == VOID_NAMES[0]:
        lines, first = lines[1:], 0
    if lines and lines[0] in BACKGROUND_NAMES[1:]:
        lines[0], first = "", 0
    elif file.name != LABELS or first == 0:
        got = shorten(lines[0]) if lines else "no line"
        raise ValueError(f"{file} must begin with _background_, which may have __ignore__ before it, got {got}")
    return _make_map(file.name, dict(enumerate(lines, first)), closed=file.name != LABELS)


def _make_map(where: str, names: dict[int, str], closed: bool = False) -> ClassMap:
    """Classes with Pascal VOC's colors."""
    named = {number: name for number, name in names.items() if name}
    if closed:
        _check_unique(where, list(named.values()))
    colors = {color: number for number, color in enumerate(make_voc_colors())}
    return ClassMap(where, named, frozenset([0]), frozenset([BORDER]), colors, by_color=False, closed=closed)


def _check_unique(where: str, values: list[str]) -> None:
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ValueError(f"{where} must have each name and color once, got {twice} twice")


def _read_labelmap(file: Path, lines: list[str]) -> ClassMap:
    names: dict[int, str] = {}
    given: dict[int, int] = {}
    for place, line in enumerate(lines, 1):
        if not line or line.startswith("#"):
            continue
        match = _match_line(line)
        if match is None:
            raise ValueError(f"{file}, line {place} must be name:r,g,b:parts:actions, got {shorten(line)}")
        number = len(names)
        names[number] = match[0]
        if match[1] is None:
            continue
        if max(match[1]) > 255:
            raise ValueError(f"{file}, line {place} must have a color of three numbers up to 255, got {shorten(line)}")
        given[number] = pack_color(*match[1])
    if not names:
        raise ValueError(f"{file} must have a line name:r,g,b:parts:actions for each class, got none")
    if given and len(given) < len(names):
        bare = next(name for number, name in names.items() if number not in given)
        raise ValueError(f"{file} must have a color for each class, or for none, got none for {bare}")
    if len(names) > 256 and not given:
        raise ValueError(f"{file} must have colors for more than 256 classes, got none for {len(names)}")
    colors = given or dict(zip(names, make_voc_colors(), strict=False))
    _check_unique(file.name, list(names.values()))
    _check_unique(file.name, [format_color(color) for color in colors.values()])
    by_color = {color: number for number, color in colors.items()}
    background = {number for number, name in names.items() if name.lower() in BACKGROUND_NAMES}
    void = {number for number, name in names.items() if name.lower() in VOID_NAMES}
    if not background and pack_color(0, 0, 0) not in by_color:
        background = {-1}  # of no number
        by_color[pack_color(0, 0, 0)] = -1
    if BORDER not in names:
        void.add(BORDER)
        by_color.setdefault(make_voc_colors()[BORDER], BORDER)
    classes = {number: name for number, name in names.items() if number not in background | void}
    return ClassMap(file.name, classes, frozenset(background), frozenset(void), by_color, by_color=True, closed=True)


def _match_line(line: str) -> tuple[str, tuple[int, ...] | None] | None:
    """(name, color) of a line of ``labelmap.txt``; names may have colons where there is a color."""
    with_color = re.fullmatch(r"(.+?)\s*:\s*(\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})\s*(:.*)?", line)
    if with_color:
        return with_color[1], (int(with_color[2]), int(with_color[3]), int(with_color[4]))
    without = re.fullmatch(r"([^:]+?)\s*(:\s*(:.*)?)?", line)
    return (without[1], None) if without else None


def format_color(color: int) -> str:
    """A color for a message: "(128, 0, 0)"."""
    return f"({color >> 16}, {color >> 8 & 255}, {color & 255})"
