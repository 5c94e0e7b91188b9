"""``fastmask predict``: what a model finds in images, drawn on them and as one COCO-results file."""

import argparse
import contextlib
import sys
from pathlib import Path

from fastmask.cli import _journal
from fastmask.cli._images import MADE, find_images, image_ids, overlays_of
from fastmask.cli._model import add_model_arguments, add_predictor_arguments, make_exported_predictor, make_predictor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is looked at, by which model, and where the answers go."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="an image, or a folder of images")
    add_model_arguments(parser)
    add_predictor_arguments(parser)
    parser.add_argument(
        "--exported", "--onnx", type=Path, metavar="FILE", help="what fastmask export wrote, in place of --weights"
    )
    parser.add_argument("--out", type=Path, default=Path("predictions"), metavar="DIR", help="[%(default)s]")
    parser.add_argument("--no-images", action="store_true", help="write the results file only")
    parser.add_argument("--restart", action="store_true", help="forget what an interrupted run found")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if an image was skipped; 2 if an argument is wrong, or weights or answers cannot be had.

    Under torchrun every rank looks at its share of the images, and all end with one code (torchrun itself with 1).
    """
    from fastmask.cli._drawing import predict
    from fastmask.distributed import join_ranks

    with join_ranks() as ranks, contextlib.ExitStack() as stack:
        try:
            paths = ranks.run_on_first(lambda: find_images(args.images))
            ranks.run_on_first(lambda: stack.enter_context(_journal.locked(args.out)))
            predictor, categories, settings = ranks.run_on_all(
                lambda: make_exported_predictor(args, ranks) if args.exported else make_predictor(args, ranks)
            )
            settings["images"] = not args.no_images
            images = ranks.run_on_first(lambda: todo_of(paths, None if args.no_images else args.out))
            number, todo = ranks.run_on_first(lambda: _journal.take_up(args.out, images, settings, args.restart))
            journal = ranks.run_on_all(lambda: _journal.Journal(args.out, number, ranks.rank, settings))
        except ValueError as error:
            if ranks.rank == 0:
                print(f"fastmask predict: {error}", file=sys.stderr)
            return 2
        try:
            with journal:
                skipped = predict(predictor, todo[ranks.rank :: ranks.world_size], categories, journal, ranks.rank == 0)
            skipped = sum(ranks.all_gather(skipped))
        except KeyboardInterrupt:
            print("fastmask predict: interrupted; the same command goes on from here", file=sys.stderr)
            raise
        finally:  # what was found before an interruption is kept
            found = _journal.merge(args.out, images, image_ids(paths), settings) if ranks.rank == 0 else (0, 0)
        try:
            return ranks.run_on_first(lambda: concluded(args, images, found, skipped))
        except ValueError as error:
            if ranks.rank == 0:
                print(f"fastmask predict: {error}", file=sys.stderr)
            return 2


def todo_of(paths: list[Path], drawn_in: Path | None) -> list[_journal.Todo]:
    """Each image as it is now, with its overlay in that folder, if there is to be one."""
    overlays = [None] * len(paths) if drawn_in is None else overlays_of(paths, drawn_in)
    return [_journal.Todo(path, _journal.state_of(path), made) for path, made in zip(paths, overlays, strict=True)]


def concluded(args: argparse.Namespace, images: list[_journal.Todo], found: tuple[int, int], skipped: int) -> int:
    """Make the results final, say what they are -> the exit code."""
    seen, detections = found
    if seen + skipped < len(images):
        print(
            f"fastmask predict: {len(images) - seen - skipped} images have no answer: {args.out} must be on a disk "
            "that all ranks see, and images and overlays must stay as they are",
            file=sys.stderr,
        )
        return 2
    if not seen and skipped and (args.out / _journal.RESULTS).exists():  # the disk's fault, or the device's
        print(f"fastmask predict: no image could be looked at: {args.out} stays as it was", file=sys.stderr)
        return 1
    _journal.finish(args.out, skipped > 0)
    drawn = "" if args.no_images else f"{images[0].overlay if len(images) == 1 else args.out / f'*{MADE}'}, "
    number = f"{seen} images" if seen != 1 else "1 image"
    again = f" ({skipped} skipped, which the same command tries again)" if skipped else ""
    print(f"{detections} detections in {number}: {drawn}{args.out / _journal.RESULTS}{again}", flush=True)
    return 1 if skipped else 0
