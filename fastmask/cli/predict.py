"""``fastmask predict``: detect objects in images; write overlays and one COCO results file."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastmask.cli._model import add_model_arguments, add_predictor_arguments, make_exported_predictor, make_predictor

if TYPE_CHECKING:
    from fastmask.inference import PredictedFiles


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the images, the model, and where the predictions go."""
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="an image, or a folder of images")
    add_model_arguments(parser)
    add_predictor_arguments(parser)
    add("--exported", "--onnx", type=Path, metavar="FILE", help="a file of fastmask export, instead of --weights")
    add("--out", type=Path, default=Path("predictions"), metavar="DIR", help="folder of the output [%(default)s]")
    add("--no-overlays", action="store_true", help="write the results file only")
    add("--restart", action="store_true", help="discard what an interrupted run has predicted")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if an image was skipped; 2 if an argument is wrong, or weights or results are not available.

    Under torchrun every rank predicts its share of the images, and all end with one code (torchrun itself with 1).
    """
    from fastmask.distributed import join_ranks
    from fastmask.inference import predict_files
    from fastmask.inference.image_files import find_images

    make = make_exported_predictor if args.exported else make_predictor
    with join_ranks() as ranks:
        try:
            paths = ranks.run_on_first(lambda: find_images(args.images))
            ranks.run_on_first(lambda: args.out.mkdir(parents=True, exist_ok=True))
            predictor, categories, settings = ranks.run_on_all(lambda: make(args, ranks))
            options = {"categories": categories, "overlays": not args.no_overlays, "restart": args.restart}
            options |= {"settings": settings, "on_skip": print_skipped, "ranks": ranks}
            predicted = predict_files(predictor, paths, args.out, **options)
        except ValueError as error:
            if ranks.rank == 0:
                print(f"fastmask predict: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("fastmask predict: interrupted; the same command goes on from here", file=sys.stderr)
            raise
        if ranks.rank == 0:
            print_outcome(predicted, args.out)
        return 1 if predicted.skipped else 0


def print_skipped(reason: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"fastmask predict: skipped: {reason}", file=sys.stderr)


def print_outcome(predicted: "PredictedFiles", folder: Path) -> None:
    from fastmask.inference.image_files import OVERLAY_SUFFIX

    if predicted.results is None:
        print(f"fastmask predict: no image could be predicted: {folder} stays as it was", file=sys.stderr)
        return
    images = f"{predicted.images} images" if predicted.images != 1 else "1 image"
    files = [predicted.overlays[0] if len(predicted.overlays) == 1 else folder / f"*{OVERLAY_SUFFIX}"]
    outputs = ", ".join(map(str, [*(files if predicted.overlays else []), predicted.results]))
    again = f" ({len(predicted.skipped)} skipped, which the same command tries again)" if predicted.skipped else ""
    print(f"{predicted.detections} detections in {images}: {outputs}{again}", flush=True)
