"""Comparison of a kernel's result with the expected one: a list of what is wrong, empty where nothing is."""

import torch
from torch import Tensor

ULP = {torch.float32: 2.0**-22, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def close(what: str, actual: Tensor, expected: Tensor, atol: float) -> list[str]:
    """``expected`` is float64; ``actual`` may differ by ``atol`` and one rounding to its dtype."""
    a, e = actual.double(), expected.double()
    good = ((a - e).abs() <= atol + ULP[actual.dtype] * e.abs()) | (a.isnan() & e.isnan()) | (a == e)
    return _differences(what, good, a, e)


def same(what: str, actual: Tensor, expected: Tensor) -> list[str]:
    if actual.shape != expected.shape:
        return [f"{what}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"]
    return _differences(what, actual == expected, actual, expected)


def _differences(what: str, good: Tensor, actual: Tensor, expected: Tensor) -> list[str]:
    if bool(good.all()):
        return []
    at = tuple((~good).nonzero()[0].tolist())
    count = f"{int((~good).sum())} of {good.numel()} differ"
    return [f"{what}: {count}, first at {at}: {actual[at].item()} instead of {expected[at].item()}"]
