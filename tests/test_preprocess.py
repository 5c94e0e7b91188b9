"""One image takes four ways to a model: training's loader, the model itself, Predictor and an exported file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.slim import slim_model
from PIL import Image
from torch import Tensor

import fastmask
from fastmask.data.augment import Augmentation
from fastmask.data.loading import training_loader
from fastmask.data.records import Dataset, Instance, Record
from fastmask.export.exported import ExportedModel
from fastmask.export.module import ExportableModel, Shape
from fastmask.inference.predictor import Predictor
from fastmask.preprocess import Resizer
from fastmask.sizes import compute_padded_size, compute_resized_size
from fastmask.training.loss_module import LossModule


class NotRun(ExportedModel):
    """A file that is prepared for and never run."""

    kind = "cpu"

    def __call__(self, images: object, sizes: object) -> dict[str, object]:
        raise AssertionError


def prepare_in_four_ways(image: Image.Image, folder: Path) -> dict[str, tuple[Tensor, list[int]]]:
    """Padded pixels [1, 3, H, W] and the size inside, by who prepared them."""
    model = slim_model(fastmask).eval()
    transform = model.transform
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    batch, _ = transform([pixels / 255])
    found = {"model": (batch.tensors, list(batch.image_sizes[0]))}

    predictor = Predictor(model, "exact")
    predictor([image])
    (((size,), runner),) = predictor._runners.items()
    assert runner.inputs.pixels.shape[2:] == size
    found["Predictor"] = (runner.inputs.pixels, runner.inputs.sizes[0].tolist())

    file = NotRun("a file", ExportableModel(model).format_metadata(Shape(1, 128, 160, dynamic=True), None))
    inputs, sizes = file.preprocess([pixels])
    found["exported file"] = (torch.from_numpy(inputs), sizes[0].tolist())

    image.save(folder / "one.png")
    record = Record(folder / "one.png", None, (Instance("a", box=np.array([4.0, 4.0, 60.0, 60.0])),))
    augmentation = Augmentation(min_size=transform.min_size, max_size=transform.max_size, flip=0)
    (loaded,) = training_loader(Dataset([record], {"a": 1}, []), 1, augmentation, masks=False)
    module = LossModule(model)
    seen: list[Tensor] = []
    model.losses = lambda pixels, *_: seen.append(pixels) or {}
    module(loaded.pixels, loaded.sizes, loaded.targets)
    return found | {"training's loader": (seen[0], loaded.sizes[0].tolist())}


def draw(height: int, width: int) -> Image.Image:
    return Image.fromarray(torch.randint(256, (height, width, 3), dtype=torch.uint8).numpy())


@pytest.mark.parametrize("size", [(128, 160), (131, 128), (128, 128)], ids=str)
def test_equal_pixels(size: tuple[int, int], tmp_path: Path) -> None:
    """An image of the size that it would be resized to: nobody's interpolation moves a pixel."""
    found = prepare_in_four_ways(draw(*size), tmp_path)
    expected, _ = found["model"]
    assert expected.shape[2:] == compute_padded_size([size], 32)
    for name, (pixels, inside) in found.items():
        assert inside == list(size), name
        torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_one_resize_rule(tmp_path: Path) -> None:
    """Other sizes: all four agree on them; those that resize as the model does (the loader smooths) on the pixels."""
    for _ in range(4):
        height, width = (int(side) for side in torch.randint(20, 400, (2,)))
        found = prepare_in_four_ways(draw(height, width), tmp_path)
        expected, inside = found["model"]
        assert inside == list(compute_resized_size((height, width), 128, 200))
        for name, (pixels, size) in found.items():
            assert size == inside, name
            assert pixels.shape == expected.shape, name
            if name != "training's loader":
                torch.testing.assert_close(pixels, expected, rtol=1e-5, atol=1e-5)


def test_padded_sizes() -> None:
    fixed = Resizer(800, 1333, 32, padded_size=(799, 1340), transpose=True)
    assert fixed.padded_size == (800, 1344)
    assert [fixed.choose_padded_size(size) for size in ((480, 640), (640, 480), (9, 9))] == [
        (800, 1344),
        (1344, 800),
        (800, 1344),
    ]
    assert fixed.resize((640, 480)) == (1066, 800)
    assert Resizer(800, 1333, 32, padded_size=(512, 512)).resize((640, 480)) == (512, 384)
    assert Resizer(800, 1333, 32).resize_batch([(480, 640), (100, 400)]) == ([(800, 1066), (333, 1333)], (800, 1344))
    with pytest.raises(ValueError, match=r"at most 1333 times as long as wide, .* got 5000 x 1 pixels"):
        Resizer(800, 1333, 32).choose_padded_size((1, 5000))
    with pytest.raises(ValueError, match=r"of 10 x 10 pixels cannot be resized to \(300, 300\) in \(256, 256\)"):
        Resizer(800, 1333, 32, fixed_size=(300, 300), padded_size=(256, 256)).resize((10, 10))


@pytest.mark.parametrize("original", [(480, 640), (900, 1000), (2000, 3000), (3000, 2999), (500, 333), (1023, 1024)])
def test_matterports_sizes(original: tuple[int, int]) -> None:
    """Literal resize_image, mode "square": enlarged to 800 pixels, never shrunk to it, within 1024 in any case."""
    scale = max(1, 800 / min(original))
    if round(max(original) * scale) > 1024:
        scale = 1024 / max(original)
    expected = round(original[0] * scale), round(original[1] * scale)
    resizer = Resizer(800, 1024, 1024, enlarge_only=True)
    assert resizer.resize_batch([original]) == ([expected], (1024, 1024))
    augmentation = Augmentation(max_size=1024, flip=0, enlarge_only=True)
    assert augmentation.draw_crop(original, np.random.default_rng(0), (1024, 1024)).resized == expected
    room = Resizer(800, 1024, 1024, padded_size=(500, 500), enlarge_only=True)
    assert room.resize(original) == expected
