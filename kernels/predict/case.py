"""Cases of predictions: an op on its benchmark's inputs, and the work of its launches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fastmask.kernels.predict.model import Work

SEED = 0
Built = tuple[Callable[[], Any], Callable[[], list[Work]]]  # the launcher's call; the work of its launches


class Case(NamedTuple):
    """One row of the table.

    Args:
        build: from a generator -> the launcher's call on CPU tensors, and the work of its launches.
        floor, target: microseconds on an H200: of bytes or steps that cannot be avoided, and the goal.
    """

    build: Callable[[torch.Generator], Built]
    floor: float | None = None
    target: float | None = None
