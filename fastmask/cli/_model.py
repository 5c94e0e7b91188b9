"""The model, and the Predictor, that a command line names."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmask._version import __version__
from fastmask.cli._device import DEVICE_HELP, find_device
from fastmask.cli._messages import Default

if TYPE_CHECKING:
    from fastmask.distributed import Ranks
    from fastmask.export import ExportedPredictor
    from fastmask.inference.predictor import Predictor
    from fastmask.models.detection._weights import Source
    from fastmask.models.detection.faster_rcnn import FasterRCNN

MODEL_HELP = "name of a builder [the one that the weights name, or maskrcnn_resnet50_fpn]"
WEIGHTS_HELP = "a name (COCO_V1 is downloaded once), a file or hf://owner/name[/file][@revision] [%(default)s]"
NMS_HELP = "suppress boxes that overlap a better one of their class, or let their scores decay [as the model]"
SIZES_HELP = "shorter sides in pixels that each image is predicted at, and merged; after the images [the model's]"
CHECKPOINTS = {".bin", ".ckpt", ".h5", ".pkl", ".pt", ".pth", ".safetensors"}
CHECK_HELP = "images or folders on which bfloat16 must keep 99 %% of float32's detections to be what --dtype auto takes"
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def add_model_arguments(parser: argparse.ArgumentParser, score: float = 0.5, device_help: str = DEVICE_HELP) -> None:
    """Add what names a model, for every command that runs one."""
    add = parser.add_argument
    add("--weights", default=Default("COCO_V1"), help=WEIGHTS_HELP)
    add("--model", metavar="NAME", help=MODEL_HELP)
    add("--score", type=float, default=score, help="minimum score of a kept detection, from 0 to 1 [%(default)s]")
    add("--device", default="auto", help=device_help)


def add_predictor_arguments(parser: argparse.ArgumentParser, dtypes: bool = False) -> None:
    """Add what configures a Predictor, for commands that predict many images; ``dtypes``: with one or more of them."""
    add_size = parser.add_mutually_exclusive_group().add_argument
    add_size("--size", nargs=2, type=int, metavar=("H", "W"), help="padded size in pixels [800 1344 on CUDA]")
    add_size("--exact", action="store_true", help="pad images as the model does [where there is no CUDA]")
    add = parser.add_argument
    dtype_help = "data type of weights and feature maps [%(default)s]" + ("; of several, each is evaluated" * dtypes)
    add("--dtype", default="auto", choices=DTYPES, nargs="+" if dtypes else None, help=dtype_help)
    add("--check-images", nargs="+", type=Path, metavar="IMAGE", help=CHECK_HELP)
    add("--nms", choices=("hard", "soft_linear", "soft_gaussian"), help=NMS_HELP)
    add("--flip", action="store_true", help="predict each image mirrored, too, and merge both")
    add("--test-sizes", nargs="+", type=int, metavar="N", help=SIZES_HELP)
    add("--batch", type=int, default=1, metavar="N", help="images per batch [%(default)s]")


def check_weights(weights: object) -> None:
    """ValueError if weights are named like a file, and there is none, or by a wrong name on the hub."""
    from fastmask.models._hub import is_hub_name, parse_hub_name

    if is_hub_name(str(weights)):
        parse_hub_name(str(weights))
        return
    path = Path(str(weights or ""))
    if (path.suffix in CHECKPOINTS or len(path.parts) > 1) and not path.exists():
        raise ValueError(f"--weights must be a file that is there, or a name, got {path}: no such file")


def find_model(name: str | None, weights: "str | Source") -> "tuple[str, Source]":
    """The builder's name, which the weights may know, and the weights; ValueError if there are none of that name."""
    from fastmask.models._api import check_detector
    from fastmask.models.detection._weights import choose_model

    if name is not None:
        check_detector("--model", name)
    check_weights(weights)
    try:
        return choose_model(name, weights)
    except ImportError as error:  # of an extra that reads the file
        raise ValueError(str(error)) from error


def _pin(weights: Any) -> Any:
    from fastmask.models._hub import pin_weights

    try:
        return pin_weights(weights)
    except ImportError as error:
        raise ValueError(str(error)) from error


def load_model(
    name: str | None, weights: "str | Source", device: str, score: float
) -> "tuple[FasterRCNN, Sequence[str] | None]":
    """The model, ready to detect, and its categories if they are known; ValueError if an argument is wrong."""
    from fastmask.inference import load_pretrained

    if not 0 <= score <= 1:
        raise ValueError(f"--score must be in [0, 1], got {score}")
    try:
        return load_pretrained(*find_model(name, weights), find_device(device), score)
    except ImportError as error:  # of an extra
        raise ValueError(str(error)) from error


def make_exported_predictor(
    args: argparse.Namespace, ranks: "Ranks"
) -> "tuple[ExportedPredictor, Sequence[str] | None, dict[str, Any]]":
    """:func:`make_predictor` for an exported file."""
    if args.check_images:
        raise ValueError("--check-images must not be given with --exported: the file has its dtype")
    if args.size or args.exact or args.nms or (args.dtype != "auto" and args.runtime != "openvino"):
        raise ValueError("--size, --exact, --dtype and --nms must not be given with --exported: the file has its own")
    if args.flip or args.test_sizes:
        raise ValueError("--flip and --test-sizes must not be given with --exported: a file predicts an image once")
    try:
        import torch

        from fastmask.export.predictor import ExportedPredictor
        from fastmask.inference.journal import file_state

        if ranks.world_size > 1 and torch.cuda.is_available():
            torch.cuda.set_device(ranks.device("cuda"))  # which "auto" then is, for a file that can use it
        device = args.device if args.device == "auto" else ranks.device(args.device)
        dtype = None if args.dtype == "auto" else getattr(torch, args.dtype)
        predictor = ExportedPredictor(args.exported, device, args.score, args.batch, args.runtime, dtype)
    except ImportError as error:
        raise ValueError(str(error)) from error
    settings = {"exported": str(args.exported), "file": file_state(args.exported), "fastmask": __version__}
    settings |= {"device": predictor.session.kind, "runtime": predictor.session.runtime, "dtype": args.dtype}
    return (
        predictor,
        predictor.session.metadata["categories"],
        settings | {"score": args.score, "batch": predictor.batch},
    )


def make_predictor(
    args: argparse.Namespace, ranks: "Ranks"
) -> "tuple[Predictor, Sequence[str] | None, dict[str, Any]]":
    """The Predictor on this rank's device, the categories if they are known, and all that predictions depend on."""
    import torch

    from fastmask.inference import Predictor
    from fastmask.inference.journal import file_state

    args.weights = ranks.run_on_first(lambda: _pin(args.weights))  # all ranks then read the same commit
    with ranks.local_first():
        name, source = find_model(args.model, args.weights)
        model, categories = load_model(name, source, ranks.device(args.device), args.score)
    device = next(model.parameters()).device.type
    fixed = args.size or (device == "cuda" and not args.exact)
    dtype: Any = args.dtype if args.dtype == "auto" else getattr(torch, args.dtype)
    size: Any = (args.size or (800, 1344)) if fixed else "exact"
    views = {"flip_test": args.flip, "test_sizes": args.test_sizes}
    if args.check_images:
        dtype = check_dtype(args, model, size, ranks.rank == 0)
    predictor = Predictor(model, size, args.batch, dtype, box_nms=args.nms, **views)
    predictor.skeletons = {} if source is None else source.meta.get("skeletons", {})
    settings = {"model": name, "score": args.score, "batch": args.batch}
    settings |= {"weights": args.weights, "file": file_state(Path(args.weights)), "device": device}
    settings |= {"nms": predictor.box_nms, "size": predictor.size, **views}
    settings |= {"dtype": str(predictor.dtype), "fastmask": __version__}
    return predictor, categories, settings


def check_dtype(args: argparse.Namespace, model: "FasterRCNN", size: Any, print_choice: bool) -> Any:
    """The dtype that --check-images choose; ValueError if there are none, or --dtype is given."""
    from fastmask.evaluation import choose_dtype
    from fastmask.inference.image_files import find_images

    if args.dtype != "auto":
        raise ValueError(f"--check-images must not be given with --dtype {args.dtype}, which is a choice already")
    choice = choose_dtype(model, find_images(args.check_images), size)
    if print_choice:
        print(f"fastmask {args.command}: {choice}", file=sys.stderr)
    return choice.dtype
