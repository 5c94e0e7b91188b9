"""What a Predictor is fed with: images of every kind, streams and cameras, and what cannot be read."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.images import draw_image_file
from PIL import ExifTags, Image
from torch import Tensor, nn

from fastmask import Predictor
from fastmask.inference import prefetch


def test_images_of_every_kind(model: nn.Module, images: list[Tensor], tmp_path: Path) -> None:
    rows = images[0].permute(1, 2, 0).contiguous()
    Image.fromarray(rows.numpy()).save(tmp_path / "image.png")
    kinds = [
        images[0],
        images[0].float() / 255,
        (images[0].double() / 255),
        rows,
        rows.numpy(),
        images[0].numpy(),
        rows.numpy()[::-1][::-1].astype(np.float32) / 255,
        Image.fromarray(rows.numpy()),
        tmp_path / "image.png",
        str(tmp_path / "image.png"),
    ]
    first, *others = Predictor(model, "exact", masks="soft")(kinds)
    for other in others:
        for name in first:
            torch.testing.assert_close(other[name], first[name], rtol=1e-4, atol=1e-4)
    small = [torch.zeros(3, 5, 3), np.zeros((3, 5, 3))]  # either way round
    assert [prefetch.to_planes(image, 0).shape for image in small] == [(3, 5, 3), (3, 3, 5)]


def test_a_stream_keeps_order_and_reads_only_ahead(
    model: nn.Module, images: list[Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = Predictor(model, "exact", masks="soft")(images * 3)
    read = []

    def reading() -> Iterator[Tensor]:
        for i, image in enumerate(images * 3):
            read.append(i)
            yield image

    stream = Predictor(model, "exact", masks="soft").stream(reading())
    first = next(stream)
    assert len(read) <= 5
    for one, other in zip([first, *stream], expected, strict=True):
        assert torch.equal(one["boxes"], other["boxes"])
    assert "15img" in capsys.readouterr().err
    assert Predictor(model)([]) == []


def test_a_camera_gets_its_answer_before_the_next_image(model: nn.Module, images: list[Tensor]) -> None:
    """And may fill the same memory again."""
    expected = Predictor(model, "exact", masks="soft")(images[::3])
    read, frame = [], torch.zeros_like(images[0])

    def reading() -> Iterator[Tensor]:
        for i, image in enumerate(images[::3]):
            read.append(i)
            yield frame.copy_(image)

    for ahead in (0, 2):
        read.clear()
        found = []
        for i, one in enumerate(Predictor(model, "exact", masks="soft").stream(reading(), progress=False, ahead=ahead)):
            assert ahead or read[-1] == i
            found.append(one)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one["boxes"], other["boxes"])


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["tensors", "arrays", "on the device"])
def test_a_camera_on_a_gpu(kind: str, model: nn.Module, images: list[Tensor]) -> None:
    """Its one frame is filled again while the one before is still on its way."""
    frames = [images[i] for i in (0, 3)] * 20
    frame = torch.zeros_like(frames[0], device="cuda" if kind == "on the device" else "cpu")

    def reading() -> Iterator[Any]:
        for one in frames:
            frame.copy_(one)
            yield frame.numpy() if kind == "arrays" else frame

    model.cuda()
    try:
        predictor = Predictor(model, (128, 160), dtype=torch.float32, masks="soft")
        expected = [predictor([frame.cuda()])[0] for frame in frames[:2]]
        for i, one in enumerate(predictor.stream(reading(), progress=False)):
            assert torch.equal(one["boxes"], expected[i % 2]["boxes"])
            assert torch.equal(one["masks"], expected[i % 2]["masks"])
    finally:
        model.cpu()


def test_pinned_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of arrays of any order and kind; what PyTorch has no dtype for is refused."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **options: empty(*args, **options))
    rows = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    for image in (rows, rows[::-1], rows.transpose(2, 0, 1), rows.astype(np.float64)):
        copy = prefetch.copy_image(image, 0, pin=True)
        assert isinstance(copy, np.ndarray)
        assert copy.dtype == image.dtype
        assert np.array_equal(copy, image)
        assert not np.shares_memory(copy, image)
    with pytest.raises(ValueError, match="byte order"):
        prefetch.copy_image(rows.astype(">f4"), 0, pin=True)


def test_an_error_comes_after_the_answers_before_it(model: nn.Module, images: list[Tensor], tmp_path: Path) -> None:
    def source() -> Iterator[Tensor]:
        yield from images[:2]
        raise FileNotFoundError

    for inputs in ([*images[:2], tmp_path / "none.png"], source()):
        found = []
        with pytest.raises(FileNotFoundError):  # noqa: PT012  # what comes before it is what is tested
            for prediction in Predictor(model).stream(inputs, progress=False):
                found.append(prediction)
        assert len(found) == 2


def test_pil_images_are_what_their_files_are(model: nn.Module, images: list[Tensor], tmp_path: Path) -> None:
    """Turned by their EXIF; lazily read ones may be given several times."""
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        first, *others = Predictor(model, "exact", masks="soft")([path, *[image] * 4])
    for other in others:
        assert torch.equal(other["boxes"], first["boxes"])
    with pytest.raises(ValueError, match=r"images\[0\] cannot be read: its pixels are floats"):
        Predictor(model)([Image.new("F", (5, 5))])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, _: p(torch.zeros(3, 4, 4)), "images must be a list of images, got one Tensor"),
        (lambda p, _: p.stream("image.png"), "images must be a list of images, got one str"),
        (lambda p, _: p(np.zeros((4, 4, 3), np.uint8)), "images must be a list of images, got one ndarray"),
        (lambda p, _: p(torch.zeros(2, 4, 4, 1)), r"images\[0\] must be \[3, H, W\] or \[H, W, 3\], got \(4, 4, 1\)"),
        (lambda p, good: p([good, torch.zeros(3, 0, 5)]), r"images\[1\] must have pixels, got \(3, 0, 5\)"),
        (lambda p, _: p([torch.zeros(4, 4)]), r"images\[0\] must be \[3, H, W\] or \[H, W, 3\], got \(4, 4\)"),
        (lambda p, _: p([torch.zeros(3, 4, 4).int()]), r"images\[0\] must be uint8 or floating point, got torch.int32"),
        (lambda p, _: p([17]), r"images\[0\] must be a path, a PIL image, a tensor or an array, got int"),
        (lambda p, _: p([torch.zeros(3, 1, 5000)]), "at most 160 times as long as wide, .* got 5000 x 1 pixels"),
        (lambda p, _: p([Path(__file__)]), "test_prefetch.py cannot be read as an image"),
    ],
)
def test_images_that_cannot_be_looked_at(
    call: Callable[[Predictor, Tensor], Any], message: str, model: nn.Module, images: list[Tensor]
) -> None:
    with pytest.raises(ValueError, match=message):
        call(Predictor(model, (128, 160)), images[0])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("ahead", [0, 2])
def test_errors_in_their_place(batch: int, ahead: int, model: nn.Module, images: list[Tensor], tmp_path: Path) -> None:
    """With errors="yield", an image that cannot be read has an error in its place, and the rest go on."""
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"\x89PNG\r\n")
    strip = torch.zeros(3, 1, 1400)  # of which resizing leaves no rows
    odd = [tmp_path / "none.png", torn, strip, "text", torch.zeros(2, 5, 5), Image.open(draw_image_file(torn))]
    torn.write_bytes(torn.read_bytes()[:500])
    mixed = [images[0], odd[0], *images[1:3], *odd[1:], *images[3:]]
    found = Predictor(model, "exact", batch=batch, masks="soft")
    predictions = list(found.stream(mixed, progress=False, ahead=ahead, errors="yield"))
    wrong = [i for i, item in enumerate(predictions) if isinstance(item, Exception)]
    assert wrong == [1, *range(4, 9)]
    expected = iter(found.stream(images, progress=False))
    for prediction in predictions:
        if not isinstance(prediction, Exception):
            assert len(next(expected)["boxes"]) == len(prediction["boxes"])
    assert "times as long as wide" in str(predictions[5])

    def failing() -> Iterator[Any]:
        yield from mixed[:2]
        raise OSError("unplugged")

    stream = found.stream(failing(), progress=False, ahead=ahead, errors="yield")
    assert not isinstance(next(stream), Exception)
    assert isinstance(next(stream), OSError)
    with pytest.raises(OSError, match="unplugged"):
        next(stream)


def test_tensors_of_a_list_are_read_where_they_are() -> None:
    """By a call that waits for its predictions; a stream keeps copies of what its owner may write to."""
    images = [torch.randint(0, 256, (3, 8, 9), dtype=torch.uint8), np.zeros((8, 9, 3), np.uint8)]
    for unchanged in (False, True):
        (chunk,) = prefetch.prefetch_batches(images, 2, lambda size: size, 2, False, unchanged)
        assert isinstance(chunk, list)
        addresses = [torch.as_tensor(image).data_ptr() for image in images]
        assert [plane.data_ptr() == address for plane, address in zip(chunk, addresses, strict=True)] == [unchanged] * 2
        assert torch.equal(chunk[0], images[0])


def test_a_tensor_that_does_not_fit_fails_in_its_place() -> None:
    good = torch.zeros(3, 8, 9, dtype=torch.uint8)
    first, error, last = prefetch.prefetch_batches([good, good[0], good], 1, lambda size: size, 2, False)
    assert isinstance(error, ValueError)
    assert "images[1] must be" in str(error)
    assert torch.equal(first[0], last[0])
