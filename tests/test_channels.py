"""Images of one and of four channels, as torchvision's models take them: in models, Predictors, training and export."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.exact import assert_exact, assert_matched, assert_parity
from helpers.images import draw_image
from helpers.slim import slim_model, slim_pair, with_channels
from helpers.training import draw_batch, train_pair
from PIL import Image
from torch import Tensor, nn

import fastmask
from fastmask import Predictor
from fastmask.cocoapi import mask as coco
from fastmask.data import read_dataset
from fastmask.data.loading import training_loader
from fastmask.demo import save_synthetic, synthetic_dataset
from fastmask.evaluation import evaluate
from fastmask.export import ExportedPredictor, export_model
from fastmask.inference.program import Program
from fastmask.models.detection._channels import count_channels
from fastmask.models.fused import StemConv2d
from fastmask.models.prepare import prepare_for_inference
from fastmask.training import TrainConfig, Trainer

MODES = {1: "L", 4: "RGBA"}
SMALL = {"rpn_post_nms_top_n_train": 100, "box_batch_size_per_image": 32, "rpn_batch_size_per_image": 64}


@functools.cache
def pair(channels: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(7)
    return slim_pair(channels=channels)


def draw(channels: int, *sizes: tuple[int, int]) -> list[Tensor]:
    """Images [channels, h, w] uint8."""
    return [(with_channels(draw_image(*size)[0], channels) * 255).byte() for size in sizes]


@pytest.mark.parametrize("channels", [1, 4])
def test_detections_are_torchvisions(channels: int) -> None:
    theirs, ours = pair(channels)
    images = [image.double() / 255 for image in draw(channels, (128, 160), (150, 90))]
    try:
        with torch.no_grad():
            for actual, expected in zip(ours.double()(images), theirs.double()(images), strict=True):
                assert len(expected["boxes"]) > 10
                assert_exact(actual, expected)
    finally:
        for model in (ours, theirs):
            model.float()


@pytest.mark.parametrize("channels", [1, 4])
def test_losses_are_torchvisions(channels: int) -> None:
    theirs, ours = train_pair(channels=channels)
    images, targets = draw_batch()
    images = [with_channels(image, channels) for image in images]
    expected, actual = theirs(images, targets), ours(images, targets)
    for name, loss in expected.items():
        torch.testing.assert_close(actual[name], loss, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("channels", "mean", "images"), [(3, [0.5], 3), (3, [0.4, 0.5, 0.6], 1), (4, [0.5], 4)], ids=str
)
def test_one_value_or_one_channel_is_for_all(channels: int, mean: list[float], images: int) -> None:
    """As torchvision's arithmetic has it; a Predictor, too, takes one mean for all channels."""
    options = {"image_mean": mean, "image_std": [0.25] * len(mean)}
    theirs, ours = slim_pair(channels=channels, **options)
    (image,) = draw(images, (100, 140))
    with torch.no_grad():
        (expected,), (actual,) = (model([image.float() / 255]) for model in (theirs, ours))
    assert_matched([actual], [expected])
    assert count_channels(ours) == channels
    if images == channels:
        for fuse in ("off", "kernel"):
            (predicted,) = Predictor(ours, "exact", masks="float", fuse=fuse)([image])
            assert_matched([predicted], [expected])


@pytest.mark.parametrize("channels", [1, 4])
def test_a_predictor_takes_images_of_every_kind(channels: int, tmp_path: Path) -> None:
    _, ours = pair(channels)
    (planes,) = draw(channels, (128, 160))
    rows = planes.permute(1, 2, 0).numpy()
    image = Image.fromarray(rows[:, :, 0] if channels == 1 else rows)
    image.save(tmp_path / "a.png")
    kinds = [planes, planes.float() / 255, rows, planes.numpy(), image, tmp_path / "a.png"]
    if channels == 1:
        Image.fromarray(rows[:, :, 0].astype(np.uint16) * 256 + 7).save(tmp_path / "deep.png")
        kinds += [planes[0], rows[:, :, 0], tmp_path / "deep.png", image.convert("RGB")]
    with torch.no_grad():
        (expected,) = ours([planes.float() / 255])
    predictions = Predictor(ours, "exact", masks="float")(kinds)
    assert_matched(predictions, [expected] * len(kinds))


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fused_stems(channels: int, dtype: torch.dtype) -> None:
    """Of other than three channels, the stem is PyTorch's convolution, and pixels are dense in memory."""
    model = slim_model(fastmask, channels=channels).eval()
    program = Program(prepare_for_inference(model, dtype, "kernel"), "rle", 0.5, 2048)
    assert not any(type(module) is StemConv2d for module in program.model.modules())
    pixels = program.empty_pixels(2, (32, 64), dtype, "cpu").normal_()
    assert pixels.shape == (2, channels, 32, 64)
    assert pixels.stride() == (32 * 64 * channels, 1, 64 * channels, channels)
    with torch.no_grad():
        expected = model.extract_features(pixels.float()).maps
        for name, actual in program.model.extract_features(pixels).maps.items():
            similarity = torch.cosine_similarity(actual.float().flatten(), expected[name].flatten(), 0)
            assert similarity > (0.999 if dtype == torch.bfloat16 else 1 - 1e-6)


def test_an_array_of_one_column_is_an_image() -> None:
    model = slim_model(fastmask, channels=1, fixed_size=(64, 64)).eval()
    column = np.random.randint(0, 256, (40, 1), np.uint8)
    for one, other in zip(*(Predictor(model)([image]) for image in (column, torch.tensor(column)[None])), strict=True):
        assert torch.equal(one["scores"], other["scores"])


@pytest.mark.parametrize(
    ("channels", "image", "message"),
    [
        (1, torch.zeros(3, 8, 9), r"images\[0\] must be \[H, W\], \[1, H, W\] or \[H, W, 1\], got \(3, 8, 9\)"),
        (4, torch.zeros(3, 8, 9), r"images\[0\] must be \[4, H, W\] or \[H, W, 4\], got \(3, 8, 9\)"),
        (4, np.zeros((8, 9)), r"images\[0\] must be \[4, H, W\] or \[H, W, 4\], got \(8, 9\)"),
        (4, Image.new("RGB", (9, 8)), r"images\[0\] cannot be read: it must have 4 channels, got 3"),
        (4, "a.png", r"a.png cannot be read as an image: it must have 4 channels, got 3"),
    ],
    ids=str,
)
def test_a_predictor_names_other_channels(
    channels: int, image: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (9, 8)).save("a.png")
    with pytest.raises(ValueError, match=message):
        Predictor(slim_model(fastmask, channels=channels))([image])


@pytest.mark.parametrize("form", ["forward", "overridden", "losses", "infer", "Predictor", "Trainer", "export"])
def test_a_stem_and_a_mean_that_do_not_fit(form: str, tmp_path: Path) -> None:
    """Whatever is done first after the stem was replaced, but not the mean."""
    model = slim_model(fastmask, **SMALL).eval()
    model.backbone.body.conv1 = nn.Conv2d(1, 16, 7, 2, 3, bias=False)
    if form == "overridden":
        model.roi_heads.register_forward_hook(lambda *_: None)  # as torchvision then, by the parts' own methods
    images, targets = draw_batch(torch.float32)
    images = [image[:1] for image in images]
    calls = {
        "forward": lambda: model(images),
        "overridden": lambda: model(images),
        "losses": lambda: model.losses_of(images, targets),
        "infer": lambda: model.infer(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]])),
        "Predictor": lambda: Predictor(model),
        "Trainer": lambda: Trainer(model, TrainConfig(epochs=1), tmp_path, synthetic_dataset(2)),
        "export": lambda: export_model(model, tmp_path / "a.onnx"),
    }
    with pytest.raises(ValueError, match="image_mean must have a value for each of the backbone's 1 channels, got 3"):
        calls[form]()
    model.transform.image_mean = [0.5]
    model.transform.image_std = [0.25]
    assert count_channels(model) == 1
    with torch.no_grad():
        assert len(model.eval()(images)) == len(images)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({}, (3, 40, 50), "image must have 4 channels, as image_mean has, got 3"),
        ({"image_mean": [0.5], "image_std": [0.5]}, (3, 40, 50), "images must have 4 channels, as the backbone's conv"),
        ({"image_std": [0.1, 0.2]}, (4, 40, 50), r"image_std must have as many values as image_mean \(4\), got 2"),
    ],
)
def test_images_that_do_not_fit(settings: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    model = slim_model(fastmask, channels=4, **settings).eval()
    with pytest.raises(ValueError, match=message):
        model([torch.rand(shape)])


def test_backbones_that_are_not_known() -> None:
    """A hook may make other channels of the image's, and a user's own module need not begin with its convolution."""
    model = slim_model(fastmask).eval()
    model.backbone.body.conv1.register_forward_pre_hook(lambda _, inputs: inputs[0].expand(-1, 3, -1, -1))
    model.transform.image_mean, model.transform.image_std = [0.5], [0.5]
    with torch.no_grad():
        (found,) = model([torch.rand(1, 60, 70)])
    assert count_channels(model) == 1
    assert found["masks"].shape[1:] == (1, 60, 70)
    assert len(Predictor(model, "exact")([torch.zeros(60, 70)])) == 1
    for form, channels in (("off", 4), ("kernel", 4)):  # a prepared model is known as well
        other = slim_model(fastmask, channels=4, image_mean=[0.5], image_std=[0.5])
        assert count_channels(prepare_for_inference(other, torch.float32, form)) == channels


@pytest.mark.parametrize("channels", [1, 4])
def test_training_on_files(channels: int, tmp_path: Path) -> None:
    """All augmentations at once; then an evaluation of what was trained, on files and on images in memory."""
    dataset = save_synthetic(synthetic_dataset(4, 3, (96, 128)), tmp_path / "data")
    for record in dataset.records:
        bands = record.load().split()
        Image.merge("RGBA", (*bands, bands[0])).convert(MODES[channels]).save(record.file)
    torch.manual_seed(3)
    model = slim_model(fastmask, "BatchNorm2d", channels, **SMALL)
    before = model.backbone.body.conv1.weight.detach().clone()
    settings = {"epochs": 1, "optimizer": "adamw", "workers": 0, "zoom": (0.5, 1.5), "size": (96, 96), "seed": 3}
    config = TrainConfig(**settings, color=0.5, paste=0.5)
    data = read_dataset(tmp_path / "data" / "annotations.json")
    (tmp_path / "run").mkdir()
    trainer = Trainer(model, config, tmp_path / "run", data, progress=False)
    result = trainer.fit()
    assert np.isfinite(result.epochs[0]["loss"])
    assert not torch.equal(model.backbone.body.conv1.weight, before)
    in_memory = data._replace(records=[record._replace(image=record.load(channels)) for record in data.records])
    one, other = (evaluate(model.eval(), each, progress=False) for each in (data, in_memory))
    assert not one.problems
    assert not other.problems
    assert one.metrics == other.metrics


def test_training_names_files_of_other_channels(tmp_path: Path) -> None:
    dataset = save_synthetic(synthetic_dataset(2, 3, (96, 128)), tmp_path / "data")
    loader = training_loader(dataset, 2, channels=4)
    with pytest.raises(ValueError, match="it must have 4 channels, got 3"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("channels", "suffix", "raw"),
    [
        (4, "onnx", True),
        pytest.param(1, "onnx", False, marks=pytest.mark.slow),
        pytest.param(1, "pt2", True, marks=pytest.mark.slow),
        pytest.param(4, "pt2", False, marks=pytest.mark.slow),
    ],
)
def test_export(channels: int, suffix: str, raw: bool, tmp_path: Path) -> None:
    """The file matches on synthetic images, or it would not be kept; and on a file of as many channels."""
    _, ours = pair(channels)
    path = tmp_path / f"model.{suffix}"
    parity = export_model(ours, path, (128, 160), device="cpu", raw=raw)
    assert_parity(parity)
    predictor = ExportedPredictor(path, "cpu")
    assert predictor.session.channels == channels
    (planes,) = draw(channels, (128, 160))
    rows = planes.permute(1, 2, 0).numpy()
    Image.fromarray(rows[:, :, 0] if channels == 1 else rows).save(tmp_path / "a.png")
    predictions = [found([tmp_path / "a.png"])[0] for found in (predictor, Predictor(ours, (128, 160)))]
    for prediction in predictions:
        prediction["masks"] = torch.from_numpy(coco.decode(prediction["masks"])).permute(2, 0, 1)
    assert_matched(predictions[:1], predictions[1:])
    with pytest.raises(ValueError, match=r"images\[0\] must be \[\d, H, W\], got \(3, 40, 50\)"):
        predictor.session.preprocess([torch.zeros(3, 40, 50)])
    inputs, sizes = predictor.session.preprocess([planes])
    assert inputs.shape == ((1, 128, 160, channels) if raw else (1, channels, 128, 160))
    with pytest.raises(ValueError, match=r"images must be|cannot be run"):
        predictor.session(np.repeat(inputs, 2, axis=3 if raw else 1), sizes)
