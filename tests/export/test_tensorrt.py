"""Graphs for TensorRT: what the table refuses, and that the bounded NMS finds what the model finds."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from fastmask.cli import main
from fastmask.demo import draw_scene
from fastmask.export import ExportableModel, OnnxSession, Shape, TensorRTExportableModel, compare_outputs, write_onnx
from fastmask.export.parity import MIN_SHARE
from fastmask.export.tensorrt.graph import find_problems
from fastmask.export.tensorrt.module import best_of
from fastmask.models import detection
from fastmask.preprocess import normalize_padded
from fastmask.structures import Candidates

SIZE = (192, 224)
MOST = 700  # nodes
FEW, LEAST_SCORE = 40, 1e-4  # candidates that are considered; and what they score
Graph = onnx.ModelProto


def model(score: float = 0.05, **options: int) -> detection.MaskRCNN:
    return detection.maskrcnn_slim_fpn(weights="DEFAULT", box_score_thresh=score, **options).eval()


def scenes(number: int, seed: int) -> list[Tensor]:
    generator = np.random.default_rng(seed)
    return [torch.from_numpy(draw_scene(generator, (180, 220)).image).permute(2, 0, 1) for _ in range(number)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So few candidates are considered that some are left out."""
    path = tmp_path_factory.mktemp("tensorrt") / "model.onnx"
    found = write_onnx(TensorRTExportableModel(model(LEAST_SCORE), raw=True, candidates=FEW), path, Shape(2, *SIZE))
    assert found.nodes < MOST
    return path


@pytest.fixture
def graph(written: Path) -> Graph:
    return onnx.load(written)


def test_it_finds_what_the_model_finds(written: Path, seed: int) -> None:
    """NMS of the best candidates begins as that of all of them; the output says how many there were besides."""
    session, images = OnnxSession(written, "cpu"), scenes(60, seed)
    assert session.metadata["outputs"][-1] == "num_dropped"
    bounded, every = (
        TensorRTExportableModel(model(LEAST_SCORE), raw=True, candidates=FEW),
        ExportableModel(model(LEAST_SCORE), raw=True),
    )
    found = compare_outputs(bounded.predict_arrays, session, images)
    assert found.share >= MIN_SHARE[torch.float32]
    assert found.detections >= 200  # a share of fewer is no rule
    assert found.num_dropped > 0
    inputs, sizes = session.preprocess(images[:2])
    with torch.no_grad():
        candidates = candidates_of(bounded, torch.from_numpy(inputs), torch.from_numpy(sizes))
    num_dropped = [max(int(valid.sum()) - FEW, 0) for valid in candidates.valid]
    ours, theirs = every.predict_arrays(inputs, sizes), session(inputs, sizes)
    assert all(abs(a - b) <= 1 for a, b in zip(theirs["num_dropped"], num_dropped, strict=True))  # at the least score
    for i, number in enumerate(theirs["count"]):
        assert 1 <= number <= ours["count"][i]
        np.testing.assert_allclose(theirs["scores"][i, :number], ours["scores"][i, :number], atol=1e-4)
    blank = session(np.full((2, *SIZE, 3), 100, np.uint8), np.array([SIZE] * 2))
    assert blank["count"].tolist() == every.predict_arrays(inputs * 0 + 100, np.array([SIZE] * 2))["count"].tolist()


def candidates_of(bounded: TensorRTExportableModel, images: Tensor, sizes: Tensor) -> Candidates:
    """All that NMS would choose from."""
    model = bounded.model
    pixels = normalize_padded(images.permute(0, 3, 1, 2), sizes, bounded.image_mean, bounded.image_std)
    features, scales = model.extract(pixels)
    proposals = model.rpn.propose(*model.rpn.look(list(features.values()), SIZE), sizes)
    logits, deltas = model.roi_heads.classify(features, scales, proposals.boxes)
    return model.roi_heads.candidates(logits, deltas, proposals, sizes)


def test_the_best_in_their_order() -> None:
    """By hand: of five candidates that count, three are considered; none is dropped where there is room."""
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.8, 0.7, 0.6]])
    boxes = torch.arange(24.0).view(1, 6, 4)
    labels, valid = torch.arange(6)[None], torch.tensor([[True, True, True, False, True, True]])
    found = best_of(Candidates(boxes, labels, scores, valid), 3)
    assert found.labels.tolist() == [[1, 4, 5]]
    assert found.scores.tolist() == [pytest.approx([0.9, 0.7, 0.6])]
    tied = best_of(Candidates(boxes, labels, torch.full((1, 6), 0.5), valid), 5)
    assert tied.labels.tolist() == [[0, 1, 2, 4, 5]]  # in their order, which decides between equals
    assert torch.equal(found.boxes[0], boxes[0, [1, 4, 5]])
    assert found.valid.all()
    padded = best_of(Candidates(boxes, labels, scores, torch.zeros_like(valid)), 5)
    assert not padded.valid.any()
    same = Candidates(boxes, labels, scores, valid)
    assert best_of(same, 6) is same


def efficient_nms(graph: Graph) -> None:
    graph.graph.node.append(helper.make_node("EfficientNMS_TRT", ["boxes", "scores"], ["n"], domain="trt.plugins"))
    graph.opset_import.append(helper.make_opsetid("trt.plugins", 1))


def plugin_in_the_standard_domain(graph: Graph) -> None:
    graph.graph.node.append(helper.make_node("PyramidROIAlign_TRT", ["boxes"], ["n"]))


def loop(graph: Graph) -> None:
    body = helper.make_graph([], "body", [], [])
    graph.graph.node.append(helper.make_node("Loop", ["", ""], [], body=body))


def large_top_k(graph: Graph) -> None:
    graph.graph.input.append(helper.make_tensor_value_info("many", TensorProto.FLOAT, [2, 9000]))
    give(graph, first(graph, "TopK"), 1, np.array([4000]))
    first(graph, "TopK").input[0] = "many"


def top_k_of_too_few(graph: Graph) -> None:
    """Of 100 detections: 40 candidates, padded."""
    give(graph, [node for node in graph.graph.node if node.op_type == "TopK"][-1], 1, np.array([141]))


def two_bounds(graph: Graph) -> None:
    give(graph, first(graph, "NonMaxSuppression"), 2, np.array([10, 10]))


def centres(graph: Graph) -> None:
    set_attribute(first(graph, "NonMaxSuppression"), "center_point_box", 1)


def adaptive_sampling(graph: Graph) -> None:
    set_attribute(first(graph, "RoiAlign"), "sampling_ratio", 0)


def dynamic_batch(graph: Graph) -> None:
    graph.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "batch"


def uint8_to_int64(graph: Graph) -> None:
    graph.graph.node.append(helper.make_node("Cast", ["images"], ["whole"], to=TensorProto.INT64))


def uint8_constant(graph: Graph) -> None:
    graph.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.uint8), "bytes"))


def copied_side(graph: Graph) -> None:
    give(graph, first(graph, "Reshape"), 1, np.array([0, -1]))


def replaceable_constant(graph: Graph) -> None:
    """A default, which whoever runs the graph may replace."""
    name = first(graph, "TopK").input[1]
    graph.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, [1]))


def resize_by_both(graph: Graph) -> None:
    give(graph, first(graph, "Resize"), 2, np.ones(4, np.float32))


def first(graph: Graph, kind: str) -> onnx.NodeProto:
    return next(node for node in graph.graph.node if node.op_type == kind)


def give(graph: Graph, node: onnx.NodeProto, place: int, value: np.ndarray) -> None:
    """A constant of its own in the place of an input."""
    graph.graph.initializer.append(numpy_helper.from_array(value, "planted"))
    node.input[place] = "planted"


def set_attribute(node: onnx.NodeProto, name: str, value: int) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def nms_without_a_bound(graph: Graph) -> None:
    del first(graph, "NonMaxSuppression").input[2:]


def nms_of_all_classes(graph: Graph) -> None:
    """Each box competes in all of 150 classes: 150 times as many candidates."""
    node = [one for one in graph.graph.node if one.op_type == "NonMaxSuppression"][-1]
    graph.graph.input.append(helper.make_tensor_value_info("wide", TensorProto.FLOAT, [2, 150, FEW]))
    node.input[1] = "wide"


def nms_of_too_many(graph: Graph) -> None:
    """A single class with 6000 boxes."""
    node = [one for one in graph.graph.node if one.op_type == "NonMaxSuppression"][-1]
    for place, (name, sides) in enumerate((("many_boxes", [2, 6000, 4]), ("many_scores", [2, 1, 6000]))):
        graph.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sides))
        node.input[place] = name


def uint8_inside(graph: Graph) -> None:
    cast = next(node for node in graph.graph.node if node.input[0] == "images")
    graph.graph.node.insert(0, helper.make_node("Transpose", ["images"], ["turned"], perm=[0, 1, 2, 3]))
    cast.input[0] = "turned"


def int64_roots(graph: Graph) -> None:
    graph.graph.node.append(helper.make_node("Sqrt", ["labels"], ["root"]))


def silent_sampling_ratio(graph: Graph) -> None:
    node = first(graph, "RoiAlign")
    kept = [attribute for attribute in node.attribute if attribute.name != "sampling_ratio"]
    del node.attribute[:]
    node.attribute.extend(kept)


def reduction_of_a_scatter(graph: Graph) -> None:
    first(graph, "ScatterND").attribute.append(helper.make_attribute("reduction", "add"))


def negative_indices(graph: Graph) -> None:
    graph.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "last"))
    graph.graph.node.append(helper.make_node("Gather", ["boxes", "last"], ["end"], axis=1))


def unnamed_indices(graph: Graph) -> None:
    first(graph, "TopK").output[1] = ""


def computed_axes(graph: Graph) -> None:
    first(graph, "ReduceProd").input[1] = "sizes"


def bool_constant(graph: Graph) -> None:
    graph.graph.initializer.append(numpy_helper.from_array(np.array([True]), "yes"))


def broadcast_einsum(graph: Graph) -> None:
    first(graph, "Einsum").attribute[0].s = b"...d,...dhw->...hw"


def negative_threshold(graph: Graph) -> None:
    give(graph, first(graph, "NonMaxSuppression"), 4, np.array([-1.0], np.float32))


def new_opset(graph: Graph) -> None:
    graph.opset_import[0].version = 25


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (efficient_nms, "EfficientNMS_TRT is not in the table"),
        (plugin_in_the_standard_domain, "PyramidROIAlign_TRT is not in the table"),
        (loop, "Loop is not in the table"),
        (large_top_k, "K must be one number in [1, 3840], got 4000"),
        (top_k_of_too_few, "K must be one number in [1, 140], got 141"),
        (nms_without_a_bound, "input 2 must be a constant"),
        (nms_without_a_bound, "max_output_boxes_per_class must be one number from 1 on, got None"),
        (two_bounds, "max_output_boxes_per_class must be one number from 1 on, got None"),
        (centres, "center_point_box must be one of 0, got 1"),
        (adaptive_sampling, "sampling_ratio must be at least 1, got 0"),
        (dynamic_batch, "input sizes must be of known sides"),
        (uint8_to_int64, "UINT8 must be cast to FLOAT or FLOAT16, got INT64"),
        (uint8_constant, "constant bytes must not be UINT8"),
        (copied_side, "no side may be 0"),
        (replaceable_constant, "input 1 must be a constant"),
        (resize_by_both, "scales or sizes must be given"),
        (nms_of_all_classes, "candidates of an image, over all classes, must be at most 5000, got 6000"),
        (nms_of_too_many, "candidates of an image, over all classes, must be at most 5000, got 6000"),
        (negative_threshold, "score_threshold must be one number in [0, 1), as no other is documented, got -1.0"),
        (uint8_inside, "UINT8, which only a Cast of a graph's input may take"),
        (int64_roots, "must be one of BFLOAT16, FLOAT, FLOAT16, got INT64"),
        (silent_sampling_ratio, "sampling_ratio must be given"),
        (reduction_of_a_scatter, "attribute reduction is not in the table"),
        (negative_indices, "indices must not be negative"),
        (unnamed_indices, "outputs with a name must be 2, got 1"),
        (computed_axes, "input 1 must be a constant"),
        (bool_constant, "constant yes must not be BOOL"),
        (broadcast_einsum, "equation must be of two tensors"),
        (new_opset, "of opset 9 to 24, got 25"),
    ],
)
def test_the_table_refuses(graph: Graph, plant: Callable[[Graph], None], message: str) -> None:
    assert find_problems(graph) == []
    plant(graph)
    found = find_problems(graph)
    assert any(message in problem for problem in found), found


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What the table refuses is not written; what cannot be asked for is format_parity."""
    file = tmp_path / "model.onnx"
    command = ["export", str(file), "--model", "maskrcnn_slim_fpn", "--weights", "SHAPES_V1", "--size", "192", "224"]
    assert main([*command, "--target", "tensorrt", "--dynamic"]) == 2
    assert "for TensorRT a graph must be of one batch and size" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--target", "openvino"])
    assert "argument --target: invalid choice: 'openvino'" in capsys.readouterr().err
    assert main([*command, "--target", "tensorrt"]) == 0
    format_parity = capsys.readouterr().out
    assert "checked by onnx and the table of TensorRT" in format_parity
    assert "left out of NMS, which looks at 3840 boxes: at most 0 of an image" in format_parity
    file.unlink()
    monkeypatch.setattr("fastmask.export.tensorrt.graph.NMS_BOXES", 500)  # the RPN proposes 300 of 1000 and more
    assert main([*command, "--target", "tensorrt"]) == 2
    assert "TensorRT refuses the graph: NonMaxSuppression" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_engines_say_what_is_missing(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from types import ModuleType

    from fastmask.export.tensorrt import engine

    assert engine.main([str(tmp_path / "none.onnx")]) == 2
    assert "cannot be run" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert engine.main([str(written)]) == 2
    assert "TensorRT is not installed: pip install tensorrt" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engine.main([str(written)]) == 2
    assert "an NVIDIA GPU must be there" in capsys.readouterr().err


@pytest.mark.gpu
def test_an_engine(written: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    from fastmask.export.tensorrt import engine

    assert engine.main([str(written), "--save", str(tmp_path / "model.engine")]) == 0
    assert (tmp_path / "model.engine").stat().st_size > 0
