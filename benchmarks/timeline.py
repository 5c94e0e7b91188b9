"""``python -m fastmask.benchmarks.timeline FILE.json``: measured milliseconds of one image, stage by stage.

Each stage of a Predictor's program is timed on its predecessor's outputs; on a GPU each is a CUDA graph of its own, so
that launches do not count. Also timed: the whole program, whole calls, and alternatives that only a measurement can
decide. The file is written after each of them, so that an interrupted run leaves its times. With matplotlib, a plot is
saved beside the file.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastmask
from fastmask.benchmarks.cases.model import calibrated_model
from fastmask.benchmarks.inputs import IMAGE_SIZE, PADDED_SIZE, textured_image
from fastmask.benchmarks.measure import name_of, synchronize, versions
from fastmask.benchmarks.stages import Stage, time_in_turns, time_stages
from fastmask.inference.program import Inputs, Program
from fastmask.kernels.tuning import values_on
from fastmask.models.prepare import choose_fuse, prepare_for_inference

Save = Callable[[dict[str, Any]], None]


def build_calls(model: Any, image: Tensor, dtype: torch.dtype) -> dict[str, Stage]:
    """Whole calls with and without mask_buckets, with all and with few detections."""
    runs: dict[str, Stage] = {}
    (prediction,) = fastmask.Predictor(model, PADDED_SIZE, dtype=dtype)([image])
    before = model.roi_heads.score_thresh
    for number in (len(prediction["scores"]), 7):
        model.roi_heads.score_thresh = before if number != 7 else float(prediction["scores"][7])
        for buckets in (False, True):
            predictor = fastmask.Predictor(model, PADDED_SIZE, dtype=dtype, mask_buckets=buckets)
            name = f"call, {number} detections{', mask_buckets' if buckets else ''}"
            runs[name] = functools.partial(predictor, [image])
    model.roi_heads.score_thresh = before
    return runs


def build_selections(device: torch.device) -> dict[str, Stage]:
    """Top-k of P2's logits, at once and in chunks."""
    runs: dict[str, Stage] = {}
    logits = torch.randn(1, 201_600, device=device)  # of P2

    def in_chunks(number: int) -> Tensor:
        best, where = logits.view(number, -1).topk(1000, dim=1)
        index = where + torch.arange(number, device=device)[:, None] * (logits.shape[1] // number)
        return index.flatten()[best.flatten().topk(1000).indices]

    runs["top-k of P2"] = lambda: logits.topk(1000, dim=1)
    for number in (16, 64):
        runs[f"top-k of P2, {number} chunks"] = functools.partial(in_chunks, number)
    return runs


@torch.inference_mode()
def time_image(device: torch.device, dtype: torch.dtype, rounds: int, save: Save = lambda _: None) -> dict[str, Any]:
    """Time one image of 800 x 1333 pixels, R50-FPN with calibrated weights, RLE out.

    ``save`` is called with the result so far after each step; only the last one has ``"finished": True``.
    """
    times: dict[str, dict[str, float]] = {"stages": {}, "whole": {}, "choices": {}}
    result: dict[str, Any] = {"device": name_of(device), "dtype": str(dtype).removeprefix("torch."), "rounds": rounds}
    result |= versions() | {"tuned": values_on(device), "milliseconds": times, "finished": False}

    def add(kind: str, values: dict[str, float]) -> None:
        times[kind] |= values
        save(result)

    model = calibrated_model("fastmask", device)
    program = Program(prepare_for_inference(model, dtype, choose_fuse(device, dtype)), "rle", 0.5, 2048)
    image = (textured_image(torch.Generator().manual_seed(0), IMAGE_SIZE) * 255).byte()
    pixels = program.empty_pixels(1, PADDED_SIZE, dtype, device).normal_()
    original = torch.tensor([IMAGE_SIZE], device=device)
    inputs = Inputs(pixels, original, original.clone())
    parts, whole = time_stages(program, inputs, rounds, functools.partial(add, "stages"))
    add("stages", parts)
    add("whole", {"program": whole})
    for choices in (functools.partial(build_selections, device), functools.partial(build_calls, model, image, dtype)):
        add("choices", time_in_turns(choices(), device, rounds))
    synchronize(device)
    result["finished"] = True
    save(result)
    return result


def format_table(result: dict[str, Any]) -> str:
    times = result["milliseconds"]
    total = sum(times["stages"].values())
    lines = [f"{result['device']}, {result['dtype']}, fastmask at {result['commit']}", "", "| stage | ms | share |"]
    lines.append("|---|---|---|")
    lines += [f"| {name} | {time:.3g} | {time / total:.0%} |" for name, time in times["stages"].items()]
    lines += [f"| {name} | {time:.3g} | |" for name, time in (times["whole"] | times["choices"]).items()]
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Save a plot: one bar cut into the stages, and one for the whole program."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.6), layout="constrained")
    axes, start = figure.add_subplot(), 0.0
    times = result["milliseconds"]
    for number, (name, value) in enumerate(times["stages"].items()):
        axes.barh(1, value, left=start, color=f"C{number}", label=f"{name} {value:.3g}")
        start += value
    axes.barh(0, times["whole"]["program"], color="#b8b8b8")
    axes.set_yticks([1, 0], ["stages", "whole program"])
    axes.set_xlabel("milliseconds")
    axes.set_title(f"{result['device']}, {result['dtype']}, fastmask at {result['commit']}", fontsize=8)
    axes.legend(fontsize=6, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastmask.benchmarks.timeline", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="float32, bfloat16, ... [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--plot", action=argparse.BooleanOptionalAction, default=True, help="a plot beside the file")
    args = parser.parse_args(argv)
    results: dict[str, dict[str, Any]] = {}

    def save(dtype: str, result: dict[str, Any]) -> None:
        results[dtype] = result
        content = result if len(args.dtype) == 1 else results  # by type where there are several
        args.file.write_text(json.dumps(content, indent=1))

    for dtype in args.dtype:
        kind, save_result = getattr(torch, dtype), functools.partial(save, dtype)
        result = time_image(torch.device(args.device), kind, args.rounds, save_result)
        print(format_table(result), flush=True)
        if args.plot:
            stem = args.file.stem if len(args.dtype) == 1 else f"{args.file.stem}-{dtype}"
            try:
                plot(result, args.file.with_name(f"{stem}.png"))
            except ImportError:
                print("the plot needs matplotlib: pip install 'fastmask-rcnn[train]'", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
