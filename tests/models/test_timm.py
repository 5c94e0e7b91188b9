"""Backbones of timm's: against torchvision's classes around the same backbone, frozen, folded, compiled, trained."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from helpers.exact import assert_exact
from helpers.images import draw_image
from helpers.static import NoDataDependence
from helpers.training import align_samples, draw_batch
from safetensors.torch import save_file
from torch import nn

from fastmask import Predictor
from fastmask.benchmarks.calibrate import calibrate
from fastmask.cli import main
from fastmask.demo import save_synthetic, synthetic_dataset
from fastmask.export import export_model
from fastmask.inference import load_pretrained
from fastmask.models import Checkpoint, detection, get_model
from fastmask.models.detection.timm_backbone import TimmBackboneWithFPN, freeze_norms, timm_fpn_backbone
from fastmask.models.prepare import prepare_for_inference
from fastmask.ops.misc import FrozenBatchNorm2d

timm = pytest.importorskip("timm", reason="the oldest versions' environment has no timm")
NAMES = ("test_efficientnet", "test_resnet", "test_convnext")  # timm's own for tests
PARTS = ("box_head", "box_predictor", "mask_head", "mask_predictor")
NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)
SMALL = {"num_classes": 5, "min_size": 96, "max_size": 160, "fpn_channels": 32, "rpn_post_nms_top_n_test": 100}


def build(name: str, norm: str = "trained", **options: Any) -> Any:
    """A model that detects something."""
    model = get_model(f"maskrcnn_timm:{name}", **SMALL, **options).eval()
    model.roi_heads.box_head = detection.faster_rcnn.TwoMLPHead(32 * 49, 64)
    model.roi_heads.box_predictor = detection.faster_rcnn.FastRCNNPredictor(64, 5)
    model.roi_heads.mask_head = detection.mask_rcnn.MaskRCNNHeads(32, (32,), 1)
    model.roi_heads.mask_predictor = detection.mask_rcnn.MaskRCNNPredictor(32, 32, 5)
    if norm == "frozen":
        freeze_norms(model.backbone.body)
    calibrate(model, [draw_image(96, 128)[0] for _ in range(3)])
    for module in model.modules():
        if isinstance(module, NORMS):
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    return model.double()


def build_torchvisions(model: Any) -> nn.Module:
    """torchvision's class around the same backbone, with the same weights."""
    mean, std = model.transform.image_mean, model.transform.image_std
    options = {"min_size": 96, "max_size": 160, "image_mean": mean, "image_std": std, "rpn_post_nms_top_n_test": 100}
    parts = {name: copy.deepcopy(getattr(model.roi_heads, name)) for name in PARTS}
    theirs = torchvision.models.detection.MaskRCNN(copy.deepcopy(model.backbone), **parts, **options).double().eval()
    theirs.load_state_dict(model.state_dict())
    return theirs


@pytest.mark.parametrize("name", NAMES)
def test_detections_losses_and_gradients_are_torchvisions(name: str) -> None:
    model = build(name, "frozen" if name == "test_resnet" else "trained")
    theirs = build_torchvisions(model)
    images = [draw_image(90, 140)[0].double(), draw_image(120, 100)[0].double()]
    with torch.no_grad():
        found, expected = model(images), theirs(images)
        predicted = Predictor(model, "exact", 2, torch.float64)(images)
    for one, other, mine in zip(found, expected, predicted, strict=True):
        assert len(one["boxes"]) > 3
        assert_exact(one, other)
        torch.testing.assert_close(torch.as_tensor(mine["boxes"]).double(), one["boxes"], rtol=0, atol=1e-4)
    align_samples(theirs, model)
    batch = draw_batch()
    theirs_losses, losses = theirs(*batch), model(*batch)
    for key, loss in theirs_losses.items():
        torch.testing.assert_close(losses[key], loss, rtol=1e-9, atol=1e-9)
    for values in (theirs_losses, losses):
        sum(values.values()).backward()
    wanted = dict(theirs.named_parameters())
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key].grad, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", [*NAMES, "test_efficientnet, padded"])
def test_norms_are_folded_and_nothing_breaks_the_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained norms and frozen ones, also behind convolutions that pad as TensorFlow does."""
    name, _, padded = name.partition(", ")
    if padded:
        create = timm.create_model
        monkeypatch.setattr(timm, "create_model", lambda *a, **options: create(*a, pad_type="same", **options))
    for norm in ("trained", "frozen"):
        model = build(name, norm)
        assert any(type(m).__name__ == "Conv2dSame" for m in model.modules()) == bool(padded)
        prepared = prepare_for_inference(model, torch.float64)
        assert not [m for m in prepared.backbone.body.modules() if isinstance(m, NORMS)]
        pixels, sizes = torch.randn(1, 3, 96, 128).double(), torch.tensor([[90, 120]])
        with torch.no_grad():
            expected, actual = model.backbone(pixels), prepared.backbone(pixels)
        for level in expected:
            torch.testing.assert_close(actual[level], expected[level], rtol=1e-9, atol=1e-9)
        if norm == "trained" or padded or name != "test_efficientnet":  # one is enough; the graph takes seconds
            continue
        with torch.no_grad():
            compiled = torch.compile(model.infer, fullgraph=True, backend="eager")(pixels, sizes)
            detections = model.infer(pixels, sizes)
            with NoDataDependence():
                model.infer(pixels, sizes)
        assert torch.equal(compiled.boxes, detections.boxes)


def test_layers_that_are_trained() -> None:
    """Those of the last maps, by what each depends on; norms are frozen."""
    whole = timm_fpn_backbone("test_efficientnet", trainable_layers=5).body
    modules = {info["reduction"]: info["module"] for info in whole.feature_info.info}
    for layers in range(6):
        body = timm_fpn_backbone("test_efficientnet", trainable_layers=layers).body
        late = tuple(f"{modules[stride]}." for stride in (32, 16, 8, 4)[:layers])
        for name, parameter in body.named_parameters():
            assert parameter.requires_grad == (layers == 5 or name.startswith(late)), name
        assert not any(isinstance(m, nn.BatchNorm2d) for m in body.modules())


def test_files_of_backbones(tmp_path: Path) -> None:
    classifier = timm.create_model("test_efficientnet", num_classes=7)
    torch.save(classifier.state_dict(), tmp_path / "a.pth")
    model = get_model("maskrcnn_timm:test_efficientnet", weights_backbone=tmp_path / "a.pth", **SMALL)
    body = model.backbone.body
    assert all(torch.equal(classifier.state_dict()[key], value) for key, value in body.state_dict().items())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in body.modules())  # frozen, as it is trained
    assert list(model.transform.image_mean) == list(timm.data.resolve_model_data_config(classifier)["mean"])
    gray = timm.create_model("test_efficientnet", in_chans=1).state_dict()
    save_file(gray, tmp_path / "gray.safetensors")
    options = SMALL | {"image_mean": [0.5], "image_std": [0.2], "weights_backbone": tmp_path / "gray.safetensors"}
    model = get_model("maskrcnn_timm:test_efficientnet", **options)
    assert torch.equal(model.backbone.body.conv_stem.weight, gray["conv_stem.weight"])
    state = classifier.state_dict()
    cases = {
        "keys of timm's test_efficientnet, got .* missing": {k: v for k, v in state.items() if "blocks.2" not in k},
        "keys of timm's test_efficientnet, got 1 unexpected": state | {"more.weight": torch.zeros(1)},
        r"shapes of timm's test_efficientnet, got \[16\] for bn1.weight, ": state | {"bn1.weight": torch.zeros(16)},
    }
    for message, state in cases.items():
        torch.save(state, tmp_path / "b.pth")
        with pytest.raises(ValueError, match=rf"b\.pth must have the {message}"):
            get_model("maskrcnn_timm:test_efficientnet", weights_backbone=tmp_path / "b.pth", **SMALL)


def test_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {
        "vit_tiny_patch16_224": r"must have feature maps of strides \(4, 8, 16, 32\), got vit_tiny_patch16_224 with",
        "swin_tiny_patch4_window7_224": "must take images of any size, got swin_tiny_patch4_window7_224: Input height",
        "test_efficientnett": r"must be a model of timm's, got 'test_efficientnett'",
        "test_effnet": "must be a model of timm's, got 'test_effnet'",
    }
    for name, message in errors.items():
        with pytest.raises(ValueError, match=message):
            get_model(f"maskrcnn_timm:{name}")
    with pytest.raises(ValueError, match=r"maskrcnn_timm:NAME, got 'maskrcnn_tim:resnet18'"):
        get_model("maskrcnn_tim:resnet18")
    with pytest.raises(ValueError, match=r"pretrained must be False with weights_backbone, got a\.pth"):
        timm_fpn_backbone("resnet18", pretrained=True, weights_backbone="a.pth")
    monkeypatch.setattr("timm.create_model", lambda *_, **__: (_ for _ in ()).throw(OSError("no network\n.")))
    with pytest.raises(ConnectionError, match=r"weights of resnet18 cannot be had \(no network\): download"):
        detection.fasterrcnn_timm("resnet18", pretrained=True)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'fastmask-rcnn\[timm\]'"):
        detection.fasterrcnn_timm("resnet18")


def test_train_and_predict_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two steps, frozen norms and stages left as they are; the file names its model, backbone and pyramid."""
    save_synthetic(synthetic_dataset(4, seed=1), tmp_path / "data")
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "backbone.pth")
    command = ["train", "--data-path", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--epochs", "1"]
    command += ["--model", "maskrcnn_timm:test_efficientnet", "--weights", "none", "--workers", "0", "--device", "cpu"]
    command += ["--weights-backbone", str(tmp_path / "backbone.pth"), "--min-size", "64", "--max-size", "64"]
    assert main(command) == 0, capsys.readouterr()
    assert "no validation images (--val): best.pth will have the epoch of the lowest loss" in capsys.readouterr().out
    checkpoint = Checkpoint(tmp_path / "run" / "last.pth")
    assert checkpoint.meta["builder"] == "maskrcnn_timm:test_efficientnet"
    before, after = torch.load(tmp_path / "backbone.pth"), checkpoint.get_state_dict()
    stem, late = (
        "conv_stem.weight",
        next(key for key in reversed(before) if key.startswith("blocks.4") and key.endswith("conv_pw.weight")),
    )
    assert torch.equal(after[f"backbone.body.{stem}"], before[stem])
    assert not torch.equal(after[f"backbone.body.{late}"], before[late])
    assert torch.equal(after["backbone.body.bn1.running_mean"], before["bn1.running_mean"])
    image = next((tmp_path / "data").rglob("*.png"))
    options = ["--weights", str(tmp_path / "run" / "last.pth"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["predict", str(image), *options]) == 0, capsys.readouterr()
    model, _ = load_pretrained(None, tmp_path / "run" / "last.pth")
    assert isinstance(model.backbone, TimmBackboneWithFPN)
    assert model.backbone.out_channels == 256


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.onnx", "model.pt2"])
def test_exports(file: str, tmp_path: Path) -> None:
    model = build("test_efficientnet").float()
    export_model(model, tmp_path / file, size=(96, 128))  # which compares the file with the model
