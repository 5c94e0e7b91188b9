"""``fastmask demo``: what the package does, on images that it draws itself, with weights that come with it."""

import argparse
import json
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many images, or which, and where the sheet goes."""
    add = parser.add_argument
    add(
        "--image",
        nargs="+",
        action="extend",
        type=Path,
        metavar="FILE",
        help="look for shapes on these instead of synthetic images",
    )
    add("--number", type=int, default=200, metavar="N", help="of images that are drawn [%(default)s]")
    add("--seed", type=int, default=3, help="of these; the weights have seen those of 1 and 2 [%(default)s]")
    add("--score", type=float, default=0.5, help="what is shown scores above it [%(default)s]")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... [%(default)s]")
    add("--out", type=Path, default=Path(), metavar="DIR", help="for demo.png and demo.json [here]")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 2 if an argument is wrong, or an image cannot be read, or nothing can be written."""
    from fastmask.cli._demo import on_drawn_images, on_own_images

    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if args.image:
            sheet, told = on_own_images(args.image, args.score, args.device)
        else:
            sheet, told = on_drawn_images(args.number, args.seed, args.score, args.device)
        sheet.save(args.out / "demo.png")
        (args.out / "demo.json").write_text(json.dumps(told, indent=1))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"fastmask demo: {error}", file=sys.stderr)
        return 2
    print(f"\n{args.out / 'demo.png'}, {args.out / 'demo.json'}")
    return 0
