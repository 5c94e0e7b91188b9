"""Variants: kernels as launchers specialize them, which audit.py compiles; each kernel's list stands beside it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # by Triton's names


class Variant(NamedTuple):
    """A kernel as a launcher would specialize it."""

    name: str
    kernel: Any
    types: dict[str, str]  # of arguments that are no constants: those not named are int32, those it lacks are ignored
    constants: dict[str, Any]
    options: dict[str, Any]
    multiples: tuple[str, ...] = ()  # int arguments that are multiples of 16
    default: bool = False  # of its kernel and dtype
    wide: tuple[str, ...] = ()  # which of LDG and STG must be 16 bytes wide, but for a RoI's own coordinates
    amd: Mapping[str, Any] = {}  # constants and options that differ there


def pointers(dtype: str, *names: str) -> dict[str, str]:
    """Types of the arguments ``NAME_ptr``, which point to one dtype."""
    return {f"{name}_ptr": f"*{dtype}" for name in names}
