"""``torch.compile(model)``, called as torchvision's models are: one graph, the same predictions."""

from typing import Any

import pytest
import torch
from helpers.images import draw_image, draw_keypoints
from helpers.slim import slim_pair
from torch import Tensor, nn

from fastmask import Predictor
from fastmask.evaluation.agreement import matched_share

SIZES = [[(100, 120), (90, 140)], [(80, 120), (90, 110)]]


@pytest.fixture(autouse=True)
def reset_compiler() -> None:
    torch._dynamo.reset()


def draw_batch(*sizes: tuple[int, int]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    pairs = [draw_image(*size, num=4) for size in sizes]
    for _, target in pairs:
        target["keypoints"] = draw_keypoints(target, 2)
    return [image.double() for image, _ in pairs], [target for _, target in pairs]


def check_same(compiled: nn.Module, model: nn.Module, sizes: list[tuple[int, int]]) -> int:
    """-> detections."""
    images, _ = draw_batch(*sizes)
    with torch.no_grad():
        actual, expected = compiled(images), model(images)
    assert len(actual) == len(expected) == len(sizes)
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name, values in theirs.items():
            torch.testing.assert_close(mine[name], values, rtol=1e-6, atol=1e-6)
    return sum(len(found["boxes"]) for found in expected)


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
def test_inference_on_images_of_any_sizes(dynamic: bool | None) -> None:
    """Other sizes are compiled anew, as constants, also where torch.compile would rather have them symbolic."""
    model = slim_pair(keypoints=2)[1].double()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=dynamic)
    assert all(check_same(compiled, model, sizes) for sizes in SIZES[: 1 if dynamic else 2])


def test_nothing_found() -> None:
    model = slim_pair(box_score_thresh=1.0)[1].double()
    assert check_same(torch.compile(model, fullgraph=True, backend="eager"), model, SIZES[0]) == 0


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_nothing_breaks_the_graph(training: bool) -> None:
    model = slim_pair(keypoints=2)[1].double().train(training)
    images, targets = draw_batch(*SIZES[0])
    explained = torch._dynamo.explain(model)(images, targets if training else None)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_training_step() -> None:
    model = slim_pair(keypoints=2, rpn_post_nms_top_n_train=100)[1].double().train()
    for part in (model.rpn, model.roi_heads):  # the same samples in both: the first candidates
        part.fg_bg_sampler.keys = lambda labels: torch.linspace(1, 0.1, labels.shape[1]).expand(labels.shape)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for sizes in SIZES:
        images, targets = draw_batch(*sizes)
        actual, expected = compiled(images, targets), model(images, targets)
        assert actual.keys() == expected.keys()
        for name, loss in expected.items():
            torch.testing.assert_close(actual[name], loss, rtol=1e-5, atol=1e-6)


def check_predictors(model: nn.Module, **options: Any) -> None:
    """Predictors match on images of two padded sizes, with 200 detections or more."""
    images = [draw_image(*size)[0] for size in [(128, 160), (100, 130)] * 8]
    expected = Predictor(model, "exact", dtype=torch.float32, masks="float", fuse="off")(images)
    actual = Predictor(model, "exact", masks="float", dtype=torch.float32, compile=True, **options)(images)
    total = sum(len(found["boxes"]) for found in expected)
    assert total >= 200
    pairs = zip(actual, expected, strict=True)
    assert sum(matched_share(ours, theirs) * len(theirs["boxes"]) for ours, theirs in pairs) / total >= 0.99


@pytest.mark.parametrize(
    ("fuse", "mask_buckets"), [("off", True), pytest.param("kernel", True, marks=pytest.mark.slow), ("cudnn", False)]
)
def test_compiled_predictor(fuse: str, mask_buckets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph of the program, or of each part, for each size; the backend is eager."""
    compiled: list[Any] = []
    compile = torch.compile

    def compile_eagerly(function: Any, *, options: dict[str, Any], **others: Any) -> Any:
        assert options == {"triton.cudagraphs": False}
        compiled.append(function.__code__)
        return compile(function, backend="aot_eager", **others)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    check_predictors(slim_pair()[1], fuse=fuse, mask_buckets=mask_buckets)
    assert len({*map(id, compiled)}) == len(compiled) == 2 * (4 if mask_buckets else 1)


@pytest.mark.slow
@pytest.mark.parametrize("fuse", ["off", "kernel", "cudnn"])
def test_predictor_compiled_by_inductor(fuse: str) -> None:
    check_predictors(slim_pair()[1], fuse=fuse)


@pytest.mark.gpu
@pytest.mark.parametrize("mask_buckets", [False, True], ids=["whole", "buckets"])
@pytest.mark.parametrize("fuse", ["off", "kernel", "cudnn"])
def test_compiled_and_captured(fuse: str, mask_buckets: bool) -> None:
    """Inductor's code runs inside a CUDA graph; float32 without TF32, as the matched rule requires."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        check_predictors(slim_pair()[1].cuda(), fuse=fuse, mask_buckets=mask_buckets)
    finally:
        torch.backends.cudnn.allow_tf32 = before
