"""``python -m fastmask.benchmarks.runtimes [--save [FILE]] [--write-readme]``: one model in every runtime, on the CPU.

Whole calls are timed, from an image in memory to detections with masks, all runtimes in turns: R50-FPN with calibrated
weights on one image with 100 detections and on one with 10, then the slim model on an image with 3. Beside each time
stands how many detections match the model's own. A runtime that is not installed is named and left out.
runtimes_report.py makes the table and the plot. It takes seven minutes on two cores, most of them to compile.
"""

import argparse
import copy
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastmask.benchmarks.cases.model import calibrated_model, decode_detections
from fastmask.benchmarks.inputs import IMAGE_SIZE, PADDED_SIZE, textured_image
from fastmask.benchmarks.measure import format_error, name_of, versions
from fastmask.benchmarks.results_io import save_results
from fastmask.benchmarks.runner import summarize_times
from fastmask.benchmarks.runtimes_report import RESULTS, format_table, save_plot, write_readme
from fastmask.demo import synthetic_dataset
from fastmask.evaluation import evaluate_results
from fastmask.evaluation.agreement import matched_share
from fastmask.export import ExportableModel, ExportedPredictor, Shape, write_onnx, write_package
from fastmask.inference.bfloat16 import has_native_bfloat16
from fastmask.inference.coco_results import to_coco_results
from fastmask.inference.predictor import Predictor
from fastmask.inference.prefetch import to_planes
from fastmask.models import detection
from fastmask.models._presets import to_float

Run = Callable[[Sequence[Tensor]], list[Any]]  # images [3, h, w] in [0, 1] -> predictions
CPU = torch.device("cpu")
ROUNDS = {"R50-FPN": 5, "slim": 25}
FEW = 10  # detections of R50's second image
PART = 0.1  # of its width that is not gray
PAUSE = 0.02  # seconds before a call, in which threads of the call before stop to spin
EVALUATED = 60  # synthetic images


class Subject(NamedTuple):
    """A model, ready to detect, and images."""

    name: str
    model: Any
    torchvision: Any  # the same model there; None: it has no such model
    size: tuple[int, int]  # padded
    images: Mapping[int, Tensor]  # by how many detections they have
    evaluated: int = 0  # synthetic images to compute AP on


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to run a model.

    Args:
        name: in the table.
        kind: "model" (as it is), "torchvision", "predictor" or "exported".
        needs: module that must be installed.
        dtype: of a Predictor, or that OpenVINO computes in; bfloat16 only where the processor has it.
        runtime: of an ONNX file; None: an AOTInductor package.
        options: of the Predictor, or of the ExportableModel.
    """

    name: str
    kind: str
    needs: str = "torch"
    dtype: torch.dtype = torch.float32
    runtime: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


TRIM = {"trim": True}  # as `fastmask export` does for a CPU
ROWS = (
    Row("torchvision", "torchvision", "torchvision"),
    Row("torchvision, channels-last", "torchvision", "torchvision", options={"memory_format": torch.channels_last}),
    Row("eager", "model"),
    Row("Predictor, float32", "predictor"),
    Row("Predictor, float32, compile=True", "predictor", options={"compile": True}),
    Row("Predictor, bfloat16", "predictor", dtype=torch.bfloat16),
    Row("AOTInductor", "exported", options=TRIM),
    Row("AOTInductor, --no-trim", "exported"),
    Row("ONNX Runtime", "exported", "onnxruntime", runtime="onnxruntime", options=TRIM),
    Row("ONNX Runtime, --no-trim", "exported", "onnxruntime", runtime="onnxruntime"),
    Row("OpenVINO, float32", "exported", "openvino", runtime="openvino", options=TRIM),
    Row("OpenVINO, float32, --no-trim", "exported", "openvino", runtime="openvino"),
    Row("OpenVINO, bfloat16", "exported", "openvino", torch.bfloat16, "openvino", TRIM),
)


def make_r50() -> Subject:
    """R50-FPN with 100 detections on a textured image and 10 on its left part, the rest of which is gray."""
    image = textured_image(torch.Generator().manual_seed(0), IMAGE_SIZE)
    part = image.clone()
    part[:, :, round(PART * IMAGE_SIZE[1]) :] = 0.45
    model = copy.deepcopy(calibrated_model("fastmask", CPU))
    with torch.no_grad():
        scores = model([part])[0]["scores"]
    model.roi_heads.score_thresh = float(scores[FEW - 1] + scores[FEW]) / 2
    theirs = None
    if importlib.util.find_spec("torchvision"):
        theirs = copy.deepcopy(calibrated_model("torchvision", CPU))
        theirs.roi_heads.score_thresh = model.roi_heads.score_thresh
    images = {model.roi_heads.detections_per_img: image, FEW: part}
    return Subject("R50-FPN", model, theirs, PADDED_SIZE, images)


def make_slim() -> Subject:
    """The small model of the package, on the first synthetic image with 3 detections."""
    model = detection.maskrcnn_slim_fpn(weights="SHAPES_V1", box_score_thresh=0.5).eval()
    for seed in range(1000):
        (record,) = synthetic_dataset(1, seed, (192, 224)).records
        image = to_float(to_planes(record.load(), 0))
        with torch.no_grad():
            if len(model([image])[0]["scores"]) == 3:
                return Subject("slim", model, None, (192, 224), {3: image}, EVALUATED)
    raise RuntimeError("no synthetic image has three detections")


SUBJECTS = {"R50-FPN": make_r50, "slim": make_slim}


def build(row: Row, subject: Subject, folder: Path) -> Run:
    """What a row runs; ImportError or ValueError where this machine cannot."""
    if importlib.util.find_spec(row.needs) is None:
        raise ImportError(f"{row.needs} is not installed")
    if row.dtype == torch.bfloat16 and not has_native_bfloat16():
        raise ValueError("this processor has no bfloat16")
    if row.kind in ("model", "torchvision"):
        model = subject.model if row.kind == "model" else copy.deepcopy(subject.torchvision)
        return call_model(model.to(**row.options) if row.options else model)
    if row.kind == "predictor":
        return Predictor(subject.model, subject.size, dtype=row.dtype, **row.options)
    file = folder / f"{subject.name}-{'-'.join(map(str, row.options)) or 'plain'}{'.onnx' if row.runtime else '.pt2'}"
    if not file.exists():
        write: Callable[..., object] = write_onnx if row.runtime else write_package
        write(ExportableModel(subject.model, **row.options), file, Shape(1, *subject.size))
    dtype = row.dtype if row.runtime == "openvino" else None
    return ExportedPredictor(file, "cpu", runtime=row.runtime, dtype=dtype)


def call_model(model: nn.Module) -> Run:
    @torch.no_grad()
    def run(images: Sequence[Tensor]) -> list[Any]:
        predictions: list[Any] = model(list(images))
        return predictions

    return run


def measure(subject: Subject, rows: Sequence[Row], rounds: int, left_out: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Time all rows on each image, in turns, and yield the results as ``fastmask bench`` has them.

    Args:
        subject: the model.
        rows: that are measured; "eager" is what the others are compared with.
        rounds: of which each row has one call.
        left_out: gets the reason for each row that cannot be measured, by name.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Run] = {}
        for row in tqdm(rows, desc=f"{subject.name}: set up", unit="runtime", disable=None):
            if row.kind == "torchvision" and subject.torchvision is None:
                continue
            try:
                runs[row.name] = build(row, subject, Path(folder))
                runs[row.name](list(subject.images.values())[:1])  # compiles
            except Exception as error:
                runs.pop(row.name, None)
                left_out[row.name] = format_error(error)
        encoded = [row.name for row in rows if row.name in runs and row.kind in ("predictor", "exported")]
        aps = compute_aps({name: runs[name] for name in encoded}, subject.evaluated) if subject.evaluated else {}
        for number, image in subject.images.items():
            group = f"{subject.name}, {number} detections"
            (expected,) = decode_detections(call_model(subject.model)([image]))
            if len(expected["scores"]) != number:
                raise RuntimeError(f"{group}: there must be {number}, got {len(expected['scores'])}")
            times: dict[str, list[float]] = {name: [] for name in runs}
            shares: dict[str, float] = {}
            for name, run in runs.items():
                (found,) = decode_detections(run([image]))
                shares[name] = matched_share(found, expected)
            for _ in tqdm(range(rounds), desc=group, unit="round", disable=None):
                for name, run in runs.items():
                    time.sleep(PAUSE)
                    start = time.perf_counter()
                    run([image])
                    times[name].append(time.perf_counter() - start)
            for name, values in times.items():
                info = {"provider": name, "detections": number, "agreement": shares[name]}
                info |= {
                    "mask_ap": aps.get(name),
                    "evaluated": subject.evaluated,
                    "device": name_of(CPU),
                    **versions(),
                    **runtime_versions(),
                }
                yield {"group": group, "stats": summarize_times(values), "extra_info": info}


def compute_aps(runs: Mapping[str, Run], number: int) -> dict[str, float]:
    """Mask AP on synthetic images, of rows whose masks are COCO RLE."""
    dataset, aps = synthetic_dataset(number, 2), {}
    images = [to_planes(record.load(), i) for i, record in enumerate(dataset.records)]
    for name, run in runs.items():
        results = [result for i, each in enumerate(run(images), 1) for result in to_coco_results(i, each)]
        aps[name] = float(evaluate_results(results, dataset, progress=False).metrics["mask"].ap)
    return aps


def runtime_versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in ("onnxruntime", "openvino"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def measure_all(names: Sequence[str], rounds: int | None = None, path: Path | None = None) -> dict[str, Any]:
    """The results of some subjects, written to a file after each of them."""
    now = datetime.datetime.now(datetime.UTC).isoformat()
    results: dict[str, Any] = {"benchmarks": [], "datetime": now, "left out": {}, "finished": False}
    for name in names:
        results["benchmarks"] += measure(SUBJECTS[name](), ROWS, rounds or ROUNDS[name], results["left out"])
        results["finished"] = name == names[-1]
        if path is not None:
            save_results(results, path)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fastmask.benchmarks.runtimes", description=__doc__)
    saved = f"write the results there, and a plot beside it [{RESULTS.name}]"
    parser.add_argument("--save", type=Path, nargs="?", const=RESULTS, metavar="FILE", help=saved)
    parser.add_argument("--write-readme", action="store_true", help="save, and write the table into export/README.md")
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="models to measure [all]")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"calls of each runtime {list(ROUNDS.values())}")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="[%(default)s]")
    args = parser.parse_args(argv)
    for name, least in (("rounds", 2), ("threads", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name} must be at least {least}, got {value}")
    torch.set_num_threads(args.threads)
    path = RESULTS if args.write_readme and args.save is None else args.save
    results = measure_all(args.only, args.rounds, path)
    print(format_table(results))
    for name, reason in results["left out"].items():
        print(f"runtimes: left out: {name}: {reason}", file=sys.stderr)
    if path is not None:
        save_plot(results, path.with_suffix(".png"))
    if args.write_readme and path is not None:
        write_readme(results, path.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
