"""``fastmask train`` with variants: from settings in a file to a checkpoint that rebuilds its model, and goes on."""

import json
from pathlib import Path

import pytest
import torch

from fastmask import Predictor
from fastmask.cli import main
from fastmask.demo import save_synthetic, synthetic_dataset
from fastmask.inference import load_pretrained
from fastmask.models import detection
from fastmask.models.detection._unet_head import UNetMaskHead
from fastmask.training import TrainConfig, train


def test_a_run_with_variants(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped weights, but for mask head and predictors; then a file that is enough, to train on as well."""
    for part in ("train", "val"):
        save_synthetic(synthetic_dataset(2, seed, (64, 96), "shapes"), tmp_path / "set" / part)
    names = {"mask_head": "unet", "mask_classes": "agnostic", "rpn_loss": "focal", "box_loss": "giou"}
    settings = {name.replace("_", "-"): value for name, value in names.items()}
    settings |= {"data-path": str(tmp_path / "set"), "weights": "SHAPES_V1", "epochs": 2, "batch-size": 1}
    settings |= {"min-size": [64], "workers": 0, "mask-loss": "bce", "sampling-ratio": [0, 3, 1, 2]}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    words = ["train", "--config", str(tmp_path / "run.json"), "--device", "cpu"]
    out = tmp_path / "out"
    assert main([*words, "--mask-loss", "bce_dice", "--epochs", "1", "--out", str(out)]) == 0  # two steps
    said = capsys.readouterr().out
    assert "SHAPES_V1 is of other mask_head and mask_classes: the predictors and the mask head start anew" in said
    last = torch.load(out / "last.pth")
    names |= {"mask_loss": "bce_dice", "box_pooling": "roi_align", "sampling_ratio": [0, 3, 1, 2]}
    assert last["options"].items() >= names.items()
    assert json.loads((out / "settings.json").read_text())["mask_loss"] == "bce_dice"
    model, _ = load_pretrained(out / "last.pth", device="cpu", score=0.0)
    assert isinstance(model.roi_heads.mask_head, UNetMaskHead)
    assert model.roi_heads.mask_predictor.mask_fcn_logits.out_channels == 1
    assert (model.rpn.rpn_loss, model.roi_heads.box_loss, model.roi_heads.mask_loss) == ("focal", "giou", "bce_dice")
    (prediction,) = Predictor(model, "exact")([torch.rand(3, 64, 96)])
    assert len(prediction["scores"]) > 0
    evaluation = ["--weights", str(out / "best.pth"), "--device", "cpu", "--out", str(tmp_path / "evaluation")]
    assert main(["evaluate", str(tmp_path / "set" / "val"), *evaluation]) == 0
    assert main(["train", "--resume", "--out", str(out), "--epochs", "3", "--box-loss", "l1"]) == 2
    assert "must be of the same run to be resumed, got --box-loss giou (now l1)" in capsys.readouterr().err
    again = ["--weights", str(out / "best.pth"), "--out", str(tmp_path / "again"), "--epochs", "1", "--box-loss", "l1"]
    settings = {name: value for name, value in settings.items() if name in ("data-path", "batch-size")}
    (tmp_path / "again.json").write_text(json.dumps(settings | {"workers": 0}))
    assert main(["train", "--config", str(tmp_path / "again.json"), "--device", "cpu", *again]) == 0
    assert torch.load(tmp_path / "again" / "last.pth")["options"].items() >= (names | {"box_loss": "l1"}).items()
    assert "start anew" not in capsys.readouterr().out


def test_a_model_has_its_own(tmp_path: Path, seed: int) -> None:
    model = detection.maskrcnn_slim_fpn(num_classes=4)
    config = TrainConfig(1, mask_head="unet", mask_loss="dice")
    with pytest.raises(ValueError, match="mask_head, mask_loss must be None with a model that is built already"):
        train(model, synthetic_dataset(1, seed, (64, 96)), tmp_path, config)
