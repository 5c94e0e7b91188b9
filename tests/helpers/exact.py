"""When two sets of detections are the same: in float64, and in float32."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastmask.evaluation.agreement import matched_share

if TYPE_CHECKING:
    from fastmask.export import Parity

Detections = dict[str, Tensor]


def assert_exact(actual: Detections, expected: Detections) -> None:
    """float64: same count, labels and order; boxes to 1e-6 pixels, scores and mask probabilities to 1e-9."""
    assert torch.equal(actual["labels"], expected["labels"])
    torch.testing.assert_close(actual["boxes"], expected["boxes"], rtol=0, atol=1e-6)
    torch.testing.assert_close(actual["scores"], expected["scores"], rtol=0, atol=1e-9)
    assert actual.keys() == expected.keys()


def assert_exact_masks(actual: Tensor, expected: Tensor) -> None:
    """The 28 x 28 probabilities (pasted ones jump where a box corner crosses a whole pixel)."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def assert_matched(actual: Iterable[Detections], expected: Iterable[Detections], least: float = 0.99) -> float:
    """float32: that share of all images' detections has a twin, or all of them but one -> how many there are.

    That one may lie where rounding decides: a corner on a whole pixel, which moves its pasted mask by one; an overlap
    or a score on its threshold. Seen: none of 22,680 on the slim models, one of 2,530 of exports.
    """
    total = lost = 0.0
    for one, other in zip(actual, expected, strict=True):
        weight = (len(one["boxes"]) + len(other["boxes"])) / 2
        total += weight
        lost += weight * (1 - matched_share(one, other))
    assert_few(lost, total, least)
    return total


def pair_masks(one: Detections, other: Detections) -> tuple[Tensor, Tensor]:
    """For each of the second's detections that the first has too, its row in both: equal scores may change places."""
    if len(one["boxes"]) == 0:
        assert_few(len(other["boxes"]), len(other["boxes"]), 0.99)
        return one["labels"], one["labels"]  # none
    apart = (one["boxes"][:, None] - other["boxes"]).abs().amax(2)
    nearest, row = apart.masked_fill(one["labels"][:, None] != other["labels"], torch.inf).min(0)
    theirs = (nearest < 0.5).nonzero()[:, 0]
    assert_few(len(other["boxes"]) - len(theirs), len(other["boxes"]), 0.99)
    return row[theirs], theirs


def assert_parity(found: "Parity", least: float = 0.99) -> None:
    """The same of an exported file; something must be found."""
    assert found.detections > 0
    assert_few((1 - found.share) * found.detections, found.detections, least)


def assert_few(lost: float, total: float, least: float) -> None:
    assert lost <= max(1.0, (1 - least) * total) + 1e-6, f"{lost:.1f} of {total:.0f} detections have no twin"
