"""Predicted times of a trace's kernels on an H100, inside a CUDA graph; nothing is measured.

Each kernel costs machine.LAUNCH and its work; kernels run one after the other:
- convolutions and matrix products: their operations at EFFICIENCY of the tensor cores, or their bytes from HBM if that
  takes longer;
- fastmask's operations, all their kernels together: as kernels/predict has them, by the amount they scale with (RoIs x
  bins, images, masks). What is added beyond the largest prediction takes its pipes' time or its bytes', as the longest
  programs of all images run side by side: that rule gives 199 us for the RoIAlign of 4096 RoIs from that of 1000, and
  49 us for NMS of eight images from that of one, where their own rows have 200 and 46. Of an operation without a row
  its bytes count, or its operations as above;
- others: their bytes, from the L2 cache where they fit there; of a selection or a sort within one block also its steps.
"""

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fastmask.benchmarks.expansions import CONVOLUTION, PART, PRODUCT, TRITON, Kernel
from fastmask.benchmarks.trace import Call
from fastmask.kernels.predict import machine
from fastmask.kernels.predict.table import SAVED
from fastmask.kernels.predict.torch_ops import CACHE

# dense operations a second of the tensor cores [N]; float32 convolutions in TF32
PEAK = {"bfloat16": 989e12, "float16": 989e12, "float32": 494e12}
EFFICIENCY = 0.55  # of PEAK: 53 to 60 % is what GPU.md's reviews took for 3 x 3 convolutions of these sizes [A]
STEP = 0.2  # microseconds of a block for one pass over 1024 elements, two bits at a time [A]


class Row(NamedTuple):
    """A case of kernels/predict that represents an operation."""

    case: str
    amount: int  # see trace.AMOUNTS


ROWS: dict[str, tuple[Row, ...]] = {
    "fastmask::multilevel_roi_align": (
        Row("RoIAlign, 1000 RoIs, bf16, channels-last", 1000 * 49),
        Row("RoIAlign, 8 x 512 RoIs, bf16, channels-last", 8 * 512 * 49),
    ),
    "fastmask::nms_padded, presorted": (
        Row("RPN NMS, 4819 boxes in 5 levels", 1),
        Row("RPN NMS, 8 x 4819 boxes in 5 levels", 8),
    ),
    "fastmask::nms_padded": (Row("class NMS, 20k boxes in 80 classes", 1),),
    "fastmask::encode_masks": (Row("RLE of 100 masks, 800 x 1333, on the device", 100),),
    "fastmask::class_masks": (
        Row("mask branch's last layers, 100 detections, bf16", 100),
        Row("mask branch's last layers, 8 x 100 detections, bf16", 800),
    ),
    "fastmask::decode_keypoints": (Row("keypoints, 17 of 100 detections", 100),),
}


class Time(NamedTuple):
    """Microseconds by kind of kernel."""

    launches: float
    products: float  # convolutions and matrix products
    own: float  # fastmask's kernels
    other: float

    @property
    def total(self) -> float:
        return sum(self)


def predict(calls: Mapping[Call, int], dtype: str) -> Time:
    """Predict the time of calls, each with its count."""
    times = [0.0] * 4
    for call, number in calls.items():
        times[0] += number * sum(kernel.kind != PART for kernel in call.kernels) * machine.LAUNCH
        if call.operation in ROWS:
            times[2] += number * _own(ROWS[call.operation], call.amount)
            continue
        for kernel in call.kernels:
            if kernel.kind in (CONVOLUTION, PRODUCT, PART):
                times[1] += number * _product(kernel, dtype)
            elif kernel.kind == TRITON:
                times[2] += number * max(_computed(kernel, dtype), _moved(kernel))
            else:
                times[3] += number * _moved(kernel)
    return Time(*times)


def _computed(kernel: Kernel, dtype: str) -> float:
    return kernel.flops / (PEAK[dtype] * EFFICIENCY) * 1e6


def _product(kernel: Kernel, dtype: str) -> float:
    return max(_computed(kernel, dtype), kernel.moved_bytes / (machine.HBM * machine.HBM_EFFICIENCY) * 1e6)


def _moved(kernel: Kernel) -> float:
    speed = machine.L2 if kernel.moved_bytes < CACHE else machine.HBM * machine.HBM_EFFICIENCY
    return kernel.moved_bytes / speed * 1e6 + kernel.steps * STEP


class _Work(NamedTuple):
    """Microseconds of one amount, without launches, and of each further such amount on a full GPU."""

    alone: float
    further: float


def _own(rows: Sequence[Row], amount: int) -> float:
    """Interpolate linearly between two rows; beyond the last one, pipes and bytes bound the rest."""
    known = [(0, 0.0), *((row.amount, _work(row.case).alone) for row in rows)]
    for (low, before), (high, after) in itertools.pairwise(known):
        if amount <= high:
            return before + (after - before) * (amount - low) / (high - low)
    last, alone = known[-1]
    return alone + (amount / last - 1) * _work(rows[-1].case).further


@functools.cache
def _work(case: str) -> _Work:
    """The newest prediction of a case."""
    versions = json.loads(SAVED.read_text())["versions"]
    row = [row for version in versions for row in version["rows"] if row["op"] == case][-1]
    parts = row["parts"]
    further = max(parts["issue"] / machine.EFFICIENCY, parts["bytes"] / machine.L2_EFFICIENCY) + parts["torch"]
    return _Work(row["predicted"] - parts["launches"], further)
