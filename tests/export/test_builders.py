"""Other backbones and RoIPool as ONNX files and packages: the model's detections. All builders at full size: slow."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.exact import assert_parity
from helpers.runtimes import least_share, open_onnx
from helpers.slim import MASK_VARIANTS, MOBILENET_ROI_POOL, slim_model
from torch import Tensor, nn

import fastmask
from fastmask.benchmarks.calibrate import calibrate
from fastmask.demo import draw_scene
from fastmask.export import (
    AOTPackage,
    ExportableModel,
    Shape,
    compare_outputs,
    write_onnx,
    write_package,
)
from fastmask.export.tensorrt.graph import find_problems
from fastmask.export.tensorrt.module import TensorRTExportableModel
from fastmask.models.detection import resnet_fpn

SHAPE = Shape(1, 128, 160)
VARIANTS = MASK_VARIANTS | {"sampling_ratio": [0, 3, 1, 2]}
BUILDERS = [name for name in vars(resnet_fpn) if name.startswith(("fasterrcnn_", "maskrcnn_"))]
BUILDERS += [f"fasterrcnn_mobilenet_v3_large{size}_fpn" for size in ("", "_320")]


def scenes(seed: int) -> list[Tensor]:
    generator = np.random.default_rng(seed)
    sizes = [(120, 160), (128, 100), (90, 150)]
    return [torch.from_numpy(draw_scene(generator, size).image).permute(2, 0, 1) for size in 4 * sizes]


def build(name: str, seed: int, **options: object) -> nn.Module:
    """Calibrated on the images it is compared on: on others, its scores may all be 1, and ties are arbitrary."""
    model = slim_model(fastmask, **options) if name == "slim" else fastmask.models.get_model(name, **options)
    calibrate(model.eval(), [image / 255 for image in scenes(seed)])
    return model


def check_onnx(model: nn.Module, path: Path, shape: Shape, seed: int, trim: bool) -> dict[str, int]:
    exportable = ExportableModel(model)
    summary = write_onnx(ExportableModel(model, trim=trim), path, shape)
    for session in open_onnx(path):
        assert_parity(compare_outputs(exportable.predict_arrays, session, scenes(seed)), least_share(session))
    return summary.operators


def check_package(model: nn.Module, path: Path, seed: int, trim: bool) -> None:
    exportable = ExportableModel(model)
    write_package(ExportableModel(model, trim=trim), path, SHAPE)
    assert_parity(compare_outputs(exportable.predict_arrays, AOTPackage(path), scenes(seed)))


@pytest.mark.parametrize("trim", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["trimmed", "fixed"])
def test_mobilenet_roi_pool_and_a_unet_as_onnx(trim: bool, tmp_path: Path, seed: int) -> None:
    """With one mask for all classes. HardSwish is one operator, norms are none; TensorRT has no MaxRoiPool."""
    model = build("slim", seed, **MOBILENET_ROI_POOL, **MASK_VARIANTS)
    operators = check_onnx(model, tmp_path / "model.onnx", SHAPE, seed, trim)
    assert operators["HardSwish"] == 8
    assert operators["MaxRoiPool"] == 4  # two levels, which the boxes and the masks have
    assert "BatchNormalization" not in operators
    problems = find_problems(onnx.load(tmp_path / "model.onnx"))
    assert "MaxRoiPool is not in the table of what is parsed" in problems


@pytest.mark.slow
def test_mobilenet_for_tensorrt(tmp_path: Path, seed: int) -> None:
    write_onnx(TensorRTExportableModel(build("slim", seed, body="mobilenet")), tmp_path / "model.onnx", SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"box_pooling": "roi_pool"}, {"body": "mobilenet"}, MOBILENET_ROI_POOL, VARIANTS], ids=str
)
@pytest.mark.parametrize("trim", [True, False], ids=["trimmed", "fixed"])
def test_every_size_and_packages(options: dict[str, str], trim: bool, tmp_path: Path, seed: int) -> None:
    model = build("slim", seed, **options)
    check_onnx(model, tmp_path / "model.onnx", Shape(1, 64, 64, dynamic=True), seed, trim)
    check_package(model, tmp_path / "model.pt2", seed, trim)


@pytest.mark.slow
@pytest.mark.parametrize("trim", [True, False], ids=["trimmed", "fixed"])
@pytest.mark.parametrize("name", BUILDERS)
def test_full_models(name: str, trim: bool, tmp_path: Path, seed: int) -> None:
    """As ONNX and as a package; few classes and small images."""
    model = build(name, seed, weights_backbone=None, num_classes=4, min_size=128, rpn_post_nms_top_n_test=100)
    check_onnx(model, tmp_path / "model.onnx", SHAPE, seed, trim)
    check_package(model, tmp_path / "model.pt2", seed, trim)
