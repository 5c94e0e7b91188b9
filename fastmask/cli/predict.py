"""``fastmask predict``: what a model finds in pictures, drawn on them and as one COCO-results file."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmask.cli._model import add_model_arguments, load_model
from fastmask.cli._pictures import MADE, find_pictures, overlays_of

if TYPE_CHECKING:
    from fastmask.distributed import Ranks
    from fastmask.predictor import Predictor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is looked at, by which model, and where the answers go."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a picture, or a folder of pictures")
    add_model_arguments(parser)
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="to pad to [800 1344 on CUDA]")
    sizes.add_argument("--exact", action="store_true", help="pad as the model does [where there is no CUDA]")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 [%(default)s]")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="pictures at once [%(default)s]")
    parser.add_argument("--out", type=Path, default=Path("predictions"), metavar="DIR", help="[%(default)s]")
    parser.add_argument("--no-pictures", action="store_true", help="write the results file only")
    parser.add_argument("--restart", action="store_true", help="forget what an interrupted run found")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if a picture was skipped; 2 if an argument is wrong or the weights cannot be had.

    Under torchrun every rank looks at its share of the pictures.
    """
    from fastmask.cli import _journal
    from fastmask.cli._drawing import predict
    from fastmask.distributed import ranks

    with ranks() as own:
        try:
            paths = find_pictures(args.images)
            results = _journal.prepare(args.out)
            predictor, categories, settings = make_predictor(args, own)
            if own.rank == 0 and args.restart:
                _journal.forget(args.out)
            journal, todo = _journal.take_up(args.out, paths, settings, own)
        except (OSError, ValueError) as error:
            print(f"fastmask predict: {error}", file=sys.stderr)
            return 2
        overlays = overlays_of(paths, args.out)
        shown = {} if args.no_pictures else dict(zip(paths, overlays, strict=True))
        found: dict[Path, Any] = {}
        try:
            with journal:
                skipped = predict(predictor, todo[own.rank :: own.world], shown, categories, journal, own.rank == 0)
            skipped = sum(own.gather(skipped))
        except KeyboardInterrupt:
            print("fastmask predict: interrupted; the same command goes on from here", file=sys.stderr)
            raise
        finally:  # what was found before an interruption is kept
            if own.rank == 0:
                found = _journal.merge(results, paths, settings)
        code = 1 if skipped else 0
        if own.rank == 0:
            if len(found) + skipped < len(paths):
                print(
                    f"fastmask predict: {len(paths) - len(found) - skipped} pictures have no answer: {args.out} must "
                    "be on a disk that all ranks see, and pictures must stay as they are",
                    file=sys.stderr,
                )
                code = 2
            else:
                _journal.forget(args.out)
            seen = f"{len(found)} pictures" if len(found) != 1 else "1 picture"
            drawn = "" if args.no_pictures else f"{overlays[0] if len(paths) == 1 else args.out / f'*{MADE}'}, "
            print(f"{sum(map(len, found.values()))} detections in {seen}: {drawn}{results}")
        return int(own.gather(code)[0])  # none leaves before the first: torchrun ends all where one fails


def make_predictor(args: argparse.Namespace, own: "Ranks") -> "tuple[Predictor, Sequence[str] | None, dict[str, Any]]":
    """The predictor on this rank's device, the categories, and all that answers depend on."""
    import torch

    from fastmask.cli._journal import state
    from fastmask.predictor import Predictor

    dtype: Any = getattr(torch, args.dtype, args.dtype)  # which Predictor checks
    with own.first_alone():
        model, categories = load_model(args.model, args.weights, own.device(args.device), args.score)
    fixed = args.size or (next(model.parameters()).is_cuda and not args.exact)
    predictor = Predictor(model, (args.size or (800, 1344)) if fixed else "exact", args.batch, dtype)
    settings = {name: getattr(args, name) for name in ("model", "score", "batch", "no_pictures")}
    settings |= {
        "weights": [args.weights, state(Path(args.weights))],
        "size": predictor.fitting.size,
        "dtype": str(predictor.dtype),
    }
    return predictor, categories, settings
