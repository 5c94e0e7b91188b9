"""``fastmask compare``: how far Predictor's settings match the model itself, as a table and an image."""

import argparse
from pathlib import Path

from fastmask.cli._messages import print_error
from fastmask.cli._model import add_model_arguments, load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the images, the model, the size, and where the image goes."""
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="an image, or a folder of images")
    add_model_arguments(parser)
    add("--size", nargs=2, type=int, default=(800, 1344), metavar=("H", "W"), help="padded size in pixels [800 1344]")
    add("--out", type=Path, default=Path("comparison.png"), metavar="FILE", help="image that is written [%(default)s]")
    add("--force", action="store_true", help="replace that image if it exists")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 2 if an argument is wrong, an image is broken or the weights are not available."""
    from fastmask.evaluation.agreement import KEPT_SHARE
    from fastmask.evaluation.choose_dtype import format_kept
    from fastmask.evaluation.compare import compare_settings
    from fastmask.files import check_free, replace_file
    from fastmask.image_io import check_image_name
    from fastmask.inference.bfloat16 import has_native_bfloat16
    from fastmask.inference.image_files import find_images

    try:
        paths = find_images(args.images)
        check_image_name("out", args.out)
        check_free([args.out], args.force, paths)
        model, categories = load_model(args.model, args.weights, args.device, args.score)
        matches, image = compare_settings(model, paths, args.size, categories)
        with replace_file(args.out) as draft:
            image.save(draft)
    except (OSError, ValueError) as error:
        print_error(error, args)
        return 2
    print(f"{'':24} detections  matched  mask IoU")
    for setting, number, share, iou, _, _ in matches:
        print(f"{setting:24} {number:10}  {share:7.1%}  {iou:8.4f}")
    print(f"matched: label, 1 pixel, score 0.001 and mask IoU 0.99 with the model's own in float32. {args.out}")
    for match in (match for match in matches if match.expected):
        verdict = "enough for" if match.kept >= KEPT_SHARE * match.expected else "too few for"
        print(f"{match.setting}: {format_kept(match.kept, match.expected)}: {verdict} --dtype bfloat16")
    if next(model.parameters()).device.type == "cpu":
        print(f"this CPU {'computes bfloat16 itself' if has_native_bfloat16() else 'only emulates bfloat16: slower'}")
    return 0
