"""Variants that a tuning file can choose, for audit.py: the choices of knobs.py, alone and together."""

import contextlib
import importlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from unittest import mock

from fastmask.kernels.knobs import KNOBS, Knob, Value
from fastmask.kernels.variant import Variant


def tuned_variants(shipped: Callable[[], Iterator[Variant]]) -> Iterator[Variant]:
    """Variants that only other choices give; ``shipped`` yields those of the modules' constants as they are."""
    known = {_key(variant) for variant in shipped()}
    compiled: dict[str, list[Knob]] = defaultdict(list)  # by module: knobs that are constants of its kernels
    for knob in KNOBS.values():
        if knob.module and any(_key(v) not in known for choice in knob.choices for v in _with({knob: choice}, shipped)):
            compiled[knob.module].append(knob)
    for knobs in compiled.values():
        for choices in itertools.product(*(knob.choices for knob in knobs)):
            chosen = dict(zip(knobs, choices, strict=True))
            suffix = ", ".join(f"{knob.name} {choice}" for knob, choice in chosen.items())
            for variant in _with(chosen, shipped):
                if _key(variant) not in known:
                    known.add(_key(variant))
                    yield variant._replace(name=f"{variant.name}, {suffix}", default=False)


def _key(variant: Variant) -> tuple[str, str, str]:
    return variant.name, repr(variant.constants), repr(variant.options)


def _with(chosen: dict[Knob, Value], shipped: Callable[[], Iterator[Variant]]) -> list[Variant]:
    """The variants with these choices as the modules' constants."""
    with contextlib.ExitStack() as stack:
        for knob, choice in chosen.items():
            module = importlib.import_module(f"fastmask.kernels.{knob.module}")
            values = choice if isinstance(choice, tuple) else (choice,)
            for constant, value in zip(knob.constants, values, strict=True):
                stack.enter_context(mock.patch.object(module, constant, value))
        return list(shipped())
