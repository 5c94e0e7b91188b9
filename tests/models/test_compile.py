"""``torch.compile(model)``, called as torchvision's models are: one graph, the same answers."""

import pytest
import torch
from pictures import draw_picture
from slim import slim_pair
from torch import Tensor, nn

SIZES = [[(100, 120), (90, 140)], [(80, 120), (90, 110)]]


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch._dynamo.reset()


def drawn(*sizes: tuple[int, int]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    pairs = [draw_picture(*size, num=4) for size in sizes]
    return [picture.double() for picture, _ in pairs], [target for _, target in pairs]


def check_same(compiled: nn.Module, model: nn.Module, sizes: list[tuple[int, int]]) -> int:
    """-> detections."""
    images, _ = drawn(*sizes)
    with torch.no_grad():
        actual, expected = compiled(images), model(images)
    assert len(actual) == len(expected) == len(sizes)
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name, values in theirs.items():
            torch.testing.assert_close(mine[name], values, rtol=1e-6, atol=1e-6)
    return sum(len(found["boxes"]) for found in expected)


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
def test_inference_on_pictures_of_any_sizes(dynamic: bool | None) -> None:
    """Other sizes are compiled anew, as constants, also where torch.compile would rather have them symbolic."""
    model = slim_pair()[1].double()
    compiled = torch.compile(model, fullgraph=True, backend="eager" if dynamic else "aot_eager", dynamic=dynamic)
    assert all(check_same(compiled, model, sizes) for sizes in SIZES[: 1 if dynamic else 2])


def test_nothing_found() -> None:
    model = slim_pair(box_score_thresh=1.0)[1].double()
    assert check_same(torch.compile(model, fullgraph=True, backend="eager"), model, SIZES[0]) == 0


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_nothing_breaks_the_graph(training: bool) -> None:
    model = slim_pair()[1].double().train(training)
    images, targets = drawn(*SIZES[0])
    explained = torch._dynamo.explain(model)(images, targets if training else None)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


def test_training_step() -> None:
    model = slim_pair(rpn_post_nms_top_n_train=100)[1].double().train()
    for part in (model.rpn, model.roi_heads):  # the same samples in both: the first candidates
        part.fg_bg_sampler.keys = lambda labels: torch.linspace(1, 0.1, labels.shape[1]).expand(labels.shape)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for sizes in SIZES:
        images, targets = drawn(*sizes)
        actual, expected = compiled(images, targets), model(images, targets)
        assert actual.keys() == expected.keys()
        for name, loss in expected.items():
            torch.testing.assert_close(actual[name], loss, rtol=1e-5, atol=1e-6)
