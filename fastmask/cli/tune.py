"""``fastmask tune``: find the fastest block sizes of kernels and settings of a Predictor on this GPU."""

import argparse
import functools
import math
import re
from pathlib import Path
from typing import Any

from fastmask.cli._device import find_device
from fastmask.cli._messages import print_error
from fastmask.cli._model import add_model_arguments, load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Knobs, shapes, device, and the tuning file."""
    add_model_arguments(parser, score=0.05)
    parser.set_defaults(weights="synthetic")  # no download, and as many detections as a model may have
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1344), metavar=("H", "W"), help="[800 1344]")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="batch size [%(default)s]")
    parser.add_argument("--only", default="", metavar="PATTERN", help="knobs whose names match")
    parser.add_argument("--minutes", type=float, default=math.inf, metavar="M", help="start no knob after M minutes")
    parser.add_argument("--output", type=Path, metavar="FILE", help="tuning file [this device's in the user's cache]")
    parser.add_argument("--dry-run", action="store_true", help="list the choices, and time nothing")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if a knob could not be tuned; 2 on a wrong argument, or without a GPU."""
    from fastmask.benchmarks.tune import check_file, format_knobs, format_table, tune
    from fastmask.benchmarks.tune_cases import Shapes
    from fastmask.kernels import launch
    from fastmask.kernels.knobs import KNOBS
    from fastmask.kernels.tuning import file_to_write, find_file, with_index

    try:
        knobs = [knob for name, knob in KNOBS.items() if re.search(args.only, name, re.IGNORECASE)]
        if not knobs:
            raise ValueError(f"--only must match a knob's name, got {args.only!r}: {', '.join(KNOBS)}")
        if args.batch < 1 or any(side < 128 or side % 32 for side in args.size):
            raise ValueError(
                f"--size must be multiples of 32 from 128 on and --batch at least 1, got {args.size} and {args.batch}"
            )
        if not launch.is_capturable():
            raise ValueError(f"there is nothing to tune, as ops take {launch.describe()}")
        if args.dry_run:
            print(format_knobs(knobs))
            return 0
        device = find_device(args.device)
        if device.type != "cuda":
            raise ValueError(f"there is nothing to tune on {device.type}: a CUDA or ROCm GPU is needed")
        device = with_index(device)
        path = args.output or file_to_write(device)
        check_file(path, device)
        shapes = Shapes(tuple(args.size), args.batch, model=functools.partial(_model, args, device))
        outcomes = tune(knobs, device, shapes, path, limit=60 * args.minutes)
    except (OSError, ValueError, re.error) as error:
        print_error(error, args)
        return 2
    print(format_table(outcomes))
    print(path if find_file(device) == path else f"{path}, which FASTMASK_TUNING={path} would use")
    return 1 if any(outcome.error for outcome in outcomes) else 0


def _model(args: argparse.Namespace, device: Any) -> Any:
    if args.weights == "synthetic" and args.model in (None, "maskrcnn_resnet50_fpn"):
        from fastmask.benchmarks.cases.model import calibrated_model

        return calibrated_model("fastmask", device)
    return load_model(args.model, args.weights, str(device), args.score)[0]
