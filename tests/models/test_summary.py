"""The table of models: counts against closed forms and torchvision's metadata, the page's table, the command."""

import re
from pathlib import Path

import pytest
import torch
import torchvision
from helpers.pages import PAGES

from fastmask.cli import main
from fastmask.models import detection, get_model_weights, list_models, list_weights
from fastmask.models.summary import count, format_table, summarize_models


def test_page_has_the_table_of_today() -> None:
    """``python -m fastmask.models.summary`` prints it."""
    (table,) = re.findall(r"<!-- models -->\n+(.*?)\n*<!-- /models -->", PAGES["fastmask/models/README.md"], re.DOTALL)
    assert table == format_table(summarize_models()).strip()


def test_counts() -> None:
    """GMAC of classifiers are those that torchvision publishes; parameters are those of models that are built."""
    for name in ("resnet18", "resnext50_32x4d"):
        meta = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].meta
        num_params, gmac = count(name)
        assert num_params == meta["num_params"]
        assert gmac == pytest.approx(meta["_ops"], abs=0.01)
    for name in ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_320_fpn"):
        weights = torchvision.models.get_model_weights(name).DEFAULT
        assert count(name)[0] == weights.meta["num_params"]  # without frozen norms
    small, large = (count("maskrcnn_slim_fpn", box_detections_per_img=number) for number in (10, 20))
    assert small[0] == sum(p.numel() for p in detection.maskrcnn_slim_fpn().parameters())
    parts = [detection.maskrcnn_slim_fpn().roi_heads.get_submodule(f"mask_{name}") for name in ("head", "predictor")]
    per_pixel = sum(module.weight.numel() for module in parts[0].modules() if isinstance(module, torch.nn.Conv2d))
    per_pixel += parts[1].conv5_mask.weight.numel() + 4 * parts[1].mask_fcn_logits.weight.numel()  # on 28 x 28
    assert large[1] - small[1] == pytest.approx(10 * 196 * per_pixel / 1e9)  # on 14 x 14


def test_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    members = list_weights("maskrcnn_*")
    assert set(members) >= set(get_model_weights("maskrcnn_resnet50_fpn"))
    assert {summary.weights for summary in summarize_models("maskrcnn_*")} - {None} == set(members)
    assert len(list_weights()) > len(members)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    for here in (False, True):
        assert get_model_weights("resnet18").DEFAULT.is_cached() == here
        assert main(["models", "resnet18", "mask*slim*"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[-1] for line in lines[1:]] == ["yes", "yes" if here else "no"]
        assert len(lines) == 3
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert main(["models", "maskrcnn_resnet51_fpn"]) == 2
    assert "no model's name is maskrcnn_resnet51_fpn" in capsys.readouterr().err
    assert len(list_models()) > 5
