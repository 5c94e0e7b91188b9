"""The table of predictions: made from the kernels as they are, kept in predictions.json, printed into a README.

Rows are kept by version, so that a kernel's prediction before a change stands beside the one after it.
"""

import argparse
import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from fastmask.kernels.predict import (
    class_masks,
    keypoints,
    machine,
    masks,
    nms,
    preprocess,
    roi_align,
    roi_align_backward,
)
from fastmask.kernels.predict.case import SEED, Case
from fastmask.kernels.predict.model import Prediction, predict
from fastmask.kernels.predict.record import record

MODULES = (roi_align, roi_align_backward, nms, masks, class_masks, keypoints, preprocess)
CASES: dict[str, Case] = {name: case for module in MODULES for name, case in module.CASES.items()}
SAVED = Path(__file__).parent / "predictions.json"
README = Path(__file__).parent.parent / "README.md"
MARKERS = "<!-- predictions: written by the command -->", "<!-- end of predictions -->"
MEASURED_BY = {  # which of the benchmarks is the op; its device time is that of a call in a graph, the L2 cache warm
    "RoIAlign, 1000 RoIs, bf16, channels-last": "RoIAlign, bfloat16, channels-last",
    "RoIAlign, 1000 RoIs, fp32, NCHW": "RoIAlign, NCHW",
    "RoIAlign, 8 x 512 RoIs, bf16, channels-last": "RoIAlign of a batch, bfloat16",
    "RoIAlign backward, 8 x 512 RoIs, bf16": "RoIAlign of a batch, bfloat16, backward",
    "RoIAlign 14 x 14 on C4, 1000 RoIs, bf16": "RoIAlign 14 x 14 on C4, bfloat16",
    "RoIAlign backward 14 x 14 on C4, 512 RoIs, bf16": "RoIAlign 14 x 14 on C4, bfloat16, backward",
    "RPN NMS, 8 x 4819 boxes in 5 levels": "NMS, RPN, a batch",
    "class NMS, 20k boxes in 80 classes": "NMS, 20k in 80 classes, random",
    "paste 100 masks, 800 x 1333, bool": "paste 100 masks, bool",
    "RLE of 100 masks, 800 x 1333, on the device": "RLE of 100 masks",
}
COLUMNS = (
    "op", "version", "predicted", "ideal", "issue", "bytes", "longest program", "launches", "torch's",
    "registers", "occupancy", "floor", "target", "met", "measured",
)  # fmt: skip


def predict_case(name: str) -> dict[str, Any]:
    """Predict one case -> a row of predictions.json."""
    case = CASES[name]
    run, works = case.build(torch.Generator().manual_seed(SEED))
    return {
        "op": name,
        "floor": case.floor,
        "target": case.target,
        "measured": None,
        **_row(predict(record(run), works())),
    }


def _row(prediction: Prediction) -> dict[str, Any]:
    launches = prediction.launches
    around = sum(number for _, number, _ in prediction.torch)
    return {
        "predicted": round(prediction.expected, 1),
        "ideal": round(prediction.ideal, 1),
        "parts": {
            "issue": round(sum(launch.pipe for launch in launches), 1),
            "bytes": round(sum(max(launch.hbm, launch.l2) for launch in launches), 1),
            "longest": round(sum(launch.longest for launch in launches), 1),
            "launches": round(prediction.kernels * machine.LAUNCH, 1),
            "torch": round(sum(time for _, _, time in prediction.torch), 1),
        },
        "kernels": {"own": len(launches), "torch": around},
        "launches": [
            {key: round(value, 2) if isinstance(value, float) else value for key, value in launch._asdict().items()}
            | {"predicted": round(launch.expected, 1)}
            for launch in launches
        ],
    }


def format_table(versions: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: for each op a row for each version that has it, in their order; microseconds."""
    rows = [
        _cells(version["version"], row)
        for op in CASES
        for version in versions
        for row in version["rows"]
        if row["op"] == op
    ]
    lines = [COLUMNS, ["---"] * 2 + ["--:"] * (len(COLUMNS) - 2), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(version: str, row: Mapping[str, Any]) -> list[str]:
    main = max(row["launches"], key=lambda launch: launch["predicted"])
    parts, target = row["parts"], row["target"]
    warps = main["resident"] * main["warps"]
    met = "" if target is None else "yes" if row["predicted"] <= target else "no"
    return [
        row["op"],
        version,
        f"**{_number(row['predicted'])}**",
        _number(row["ideal"]),
        *(_number(parts[name]) for name in ("issue", "bytes", "longest")),
        f"{row['kernels']['own']} + {row['kernels']['torch']}: {_number(parts['launches'])}",
        _number(parts["torch"]),
        str(main["registers"]),
        f"{main['resident']} x {main['warps']} warps, {warps / machine.WARPS:.0%}",
        _number(row["floor"]),
        _number(target),
        met,
        _number(row["measured"]),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def format_phases(row: Mapping[str, Any]) -> Iterator[str]:
    """Lines of an op's launches and of their phases."""
    for launch in row["launches"]:
        yield (
            f"  {launch['kernel']}: {launch['predicted']:.1f} us; "
            f"{launch['programs']} programs of {launch['warps']} warps, {launch['registers']} registers, "
            f"{launch['resident']} resident, "
            f"{launch['instructions'] / 1e6:.2f} M warp-instructions; issue {launch['issue']:.1f}, "
            f"{launch['busiest']} {launch['pipe']:.1f}, scheduled {launch['scheduled']:.1f}, "
            f"longest {launch['longest']:.1f}, HBM {launch['hbm']:.1f}, L2 {launch['l2']:.1f}"
        )
        for name, (instructions, trips) in launch["phases"].items():
            yield f"    {instructions:6} instructions x {trips:12,.0f}  {name or '(once a program)'}"


def load_versions() -> list[dict[str, Any]]:
    """Read predictions.json."""
    versions: list[dict[str, Any]] = json.loads(SAVED.read_text())["versions"]
    return versions


def fill_measured(path: Path) -> None:
    """Write the device times of a GPU's results into the last row of each op that was measured."""
    times = {
        row["group"]: row["extra_info"]["device_time"]
        for row in json.loads(path.read_text())["benchmarks"]
        if row["extra_info"]["provider"] == "fastmask"
    }
    versions = load_versions()
    for op, group in MEASURED_BY.items():
        found = [row for version in versions for row in version["rows"] if row["op"] == op]
        if found and "warm" in (times.get(group) or {}):
            found[-1]["measured"] = round(1e6 * times[group]["warm"], 1)
    SAVED.write_text(json.dumps({"versions": versions}, indent=1) + "\n")


def write_readme() -> None:
    """Write the table of predictions.json between README's markers."""
    text = README.read_text()
    between = re.compile(f"(?<={re.escape(MARKERS[0])}\n).*?(?={re.escape(MARKERS[1])})", re.S)
    README.write_text(between.sub(lambda _: format_table(load_versions()) + "\n", text))


def save(version: str, rows: list[dict[str, Any]], commit: str | None) -> None:
    """Put rows into predictions.json, in place of the version's rows of the same ops."""
    versions = load_versions() if SAVED.exists() else []
    old = next((entry for entry in versions if entry["version"] == version), None)
    kept = [row for row in old["rows"] if row["op"] not in {row["op"] for row in rows}] if old else []
    new = {
        "version": version,
        "commit": commit or subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], text=True).strip(),
        "architecture": machine.ARCHITECTURE,
        "triton": triton.__version__,
        "torch": torch.__version__,
        "rows": kept + rows,
    }
    versions = [new if entry is old else entry for entry in versions] + ([] if old else [new])
    SAVED.write_text(json.dumps({"versions": versions}, indent=1) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fastmask.kernels.predict", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="words, of which an op's name must have one")
    parser.add_argument("--phases", action="store_true", help="also print instructions and trip counts of each launch")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", metavar="VERSION", help="keep the rows in predictions.json")
    parser.add_argument("--commit", help="of the kernels, where it is not the one checked out")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="fill in the device times of a GPU's results")
    parser.add_argument(
        "--write-readme", action="store_true", help="print predictions.json into kernels/README.md, alone"
    )
    args = parser.parse_args()
    if args.measured:
        fill_measured(args.measured)
    if (args.write_readme or args.measured) and not args.save:
        write_readme()
        return
    try:
        rows = [predict_case(name) for name in CASES if any(word in name for word in args.only)]
    except RuntimeError as error:
        parser.error(str(error))
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"predicted, triton {triton.__version__}, {machine.ARCHITECTURE}; microseconds")
        print(format_table([{"version": args.save or "now", "rows": rows}]))
        for row in rows if args.phases else ():
            print(row["op"], *format_phases(row), sep="\n")
    if args.save:
        save(args.save, rows, args.commit)
    if args.write_readme:
        write_readme()
