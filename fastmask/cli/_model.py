"""The model, and the Predictor, that a command line names."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastmask._version import __version__
from fastmask.cli._device import find_device
from fastmask.cli._journal import state_of

if TYPE_CHECKING:
    from fastmask.distributed import Ranks
    from fastmask.export import ExportedPredictor
    from fastmask.inference.predictor import Predictor
    from fastmask.models.detection.faster_rcnn import FasterRCNN


def add_model_arguments(parser: argparse.ArgumentParser, score: float = 0.5) -> None:
    """For every command that looks at images."""
    parser.add_argument("--weights", default="COCO_V1", help="COCO_V1 (downloaded once) or a file [%(default)s]")
    parser.add_argument("--model", default="maskrcnn_resnet50_fpn", metavar="NAME", help="[%(default)s]")
    parser.add_argument("--score", type=float, default=score, help="what is kept scores above it [%(default)s]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... [%(default)s]")


def add_predictor_arguments(parser: argparse.ArgumentParser) -> None:
    """For those that look at many."""
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="to pad to [800 1344 on CUDA]")
    sizes.add_argument("--exact", action="store_true", help="pad as the model does [where there is no CUDA]")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16 [%(default)s]")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at once [%(default)s]")


def load_model(name: str, weights: str, device: str, score: float) -> "tuple[FasterRCNN, Sequence[str] | None]":
    """The model, ready to detect, and its categories if they are known; ValueError if an argument is wrong."""
    from fastmask import models
    from fastmask.models.detection._weights import find_weights

    if not 0 <= score <= 1:
        raise ValueError(f"--score must be in [0, 1], got {score}")
    names = models.list_models(module=models.detection)
    if name not in names:
        raise ValueError(f"--model must be one of {', '.join(names)}, got {name!r}")
    where = find_device(device)
    source = find_weights(models.get_model_weights(name), weights)
    assert source is not None
    options = source.meta.get("options", {})  # such as the size of images that it was trained on
    model = (
        models.get_model(name, weights=source, box_score_thresh=score, **options).eval().requires_grad_(False).to(where)
    )
    return cast("FasterRCNN", model), source.meta.get("categories")


def make_exported_predictor(
    args: argparse.Namespace, ranks: "Ranks"
) -> "tuple[ExportedPredictor, Sequence[str] | None, dict[str, Any]]":
    """:func:`make_predictor` for an exported file."""
    if args.size or args.exact or args.dtype != "auto":
        raise ValueError("--size, --exact and --dtype must not be given with --exported: the file has its own")
    try:
        import torch

        from fastmask.export.predictor import ExportedPredictor

        if ranks.world_size > 1 and torch.cuda.is_available():
            torch.cuda.set_device(ranks.device("cuda"))  # which "auto" then is, for a file that can use it
        device = args.device if args.device == "auto" else ranks.device(args.device)
        predictor = ExportedPredictor(args.exported, device, args.score, args.batch)
    except ImportError as error:
        raise ValueError(str(error)) from error
    settings = {"exported": str(args.exported), "file": state_of(args.exported), "fastmask": __version__}
    settings["device"] = predictor.session.kind
    return (
        predictor,
        predictor.session.metadata["categories"],
        settings | {"score": args.score, "batch": predictor.batch},
    )


def make_predictor(
    args: argparse.Namespace, ranks: "Ranks"
) -> "tuple[Predictor, Sequence[str] | None, dict[str, Any]]":
    """The Predictor on this rank's device, the categories if they are known, and all that answers depend on."""
    import torch

    from fastmask.inference.predictor import Predictor

    with ranks.local_first():
        model, categories = load_model(args.model, args.weights, ranks.device(args.device), args.score)
    device = next(model.parameters()).device.type
    fixed = args.size or (device == "cuda" and not args.exact)
    dtype: Any = getattr(torch, args.dtype, args.dtype)  # which Predictor checks
    predictor = Predictor(model, (args.size or (800, 1344)) if fixed else "exact", args.batch, dtype)
    settings = {name: getattr(args, name) for name in ("model", "score", "batch")}
    settings |= {"weights": args.weights, "file": state_of(Path(args.weights)), "device": device}
    settings |= {
        "size": predictor.size,
        "dtype": str(predictor.dtype),
        "fastmask": __version__,
    }
    return predictor, categories, settings
