"""``fastmask compare``: how faithful Predictor's settings are to the model itself, as a table and an image."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmask.cli._images import find_images
from fastmask.cli._model import add_model_arguments, load_model

if TYPE_CHECKING:
    from PIL import Image

Found = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is looked at, by which model, in which size, and where the image goes."""
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="an image, or a folder of images")
    add_model_arguments(parser)
    parser.add_argument("--size", nargs=2, type=int, default=(800, 1344), metavar=("H", "W"), help="[800 1344]")
    parser.add_argument("--out", type=Path, default=Path("comparison.png"), metavar="FILE", help="[%(default)s]")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 2 if an argument is wrong, an image is broken or the weights cannot be had."""
    try:
        rows, image = compare(args)
        image.save(args.out)
    except (OSError, ValueError) as error:
        print(f"fastmask compare: {error}", file=sys.stderr)
        return 2
    print(f"{'':24} detections  matched  mask IoU")
    for name, number, share, iou in rows:
        print(f"{name:24} {number:10}  {share:7.1%}  {iou:8.4f}")
    print(f"matched: label, 1 pixel, score 0.001 and mask IoU 0.99 with the model's own in float32. {args.out}")
    return 0


def compare(args: argparse.Namespace) -> "tuple[list[tuple[str, int, float, float]], Image.Image]":
    """(setting, detections, share that match, mean IoU of masks) of each, and the image that changes most."""
    import torch

    from fastmask.evaluation.agreement import mask_ious, matched_share
    from fastmask.image_io import read_image
    from fastmask.inference.predictor import Predictor
    from fastmask.models._presets import to_float
    from fastmask.ops import paste_masks

    paths = find_images(args.images)
    model, categories = load_model(args.model, args.weights, args.device, args.score)
    if not model.roi_heads.has_mask():
        raise ValueError(f"--model must have masks, got {args.model}")
    device = next(model.parameters()).device
    originals = []
    for path in paths:
        image = read_image(path)
        found: dict[str, Any] = {**model.detect([to_float(image).to(device)])[0]}
        found["masks"] = paste_masks(found["masks"], found["boxes"], (image.height, image.width))
        originals.append({name: value.cpu() for name, value in found.items()})

    sizes: tuple[Any, ...] = ("exact", (args.size[0], args.size[1]))
    rows, found_by = [], {"the model, float32": originals}
    worst = (1.0, 0)  # (share, which image)
    for where, dtype in ((w, d) for d in (torch.float32, torch.bfloat16) for w in sizes):
        name = f"{where if where == 'exact' else f'{where[0]} x {where[1]}'}, {str(dtype).removeprefix('torch.')}"
        answers = [
            {key: value.cpu() for key, value in found.items()}
            for found in Predictor(model, where, dtype=dtype, masks="bool").stream(paths)
        ]
        shares = [matched_share(*pair) for pair in zip(answers, originals, strict=True)]
        ious = torch.cat([mask_ious(*pair) for pair in zip(answers, originals, strict=True)])
        weights = [len(a["boxes"]) + len(b["boxes"]) for a, b in zip(answers, originals, strict=True)]
        share = sum(w * s for w, s in zip(weights, shares, strict=True)) / sum(weights) if sum(weights) else 1.0
        iou = float(ious.mean()) if len(ious) else 1.0
        rows.append((name, sum(len(found["boxes"]) for found in answers), share, iou))
        worst = min(worst, *((s, i) for i, s in enumerate(shares)))
        found_by[name] = answers
    shown = {name: found[worst[1]] for name, found in found_by.items()}
    return rows, side_by_side(read_image(paths[worst[1]]), shown, categories)


def side_by_side(image: "Image.Image", found: dict[str, Found], categories: Sequence[str] | None) -> "Image.Image":
    """The image once for each answer, with its name above."""
    from PIL import Image, ImageDraw, ImageFont

    from fastmask.visualize import draw_detections

    height = max(12.0, image.width / 25)
    font, bar = ImageFont.load_default(height), round(height * 1.6)
    sheet = Image.new("RGB", (len(found) * image.width, bar + image.height), "white")
    for i, (name, detections) in enumerate(found.items()):
        sheet.paste(draw_detections(image, detections, categories), (i * image.width, bar))
        ImageDraw.Draw(sheet).text((i * image.width + bar // 4, bar // 6), name, "black", font)
    return sheet
