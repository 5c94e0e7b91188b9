"""Self-test case of an op."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DRAWS = ("ordinary", "adversarial", "single", "empty")


class OpCase(NamedTuple):
    """One op in one form: its inputs, its call, and the check of its outputs."""

    name: str
    op: str  # as FASTMASK_KERNELS names it
    draw: Callable[[torch.dtype, str], list[Tensor]]  # dtype, one of DRAWS -> inputs on the CPU
    call: Callable[..., list[Tensor]]  # the inputs, on any device
    check: Callable[[list[Tensor], list[Tensor]], None]  # inputs and outputs, on the CPU; AssertionError if they differ


def count_of(kind: str, ordinary: int) -> int:
    """Number of boxes, RoIs or rows to draw."""
    return {"single": 1, "empty": 0}.get(kind, ordinary)


def fill_like(values: Sequence[float], like: Tensor) -> Tensor:
    """Values on a tensor's device, without a copy from the host, which no graph may hold; integers are int64."""
    return torch.stack([torch.full((), value, device=like.device) for value in values])


def check_close(actual: Tensor, expected: Tensor, relative: float, absolute: float | None = None) -> None:
    """Raise AssertionError where values differ by more than a share, or NaN is elsewhere."""
    absolute = relative if absolute is None else absolute
    torch.testing.assert_close(
        actual.to(expected.dtype), expected, rtol=relative, atol=absolute, equal_nan=True, check_stride=False
    )
