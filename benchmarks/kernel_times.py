"""``python -m fastmask.benchmarks.kernel_times FILE.json``: each kernel of a Predictor's call on a GPU, in order.

The measured counterpart of ``launches``, which counts and predicts without a GPU. Times are CUPTI's, of replays of the
captured graph: the profiler adds a little to each kernel, so the sum exceeds ``timeline``'s time of the program. The
file is written after each batch size and form. On a CPU, PyTorch's operations take the place of kernels.
"""

import argparse
import collections
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from fastmask.benchmarks.cases.model import calibrated_model
from fastmask.benchmarks.inputs import IMAGE_SIZE, PADDED_SIZE, textured_image
from fastmask.benchmarks.measure import name_of, synchronize, versions
from fastmask.inference.predictor import Predictor
from fastmask.kernels.tuning import with_index
from fastmask.models.prepare import FUSE_MODES

CALLS = 6  # profiled ones


class Span(NamedTuple):
    """One kernel or copy, in microseconds from the first one of its call."""

    name: str
    start: float
    end: float


def profile_calls(predictor: Predictor, images: list[torch.Tensor]) -> list[list[Span]]:
    """Kernels and copies of each of CALLS calls, in order."""
    on_cuda = predictor.device.type == "cuda"
    calls = []
    for _ in range(3):  # the first ones compile, tune and capture
        predictor(images)
    for _ in range(CALLS):
        synchronize(predictor.device)
        with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as profiler:
            predictor(images)
            synchronize(predictor.device)
        calls.append(read_spans(profiler, DeviceType.CUDA if on_cuda else DeviceType.CPU))
    return calls


def read_spans(profiler: Any, device_type: Any = DeviceType.CUDA) -> list[Span]:
    """Kernels, copies and fills that a profiler recorded on the GPU."""
    events = [event for event in profiler.events() if event.device_type == device_type]
    events.sort(key=lambda event: event.time_range.start)
    first = events[0].time_range.start if events else 0
    return [Span(event.name, event.time_range.start - first, event.time_range.end - first) for event in events]


def summarize(calls: Sequence[Sequence[Span]]) -> dict[str, Any]:
    """Medians over calls: launches and microseconds by name; and the last call's kernels in order."""
    totals: dict[str, list[float]] = collections.defaultdict(list)
    counts: dict[str, int] = {}
    for call in calls:
        own: dict[str, list[float]] = collections.defaultdict(list)
        for span in call:
            own[span.name].append(span.end - span.start)
        for name, values in own.items():
            totals[name].append(sum(values))
            counts[name] = len(values)
    kernels = {name: [counts[name], round(statistics.median(values), 2)] for name, values in totals.items()}
    busy = [sum(span.end - span.start for span in call) for call in calls]
    return {
        "kernels a call": statistics.median(len(call) for call in calls),
        "busy": round(statistics.median(busy), 1),
        "from first to last": round(statistics.median(call[-1].end for call in calls), 1),
        "by name": dict(sorted(kernels.items(), key=lambda item: -item[1][1])),
        "in order": [[span.name[:80], round(span.start, 2), round(span.end - span.start, 2)] for span in calls[-1]],
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastmask.benchmarks.kernel_times", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes [1 8]")
    parser.add_argument("--fuse", nargs="+", default=["auto"], choices=("auto", *FUSE_MODES))
    args = parser.parse_args(argv)
    device = with_index(torch.device(args.device))
    result: dict[str, Any] = {"device": name_of(device), **versions(), "unit": "microseconds", "finished": False}
    model = calibrated_model("fastmask", device)
    generator = torch.Generator().manual_seed(0)
    for batch in args.batch:
        images = [(textured_image(generator, IMAGE_SIZE) * 255).byte().to(device) for _ in range(batch)]
        for fuse in args.fuse:
            predictor = Predictor(model, PADDED_SIZE, batch, torch.bfloat16, fuse=fuse)
            summary = result[f"batch {batch}, bfloat16, {predictor.fuse}"] = summarize(profile_calls(predictor, images))
            args.file.write_text(json.dumps(result))
            print(f"batch {batch}, {predictor.fuse}: {summary['kernels a call']} in {summary['from first to last']} us")
            for name, (count, total) in list(summary["by name"].items())[:25]:
                print(f"{total:9.1f} {count:4} {name[:110]}")
    result["finished"] = True
    args.file.write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
