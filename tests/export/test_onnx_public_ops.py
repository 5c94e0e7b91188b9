"""A user's module that calls our ops, by torch.onnx.export with our translations, in ONNX Runtime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision.ops as tv
from helpers.inputs import INF, NAN, adversarial_boxes, draw_boxes, draw_masks, finite
from helpers.slim import slim_pair
from torch import Tensor, nn

import fastmask
from fastmask import ops
from fastmask.evaluation.agreement import matched_share
from fastmask.export import translations
from fastmask.kernels.max_pool2d import max_pool2d_op

ANY = torch.export.Dim.DYNAMIC
Run = Callable[..., list[Tensor]]


class Module(nn.Module):
    """A user's."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def export(function: Callable[..., Any], *inputs: Tensor, shapes: Any = None, **options: Any) -> Run:
    """What ONNX Runtime computes of a function; ``shapes`` of inputs that vary, None: all as they are."""
    program = torch.onnx.export(
        Module(function).eval(),
        inputs,
        dynamic_shapes=None if shapes is None else (shapes,),
        custom_translation_table=translations(),
        verbose=False,
        **options,
    )
    return run_onnx(program)


def run_onnx(program: torch.onnx.ONNXProgram | None) -> Run:
    """A function that ONNX Runtime runs."""
    assert program is not None
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    file = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*values: Tensor) -> list[Tensor]:
        arrays = session.run(None, dict(zip(names, [value.numpy() for value in values], strict=True)))
        return [torch.from_numpy(array) for array in arrays]

    return run


def draw_candidates(num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes with many ties in scores and IoUs, and some that are none, scores, categories."""
    clustered = torch.cat([draw_boxes(8, largest=40)[torch.randint(8, (100,))], torch.randint(12, (100, 4)).float()])
    boxes = torch.cat([adversarial_boxes(), clustered])
    scores = torch.randint(4, (len(boxes),)).float()
    scores[::9], scores[1::9], scores[2::9] = NAN, INF, -INF
    chosen = torch.randperm(len(boxes))[:num]
    return boxes[chosen], scores[chosen], torch.randint(-2, 3, (len(chosen),))


@pytest.mark.parametrize("threshold", [0.5, pytest.param(0.0, marks=pytest.mark.slow)])
def test_nms_of_any_boxes(threshold: float) -> None:
    """The rule is torchvision's nms, category by category: also for ties, no boxes, swapped corners, NaN, infinity."""

    def suppress(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        padded = ops.nms_padded(boxes[None], scores[None], labels[None], iou_threshold=threshold, max_output=5)
        kept = ops.batched_nms(boxes, scores, labels, threshold)
        return ops.nms(boxes, scores, threshold), kept, ops.batched_nms(boxes, scores, labels / 2, threshold), *padded

    run = export(suppress, *draw_candidates(8), shapes=({0: ANY},) * 3)
    for num in (0, 1, 2, 200, 200, 200):
        inputs = boxes, scores, labels = draw_candidates(num)
        found, expected = run(*inputs), suppress(*inputs)
        assert all(map(torch.equal, found, expected))
        assert torch.equal(found[0], tv.nms(boxes, scores, threshold))
        for label in labels.unique():
            (own,) = (labels == label).nonzero(as_tuple=True)
            kept = found[1][labels[found[1]] == label]
            assert torch.equal(kept, own[tv.nms(boxes[own], scores[own], threshold)])


def draw_rois(num: int) -> Tensor:
    """RoIs of two images, of none, and some that are none."""
    boxes = torch.cat([adversarial_boxes(), draw_boxes(60, largest=60), torch.rand(60, 4) * 84 - 4])
    boxes = boxes[finite(boxes) | boxes.isnan().any(1)]  # ONNX Runtime lists every sample, as torchvision does
    image = torch.randint(-2, 4, (len(boxes), 1)).float()
    image[::17], image[3::17], image[4::17] = NAN, INF, -0.5
    return torch.cat([image, boxes], dim=1)[torch.randperm(len(boxes))[:num]]


def test_pooling_of_any_rois() -> None:
    """Also of no RoIs, and zeros for those that are none; any batch."""
    pooler = ops.MultiScaleRoIAlign(["0", "1"], 3, 2, canonical_scale=16, canonical_level=1)
    pyramid_most = ops.MultiScaleRoIPool(["0", "1"], 3, canonical_scale=16, canonical_level=1)
    levels_own = {"sampling_ratio": (3, 0), "aligned": True, "canonical_scale": 16, "canonical_level": 1}
    align, adaptive, pool_most = ops.RoIAlign(3, 0.5, 2, True), ops.RoIAlign((3, 2), 0.5, -1), ops.RoIPool((3, 2), 0.5)

    def pool(fine: Tensor, coarse: Tensor, rois: Tensor) -> tuple[Tensor, ...]:
        levels, sizes = {"0": fine, "1": coarse}, [(48, 64)]
        alone = ops.roi_align(fine, rois, 2, 0.5, -1, aligned=True)
        most = pool_most(fine, rois.round())  # of whole pixels, half of which lie between the map's
        several = [each(levels, [own[:, 1:]], sizes) for each, own in ((pooler, rois), (pyramid_most, rois.round()))]
        several.append(ops.multilevel_roi_align([fine, coarse], rois, 3, [0.5, 0.25], **levels_own))
        return align(fine, rois), adaptive(fine, rois), most, alone, *several

    shapes = ({0: ANY}, {0: ANY}, {0: ANY})
    run = export(pool, torch.rand(2, 3, 24, 32), torch.rand(2, 3, 12, 16), draw_rois(5), shapes=shapes)
    for batch, num in ((2, 0), (2, 1), (2, 200), (3, 200)):
        inputs = fine, _, rois = torch.rand(batch, 3, 24, 32), torch.rand(batch, 3, 12, 16), draw_rois(num)
        found = run(*inputs)
        for actual, expected in zip(found, pool(*inputs), strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
        sound = (rois[:, 1:].isfinite().all(1)) & (rois[:, 0] >= 0) & (rois[:, 0] < batch)
        assert not any(pooled[~sound & (rois[:, 0] != -0.5)].any() for pooled in found[:4])
        torch.testing.assert_close(found[1][sound], tv.roi_align(fine, rois[sound], (3, 2), 0.5), rtol=0, atol=1e-5)
        assert torch.equal(found[2][sound], tv.roi_pool(fine, rois[sound].round(), (3, 2), 0.5))


def test_pasting_in_any_boxes() -> None:
    """Both modes and all outputs, on images of any size; also of no masks."""

    def paste(masks: Tensor, boxes: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        size = image.shape
        whole = (
            ops.paste_masks_in_image(masks[:, None], boxes, size),
            ops.paste_masks(masks, boxes, size, output="packed"),
        )
        options: dict[str, Any] = {"mode": "continuous", "logits": True}
        return *whole, *(ops.paste_masks(masks, boxes, size, output=kind, **options) for kind in ("float", "bool"))

    shapes = ({0: ANY}, {0: ANY}, {0: ANY, 1: ANY})
    run = export(paste, draw_masks(3, 9), draw_boxes(3), torch.zeros(40, 37), shapes=shapes)
    for num, height, width in ((0, 40, 37), (1, 9, 8), (200, 33, 21)):
        boxes = torch.cat([adversarial_boxes(), draw_boxes(30, largest=60), torch.randint(-4, 60, (30, 4)).float()])
        boxes = boxes[torch.randperm(len(boxes))[:num]]
        inputs = draw_masks(len(boxes), 9), boxes, torch.zeros(height, width)
        found, expected = run(*inputs), paste(*inputs)
        assert [pasted.dtype for pasted in found] == [pasted.dtype for pasted in expected]
        for actual, pasted in zip(found[::2], expected[::2], strict=True):
            torch.testing.assert_close(actual, pasted, rtol=0, atol=1e-4)
        packed = [torch.from_numpy(np.unpackbits(packed, axis=-1, count=width)) for packed in (found[1], expected[1])]
        for (actual, pasted), values in zip((packed, (found[3], expected[3])), expected[::2], strict=True):
            near = ((values - 0.5).abs() < 1e-4).view(pasted.shape)  # rounding decides there
            assert actual.shape == pasted.shape
            assert bool(((actual == pasted) | near).all())


def test_boxes_and_layers() -> None:
    """What is plain PyTorch needs no translation, and none of it is lost."""
    pyramid = ops.FeaturePyramidNetwork([3, 3], 4, ops.LastLevelMaxPool())
    norm = ops.FrozenBatchNorm2d(3)

    def compute(x: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        inside = ops.clip_boxes_to_image(boxes, (100, 120))
        kept = inside[ops.remove_small_boxes(inside, 9.0)]
        centers = ops.box_convert(kept, "xyxy", "cxcywh")
        levels = pyramid({"0": x, "1": norm(nn.functional.avg_pool2d(x, 2))})
        return centers, ops.box_area(kept), ops.generalized_box_iou(kept, boxes), *levels.values()

    run = export(compute, torch.rand(2, 3, 8, 12), draw_boxes(9), shapes=({0: ANY}, {0: ANY}))
    inputs = torch.rand(3, 3, 8, 12), draw_boxes(40)
    with torch.no_grad():
        for actual, expected in zip(run(*inputs), compute(*inputs), strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_an_op_that_cannot_be_exported_is_named() -> None:
    """The last sentence of PyTorch's error is ours."""
    boxes, masks = draw_boxes(3), draw_masks(3, 9)
    cases: list[tuple[Callable[..., Any], tuple[Tensor, ...], str]] = [
        (
            lambda masks, boxes: ops.encode_masks(masks, boxes, (9, 9)),
            (masks, boxes),
            "encode_masks cannot be exported",
        ),
        (lambda boxes: ops.nms(boxes, boxes[:, 0], -0.1), (boxes,), "nms_padded: iou_threshold must be at least 0"),
        (lambda x: max_pool2d_op(x, None, 3, 2, 1), (masks[None],), "fastmask::max_pool2d has no tr"),
    ]
    for function, inputs, message in cases:
        with pytest.raises(Exception, match=message):
            export(function, *inputs)


@pytest.mark.slow
def test_rotated_boxes() -> None:
    """An exported program takes all pairs at once, which give what the pairs that meet give."""
    one, other = (torch.cat([draw_boxes(n)[:, :2], torch.rand(n, 3) * 60], dim=1) for n in (30, 20))
    expected = ops.box_iou(one, other, fmt="cxcywhr")
    run = export(lambda a, b: ops.box_iou(a, b, fmt="cxcywhr"), one[:3], other[:4], shapes=({0: ANY}, {0: ANY}))
    torch.testing.assert_close(run(one, other)[0], expected, rtol=0, atol=1e-5)
    assert expected.count_nonzero() > 20


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=str)
def test_exported_program_and_aotinductor(dtype: torch.dtype, tmp_path: Path) -> None:
    """The same module by torch.export, from there to ONNX, and compiled."""

    def detect(x: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        kept = ops.batched_nms(boxes, scores, labels, 0.5)
        rois = torch.nn.functional.pad(boxes[kept], (1, 0))
        return kept, ops.roi_align(x, rois, 3, 0.5, 2) + ops.roi_pool(x, rois, 3, 0.5)

    def draw(num: int) -> tuple[Tensor, ...]:
        return (
            torch.rand(1, 3, 24, 32),
            draw_boxes(num, (48, 64), 40),
            torch.rand(num),
            torch.randint(3, (num,)).to(dtype),
        )

    shapes = (({}, {0: ANY}, {0: ANY}, {0: ANY}),)
    program = torch.export.export(Module(detect), draw(9), dynamic_shapes=shapes)
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "module.pt2"))
    compiled = torch._inductor.aoti_load_package(package)
    translated = run_onnx(torch.onnx.export(program, custom_translation_table=translations(), verbose=False))
    inputs = draw(40)
    for run in (program.module(), compiled, translated):
        for actual, expected in zip(run(*inputs), detect(*inputs), strict=True):
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("changed", [False, True], ids=["static", "with parts of its own"])
def test_a_model_called_on_images(changed: bool, tmp_path: Path) -> None:
    """As torchvision's users export it; torchvision's own cannot be exported so: rows are data-dependent."""

    class Heads(fastmask.models.detection.roi_heads.RoIHeads):
        def postprocess_detections(self, *args: Any) -> Any:
            results = super().postprocess_detections(*args)
            large = [ops.box_area(boxes) > 300 for boxes in results[0]]
            return tuple([values[rows] for values, rows in zip(kind, large, strict=True)] for kind in results)

    model = slim_pair(box_score_thresh=0.0, rpn_post_nms_top_n_test=60, min_size=64, max_size=96)[1]
    if changed:
        model.roi_heads.__class__ = Heads
    image, file = torch.rand(3, 64, 80), tmp_path / "model.onnx"
    torch.onnx.export(model, ([image],), file, custom_translation_table=translations(), verbose=False)
    session = onnxruntime.InferenceSession(file)
    found = []
    for example in (torch.rand(3, 64, 80), torch.rand(3, 64, 80), image):  # a plain one would have ties alone
        outputs = session.run(None, {session.get_inputs()[0].name: example.numpy()})
        with torch.no_grad():
            (expected,) = model([example])
        found.append(len(outputs[0]))
        actual = dict(zip(expected, map(torch.from_numpy, outputs), strict=True))
        assert matched_share(actual, expected) >= 0.9
    assert found[-1] > 0
