"""A kernel as a launcher would specialize it: what the audit compiles ahead of time."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Variant(NamedTuple):
    """A kernel as a launcher would specialize it."""

    name: str
    kernel: Any
    types: dict[str, str]  # of arguments that are no constants: those not named are int32
    constants: dict[str, Any]
    options: dict[str, Any]
    multiples: tuple[str, ...]  # int arguments that are multiples of 16
    default: bool  # of its kernel and dtype
    wide: tuple[str, ...]  # which of LDG and STG must be 16 bytes wide, but for a RoI's own coordinates
    amd: Mapping[str, Any] = {}  # constants and options that are others there
