"""What a prediction is made of: an op on its benchmark's inputs, and how much its launches have to do."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fastmask.kernels.predict.model import Work

SEED = 0


class Case(NamedTuple):
    """One row of the table.

    Args:
        build: from a generator -> the launcher's call, on CPU tensors, and the work of its launches, in their order.
        floor, target: microseconds; FACTS' section 1. None: there is none.
    """

    build: Callable[[torch.Generator], tuple[Callable[[], Any], Callable[[], list[Work]]]]
    floor: float | None = None
    target: float | None = None
