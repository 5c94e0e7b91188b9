"""fastmask::top_anchors against its specification: layouts, ties, special values, as many as there are, many chunks."""

import pytest
import torch
from helpers.inputs import FLOATS, INF, NAN
from torch import Tensor

from fastmask.kernels import reference_layers
from fastmask.kernels.launch import HAS_TRITON
from fastmask.kernels.top_anchors import top_anchors_op

SHAPES = [(10, 16), (5, 8), (2, 3)]


def bits(values: Tensor) -> Tensor:
    return values.cpu().contiguous().view(torch.uint8)


def check(logits: list[Tensor], number: int, device: torch.device) -> None:
    """Every bit, also of NaN and of zeros."""
    best, places = top_anchors_op([level.to(device) for level in logits], number)
    expected, wanted = reference_layers.top_anchors(logits, number)
    assert torch.equal(places.cpu(), wanted)
    assert best.dtype == expected.dtype
    assert torch.equal(bits(best), bits(expected))


def draw(dtype: torch.dtype, layout: str = "planes") -> list[Tensor]:
    levels = []
    for shape in SHAPES:
        values = torch.randn(2, 16, *shape).to(dtype)
        if layout != "planes":
            values = values.contiguous(memory_format=torch.channels_last)
        levels.append(values[:, :3] if layout == "joined" else values[:, :3].clone())
    return levels


@pytest.mark.parametrize("layout", ["planes", "channels last", "joined"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_meets_the_specification(dtype: torch.dtype, layout: str, device: torch.device) -> None:
    check(draw(dtype, layout), 100, device)


@pytest.mark.parametrize("number", [1, 7, 120, 10_000], ids="K{}".format)
def test_numbers(number: int, device: torch.device) -> None:
    """Up to all there are of some levels, and of all of them."""
    check(draw(torch.float32), number, device)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_ties_keep_the_order_of_anchors(
    dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties across chunks: the last ones kept are the first of equal logits."""
    if HAS_TRITON:
        monkeypatch.setattr("fastmask.kernels.triton.top_anchors.CHUNK", 128)
    check([(level * 2).round() for level in draw(dtype)], 100, device)
    check([level * 0 - 3 for level in draw(dtype)], 100, device)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_special_values(dtype: torch.dtype, device: torch.device) -> None:
    logits = [(level * 2).round() for level in draw(dtype)]
    for level in logits:
        values = level.view(-1)
        values[torch.randint(len(values), (6,))] = torch.tensor([NAN, INF, -INF, 0.0, -0.0, -NAN], dtype=dtype)
        values[::5] = -INF
    check(logits, 100, device)
    check(logits, 450, device)  # so that some are -inf
    for value in (-INF, NAN):
        check([torch.full_like(level, value) for level in logits], 100, device)


@pytest.mark.parametrize("levels", [1, 2, 5, 6], ids="L{}".format)
def test_levels_and_chunks(levels: int, device: torch.device) -> None:
    """Up to 26,112 anchors a level, in seven chunks; six levels take the eager fallback."""
    logits = [torch.randn(1, 3, 128 >> level, 68).bfloat16() for level in range(levels)]
    check(logits, 250, device)


def test_nothing(device: torch.device) -> None:
    for batch, number in ((0, 5), (2, 0)):
        best, places = top_anchors_op([torch.randn(batch, 3, 4, 5, device=device)], number)
        assert best.shape == places.shape == (batch, min(number, 60))
        assert places.dtype == torch.int64


def test_opcheck(device: torch.device) -> None:
    torch.library.opcheck(top_anchors_op, ([level.to(device) for level in draw(torch.float32)], 100))
