"""``python -m fastmask.benchmarks.launches``: the kernels and bytes of one frame by stage, and its predicted timeline.

R50-FPN on images of 800 x 1344, RLE out, counted without a GPU (trace.py, expansions.py): counts and predictions
(predicted.py), nothing measured. Rows are kept by version in results/launches.json, so that those before a change stand
beside those after it, and README.md has their tables.
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
from fastmask.models.prepare import FUSED, Fuse

BATCHES = (1, 8)
SAVED = Path(__file__).parent / "results" / "launches.json"
README = Path(__file__).parent / "README.md"
MARKERS = "<!-- launches: written by the command -->", "<!-- end of launches -->"
NOTE = "kernels and bytes of a trace without a GPU, by python -m fastmask.benchmarks.launches: nothing is measured"
MOST_KERNELS, MOST_MILLISECONDS, LEAST_RATE = 250, 2.0, 700  # the goals: of a frame, of batch 1, images a second at 8

Frame = dict[str, Any]  # batch, dtype, fuse, stages: {name: {call: how often}}
Stages = dict[str, "collections.Counter[Call]"]


def count(
    batch: int, dtype: str, fuse: Fuse = "kernel", size: tuple[int, int] = PADDED_SIZE, model: Any = None
) -> Frame:
    """What a frame launches."""
    traced = trace(batch, getattr(torch, dtype), size, fuse, model)
    stages = {name: collections.Counter(calls) for name, calls in traced.items()}
    return {"batch": batch, "dtype": dtype, "fuse": fuse, "stages": stages}


def kinds(calls: Mapping[Call, int]) -> dict[str, int]:
    """How many kernels of each kind."""
    numbers = dict.fromkeys((*KINDS, PART), 0)
    for call, number in calls.items():
        for kernel in call.kernels:
            numbers[kernel.kind] += number
    del numbers[PART]
    return numbers


def outside(calls: Mapping[Call, int]) -> int:
    """Kernels that are neither convolutions nor matrix products."""
    numbers = kinds(calls)
    return numbers[TRITON] + numbers[OTHER]


def moved_bytes(calls: Mapping[Call, int]) -> float:
    """Of all kernels, each tensor in and out once a kernel."""
    return sum(number * kernel.moved_bytes for call, number in calls.items() for kernel in call.kernels)


def total(frame: Frame) -> "collections.Counter[Call]":
    """All stages' calls."""
    return sum(frame["stages"].values(), collections.Counter())


def stages_and_all(frame: Frame) -> Stages:
    return {**frame["stages"], "**all**": total(frame)}


def milliseconds(frame: Frame) -> float:
    """Predicted, of a batch."""
    return predict(total(frame), frame["dtype"]).total / 1e3


def format_frame(frame: Frame) -> str:
    """Markdown: the stages of one frame."""
    lines = [
        f"batch {frame['batch']}, {frame['dtype']}, fuse={frame['fuse'] or 'off'}",
        "",
        f"| stage | {' | '.join(KINDS)} | MB | launches | products | own | other | predicted, us |",
        "| --- |" + " --: |" * (len(KINDS) + 6),
    ]
    for name, calls in stages_and_all(frame).items():
        time = predict(calls, frame["dtype"])
        cells = [*kinds(calls).values(), *(f"{value:,.0f}" for value in (moved_bytes(calls) / 1e6, *time, time.total))]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def format_change(before: Frame, after: Frame) -> Iterator[str]:
    """Markdown lines: two versions of a frame, stage by stage."""
    yield f"Batch {after['batch']}, {after['dtype']}:"
    yield ""
    yield "| stage | kernels before | after | outside before | after | MB before | after | us before | after |"
    yield "| --- |" + " --: |" * 8
    old, new = stages_and_all(before), stages_and_all(after)
    for name, calls in new.items():
        both = (old.get(name, collections.Counter()), calls)
        cells = [f"{sum(kinds(one).values())}" for one in both] + [f"{outside(one)}" for one in both]
        cells += [f"{moved_bytes(one) / 1e6:,.0f}" for one in both]
        cells += [f"{predict(one, after['dtype']).total:,.0f}" for one in both]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""


def format_goals(names: Sequence[str], versions: Sequence[Mapping[int, Frame]]) -> Iterator[str]:
    """Markdown lines: what was aimed at, and by how much it is missed; each version's frames by batch."""
    rows: dict[str, list[float]] = {
        f"kernels outside, batch 1: <= {MOST_KERNELS}": [outside(total(frames[1])) for frames in versions],
        f"ms, batch 1: <= {MOST_MILLISECONDS}": [milliseconds(frames[1]) for frames in versions],
        f"images a second, batch 8: >= {LEAST_RATE}": [8e3 / milliseconds(frames[8]) for frames in versions],
    }
    yield f"| goal | {' | '.join(names)} |"
    yield "| --- |" + " --: |" * len(names)
    for (name, values), goal in zip(rows.items(), (MOST_KERNELS, MOST_MILLISECONDS, LEAST_RATE), strict=True):
        cells = []
        for value in values:
            short = value - goal if "<=" in name else goal - value
            text = f"{value:.2f}" if goal == MOST_MILLISECONDS else f"{value:.0f}"
            cells.append(f"{text}, met" if short <= 0 else f"{text}, missed by {short / goal:.0%}")
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""


def format_versions(versions: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the first version beside the second, and what the predicted times of all later ones are made of."""
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
    """What launches.json holds."""
    versions: list[dict[str, Any]] = json.loads((path or SAVED).read_text())["versions"]
    for version in versions:
        for frame in version["frames"]:
            frame["stages"] = {name: _calls(rows) for name, rows in frame["stages"].items()}
    return versions


def _calls(rows: list[Any]) -> "collections.Counter[Call]":
    """Rows of a number, an operation, an amount and kernels."""
    return collections.Counter(
        {Call(name, tuple(Kernel(*one) for one in kernels), amount): number for number, name, amount, kernels in rows}
    )


def save(version: str, frames: Sequence[Frame], commit: str | None) -> None:
    """Put frames into launches.json, in place of the version's old ones."""
    versions = load_versions() if SAVED.exists() else []
    new = {
        "version": version,
        "commit": commit or subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "frames": list(frames),
    }
    names = [one["version"] for one in versions]
    versions = [new if one["version"] == version else one for one in versions] + ([] if version in names else [new])
    text = json.dumps({"note": NOTE, "versions": [_plain(one) for one in versions]}, indent=1)
    text = re.sub(r"\n {8,}|\n {7}(?=\])", " ", text)  # a call a line
    SAVED.write_text(text + "\n")


def _plain(version: Mapping[str, Any]) -> dict[str, Any]:
    frames = []
    for frame in version["frames"]:
        stages = {
            name: [[number, call.operation, call.amount, call.kernels] for call, number in calls.items()]
            for name, calls in frame["stages"].items()
        }
        frames.append(frame | {"stages": stages})
    return {**version, "frames": frames}


def write_readme() -> None:
    """Put the tables of launches.json between README's markers."""
    between = re.compile(f"(?<={re.escape(MARKERS[0])}\n).*?(?={re.escape(MARKERS[1])})", re.S)
    README.write_text(between.sub(lambda _: format_versions(load_versions()) + "\n", README.read_text()))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fastmask.benchmarks.launches", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES), help="images of a frame [1 8]")
    parser.add_argument("--dtype", default="bfloat16", help="of weights and maps [%(default)s]")
    parser.add_argument("--fuse", choices=FUSED, default="kernel", help="as Predictor takes it [%(default)s]")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--save", metavar="VERSION", help="keep the rows in results/launches.json")
    parser.add_argument("--commit", help="of the code, where it is not the one checked out")
    parser.add_argument("--write-readme", action="store_true", help="put the tables of the kept rows into README.md")
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
        print(json.dumps(_plain({"frames": frames})["frames"]))
    else:
        print(*(format_frame(frame) for frame in frames), sep="\n\n")
    if args.save:
        save(args.save, frames, args.commit)
    if args.write_readme:
        write_readme()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
