"""``fastmask predict``: what a model finds in pictures, drawn on them and as one COCO-results file."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastmask.cli._pictures import find_pictures, image_ids, outputs_for

if TYPE_CHECKING:
    from fastmask.models.detection.faster_rcnn import FasterRCNN

RESULTS = "predictions.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is looked at, by which model, and where the answers go."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a picture, or a folder of pictures")
    parser.add_argument("--weights", default="COCO_V1", help="COCO_V1 (downloaded once) or a file [%(default)s]")
    parser.add_argument("--model", default="maskrcnn_resnet50_fpn", metavar="NAME", help="[%(default)s]")
    parser.add_argument("--score", type=float, default=0.5, help="what is kept scores above it [%(default)s]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... [%(default)s]")
    parser.add_argument("--out", type=Path, default=Path("predictions"), metavar="DIR", help="[%(default)s]")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if a picture could not be read; 2 if an argument is wrong or the weights cannot be had."""
    from tqdm import tqdm

    from fastmask.images import read_image
    from fastmask.models._presets import to_float
    from fastmask.ops import encode_masks
    from fastmask.results import coco_results
    from fastmask.visualize import draw_detections

    try:
        paths = find_pictures(args.images)
        model, categories = load_model(args.model, args.weights, args.device, args.score)
        args.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"fastmask predict: {error}", file=sys.stderr)
        return 2
    device = next(model.parameters()).device
    results: list[dict[str, Any]] = []
    broken = 0
    drawn = outputs_for(paths, args.out, ".png")
    progress = tqdm(
        zip(paths, image_ids(paths), drawn, strict=True), total=len(paths), unit="img", disable=len(paths) < 2
    )
    for path, image_id, overlay in progress:
        try:
            picture = read_image(path)
        except (OSError, ValueError) as error:
            progress.write(f"fastmask predict: skipped: {error}", file=sys.stderr)
            broken += 1
            continue
        (found,) = model.detect([to_float(picture).to(device)])
        detections: dict[str, Any] = {name: value.cpu() for name, value in found.items()}
        if "masks" in found:
            detections["masks"] = encode_masks(found["masks"], found["boxes"], (picture.height, picture.width))
        results += [entry | {"file_name": path.name} for entry in coco_results(image_id, detections)]
        draw_detections(picture, detections, categories).save(overlay)
    (args.out / RESULTS).write_text(json.dumps(results))
    seen = f"{len(paths) - broken} pictures" if len(paths) - broken != 1 else "1 picture"
    pictures = drawn[0] if len(drawn) == 1 else args.out / "*.png"
    print(f"{len(results)} detections in {seen}: {pictures}, {args.out / RESULTS}")
    return 1 if broken else 0


def load_model(name: str, weights: str, device: str, score: float) -> "tuple[FasterRCNN, Sequence[str] | None]":
    """The model, ready to detect, and its categories if they are known; ValueError if an argument is wrong."""
    import torch  # seconds: not before the command line is known to be right

    from fastmask import models
    from fastmask.models.detection._weights import find_weights

    if not 0 <= score <= 1:
        raise ValueError(f"--score must be in [0, 1], got {score}")
    names = models.list_models(module=models.detection)
    if name not in names:
        raise ValueError(f"--model must be one of {', '.join(names)}, got {name!r}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch is built without CUDA
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device must be one that this machine has, got {device!r} ({reason})") from error
    source = find_weights(models.get_model_weights(name), weights)
    assert source is not None
    model = models.get_model(name, weights=source, box_score_thresh=score).eval().requires_grad_(False).to(device)
    return cast("FasterRCNN", model), source.meta.get("categories")
