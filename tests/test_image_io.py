"""Reading images of every mode and format, and files that are no images."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmask.image_io import count_frames, is_image, read_image

MODES = {
    "RGB": "png",
    "L": "png",
    "1": "png",
    "LA": "png",
    "RGBA": "png",
    "P": "gif",
    "CMYK": "tif",
    "YCbCr": "tif",
}


def noise(height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.randint(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("mode", MODES)
def test_lossless_modes(mode: str, tmp_path: Path) -> None:
    """They are converted as by Pillow; alpha is dropped."""
    image = noise().convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(np.random.randint(0, 256, (40, 60), dtype=np.uint8)))
    image.save(tmp_path / f"a.{MODES[mode]}")
    read = read_image(tmp_path / f"a.{MODES[mode]}")
    assert read.mode == "RGB"
    assert np.array_equal(np.array(read), np.array(image.convert("RGB")))


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("mode", MODES)
def test_numbers_of_channels(mode: str, channels: int, tmp_path: Path) -> None:
    """Grayscale is Pillow's; two and four channels are as in the file, which must have as many."""
    image = noise().convert(mode)
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(np.random.randint(0, 256, (40, 60), dtype=np.uint8)))
    image.save(tmp_path / f"a.{MODES[mode]}")
    expected = image.convert("L") if channels == 1 else image.convert("RGBA") if mode == "P" else image
    bands = len(expected.getbands())
    if bands != channels:
        message = f"cannot be read as an image: it must have {channels} channels, got {bands}"
        with pytest.raises(ValueError, match=message):
            read_image(tmp_path / f"a.{MODES[mode]}", channels)
        return
    read = read_image(tmp_path / f"a.{MODES[mode]}", channels)
    assert np.array_equal(np.array(read), np.array(expected))
    assert np.array(read).shape == ((40, 60) if channels == 1 else (40, 60, channels))


def test_a_palette_with_transparency_keeps_its_colors(tmp_path: Path) -> None:
    image = noise().convert("P")
    image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    assert np.array_equal(np.array(read_image(tmp_path / "a.png")), np.array(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(mode: str, tmp_path: Path) -> None:
    gradient = Image.fromarray(np.linspace(0, 255, 4800).reshape(40, 120).astype(np.uint8)).convert("RGB")
    gradient.convert(mode).save(tmp_path / "a.jpg", quality=95)
    assert np.abs(np.array(read_image(str(tmp_path / "a.jpg"))).astype(int) - np.array(gradient)).max() <= 4


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, suffix: str, tmp_path: Path) -> None:
    """The top left quarter is white in the file; EXIF 2.32, section 4.6.4, says where it is displayed."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / f"a.{suffix}", exif=exif)
    read = np.array(read_image(tmp_path / f"a.{suffix}"))
    assert read.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))
    height, width = read.shape[:2]
    bottom, right = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[
        orientation
    ]
    expected = np.zeros_like(read)
    expected[bottom * height // 2 :][: height // 2, right * width // 2 :][:, : width // 2] = 255
    assert np.array_equal(read, expected)


def test_broken_metadata_is_ignored(tmp_path: Path) -> None:
    image = noise()
    image.save(tmp_path / "a.png", exif=b"Exif\0\0" + b"\xff" * 50)
    assert np.array_equal(np.array(read_image(tmp_path / "a.png")), np.array(image))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled(suffix: str, tmp_path: Path) -> None:
    deep = np.random.randint(0, 65536, (40, 60)).astype(np.uint16)
    deep[0, :2] = (0, 65535)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    read = np.array(read_image(tmp_path / f"a.{suffix}"))
    assert np.array_equal(read, np.repeat((deep >> 8)[:, :, None], 3, axis=2))
    assert np.array_equal(np.array(read_image(tmp_path / f"a.{suffix}", 1)), deep >> 8)


@pytest.mark.parametrize(("bits", "photometric"), [(12, 1), (16, 0), (16, 1)])
def test_deep_tiffs(bits: int, photometric: int, tmp_path: Path) -> None:
    """The whole range is scaled, also that of 12 bits; photometric 0 has white as 0 (TIFF 6.0, page 37)."""
    values = [0, 1 << bits - 1, (1 << bits) - 1, 37 << bits - 8]
    data = np.array(values, "<u2").tobytes()
    if bits == 12:
        data = int("".join(f"{value:012b}" for value in values), 2).to_bytes(6, "big")
    tags = {
        256: 4,
        257: 1,
        258: bits,
        259: 1,
        262: photometric,
        273: 8 + 2 + 9 * 12 + 4,
        277: 1,
        278: 1,
        279: len(data),
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    (tmp_path / "a.tif").write_bytes(header + entries + struct.pack("<I", 0) + data)
    expected = [0, 128, 255, 37]
    read = np.array(read_image(tmp_path / "a.tif", 1))
    assert read.tolist() == [expected if photometric else [255 - value for value in expected]]


def test_sixteen_bit_pgm(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + np.array([0, 0x8000, 65535], ">u2").tobytes())
    assert np.array(read_image(tmp_path / "a.pgm", 1)).tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("suffix", ["gif", "tif", "png"])
def test_frames(suffix: str, tmp_path: Path) -> None:
    """The first is read."""
    first, *rest = (Image.new("RGB", (8, 6), color) for color in ("red", "lime", "blue"))
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=rest)
    first.save(tmp_path / f"b.{suffix}")
    assert [count_frames(tmp_path / f"{name}.{suffix}") for name in "abc"] == [3, 1, 1]
    assert np.array_equal(np.array(read_image(tmp_path / f"a.{suffix}")), np.array(first))


def test_photos_with_a_preview_are_no_animation(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[noise()])
    assert Image.open(tmp_path / "a.jpg").n_frames == 2
    assert count_frames(tmp_path / "a.jpg") == 1


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((4, 4), 0.5, np.float32), "its pixels are floats"),
        (np.full((4, 4), 200, np.int32), "its pixels are 32-bit integers"),
    ],
)
def test_pixels_without_a_scale(pixels: np.ndarray, message: str, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=rf"a.tif cannot be read as an image: {message}"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_file_is_named(suffix: str, tmp_path: Path) -> None:
    noise(200, 300).save(tmp_path / f"whole.{suffix}")
    content = (tmp_path / f"whole.{suffix}").read_bytes()
    for share in (0.02, 0.5, 0.95):
        (tmp_path / f"truncated.{suffix}").write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match=f"truncated.{suffix} cannot be read as an image"):
            read_image(tmp_path / f"truncated.{suffix}")


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").touch()
    for name in ("text.jpg", "empty.png", "."):
        with pytest.raises(ValueError, match="cannot be read as an image"):
            read_image(tmp_path / name)
        assert not is_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        read_image(tmp_path / "none.jpg")
