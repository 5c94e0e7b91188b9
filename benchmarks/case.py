"""What a case is: one operation on one set of inputs, as each provider does it."""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

HAS_TORCHVISION = importlib.util.find_spec("torchvision") is not None  # a baseline here, never needed to run
HAS_PYCOCOTOOLS = importlib.util.find_spec("pycocotools") is not None  # what encodes a baseline's masks

Rule = Callable[[Any, Any], None]  # raises AssertionError unless an answer agrees with the first provider's


class Case(NamedTuple):
    """One operation on one set of inputs.

    Args:
        providers: by name, functions without arguments; the first one's answer is what the others must agree with.
        agree: the rule for that.
        inputs: shapes and dtypes, for the report.
        min_bytes: that must be moved; None: what binds is something else.
        rules: other rules, of providers that round more.
        sample: compare ours with the literal reference on a few of the inputs; for where torchvision is missing.
        capturable: by provider, what of its run never waits for the device: captured in a CUDA graph for device times.
    """

    providers: Mapping[str, Callable[[], Any]]
    agree: Rule
    inputs: str
    min_bytes: int | None = None
    rules: Mapping[str, Rule] = {}
    sample: Callable[[], None] | None = None
    capturable: Mapping[str, Callable[[], Any]] = {}


class Entry(NamedTuple):
    """How a case is made, and when it is chosen.

    Args:
        build: from a generator, on a device; called once for each set of inputs.
        chosen: by default; the others with ``--full``.
        scales: of fitted exponents that it is a point of, the operation, what it grows with, and the number here.
        sets: of inputs that rounds take in turns.
        rounds: that are timed, at most.
        providers: of the case, where torchvision is installed; the first one is what others must agree with.
        on_cuda: more of them, on a GPU only.
    """

    build: Callable[[torch.Generator, torch.device], Case]
    chosen: bool = True
    scales: tuple[tuple[str, str, int], ...] = ()
    sets: int = 3
    rounds: int = 11
    providers: tuple[str, ...] = ("torchvision", "fastmask")
    on_cuda: tuple[str, ...] = ()
