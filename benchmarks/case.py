"""A benchmark case: one operation on one set of inputs, computed by each provider."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None  # a baseline here, never needed to run
HAS_PYCOCOTOOLS = importlib.util.find_spec("pycocotools") is not None  # encodes a baseline's masks

Check = Callable[[Any, Any], None]  # raises AssertionError unless a result matches the first provider's


class Case(NamedTuple):
    """One operation on one set of inputs.

    Args:
        providers: functions without arguments, by name; the others' results must match the first one's.
        check: raises AssertionError unless a result matches the first provider's.
        inputs: shapes and dtypes, for the report.
        min_bytes: bytes that must be read and written; None where memory is not the bound.
        checks: looser checks of providers that round more, by name.
        sample: compares fastmask with the literal reference on a few of the inputs, where torchvision is missing.
        capturable: the part of a provider's run that has no host sync, by name; a CUDA graph of it gives device times.
    """

    providers: Mapping[str, Callable[[], Any]]
    check: Check
    inputs: str
    min_bytes: int | None = None
    checks: Mapping[str, Check] = {}
    sample: Callable[[], None] | None = None
    capturable: Mapping[str, Callable[[], Any]] = {}


class CaseSpec(NamedTuple):
    """How a case is built, and whether it runs by default.

    Args:
        build: makes the case from a generator, on a device; called once for each set of inputs.
        default: whether it runs without ``--full``.
        scales: scaling curves that it is a point of: the operation, the quantity that grows, and its value here.
        sets: sets of inputs that rounds cycle through.
        rounds: maximum number of timed rounds.
        providers: names of the case's providers where torchvision is installed; the first one is the baseline.
        on_cuda: further providers, on a GPU only.
    """

    build: Callable[[torch.Generator, torch.device], Case]
    default: bool = True
    scales: tuple[tuple[str, str, int], ...] = ()
    sets: int = 3
    rounds: int = 11
    providers: tuple[str, ...] = ("torchvision", "fastmask")
    on_cuda: tuple[str, ...] = ()
