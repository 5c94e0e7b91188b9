"""``python -m fastmask.benchmarks.launches``: kernels and bytes of one frame by stage, and its predicted timeline.

R50-FPN on images of 800 x 1344, RLE out, counted without a GPU (trace.py, expansions.py): counts and predictions
(predicted.py), nothing measured. results/launches.json keeps rows by version, so that README.md can show those before a
change beside those after it.
"""

import argparse
import collections
import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from fastmask.benchmarks.expansions import KINDS, OTHER, PART, TRITON, Kernel
from fastmask.benchmarks.inputs import PADDED_SIZE
from fastmask.benchmarks.predicted import predict
from fastmask.benchmarks.trace import Call, trace
from fastmask.models.prepare import FUSE_MODES, Fuse

BATCHES = (1, 8)
RESULTS = Path(__file__).parent / "results" / "launches.json"
README = Path(__file__).parent / "README.md"
MARKERS = "<!-- launches: written by the command -->", "<!-- end of launches -->"
NOTE = "kernels and bytes of a trace without a GPU, by python -m fastmask.benchmarks.launches: nothing is measured"
MAX_KERNELS, MAX_MILLISECONDS, MIN_RATE = 250, 2.0, 700  # goals: of a frame, of batch 1, images per second of batch 8

Frame = dict[str, Any]  # batch, dtype, fuse, stages: {name: {call: count}}
Stages = dict[str, "collections.Counter[Call]"]


def count(
    batch: int, dtype: str, fuse: Fuse = "kernel", size: tuple[int, int] = PADDED_SIZE, model: Any = None
) -> Frame:
    """Count a frame's launches."""
    traced = trace(batch, getattr(torch, dtype), size, fuse, model)
    stages = {name: collections.Counter(calls) for name, calls in traced.items()}
    return {"batch": batch, "dtype": dtype, "fuse": fuse, "stages": stages}


def count_kinds(calls: Mapping[Call, int]) -> dict[str, int]:
    """Number of kernels of each kind."""
    numbers = dict.fromkeys((*KINDS, PART), 0)
    for call, number in calls.items():
        for kernel in call.kernels:
            numbers[kernel.kind] += number
    del numbers[PART]
    return numbers


def count_outside(calls: Mapping[Call, int]) -> int:
    """Number of kernels that are neither convolutions nor matrix products."""
    numbers = count_kinds(calls)
    return numbers[TRITON] + numbers[OTHER]


def moved_bytes(calls: Mapping[Call, int]) -> float:
    """Bytes of all kernels; each tensor counts once per kernel, in or out."""
    return sum(number * kernel.moved_bytes for call, number in calls.items() for kernel in call.kernels)


def sum_stages(frame: Frame) -> "collections.Counter[Call]":
    """Calls of all stages."""
    return sum(frame["stages"].values(), collections.Counter())


def with_total(frame: Frame) -> Stages:
    return {**frame["stages"], "**all**": sum_stages(frame)}


def predict_milliseconds(frame: Frame) -> float:
    """Predicted time of a batch."""
    return predict(sum_stages(frame), frame["dtype"]).total / 1e3


def format_frame(frame: Frame) -> str:
    """Markdown: the stages of one frame."""
    lines = [
        f"batch {frame['batch']}, {frame['dtype']}, fuse={frame['fuse'] or 'off'}",
        "",
        f"| stage | {' | '.join(KINDS)} | MB | launches | products | own | other | predicted, us |",
        "| --- |" + " --: |" * (len(KINDS) + 6),
    ]
    for name, calls in with_total(frame).items():
        time = predict(calls, frame["dtype"])
        numbers = moved_bytes(calls) / 1e6, *time, time.total
        cells = [*count_kinds(calls).values(), *(f"{number:,.0f}" for number in numbers)]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def format_change(before: Frame, after: Frame) -> Iterator[str]:
    """Markdown lines: two versions of a frame, stage by stage."""
    yield f"Batch {after['batch']}, {after['dtype']}:"
    yield ""
    yield "| stage | kernels before | after | outside before | after | MB before | after | us before | after |"
    yield "| --- |" + " --: |" * 8
    old, new = with_total(before), with_total(after)
    for name, calls in new.items():
        pair = (old.get(name, collections.Counter()), calls)
        cells = [f"{sum(count_kinds(side).values())}" for side in pair] + [f"{count_outside(side)}" for side in pair]
        cells += [f"{moved_bytes(side) / 1e6:,.0f}" for side in pair]
        cells += [f"{predict(side, after['dtype']).total:,.0f}" for side in pair]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""


def format_goals(names: Sequence[str], versions: Sequence[Mapping[int, Frame]]) -> Iterator[str]:
    """Markdown lines: the goals, and by how much they are missed; each version's frames by batch."""
    rows: dict[str, list[float]] = {
        f"kernels outside, batch 1: <= {MAX_KERNELS}": [count_outside(sum_stages(frames[1])) for frames in versions],
        f"ms, batch 1: <= {MAX_MILLISECONDS}": [predict_milliseconds(frames[1]) for frames in versions],
        f"images a second, batch 8: >= {MIN_RATE}": [8e3 / predict_milliseconds(frames[8]) for frames in versions],
    }
    yield f"| goal | {' | '.join(names)} |"
    yield "| --- |" + " --: |" * len(names)
    for (name, values), goal in zip(rows.items(), (MAX_KERNELS, MAX_MILLISECONDS, MIN_RATE), strict=True):
        cells = []
        for value in values:
            short = value - goal if "<=" in name else goal - value
            text = f"{value:.2f}" if goal == MAX_MILLISECONDS else f"{value:.0f}"
            cells.append(f"{text}, met" if short <= 0 else f"{text}, missed by {short / goal:.0%}")
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""


def format_versions(versions: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the first version beside the second, and the parts of the predicted times of all later ones."""
    frames = [{frame["batch"]: frame for frame in version["frames"]} for version in versions]
    commits = "; ".join(f"{version['version']}: {version['commit']}" for version in versions)
    lines = [f"{commits}. torch {versions[-1]['torch']}, triton {versions[-1]['triton']}.", ""]
    lines += format_goals([version["version"] for version in versions], frames)
    for batch in BATCHES:
        lines += format_change(frames[0][batch], frames[1][batch])
    for version, by_batch in zip(versions[1:], frames[1:], strict=True):
        lines += [f"What the predicted times are made of, {version['version']}:", ""]
        lines += [part for batch in BATCHES for part in (format_frame(by_batch[batch]), "")]
    return "\n".join(lines).rstrip()


def load_versions(path: Path | None = None) -> list[dict[str, Any]]:
    """The versions in launches.json."""
    versions: list[dict[str, Any]] = json.loads((path or RESULTS).read_text())["versions"]
    for version in versions:
        for frame in version["frames"]:
            frame["stages"] = {name: _parse_calls(rows) for name, rows in frame["stages"].items()}
    return versions


def _parse_calls(rows: list[Any]) -> "collections.Counter[Call]":
    """Parse rows of a count, an operation, an amount and kernels."""
    return collections.Counter(
        {Call(name, tuple(Kernel(*k) for k in kernels), amount): number for number, name, amount, kernels in rows}
    )


def save_frames(version: str, frames: Sequence[Frame], commit: str | None) -> None:
    """Write frames to launches.json, in place of the version's old ones."""
    versions = load_versions() if RESULTS.exists() else []
    new = {
        "version": version,
        "commit": commit or subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "frames": list(frames),
    }
    names = [old["version"] for old in versions]
    versions = [new if old["version"] == version else old for old in versions] + ([] if version in names else [new])
    text = json.dumps({"note": NOTE, "versions": [_to_json(kept) for kept in versions]}, indent=1)
    text = re.sub(r"\n {8,}|\n {7}(?=\])", " ", text)  # one call per line
    RESULTS.write_text(text + "\n")


def _to_json(version: Mapping[str, Any]) -> dict[str, Any]:
    frames = []
    for frame in version["frames"]:
        stages = {
            name: [[number, call.operation, call.amount, call.kernels] for call, number in calls.items()]
            for name, calls in frame["stages"].items()
        }
        frames.append(frame | {"stages": stages})
    return {**version, "frames": frames}


def write_readme() -> None:
    """Write the tables of launches.json between README's markers."""
    between = re.compile(f"(?<={re.escape(MARKERS[0])}\n).*?(?={re.escape(MARKERS[1])})", re.S)
    README.write_text(between.sub(lambda _: format_versions(load_versions()) + "\n", README.read_text()))


def main(argv: Sequence[str] | None = None) -> int:
    """Print or save a frame's rows."""
    parser = argparse.ArgumentParser(prog="python -m fastmask.benchmarks.launches", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES), help="batch sizes [1 8]")
    parser.add_argument("--dtype", default="bfloat16", help="of weights and feature maps [%(default)s]")
    parser.add_argument("--fuse", choices=FUSE_MODES, default="kernel", help="as Predictor takes it [%(default)s]")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--save", metavar="VERSION", help="save the rows in results/launches.json")
    parser.add_argument("--commit", help="of the code, if it is not the one checked out")
    parser.add_argument("--write-readme", action="store_true", help="write the tables of the saved rows into README.md")
    args = parser.parse_args(argv)
    if args.write_readme and not args.save:
        write_readme()
        return 0
    if args.save and sorted(args.batch) != list(BATCHES):
        parser.error(f"--batch must be {' '.join(map(str, BATCHES))} to be saved, got {' '.join(map(str, args.batch))}")
    try:
        frames = [count(batch, args.dtype, args.fuse) for batch in args.batch]
    except ValueError as error:
        parser.error(str(error))
    if args.json:
        print(json.dumps(_to_json({"frames": frames})["frames"]))
    else:
        print(*(format_frame(frame) for frame in frames), sep="\n\n")
    if args.save:
        save_frames(args.save, frames, args.commit)
    if args.write_readme:
        write_readme()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
