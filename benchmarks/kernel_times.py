"""``python -m fastmask.benchmarks.kernel_times FILE.json``: each kernel of a Predictor's call on a GPU, in order.

The measured counterpart of ``launches``, which counts and predicts without a GPU. Times are CUPTI's, of replays of the
captured graph: the profiler adds a little to each kernel, so the sum is above what ``timeline`` gives for the program.
The file is written after each batch and form. On a CPU there are PyTorch's operations in the place of kernels.
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

from fastmask.benchmarks.cases.model import settled_model
from fastmask.benchmarks.inputs import IMAGE_SIZE, PADDED_SIZE, textured
from fastmask.benchmarks.measure import name_of, versions, wait_for
from fastmask.inference.predictor import Predictor
from fastmask.kernels.tuning import with_index
from fastmask.models.prepare import FUSED

CALLS = 6  # that are profiled


class Span(NamedTuple):
    """One kernel or copy, in microseconds from the first one of its call."""

    name: str
    start: float
    end: float


def profile_calls(predictor: Predictor, images: list[torch.Tensor]) -> list[list[Span]]:
    """What runs on the device in each of CALLS calls, in order."""
    on_cuda = predictor.device.type == "cuda"
    calls = []
    for _ in range(3):  # the first ones compile, choose and capture
        predictor(images)
    for _ in range(CALLS):
        wait_for(predictor.device)
        with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as profiler:
            predictor(images)
            wait_for(predictor.device)
        calls.append(spans_of(profiler, DeviceType.CUDA if on_cuda else DeviceType.CPU))
    return calls


def spans_of(profiler: Any, device_type: Any = DeviceType.CUDA) -> list[Span]:
    """Kernels, copies and fills that a profiler saw on the GPU."""
    events = [one for one in profiler.events() if one.device_type == device_type]
    events.sort(key=lambda one: one.time_range.start)
    first = events[0].time_range.start if events else 0
    return [Span(one.name, one.time_range.start - first, one.time_range.end - first) for one in events]


def summarize(calls: Sequence[Sequence[Span]]) -> dict[str, Any]:
    """Medians over calls: of each name its launches and microseconds; and the last call's kernels in order."""
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
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images at once [1 8]")
    parser.add_argument("--fuse", nargs="+", default=["auto"], choices=("auto", *FUSED))
    args = parser.parse_args(argv)
    device = with_index(torch.device(args.device))
    result: dict[str, Any] = {"device": name_of(device), **versions(), "unit": "microseconds", "finished": False}
    model = settled_model("fastmask", device)
    generator = torch.Generator().manual_seed(0)
    for batch in args.batch:
        images = [(textured(generator, IMAGE_SIZE) * 255).byte().to(device) for _ in range(batch)]
        for fuse in args.fuse:
            predictor = Predictor(model, PADDED_SIZE, batch, torch.bfloat16, fuse=fuse)
            found = result[f"batch {batch}, bfloat16, {predictor.fuse}"] = summarize(profile_calls(predictor, images))
            args.file.write_text(json.dumps(result))
            print(f"batch {batch}, {predictor.fuse}: {found['kernels a call']} in {found['from first to last']} us")
            for name, (count, total) in list(found["by name"].items())[:25]:
                print(f"{total:9.1f} {count:4} {name[:110]}")
    result["finished"] = True
    args.file.write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
