"""Keypoints of exported files and of Predictor against the model's."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.exact import pair_masks
from helpers.images import draw_image
from helpers.runtimes import open_onnx
from helpers.slim import MOBILENET_ROI_POOL, slim_pair
from torch import Tensor, nn

import fastmask
from fastmask.export import (
    AOTPackage,
    ExportableModel,
    ExportedPredictor,
    Shape,
    translations,
    write_onnx,
    write_package,
)
from fastmask.export.exported import ExportedModel
from fastmask.export.tensorrt.module import TensorRTExportableModel
from fastmask.kernels.keypoints import decode_keypoints_op

POINTS = 3
SIZES = [(100, 140), (128, 96)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return slim_pair(keypoints=POINTS, masks=False, box_detections_per_img=10)[1]


def draw_images() -> list[Tensor]:
    return [draw_image(*size)[0] for size in SIZES]


def check_close(actual: dict[str, Tensor], expected: dict[str, Tensor], apart: float = 0.1) -> None:
    """Detections in one order; a keypoint may be another sample where rounding decides."""
    torch.testing.assert_close(actual["boxes"], expected["boxes"], rtol=0, atol=0.01)
    torch.testing.assert_close(actual["keypoints_scores"], expected["keypoints_scores"], rtol=1e-3, atol=1e-2)
    assert actual["keypoints"].shape == (len(expected["boxes"]), POINTS, 3)
    distance = (actual["keypoints"] - expected["keypoints"]).abs().amax(2)
    assert (distance <= apart).float().mean() > 0.95


def test_predictor(model: nn.Module) -> None:
    """Keypoints in pixels of the images, from one program and from one of buckets."""
    images = draw_images()
    with torch.no_grad():
        expected = [model([image])[0] for image in images]
    for options in ({}, {"mask_buckets": True}):
        predictor = fastmask.Predictor(model, "exact", dtype=torch.float32, **options)
        for mine, wanted in zip(predictor(images), expected, strict=True):
            assert mine.keys() == wanted.keys()
            assert mine["keypoints"].dtype == torch.float32
            check_close(mine, wanted)


def check_session(session: ExportedModel, exportable: ExportableModel) -> None:
    inputs, sizes = session.preprocess(draw_images())
    actual, expected = session(inputs, sizes), exportable.predict_arrays(inputs, sizes)
    assert list(actual) == ["boxes", "labels", "scores", "keypoints", "keypoints_scores", "count"]
    other = session.runtime == "OpenVINO"  # whose rounding a model with random weights may magnify to another box
    assert other or np.array_equal(actual["count"], expected["count"])
    for i, count in enumerate(expected["count"].tolist()):
        assert count > 0
        mine, wanted = (
            {name: torch.from_numpy(values[i, : each["count"][i]]) for name, values in each.items() if name != "count"}
            for each in (actual, expected)
        )
        if other:
            pairs = zip((mine, wanted), pair_masks(mine, wanted), strict=True)
            mine, wanted = ({name: values[row] for name, values in each.items()} for each, row in pairs)
        check_close(mine, wanted)
        assert not actual["keypoints"][i, actual["count"][i] :].any()


@pytest.mark.parametrize("trim", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["trimmed", "fixed"])
@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["static", "dynamic"])
def test_onnx(dynamic: bool, trim: bool, model: nn.Module, tmp_path: Path) -> None:
    exportable = ExportableModel(model)
    shape = Shape(2, 192, 192, dynamic=dynamic)
    write_onnx(ExportableModel(model, trim=trim), tmp_path / "model.onnx", shape)
    for session in open_onnx(tmp_path / "model.onnx"):
        check_session(session, exportable)
    images = draw_images()
    with torch.no_grad():
        expected = model(images)
    for mine, wanted in zip(ExportedPredictor(tmp_path / "model.onnx", batch=2)(images), expected, strict=True):
        check_close(mine, wanted)


@pytest.mark.slow
def test_graph_for_tensorrt(model: nn.Module, tmp_path: Path) -> None:
    """What TensorRT parses, or it would be a ValueError; with masks beside keypoints."""
    both = slim_pair(keypoints=POINTS, box_detections_per_img=10)[1]
    write_onnx(TensorRTExportableModel(both, raw=True), tmp_path / "model.onnx", Shape(1, 128, 160))
    names = [output.name for output in onnx.load(tmp_path / "model.onnx").graph.output]
    assert names == ["boxes", "labels", "scores", "masks", "keypoints", "keypoints_scores", "count", "num_dropped"]


@pytest.mark.slow
@pytest.mark.parametrize("trim", [True, False], ids=["trimmed", "fixed"])
def test_packed_behind_a_mobilenet(trim: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the other ops that packages call by name, behind a MobileNet; its strides are those that were compiled."""
    monkeypatch.setenv("AOTI_RUNTIME_CHECK_INPUTS", "1")
    model = slim_pair(keypoints=POINTS, masks=False, box_detections_per_img=10, **MOBILENET_ROI_POOL)[1]
    exportable = ExportableModel(model)
    write_package(ExportableModel(model, trim=trim), tmp_path / "model.pt2", Shape(2, 192, 192))
    check_session(AOTPackage(tmp_path / "model.pt2"), exportable)


class Decode(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        return decode_keypoints_op(heatmaps, boxes, self.side, self.side)


def test_translation_of_boxes_of_any_size(tmp_path: Path) -> None:
    """From a pixel to 600, of smooth heatmaps; larger ones than can be are refused."""
    import onnxruntime

    coarse = torch.nn.functional.interpolate(torch.randn(20, 4, 7, 7) * 3, (28, 28), mode="bicubic")
    noise = 0.2 * torch.randn(20, 4, 28, 28)
    heatmaps = torch.nn.functional.interpolate(coarse + noise, (56, 56), mode="bilinear")
    low = torch.rand(20, 2) * 50
    boxes = torch.cat((low, low + torch.rand(20, 2) * torch.tensor([[550.0, 40]]).repeat(10, 2).view(20, 2)), 1)
    boxes[0] = 0
    with pytest.raises(Exception, match="of at most 4096 pixels to be exported, got 5000 x 5000"):
        torch.onnx.export(Decode(5000).eval(), (heatmaps, boxes), dynamo=True, custom_translation_table=translations())
    program = torch.onnx.export(
        Decode(600).eval(), (heatmaps, boxes), dynamo=True, verbose=False, custom_translation_table=translations()
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [value.name for value in session.get_inputs()]
    outputs = session.run(None, dict(zip(names, (heatmaps.numpy(), boxes.numpy()), strict=True)))
    keypoints, scores = decode_keypoints_op(heatmaps, boxes, 600, 600)
    torch.testing.assert_close(torch.from_numpy(outputs[1]), scores, rtol=0, atol=1e-4)
    assert ((torch.from_numpy(outputs[0]) - keypoints).abs().amax(2) < 1e-2).float().mean() > 0.97
