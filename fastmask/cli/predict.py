"""``fastmask predict``: detect objects in images and videos; write overlays, COCO results and JSON Lines."""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastmask.cli._messages import Default, is_given, name_options, print_line
from fastmask.cli._model import (
    add_model_arguments,
    add_predictor_arguments,
    check_weights,
    make_exported_predictor,
    make_predictor,
)
from fastmask.cli._videos import check_videos, predict_videos, split_sources

if TYPE_CHECKING:
    from fastmask.inference import PredictedFiles


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the images, the model, and where the predictions go."""
    add = parser.add_argument
    source = "an image, a folder of images, a video, a camera (camera:0, /dev/video0) or a stream (rtsp://...)"
    add("images", nargs="+", metavar="SOURCE", help=source)
    add("--recursive", action="store_true", help="take the images of folders inside folders, too")
    add_model_arguments(parser)
    add_predictor_arguments(parser)
    add("--exported", "--onnx", type=Path, metavar="FILE", help="a file of fastmask export, instead of --weights")
    add("--classes", nargs="+", action="extend", metavar="NAME", help="keep these classes only; after the images")
    add("--out", type=Path, default=Path("predictions"), metavar="DIR", help="folder of the output [%(default)s]")
    add("--no-overlays", action="store_true", help="write the results file only")
    formats = "of overlays of images; auto: jpeg where the image is one, else png [%(default)s]"
    add("--format", default="auto", choices=("auto", "jpeg", "png"), help=formats)
    colors = "what has one color [instance; class in videos]"
    add("--color-by", default=Default("instance"), choices=("instance", "class"), help=colors)
    add("--save-crops", action="store_true", help="write each detection, cut out by its mask, to DIR/crops")
    add("--every", type=int, default=1, metavar="N", help="predict one frame in N of videos [%(default)s]")
    add("--json", metavar="FILE", help="write the results (of videos: JSON Lines) there, too; - is the standard output")
    add("--quiet", action="store_true", help="print nothing but errors and skipped images")
    add(
        "--restart", action="store_true", help="discard what an interrupted run has predicted; videos always start anew"
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if an image or a video was skipped, or a video is broken; 2 if an argument is wrong, or weights or
    results are not available.

    Under torchrun every rank predicts its share of the images, and all end with one code (torchrun itself with 1).
    """
    from fastmask.distributed import join_ranks
    from fastmask.inference import predict_files

    make = make_exported_predictor if args.exported else make_predictor
    images, videos = split_sources(args.images)
    whole = True
    with join_ranks() as ranks:
        try:
            ranks.run_on_first(lambda: check_arguments(args, images, videos, ranks.world_size))
            predictor, categories, settings = ranks.run_on_all(lambda: make(args, ranks))
            options = {"recursive": args.recursive, "categories": categories, "classes": args.classes}
            options |= {"overlays": not args.no_overlays, "format": args.format, "color_by": args.color_by}
            options |= {"crops": args.save_crops, "restart": args.restart, "settings": settings}
            options |= {"progress": False if args.quiet else None, "on_skip": print_skipped, "ranks": ranks}
            options |= {} if args.quiet else {"on_note": print_message}
            if images:
                predicted = predict_files(predictor, images, args.out, **options)
                ranks.run_on_first(lambda: write_json(predicted, args.json))
                whole = not predicted.skipped
                if ranks.rank == 0:
                    print_outcome(predicted, args)
            if videos:
                whole = predict_videos(args, videos, predictor, categories, print_message) and whole
        except ValueError as error:
            if ranks.rank == 0:
                print_message(name_options(error, args))
            return 2
        except KeyboardInterrupt as interrupt:
            print_message(str(interrupt) or "interrupted; the same command goes on from here")
            raise
        return 0 if whole else 1


def check_arguments(args: argparse.Namespace, images: list[Path], videos: list[str], world_size: int) -> None:
    """Raise an error for what is wrong already before a model is loaded; create the folder of the output."""
    from fastmask.inference.image_files import count_videos, find_images
    from fastmask.inference.journal import check_results

    if args.exported and (is_given(args.weights) or is_given(args.model)):
        name = "--weights" if is_given(args.weights) else "--model"
        raise ValueError(f"{name} must not be given with --exported: the file has its own")
    if args.exported and not args.exported.exists():
        raise ValueError(f"--exported must be a file that is there, got {args.exported}: no such file")
    if not args.exported:
        check_weights(args.weights)
    find_images(images, args.recursive)
    if args.json not in (None, "-") and not Path(args.json).parent.is_dir():
        raise ValueError(f"--json must be a file in a folder that is there, got {args.json}")
    check_videos(args, images, videos, world_size)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.json not in (None, "-") and images:
        check_results(Path(args.json))
    left_out = count_videos(images, args.recursive)
    if left_out and not args.quiet:
        print_message(left_out)


def print_message(text: str) -> None:
    """Print a line to the standard error, clear of the progress bar."""
    from tqdm import tqdm

    tqdm.write(f"fastmask predict: {text}", file=sys.stderr)


def print_skipped(reason: str) -> None:
    print_message(f"skipped: {reason}")


def write_json(predicted: "PredictedFiles", target: str | None) -> None:
    """Copy the results, if there are any, to a file, or to the standard output."""
    from fastmask.files import replace_file

    if target is None or predicted.results is None:
        return
    with open(predicted.results, encoding="ascii") as results:
        if target == "-":
            shutil.copyfileobj(results, sys.stdout)
            sys.stdout.flush()
        elif os.path.realpath(target) != os.path.realpath(predicted.results):
            with replace_file(target) as draft:
                draft.write_text(results.read(), encoding="ascii")


def print_outcome(predicted: "PredictedFiles", args: argparse.Namespace) -> None:
    from fastmask.inference.image_files import CROPS

    if predicted.results is None:
        skipped = len(predicted.skipped)
        print_message(f"no image could be predicted ({skipped} skipped): {args.out} has no new results")
        return
    if args.quiet:
        return
    images = f"{predicted.images} images" if predicted.images != 1 else "1 image"
    endings = {path.suffix for path in predicted.overlays}
    everything = Path("**" if args.recursive else "") / f"*.predicted{endings.pop() if len(endings) == 1 else '.*'}"
    files = [predicted.overlays[0] if len(predicted.overlays) == 1 else args.out / everything]
    files = (files if predicted.overlays else []) + ([args.out / CROPS] if args.save_crops else [])
    outputs = ", ".join(map(str, [*files, predicted.results]))
    again = f" ({len(predicted.skipped)} skipped, which the same command tries again)" if predicted.skipped else ""
    output = sys.stderr if args.json == "-" else sys.stdout
    print_line(f"{predicted.detections} detections in {images}: {outputs}{again}", output)
