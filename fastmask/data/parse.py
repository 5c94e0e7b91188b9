"""Values of annotation files: read if they have one meaning, refused by name and rule otherwise."""

import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_COORDINATE = 2**18  # pixels, of a polygon's or box's corners
MAX_PERIMETER = 2**22  # pixels, of a polygon: pycocotools takes 40 bytes for each
MAX_PIXELS = 178_956_970  # of an image: Pillow refuses to open larger ones


def to_number(value: Any) -> Any:
    """The Python number in a NumPy scalar or a zero-dimensional array or tensor; any other value as it is."""
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    return float(number) if isinstance(number, np.longdouble) else number  # its item is itself


def shorten(value: Any) -> str:
    """The value for a message: its repr, but short, whatever its depth and length."""
    text = reprlib.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def join_few(texts: Iterable[str], most: int = 30, separator: str = ", ") -> str:
    """The texts with a separator between, of more than ``most`` the first ones and how many more there are."""
    texts = list(texts)
    return separator.join(texts[:most] + ([f"and {len(texts) - most} more"] if len(texts) > most else []))


def parse_id(value: Any) -> int | None:
    """An integer within int64, of Python or as :func:`to_number` takes it, as int; None if it is none."""
    number = to_number(value)
    if not isinstance(number, int) or isinstance(number, bool) or not -(2**63) <= number < 2**63:
        return None
    return int(number)


def parse_identity(value: Any) -> int | str | None:
    """An id of an annotation file: an integer, also as text or as a float, else text; None if it is neither."""
    number = to_number(value)
    if isinstance(number, str):
        text = number.strip()
        return int(text) if re.fullmatch("0|-?[1-9][0-9]{0,17}", text) else parse_text(text)
    return parse_id(int(number) if isinstance(number, float) and number.is_integer() else number)


def parse_text(value: Any) -> str | None:
    """Text that is not blank, or an integer as text; None if it is neither, or cannot be written as UTF-8."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not text.strip():
        return None
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text


def parse_group(value: Any, name: str) -> int | str | None:
    """What joins parts to one instance, None for parts that are whole; ValueError unless it is an integer or text."""
    group = parse_identity(value)
    if group is None and value not in (None, ""):
        raise ValueError(f"{name} must be an integer or text, got {shorten(value)}")
    return group


def parse_flag(value: Any, name: str) -> bool:
    """A value of 0 or 1, as integer, float, bool or text, or nothing (False); ValueError if it is anything else."""
    if value is None:
        return False
    number = value.strip().lower() if isinstance(value, str) else to_number(value)
    for flag, values in ((False, (0, "0", "false")), (True, (1, "1", "true"))):
        if number in values:
            return flag
    raise ValueError(f"{name} must be 0 or 1, got {shorten(value)}")


def parse_numbers(values: Any, *names: str) -> list[float]:
    """The named values of a JSON object, see :func:`to_number`; ValueError unless all are finite numbers."""
    result = []
    for name in names:
        value = to_number(values.get(name))
        try:
            number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ValueError(f"{name} must be a finite number, got {repr(value)[:40]}")
        result.append(number)
    return result


def parse_box(box: Any) -> list[float]:
    """The sides x, y, width, height of a list, tuple, array or tensor; ValueError unless they are finite numbers."""
    sides = box.tolist() if hasattr(box, "tolist") else box
    if not isinstance(sides, list | tuple) or len(sides) != 4:
        raise ValueError(f"bbox must be x, y, width, height, got {shorten(box)}")
    return parse_numbers(dict(zip("xywh", sides, strict=True)), *"xywh")


def parse_size(height: Any, width: Any) -> tuple[int, int] | None:
    """(height, width), None where they are missing or 0; ValueError unless they are possible sizes of an image."""
    sides = parse_identity(height), parse_identity(width)
    if all(value is None or side == 0 for value, side in zip((height, width), sides, strict=True)):
        return None
    if not isinstance(sides[0], int) or not isinstance(sides[1], int) or min(sides[0], sides[1]) <= 0:
        raise ValueError(f"height and width must be positive integers, got {shorten(height)} and {shorten(width)}")
    if sides[0] * sides[1] > MAX_PIXELS:
        raise ValueError(f"height and width must be at most {MAX_PIXELS} pixels, got {sides[0]} x {sides[1]}")
    return sides[0], sides[1]


def parse_polygon(points: Any) -> NDArray[np.float64]:
    """A polygon [n, 2] from pairs or from x, y, x, y, ...; ValueError unless it has three finite points."""
    try:
        polygon = np.asarray(points, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a polygon must be numbers, got {shorten(points)}") from error
    if polygon.size % 2 or (polygon.ndim != 1 and polygon.shape[1:] != (2,)):
        raise ValueError(f"a polygon must be pairs of x and y, got {polygon.size} numbers")
    polygon = polygon.reshape(-1, 2)
    if len(polygon) < 3:
        raise ValueError(f"a polygon must have three points, got {len(polygon)}")
    if not np.isfinite(polygon).all():
        raise ValueError("a polygon must be finite, got NaN or infinity")
    largest = np.abs(polygon).max()
    if largest > MAX_COORDINATE:
        raise ValueError(f"a polygon must be within {MAX_COORDINATE} pixels, got {largest:g}")
    if 4 * largest * len(polygon) > MAX_PERIMETER:
        perimeter = np.abs(polygon - np.roll(polygon, 1, axis=0)).sum()
        if perimeter > MAX_PERIMETER:  # pycocotools' time and memory grow with it
            raise ValueError(f"a polygon's perimeter must be at most {MAX_PERIMETER} pixels, got {perimeter:g}")
    return polygon


def parse_keypoints(values: Any) -> NDArray[np.float64]:
    """Keypoints [K, 3] (x, y, visibility) from COCO's x, y, v, x, y, v, ...; ValueError unless all v are 0, 1 or 2."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple):
        raise ValueError(f"keypoints must be x, y, v, x, y, v, ..., got {shorten(values)}")
    numbers = [to_number(value) for value in values]
    if not numbers or len(numbers) % 3:
        raise ValueError(f"keypoints must be x, y, v, x, y, v, ..., got {len(numbers)} numbers")
    wrong = [value for value in numbers if isinstance(value, bool) or not isinstance(value, Real)]
    if wrong:
        raise ValueError(f"keypoints must be numbers, got {shorten(wrong[0])}")
    for value in numbers[2::3]:
        if value not in (0, 1, 2):
            raise ValueError(f"a keypoint's visibility must be 0, 1 or 2, got {shorten(value)}")
    for value in numbers:
        if not abs(value) <= MAX_COORDINATE:  # nor NaN
            raise ValueError(f"keypoints must be within {MAX_COORDINATE} pixels, got {shorten(value)}")
    return np.array(numbers, np.float64).reshape(-1, 3)


def parse_rle(rle: Mapping[str, Any]) -> dict[str, Any]:
    """The COCO RLE in Python's integers; ValueError unless it is valid: pycocotools reads out of bounds otherwise."""
    size, counts = _parse_integers(rle.get("size")), rle.get("counts")
    if size is None or len(size) != 2 or min(size) <= 0:
        raise ValueError(f"an RLE's size must be [height, width], got {shorten(rle.get('size'))}")
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"an RLE's size must be at most {MAX_PIXELS} pixels, got {size[0]} x {size[1]}")
    compressed = isinstance(counts, str | bytes)
    if isinstance(counts, str | bytes):
        runs = decode_counts(counts) if _is_whole(counts) else None
    else:
        runs = _parse_integers(counts)
    if runs is None or min(runs, default=0) < 0:
        raise ValueError(f"an RLE's counts must be runs, got {shorten(counts)}")
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"an RLE's runs must have {size[0]} x {size[1]} pixels in all, got {sum(runs)}")
    return {"size": size, "counts": counts if compressed else runs}


def _is_whole(counts: str | bytes) -> bool:
    """Whether all characters are COCO's, and the last run is complete: pycocotools reads beyond it otherwise."""
    data = counts.encode("ascii", "ignore") if isinstance(counts, str) else counts
    return (
        len(data) == len(counts)
        and all(48 <= character < 112 for character in data)
        and not (data and (data[-1] - 48) & 0x20)
    )


def _parse_integers(values: Any) -> list[int] | None:
    """A list, tuple, array or tensor of integers as a list; None if it is none."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple):
        return None
    integers = [integer for value in values if (integer := parse_id(value)) is not None]
    return integers if len(integers) == len(values) else None


def decode_counts(text: str | bytes) -> list[int]:
    """Run lengths of COCO's compressed RLE counts; the inverse of ``fastmask.kernels.reference.encode_mask``."""
    data = text.encode("latin-1", "replace") if isinstance(text, str) else text
    bits = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(bits & 0x20 == 0)  # of values, five bits a character; the rest is truncated
    bits = bits[: ends[-1] + 1] if len(ends) else bits[:0]
    if not len(ends):
        return []
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    shifts = 5 * np.minimum(np.arange(len(bits)) - np.repeat(starts, lengths), 12)
    values = np.add.reduceat((bits & 0x1F) << shifts, starts)
    values -= np.where(bits[ends] & 0x10, np.int64(1) << 5 * np.minimum(lengths, 12), 0)
    runs = values.copy()  # from the fourth on, each is stored as its difference from the one before the last
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    result: list[int] = runs.tolist()
    return result
