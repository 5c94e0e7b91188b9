"""Fonts that can write a text: Pillow's own, else one that the system has."""

import functools
import importlib.util
import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont, features

FOLDERS = (  # fontconfig's usual ones, macOS's, Windows'
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "~/Library/Fonts",
    "C:/Windows/Fonts",
)
SUFFIXES = {".otc", ".otf", ".ttc", ".ttf"}
PREFERRED = (  # of wide coverage, upright and of normal weight; the first that has all letters is taken
    "DejaVuSans",
    "NotoSans-Regular",
    "NotoSansCJK-Regular",
    "NotoSansCJKsc-Regular",
    "SourceHanSans-Regular",
    "wqy-microhei",
    "wqy-zenhei",
    "DroidSansFallbackFull",
    "PingFang",
    "Hiragino Sans GB",
    "Arial Unicode",
    "arial",
    "msyh",
    "simsun",
)
NO_LETTERS = ("\U0010ffff", "\U0010fffd")  # a font draws both as its empty box, unless it has a box for each script
SCORE = " 0123456789."  # is written in the same font
SIZE = 16.0  # pixels, to compare letters at

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def find_font(text: str) -> str | None:
    """The file of a font that has every letter of a text, "" for Pillow's own; None if this system has none."""
    return "" if text.isascii() else _find_file(frozenset(text + SCORE))


def load_font(file: str, size: float) -> Font:
    """A font of :func:`find_font`, of ``size`` pixels."""
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


@functools.cache
def choose_names(names: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """What to write for categories -> names, or labels where no font has the letters, and a sentence that tells these.

    Args:
        names: by label, from 0. Spaces of any kind, line breaks too, become one space.
    """
    written = [" ".join(unicodedata.normalize("NFC", name).split()) for name in names]
    labels = [label for label, name in enumerate(written) if find_font(name) is None]
    legend = ", ".join(f"{label} is {names[label]}" for label in labels)
    for label in labels:
        written[label] = str(label)
    return tuple(written), (
        f"no font on this system can write these names, their labels stand for them: {legend}" if labels else ""
    )


@functools.cache
def warn_once(text: str) -> None:
    """Warn of what a caller's caller has asked for, once for each text."""
    warnings.warn(text, UserWarning, stacklevel=3)


@functools.cache
def _find_file(letters: frozenset[str]) -> str | None:
    """See :func:`find_font`."""
    if any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in letters) and not features.check("raqm"):
        return None  # Pillow would write it from left to right
    for file in ("", *_list_files()):
        try:
            font = load_font(file, SIZE)
        except OSError:  # a broken file, or one of bitmaps of other sizes
            continue
        if isinstance(font, ImageFont.FreeTypeFont) and _has_letters(font, letters):
            return file
    return None


def _has_letters(font: ImageFont.FreeTypeFont, letters: frozenset[str]) -> bool:
    try:
        missing, other = (_draw(font, letter) for letter in NO_LETTERS)
        return missing == other and all(letter.isspace() or _draw(font, letter) != missing for letter in letters)
    except OSError:
        return False


def _draw(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter, mode="L")
    return mask.size, bytes(mask)


@functools.cache
def _list_files() -> tuple[str, ...]:
    """The files of all fonts, preferred ones first."""
    rank = {name.lower(): number for number, name in enumerate(PREFERRED)}
    found = sorted(_walk(), key=lambda file: (rank.get(file.stem.lower(), len(rank)), str(file)))
    return tuple(map(str, found))


def _walk() -> Iterator[Path]:
    folders = [os.path.expanduser(folder) for folder in FOLDERS]
    if (matplotlib := importlib.util.find_spec("matplotlib")) is not None and matplotlib.origin is not None:
        folders.append(os.path.join(os.path.dirname(matplotlib.origin), "mpl-data", "fonts", "ttf"))
    folders.append(os.path.join(sys.prefix, "share", "fonts"))  # conda's: share/fonts and fonts
    folders.append(os.path.join(sys.prefix, "fonts"))
    for folder in folders:
        for place, _, names in os.walk(folder):
            yield from (Path(place, name) for name in names if Path(name).suffix.lower() in SUFFIXES)
