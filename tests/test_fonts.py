"""Fonts for names of any script: found on the system, and what is drawn where there is none."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from fastmask import fonts
from fastmask.visualize import draw_detections

CAT, DOG = "кошка", "狗"
DETECTIONS = {"boxes": torch.tensor([[20.0, 40, 90, 90]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only folder of fonts, which is empty."""

    def clear() -> None:
        for cached in (fonts._find_file, fonts._list_files, fonts.choose_names, fonts.warn_once):
            cached.cache_clear()

    monkeypatch.setattr(fonts, "_walk", lambda: tmp_path.rglob("*.ttf"))
    clear()
    yield tmp_path
    clear()


def write_font(path: Path, letters: str, empty_boxes: str = "") -> None:
    """A font whose letters are triangles, and whose glyph for all others is a square."""
    builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder(1000, isTTF=True)
    pen = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen
    shapes = {}
    corners = [(100, 0), (900, 0), (900, 700), (100, 700)]
    for name, drawn in {".notdef": corners, "letter": corners[:3], "box": corners, "script": corners[1:]}.items():
        glyph = pen(None)
        glyph.moveTo(drawn[0])
        for corner in drawn[1:]:
            glyph.lineTo(corner)
        glyph.closePath()
        shapes[name] = glyph.glyph()
    builder.setupGlyphOrder(list(shapes))
    names = dict.fromkeys(map(ord, letters), "letter") | dict.fromkeys(map(ord, empty_boxes), "script")
    builder.setupCharacterMap(names)
    builder.setupGlyf(shapes)
    builder.setupHorizontalMetrics(dict.fromkeys(shapes, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def draw(name: str) -> np.ndarray:
    return np.array(draw_detections(Image.new("RGB", (200, 100)), DETECTIONS, ["", name]))


def test_a_font_that_has_the_letters_is_found(folder: Path) -> None:
    """Not one that lacks the digits of scores, nor one of boxes that stand for scripts, nor a broken file."""
    write_font(folder / "a.ttf", DOG)
    write_font(folder / "b.ttf", DOG + fonts.SCORE, fonts.NO_LETTERS[1])
    (folder / "c.ttf").write_bytes(b"torn")
    assert fonts.find_font(DOG) is None
    write_font(folder / "d.ttf", DOG + fonts.SCORE)
    write_font(folder / "DejaVuSans.ttf", CAT + fonts.SCORE)
    fonts._find_file.cache_clear()
    fonts._list_files.cache_clear()
    assert fonts.find_font(DOG) == str(folder / "d.ttf")
    assert fonts.find_font(CAT) == str(folder / "DejaVuSans.ttf")
    assert fonts.find_font("cat 0.5") == ""  # as ever
    assert fonts.choose_names(("", CAT, f"{DOG}\n {DOG}", "a\tb")) == (("", CAT, f"{DOG} {DOG}", "a b"), "")
    assert not np.array_equal(draw(DOG), draw("1"))


def test_names_that_no_font_can_write(folder: Path) -> None:
    """Their label is drawn instead of empty boxes, which is said once."""
    names, legend = fonts.choose_names(("", "cat", DOG, "café", "e\u0301"))
    assert names == ("", "cat", "2", "3", "4")  # Pillow's own font has ASCII
    assert legend.endswith(f"their labels stand for them: 2 is {DOG}, 3 is café, 4 is e\u0301")
    with pytest.warns(UserWarning, match=f"no font on this system can write .*: 1 is {CAT}$") as warned:
        drawn = [draw(CAT) for _ in range(3)]
    assert len(warned) == 1
    for overlay in drawn:
        assert np.array_equal(overlay, draw("1"))


def test_pillows_own_font_has_ascii() -> None:
    """Which is what spares ASCII a search, and why all else is searched for."""
    font = ImageFont.load_default(fonts.SIZE)
    assert fonts._has_letters(font, frozenset(map(chr, range(32, 127))))
    assert not fonts._has_letters(font, frozenset(CAT))


def test_fonts_of_this_system() -> None:
    if fonts.find_font(CAT) is None:
        pytest.skip("it has none with Cyrillic letters")
    assert fonts.choose_names((CAT, "café")) == ((CAT, "café"), "")
    assert not np.array_equal(draw(CAT), draw("1"))
