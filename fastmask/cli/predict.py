"""``fastmask predict``: what a model finds in pictures, drawn on them and as one COCO-results file."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmask.cli._model import add_model_arguments, load_model
from fastmask.cli._pictures import MADE, find_pictures, image_ids, overlays_of

if TYPE_CHECKING:
    from fastmask.models.detection.faster_rcnn import FasterRCNN

RESULTS = "predictions.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is looked at, by which model, and where the answers go."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="a picture, or a folder of pictures")
    add_model_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("predictions"), metavar="DIR", help="[%(default)s]")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if a picture was skipped; 2 if an argument is wrong or the weights cannot be had."""
    from tqdm import tqdm

    results: list[dict[str, Any]] = []
    try:
        paths = find_pictures(args.images)
        args.out.mkdir(parents=True, exist_ok=True)
        with open(args.out / RESULTS, "a"):  # fails here, not after the last picture
            pass
        model, categories = load_model(args.model, args.weights, args.device, args.score)
    except (OSError, ValueError) as error:
        print(f"fastmask predict: {error}", file=sys.stderr)
        return 2
    skipped = 0
    overlays = overlays_of(paths, args.out)
    rows = zip(paths, image_ids(paths), overlays, strict=True)
    progress = tqdm(rows, total=len(paths), unit="img", disable=len(paths) < 2)
    try:
        for path, image_id, overlay in progress:
            try:
                results += predict(model, path, image_id, overlay, categories)
            except (OSError, ValueError, RuntimeError) as error:  # torch's: out of memory, no side left
                reason = str(error) if str(path) in str(error) else f"{path}: {error}"
                progress.write(f"fastmask predict: skipped: {reason}", file=sys.stderr)
                skipped += 1
    finally:  # what was found before an interruption is kept
        (args.out / RESULTS).write_text(json.dumps(results))
    seen = f"{len(paths) - skipped} pictures" if len(paths) - skipped != 1 else "1 picture"
    pictures = overlays[0] if len(overlays) == 1 else args.out / f"*{MADE}"
    print(f"{len(results)} detections in {seen}: {pictures}, {args.out / RESULTS}")
    return 1 if skipped else 0


def predict(
    model: "FasterRCNN", path: Path, image_id: int, overlay: Path, categories: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Write one picture's overlay -> its entries for the results file."""
    from fastmask.images import read_image
    from fastmask.models._presets import to_float
    from fastmask.ops import encode_masks
    from fastmask.results import coco_results
    from fastmask.visualize import draw_detections

    picture = read_image(path)
    (found,) = model.detect([to_float(picture).to(next(model.parameters()).device)])
    detections: dict[str, Any] = {name: value.cpu() for name, value in found.items()}
    if "masks" in found:
        detections["masks"] = encode_masks(found["masks"], found["boxes"], (picture.height, picture.width))
    draw_detections(picture, detections, categories).save(overlay)
    return [entry | {"file_name": str(path)} for entry in coco_results(image_id, detections)]
