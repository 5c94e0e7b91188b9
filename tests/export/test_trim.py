"""Trimmed files: the heads run on as many rows as there are detections, and outputs are those of fixed shapes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from helpers.exact import assert_parity
from helpers.slim import slim_pair
from torch import Tensor, nn

from fastmask.cli import main
from fastmask.demo import draw_scene
from fastmask.export import (
    AOTPackage,
    ExportableModel,
    OnnxSession,
    OpenVINOSession,
    Shape,
    compare_outputs,
    count_operators,
    export_model,
    write_onnx,
    write_package,
)
from fastmask.export.onnx import FORBIDDEN
from fastmask.export.parity import MIN_SHARE
from fastmask.export.tensorrt.graph import find_problems
from fastmask.models import detection

SIDE = 192
POINTS = 3


class Files(NamedTuple):
    """One model as ONNX, with rows trimmed and without."""

    model: nn.Module
    trimmed: Path
    fixed: Path


def draw_squares(number: int, size: tuple[int, int] = (96, 128)) -> Tensor:
    """So many squares on gray, far from one another: [3, h, w] uint8."""
    image = torch.full((3, *size), 100, dtype=torch.uint8)
    for i in range(number):
        image[:, 30:60, 10 + 40 * i : 36 + 40 * i] = torch.tensor([230, 40, 60], dtype=torch.uint8)[:, None, None]
    return image


def draw_crowd(seed: int, side: int = SIDE) -> Tensor:
    """As many scenes of 48 pixels as there is room for: more objects than are kept."""
    generator, number = np.random.default_rng(seed), side // 48
    scenes = [[draw_scene(generator, (48, 48)).image for _ in range(number)] for _ in range(number)]
    return torch.from_numpy(np.concatenate([np.concatenate(row, 1) for row in scenes])).permute(2, 0, 1)


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["static", "dynamic"])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("trim")
    model = detection.maskrcnn_slim_fpn(weights="DEFAULT", box_score_thresh=0.01).eval()
    found = Files(model, folder / "trimmed.onnx", folder / "fixed.onnx")
    for path, trim in ((found.trimmed, True), (found.fixed, False)):
        write_onnx(ExportableModel(model, trim=trim), path, Shape(2, SIDE, SIDE, request.param))
    return found


def draw_batches(seed: int) -> Iterator[list[Tensor]]:
    """None, one, three and all detections, alone and in batches with one another."""
    single = [draw_squares(number) for number in (0, 1, 3)]
    yield from ([image] for image in single)
    yield single[1:]
    yield [draw_crowd(seed), single[0]]


def test_the_same_bytes(files: Files, seed: int) -> None:
    """In ONNX Runtime, as the file of fixed shapes has; and what the model finds."""
    trimmed, fixed, counts = OnnxSession(files.trimmed, "cpu"), OnnxSession(files.fixed, "cpu"), []
    for images in draw_batches(seed):
        inputs = trimmed.preprocess(images)
        found, expected = trimmed(*inputs), fixed(*inputs)
        assert found["masks"].shape == (len(inputs[0]), 100, 28, 28)
        assert found.keys() == expected.keys()
        for name, values in found.items():
            np.testing.assert_array_equal(values, expected[name], name)
        counts.append(found["count"].tolist()[: len(images)])
        if counts[-1] != [0]:
            assert_parity(compare_outputs(ExportableModel(files.model).predict_arrays, trimmed, images))
    assert counts == [[0], [1], [3], [1, 3], [100, 0]]


def test_openvino_reads_it(files: Files, seed: int) -> None:
    pytest.importorskip("openvino")
    session, other = OpenVINOSession(files.trimmed), OnnxSession(files.trimmed, "cpu")
    for images in draw_batches(seed):
        inputs = session.preprocess(images)
        found = session(*inputs)
        assert found["count"].tolist() == other(*inputs)["count"].tolist()
        if found["count"].any():
            assert_parity(compare_outputs(session, other, images))


def test_no_row_is_computed_for_nothing(files: Files) -> None:
    """Each level pools its own RoIs alone, of the detections that there are; no control flow, nothing for TensorRT."""
    import onnxruntime

    model = onnx.load(files.trimmed)
    operators = count_operators(model)
    assert not operators.keys() & set(FORBIDDEN)
    fixed = onnx.load(files.fixed)
    assert operators["NonMaxSuppression"] == count_operators(fixed)["NonMaxSuppression"]
    if not OnnxSession(files.trimmed, "cpu").metadata["dynamic"]:
        assert "TopK" in "; ".join(find_problems(model))
    pooled = [node.output[0] for node in model.graph.node if node.op_type == "RoiAlign"]
    decoded = [node.output[0] for node in model.graph.node if node.op_type == "ConvTranspose"]
    for name in (*pooled, *decoded):
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs, sizes = OnnxSession(files.trimmed, "cpu").preprocess([draw_squares(3), draw_squares(1)])
    rows = [len(values) for values in session.run([*pooled, *decoded], {"images": inputs, "sizes": sizes})]
    assert len(rows) == 9
    assert rows[8] == 2 * 3  # of a batch, as many as the image with most
    assert sum(rows[4:8]) == rows[8]
    assert 0 < sum(rows[:4]) <= 2 * files.model.rpn.post_nms_top_n()
    assert 0 in rows[4:8]


def check_onnx(model: nn.Module, path: Path, shape: Shape, images: list[Tensor], **options: Any) -> None:
    """A trimmed file against the model, and its outputs against those of a file of fixed shapes, bit by bit."""
    exportable = ExportableModel(model, **options)
    write_onnx(ExportableModel(model, trim=True, **options), path, shape)
    trimmed = OnnxSession(path, "cpu")
    least = MIN_SHARE[options.get("dtype", torch.float32)]
    assert_parity(compare_outputs(exportable.predict_arrays, trimmed, images), least)
    write_onnx(exportable, path.with_name("fixed.onnx"), shape)
    fixed, step = OnnxSession(path.with_name("fixed.onnx"), "cpu"), shape.batch
    for start in range(0, len(images), step):
        inputs = trimmed.preprocess(images[start : start + step])
        expected = fixed(*inputs)
        for name, values in trimmed(*inputs).items():
            np.testing.assert_array_equal(values, expected[name], name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"masks": "paste", "raw": True}, {"dtype": torch.float16}, {"raw": True}], ids=["paste", "half", "raw"]
)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_every_kind(options: dict[str, Any], dynamic: bool, tmp_path: Path, seed: int) -> None:
    model = detection.maskrcnn_slim_fpn(weights="DEFAULT").eval()
    images = [draw_crowd(seed), draw_squares(0), draw_squares(1), draw_squares(3)]
    check_onnx(model, tmp_path / "model.onnx", Shape(2, 192, 192, dynamic), images, **options)


@pytest.mark.slow
@pytest.mark.parametrize("masks", [True, False], ids=["and masks", "alone"])
def test_keypoints(masks: bool, tmp_path: Path, seed: int) -> None:
    model = slim_pair(keypoints=POINTS, masks=masks, box_detections_per_img=10)[1]
    check_onnx(model, tmp_path / "model.onnx", Shape(2, 192, 192), [draw_crowd(seed, 144), draw_squares(0)])


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"masks": "paste"}], ids=["soft", "paste"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_package(
    options: dict[str, Any], dynamic: bool, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With PyTorch's own check of the strides that it compiled for."""
    monkeypatch.setenv("AOTI_RUNTIME_CHECK_INPUTS", "1")
    model = detection.maskrcnn_slim_fpn(weights="DEFAULT").eval()
    exportable = ExportableModel(model, **options)
    write_package(ExportableModel(model, trim=True, **options), tmp_path / "model.pt2", Shape(2, 192, 192, dynamic))
    images = [draw_crowd(seed), draw_squares(0), draw_squares(1), draw_squares(3)]
    assert_parity(compare_outputs(exportable.predict_arrays, AOTPackage(tmp_path / "model.pt2"), images))


def test_who_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Files that are compared on a CPU, unless asked; those for TensorRT never."""
    seen = []

    class StopError(ValueError):
        pass

    def write(exportable: ExportableModel, *rest: object, **options: object) -> None:
        seen.append(exportable.trim)
        raise StopError("written")

    monkeypatch.setattr("fastmask.export.api.write_onnx", write)
    monkeypatch.setattr("fastmask.export.api.write_package", write)
    monkeypatch.setattr("fastmask.export.api.choose_device", lambda device: (device, 0))
    model = detection.maskrcnn_slim_fpn().eval()
    cases = [("onnx", "cpu", None), ("onnx", "cuda", None), ("onnx", "cuda", True), ("onnx", "cpu", False)]
    for suffix, device, trim in [*cases, ("pt2", "cpu", None), ("pt2", "cpu", False)]:
        with pytest.raises(StopError):
            export_model(model, tmp_path / f"a.{suffix}", (64, 64), device=device, trim=trim)
    with pytest.raises(StopError):
        export_model(model, tmp_path / "a.onnx", (64, 64), device="cpu", target="tensorrt")
    assert seen == [True, False, True, False, True, False, False]
    words = ["export", str(tmp_path / "a.onnx"), "--model", "maskrcnn_slim_fpn", "--weights", "SHAPES_V1"]
    assert main([*words, "--target", "tensorrt", "--trim"]) == 2
    assert "--trim must not be given for TensorRT, whose graphs have fixed shapes" in capsys.readouterr().err
    assert main([*words, "--no-trim", "--device", "cpu"]) == 2
    assert seen[-1] is False


def test_metadata_tells() -> None:
    model = detection.maskrcnn_slim_fpn().eval()
    for trim in (True, False):
        assert ("trim" in ExportableModel(model, trim=trim).format_metadata(Shape(1, 64, 64), None)) == trim
