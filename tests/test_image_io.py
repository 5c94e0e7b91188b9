"""Reading images of every mode and format, and files that are no images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmask.image_io import read_image

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
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        read_image(tmp_path / "none.jpg")
