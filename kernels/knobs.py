"""Knobs that ``fastmask tune`` may turn: constants of launchers and settings of Predictor, each with few choices.

Every choice compiles without spills (audit.py compiles all of them), so no tuning file leads to an unknown kernel.
Results are bitwise those of the defaults where ``exact``; elsewhere sums may round differently, and are bitwise
reproducible for a given tuning file.
"""

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

Value = bool | int | str | tuple[int, ...]


class Knob(NamedTuple):
    """A tunable constant or setting.

    Args:
        name: in tuning files.
        op: whose workloads time it; see fastmask.benchmarks.tune_cases.
        choices: all values it can have. Of a Predictor's setting the first one is the default.
        exact: whether the choice changes no bit of a result.
        module: of fastmask.kernels, which has the default; empty for a Predictor's setting.
        constants: that are the default there; several are one value, a tuple.
    """

    name: str
    op: str
    choices: tuple[Value, ...]
    exact: bool
    module: str = ""
    constants: tuple[str, ...] = ()

    @property
    def default(self) -> Value:
        """The value without a tuning file."""
        if not self.module:
            return self.choices[0]
        module = importlib.import_module(f"fastmask.kernels.{self.module}")
        values: tuple[Any, ...] = tuple(getattr(module, constant) for constant in self.constants)
        return values[0] if len(values) == 1 else values  # type: ignore[no-any-return]


KNOBS: dict[str, Knob] = {
    knob.name: knob
    for knob in (
        # channels of a tile, and so the warps of a program
        Knob("roi_align.channels", "roi_align", (64, 128), False, "triton.roi_align", ("CHANNELS",)),
        # how finely few RoIs are divided, by rows of bins
        Knob("roi_align.programs", "roi_align", (512, 1024, 2048, 4096), True, "triton.roi_align", ("PROGRAMS",)),
        # taps for each pixel of NCHW maps from which on a channels-last copy pays
        Knob("roi_align.copy_taps", "roi_align_apart", (1, 2, 4), False, "triton.channels_last", ("COPY_TAPS",)),
        # pixels of a program: 32, or 16, for fewer registers and more gradients read twice; (8, 4) spills on sm_100
        Knob(
            "roi_align_backward.tile",
            "roi_align_backward",
            ((4, 8), (4, 4), (2, 8)),
            False,
            "triton.roi_align_backward",
            ("TILE_Y", "TILE_X"),
        ),
        # programs that share a block of rows of pairs
        Knob("nms.splits", "nms", (4, 8, 16, 32), True, "triton.nms_pairs", ("SPLITS",)),
        # pairs up to which boxes are counted instead of sorted
        Knob("nms.comparisons", "nms_counted", (2**20, 2**22, 2**24), True, "triton.nms", ("COMPARISONS",)),
        # warps in all, and the least rows for one
        Knob("paste.programs", "paste_masks", (2048, 4096, 8192, 16384), True, "triton.paste", ("PROGRAMS",)),
        Knob("paste.lines", "paste_masks", (4, 8, 16), True, "triton.paste", ("LINES",)),
        # chunks in all; warps of a mask's text, whose programs are few
        Knob("rle.programs", "encode_masks", (2048, 4096, 8192), True, "triton.rle", ("PROGRAMS",)),
        Knob("rle.text_warps", "encode_masks", (4, 8), True, "triton.rle", ("TEXT_WARPS",)),
        # a host sync for the number of detections, against masks for rows that are padding
        Knob("predictor.mask_buckets", "predictor", (False, True), False),
        # in which form convolutions have bias, residual and ReLU; the first is the default on CUDA
        Knob("predictor.fuse", "predictor", ("cudnn", "kernel", "off"), False),
    )
}


def name_at(name: str, size: Sequence[int], batch: int, dtype: torch.dtype) -> str:
    """The name of a Predictor's setting at one shape, since each shape is timed on its own."""
    return f"{name} at {size[0]}x{size[1]}, batch {batch}, {str(dtype).removeprefix('torch.')}"


def check_value(name: str, value: Any) -> Value:
    """Check a value from a file -> the value as launchers take it.

    Raises:
        ValueError: there is no such knob, or it has no such choice.
    """
    base, _, shape = name.partition(" at ")
    knob = KNOBS.get(base)
    if knob is None or bool(shape) != (not knob.module):
        raise ValueError(f"{name!r} is no knob of this version")
    value = tuple(value) if isinstance(value, list) else value
    for choice in knob.choices:
        if type(choice) is type(value) and choice == value:
            return choice
    raise ValueError(f"{name} must be one of {', '.join(map(repr, knob.choices))}, got {value!r}")
