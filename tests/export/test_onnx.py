"""ExportedModel files against the model: other sizes, any number of detections; and what they are made of."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.exact import assert_exact, assert_exact_masks, assert_parity
from helpers.runtimes import ONNX_RUNTIMES, open_onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from PIL import Image
from torch import Tensor, nn

from fastmask.cli import main
from fastmask.cocoapi import mask as coco_mask
from fastmask.demo import draw_scene
from fastmask.export import (
    ExportableModel,
    ExportedPredictor,
    OnnxSession,
    Shape,
    compare_outputs,
    count_operators,
    write_onnx,
)
from fastmask.export.onnx import FORBIDDEN, OnnxSummary
from fastmask.inference.predictor import Predictor
from fastmask.models import detection

MOST = {"static": 700, "dynamic": 900}  # nodes


def model(score: float = 0.05, **options: int) -> nn.Module:
    return detection.maskrcnn_slim_fpn(weights="DEFAULT", box_score_thresh=score, **options).eval()


def scenes(number: int, size: tuple[int, int], seed: int) -> list[Tensor]:
    """Synthetic images [3, h, w] uint8."""
    generator = np.random.default_rng(seed)
    return [torch.from_numpy(draw_scene(generator, size).image).permute(2, 0, 1) for _ in range(number)]


def crowd(seed: int) -> Tensor:
    """Sixteen scenes on one image: more than are kept are found."""
    parts = scenes(16, (48, 48), seed)
    return torch.cat([torch.cat(parts[i : i + 4], dim=2) for i in range(0, 16, 4)], dim=1)


def blank(size: tuple[int, int]) -> Tensor:
    return torch.full((3, *size), 100, dtype=torch.uint8)


class GatherElements(OpRun):
    """The reference's own takes no more than 64 rows."""

    def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        return (np.take_along_axis(data, indices, axis),)


@pytest.mark.parametrize("trim", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["fixed", "trimmed"])
def test_float64_is_exact(trim: bool, tmp_path: Path, seed: int) -> None:
    """The graph's logic without rounding, by ONNX's own reference: few detections, as many as are kept, and none."""
    small = {"rpn_pre_nms_top_n_test": 60, "rpn_post_nms_top_n_test": 16, "box_detections_per_img": 8}
    exportable = ExportableModel(model(0.02, **small).double(), torch.float64)
    written = ExportableModel(model(0.02, **small).double(), torch.float64, trim=trim)
    write_onnx(written, tmp_path / "model.onnx", Shape(2, 96, 128))
    graph = ReferenceEvaluator(str(tmp_path / "model.onnx"), new_ops=[GatherElements])
    counts = []
    crowded = crowd(seed)[:, :96, :128]
    for images in ([*scenes(1, (90, 120), seed), crowded], [blank((50, 100)), blank((96, 128))]):
        inputs = torch.zeros(2, 3, 96, 128, dtype=torch.float64)
        for place, image in zip(inputs, images, strict=True):
            normal = (image / 255 - exportable.image_mean[0]) / exportable.image_std[0]
            place[:, : image.shape[1], : image.shape[2]] = normal
        sizes = torch.tensor([image.shape[1:] for image in images])
        predictions = graph.run(None, {"images": inputs.numpy(), "sizes": sizes.numpy()})
        found = dict(zip(exportable.outputs(), map(torch.from_numpy, predictions), strict=True))
        with torch.no_grad():
            expected = dict(zip(exportable.outputs(), exportable(inputs, sizes), strict=True))
        counts += expected["count"].tolist()
        assert torch.equal(found.pop("count"), expected.pop("count"))
        assert_exact_masks(found.pop("masks"), expected.pop("masks"))
        assert_exact(found, expected)
    assert min(counts) == 0
    assert max(counts) == small["box_detections_per_img"]


@pytest.mark.parametrize("trim", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["trimmed", "fixed"])
def test_dynamic(trim: bool, tmp_path: Path, seed: int) -> None:
    """One file for every batch and size."""
    exportable = ExportableModel(model())
    written = write_onnx(ExportableModel(model(), trim=trim), tmp_path / "model.onnx", Shape(1, 64, 64, dynamic=True))
    assert written.nodes < MOST["dynamic"]
    several = scenes(1, (192, 192), seed), scenes(2, (100, 170), seed + 1), [crowd(seed), blank((30, 70))]
    for session in open_onnx(tmp_path / "model.onnx"):
        assert (session.batch, session.size) == (None, None)
        for images in several:
            found = compare_outputs(exportable.predict_arrays, session, images)
            assert_parity(found)
            inputs, sizes = session.preprocess(images)
            assert session(inputs, sizes)["boxes"].shape == (len(images), 100, 4)


def test_pasted_masks_of_raw_images(tmp_path: Path, seed: int) -> None:
    """Of two images at once, the last of three alone."""
    exportable = ExportableModel(model(), masks="paste", raw=True)
    write_onnx(exportable, tmp_path / "model.onnx", Shape(2, 192, 224))
    images = scenes(3, (180, 220), seed)
    for session in open_onnx(tmp_path / "model.onnx"):
        assert_parity(compare_outputs(exportable.predict_arrays, session, images))
        masks = session(*session.preprocess(images[:2]))["masks"]
        assert (masks.shape, masks.dtype) == ((2, 100, 192, 224), np.dtype(bool))


def check_content(file: Path) -> None:
    """Standard operators alone; each is told what ONNX and those who read it do not agree on."""
    graph = onnx.load(file)
    assert {opset.domain for opset in graph.opset_import} == {""}
    assert sum(count_operators(graph).values()) < MOST["static"]
    operators = count_operators(graph)
    assert not operators.keys() & set(FORBIDDEN)
    aligned = [node for node in graph.graph.node if node.op_type == "RoiAlign"]
    assert len(aligned) == 8
    for node in aligned:
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert attributes["mode"] == b"avg"
        assert attributes["coordinate_transformation_mode"] == b"output_half_pixel"
        assert attributes["sampling_ratio"] == 2
    session = OnnxSession(file)
    assert session.metadata["categories"] == ["__background__", "ellipse", "triangle", "quadrilateral"]
    assert (session.metadata["min_size"], session.metadata["max_size"], session.size) == (192, 320, (192, 224))


def exported(path: Path, *options: str) -> int:
    command = ["export", str(path), "--model", "maskrcnn_slim_fpn", "--weights", "SHAPES_V1", "--size", "192", "224"]
    return main([*command, *options])


def test_the_command_compares_and_predict_runs_it(
    tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images are of other sizes than the graph's; what the file finds is what the Predictor finds."""
    images = scenes(3, (200, 300), seed)
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    file = tmp_path / "model.onnx"
    assert exported(file, "--check", str(tmp_path)) == 0
    check_content(file)
    format_parity = capsys.readouterr().out
    assert "checked by onnx" in format_parity
    assert "ONNX Runtime (cpu) on 3 images" in format_parity
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".png",)] == ["model.onnx"]
    out = tmp_path / "out"
    assert main(["predict", str(tmp_path / "1.png"), "--onnx", str(file), "--out", str(out), "--device", "cpu"]) == 0
    entries = json.loads((out / "predictions.json").read_text())
    predictor = Predictor(model(0.5), (192, 224))
    (expected,) = predictor([images[1]])
    assert len(entries) == len(expected["boxes"]) > 0
    for entry, box, score, mask in zip(
        entries, *(expected[name] for name in ("boxes", "scores", "masks")), strict=True
    ):
        x, y, width, height = entry["bbox"]
        assert [x, y, x + width, y + height] == pytest.approx(box.tolist(), abs=0.05)
        assert entry["score"] == pytest.approx(float(score), abs=1e-3)
        assert coco_mask.iou([entry["segmentation"]], [mask], [0])[0, 0] > 0.98
    assert Image.open(out / "1.predicted.png").size == (300, 200)
    found = ExportedPredictor(file, score=0.5)(images)
    assert len(found[1]["boxes"]) == len(entries)
    # what is asked for wrongly
    for options, message in (
        ([], "is there already: --force replaces it"),
        (["--force", "--opset", "17"], "opset must be in [18, 20], got 17"),
        (["--force", "--size", "200", "224"], "--size must be a multiple of 32, as the model pads, got 200"),
        (["--force", "--batch", "0"], "batch must be at least 1, got 0"),
        (["--force", "--batch", "65", "--dynamic"], "batch must be in [1, 64], got 65"),
        (
            ["--force", "--size", "352", "224", "--dynamic"],
            "--size must be at most 320, as the model's",
        ),
    ):
        before = file.read_bytes()
        assert exported(file, *options) == 2
        assert message in capsys.readouterr().err
        assert file.read_bytes() == before
    for options in (["--masks", "28"], ["--dtype", "int8"]):
        with pytest.raises(SystemExit, match="2"):
            exported(file, *options)
        assert f"argument {options[0]}: invalid choice: '{options[1]}'" in capsys.readouterr().err
    assert exported(tmp_path / "model.engine") == 2
    assert "file must end in .onnx or .pt2" in capsys.readouterr().err
    assert exported(tmp_path / "nowhere" / "model.onnx") == 2
    assert "file must be in a folder that is there" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "1.png"), "--onnx", str(file), "--size", "64", "64", "--out", str(out)]) == 2
    assert "must not be given with --exported" in capsys.readouterr().err
    assert exported(file, "--force", "--score", "1") == 1
    assert "nothing was found to compare" in capsys.readouterr().err
    for content, message in ((b"torn", "cannot be run"), (None, "must be a file that is there")):
        other = tmp_path / "other.onnx"
        other.unlink(missing_ok=True)
        if content is not None:
            other.write_bytes(content)
        assert main(["predict", str(tmp_path / "1.png"), "--onnx", str(other), "--out", str(out)]) == 2
        assert message in capsys.readouterr().err


def test_what_disagrees_is_not_kept(
    exportable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that predicts otherwise is named and gone; what stood there before stays."""

    def copy(model: ExportableModel, part: Path, *rest: object, **options: object) -> OnnxSummary:
        """As write_onnx, whose seconds were spent on this file."""
        shutil.copy(exportable / "model.onnx", part)
        return OnnxSummary(0, 0, 18, {})

    def nothing(session: OnnxSession, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        number, size = len(images), (images.shape[0], 100)
        zeros = {"boxes": np.zeros((*size, 4), np.float32), "labels": np.zeros(size, np.int64)}
        zeros |= {"scores": np.zeros(size, np.float32), "masks": np.zeros((*size, 28, 28), np.float32)}
        return zeros | {"count": np.zeros(number, np.int64)}

    file = tmp_path / "model.onnx"
    file.write_bytes(b"before")
    monkeypatch.setattr(OnnxSession, "__call__", nothing)
    monkeypatch.setattr("fastmask.export.api.write_onnx", copy)
    assert exported(file, "--force", "--raw", "--dtype", "float16") == 1
    assert f"0.0% match, 97% must: {file} is not kept" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert file.read_bytes() == b"before"


@pytest.mark.parametrize(
    "options", [("--raw", "--masks", "paste"), ("--dtype", "float16"), ("--opset", "20", "--dynamic")]
)
@pytest.mark.parametrize("runtime", ONNX_RUNTIMES)
@pytest.mark.slow
def test_every_kind(runtime: str, options: tuple[str, ...], tmp_path: Path) -> None:
    assert exported(tmp_path / "model.onnx", *options, "--runtime", runtime) == 0


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path, seed: int) -> None:
    """By the CUDA provider, which onnxruntime-gpu has."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA")
    exportable = ExportableModel(model())
    write_onnx(exportable, tmp_path / "model.onnx", Shape(2, 192, 224))
    session = OnnxSession(tmp_path / "model.onnx", "cuda:0")
    assert session.kind == "cuda"
    found = compare_outputs(exportable.predict_arrays, session, scenes(4, (180, 220), seed))
    assert_parity(found)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Which one is missing is format_parity before anything is exported."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert exported(tmp_path / "model.onnx") == 2
    assert "pip install 'fastmask-rcnn[onnxruntime]'" in capsys.readouterr().err
    assert main(["predict", str(tmp_path), "--onnx", "model.onnx", "--out", str(tmp_path / "out")]) == 2
    assert not list(tmp_path.glob("*.onnx"))
