"""Lines of YOLO's label files: a class and a normalized polygon or box."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmask.data.parse import parse_polygon, shorten
from fastmask.data.records import Instance, Problem

MAX_FILE = 2**26  # bytes of a file of labels or names
MAX_LINE = 2**22  # characters of a line: 100,000 corners and more
SLACK = 0.01  # how far coordinates may be outside of [0, 1], as YOLO's own reader takes them
SHOWN = 20  # broken lines of a file that are named one by one
LABELS = re.compile(rb"\d+(\.0*)?([ \t]+[-+.\deE]+){4,}")


class Labels(NamedTuple):
    """What a data.yaml says about lines of labels."""

    names: dict[int, str]  # of classes, by number
    keypoints: int = 0  # values that follow each box


def read_lines(file: Path) -> list[str]:
    """The lines of a text file; bytes that are no UTF-8 are replaced.

    Raises:
        ValueError: it is too large.
        OSError: it cannot be read.
    """
    size = file.stat().st_size
    if size > MAX_FILE:
        raise ValueError(f"{file} must have at most {MAX_FILE} bytes, got {size}")
    return re.split("\r\n|\r|\n", file.read_bytes().decode("utf-8-sig", errors="replace"))


def looks_like_labels(file: Path) -> bool:
    """Whether a text file begins with a line of labels."""
    try:
        with open(file, "rb") as content:
            first = next((line for line in content.read(4096).splitlines() if line.strip()), b"")
            return LABELS.fullmatch(first.strip()) is not None
    except OSError:
        return False


def read_labels(file: Path, size: tuple[int, int] | None, labels: Labels) -> tuple[list[Instance], list[Problem]]:
    """The objects of a file of labels, and what is wrong with its lines.

    Args:
        file: of the labels.
        size: (height, width) of the image; None where it is not known, and with it no object's place.
        labels: what the data.yaml says.
    """
    try:
        lines = {number: line for number, line in enumerate(read_lines(file), 1) if line.strip()}
    except (OSError, ValueError) as error:
        return [], [Problem("broken file", str(file), str(error))]
    if size is None:
        text = f"{len(lines)} objects have no place, as their image cannot be read"
        return [], [Problem("missing image", str(file), text)] if lines else []
    instances: list[Instance] = []
    problems: list[Problem] = []
    broken = 0
    for number, line in lines.items():
        try:
            instances.append(parse_line(line, size, labels))
        except ValueError as error:
            broken += 1
            if broken <= SHOWN:
                problems.append(Problem("broken annotation", f"{file}: line {number}", str(error)))
    if broken > SHOWN:
        problems.append(Problem("broken annotation", str(file), f"{broken - SHOWN} more lines are broken"))
    return instances, problems


def parse_line(line: str, size: tuple[int, int], labels: Labels) -> Instance:
    """The object of a line: ``class x1 y1 x2 y2 x3 y3 ...``, a polygon, or ``class cx cy w h``, a box.

    Args:
        line: the line.
        size: (height, width) of the image.
        labels: what the data.yaml says.

    Raises:
        ValueError: it is of another form, or its numbers are not normalized.
    """
    if len(line) > MAX_LINE:
        raise ValueError(f"a line must have at most {MAX_LINE} characters, got {len(line)}")
    values = _parse_values(line.split())
    number, coordinates = values[0], values[1:]
    if number not in labels.names:
        raise ValueError(f"the class must be one of {_list_numbers(labels.names)}, got {number:g}")
    category = labels.names[int(number)]
    if labels.keypoints and len(coordinates) != 4:
        if len(coordinates) != 4 + labels.keypoints:
            rule = f"a line must have a class, a box and {labels.keypoints} values of keypoints (kpt_shape)"
            raise ValueError(f"{rule}, got {len(values)} values")
        coordinates = coordinates[:4]
    if len(coordinates) % 2:
        hint = ": a box and its score?" if len(coordinates) == 5 else ""
        raise ValueError(f"a line must have an even number of coordinates, got {len(coordinates)}{hint}")
    if len(coordinates) < 4:
        raise ValueError(f"a line must have a box or three corners, got {len(coordinates)} coordinates")
    if not np.isfinite(coordinates).all():
        raise ValueError("coordinates must be finite, got NaN or infinity")
    furthest = float(coordinates[np.abs(coordinates - 0.5).argmax()])
    if not -SLACK <= furthest <= 1 + SLACK:
        raise ValueError(f"coordinates must be normalized, in [0, 1], got {furthest:g}")
    height, width = size
    pairs = coordinates.reshape(-1, 2) * [width, height]
    if len(pairs) > 2:
        return Instance(category, (parse_polygon(pairs),))
    if pairs[1].min() < 0:
        raise ValueError(f"a box's width and height must be at least 0, got {coordinates[2]:g} and {coordinates[3]:g}")
    low, high = (pairs[0] - pairs[1] / 2).tolist(), (pairs[0] + pairs[1] / 2).tolist()
    return Instance(category, box=(low[0], low[1], high[0], high[1]))


def _parse_values(words: list[str]) -> NDArray[np.float64]:
    """The numbers of a line."""
    try:
        if any("_" in word for word in words):  # which Python takes within numbers
            raise ValueError
        return np.array([float(word) for word in words], np.float64)
    except ValueError:
        wrong = next(word for word in words if "_" in word or not _is_number(word))
        raise ValueError(f"a line must be numbers, got {shorten(wrong)}") from None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _list_numbers(names: Mapping[int, str]) -> str:
    """The numbers of classes: 0 to 79, or some of them."""
    numbers = list(names)
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
    return f"{', '.join(map(str, numbers[:5]))}{', ...' if len(numbers) > 5 else ''}"
