"""``python -m fastmask.benchmarks.timeline FILE.json``: where the milliseconds of one image go, stage by stage.

The file is written whenever something more is known, so that a run that is cut leaves what it has.

Each stage of a Predictor's program is timed on what the one before it left; on a GPU each is a CUDA graph of its own,
so that launches do not count. Beside them: the whole program, a whole call, and choices that only a measurement can
make. With matplotlib, an image lies beside the file.
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
from fastmask.benchmarks.cases.model import settled_model
from fastmask.benchmarks.inputs import IMAGE_SIZE, PADDED_SIZE, textured
from fastmask.benchmarks.measure import name_of, versions, wait_for
from fastmask.benchmarks.stages import Stage, milliseconds, staged
from fastmask.inference.program import Inputs, Program
from fastmask.kernels.tuning import values_on
from fastmask.models.prepare import choose_fuse, prepared

Save = Callable[[dict[str, Any]], None]


def calls(model: Any, image: Tensor, dtype: torch.dtype) -> dict[str, Stage]:
    """Whole calls, with and without mask_buckets, where all and few detections are found."""
    runs: dict[str, Stage] = {}
    (found,) = fastmask.Predictor(model, PADDED_SIZE, dtype=dtype)([image])
    before = model.roi_heads.score_thresh
    for number in (len(found["scores"]), 7):
        model.roi_heads.score_thresh = before if number != 7 else float(found["scores"][7])
        for buckets in (False, True):
            predictor = fastmask.Predictor(model, PADDED_SIZE, dtype=dtype, mask_buckets=buckets)
            name = f"call, {number} detections{', mask_buckets' if buckets else ''}"
            runs[name] = functools.partial(predictor, [image])
    model.roi_heads.score_thresh = before
    return runs


def selections(device: torch.device) -> dict[str, Stage]:
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
def timeline(device: torch.device, dtype: torch.dtype, rounds: int, save: Save = lambda _: None) -> dict[str, Any]:
    """The times of one image of 800 x 1333 pixels, R50-FPN with settled weights, RLE out.

    ``save`` is given the result whenever more of it is known; only the last one says ``"finished": True``.
    """
    times: dict[str, dict[str, float]] = {"stages": {}, "whole": {}, "choices": {}}
    result: dict[str, Any] = {"device": name_of(device), "dtype": str(dtype).removeprefix("torch."), "rounds": rounds}
    result |= versions() | {"tuned": values_on(device), "milliseconds": times, "finished": False}

    def add(kind: str, values: dict[str, float]) -> None:
        times[kind] |= values
        save(result)

    model = settled_model("fastmask", device)
    program = Program(prepared(model, dtype, choose_fuse(device)), "rle", 0.5, 2048)
    image = (textured(torch.Generator().manual_seed(0), IMAGE_SIZE) * 255).byte()
    pixels = program.empty_pixels(1, PADDED_SIZE, dtype, device).normal_()
    original = torch.tensor([IMAGE_SIZE], device=device)
    inputs = Inputs(pixels, original, original.clone())
    parts, whole = staged(program, inputs, rounds, functools.partial(add, "stages"))
    add("stages", parts)
    add("whole", {"program": whole})
    for choices in (functools.partial(selections, device), functools.partial(calls, model, image, dtype)):
        add("choices", milliseconds(choices(), device, rounds))
    wait_for(device)
    result["finished"] = True
    save(result)
    return result


def table(result: dict[str, Any]) -> str:
    times = result["milliseconds"]
    total = sum(times["stages"].values())
    lines = [f"{result['device']}, {result['dtype']}, fastmask at {result['commit']}", "", "| stage | ms | share |"]
    lines += ["|---|---|---|", *(f"| {k} | {v:.3g} | {v / total:.0%} |" for k, v in times["stages"].items())]
    lines += [f"| {k} | {v:.3g} | |" for k, v in (times["whole"] | times["choices"]).items()]
    return "\n".join(lines)


def draw(result: dict[str, Any], path: Path) -> None:
    """One bar, cut into its stages, and one for the whole program."""
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
    parser.add_argument("--plot", action=argparse.BooleanOptionalAction, default=True, help="an image beside the file")
    args = parser.parse_args(argv)
    results: dict[str, dict[str, Any]] = {}

    def save(dtype: str, result: dict[str, Any]) -> None:
        results[dtype] = result
        content = result if len(args.dtype) == 1 else results  # of several types: one result by each one's name
        args.file.write_text(json.dumps(content, indent=1))

    for dtype in args.dtype:
        result = timeline(torch.device(args.device), getattr(torch, dtype), args.rounds, functools.partial(save, dtype))
        print(table(result), flush=True)
        if args.plot:
            stem = args.file.stem if len(args.dtype) == 1 else f"{args.file.stem}-{dtype}"
            try:
                draw(result, args.file.with_name(f"{stem}.png"))
            except ImportError:
                print("the image needs matplotlib: pip install 'fastmask-rcnn[train]'", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
