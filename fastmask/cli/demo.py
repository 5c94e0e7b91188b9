"""``fastmask demo``: what the package does, on photos and weights that come with it, and on synthetic images."""

import argparse
import json
import os
import sys
from pathlib import Path

from fastmask.cli._device import DEVICE_HELP, find_device
from fastmask.cli._messages import print_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which images, or how many, and where the output goes."""
    add = parser.add_argument
    add("--image", nargs="+", action="extend", type=Path, metavar="FILE", help="find balloons on these images instead")
    add("--number", type=int, default=200, metavar="N", help="number of synthetic images [%(default)s]")
    add("--seed", type=int, default=3, help="seed of the synthetic images; SHAPES_V1 has seen 1 and 2 [%(default)s]")
    add("--score", type=float, default=0.5, help="minimum score of a shown detection, from 0 to 1 [%(default)s]")
    add("--device", default="auto", help=DEVICE_HELP)
    add("--out", type=Path, default=Path(), metavar="DIR", help="folder of demo.png and demo.json [here]")
    add("--force", action="store_true", help="replace these files, even if they are of another origin")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 2 if an argument is wrong, or an image cannot be read, or nothing can be written."""
    wait_passively()
    from fastmask.checks import check_at_least
    from fastmask.cli._demo import print_times
    from fastmask.demo.run import (
        BALLOONS,
        SHAPES,
        demo_images,
        demo_photos,
        demo_synthetic,
        load_predictor,
        stack_sheets,
    )
    from fastmask.files import check_free, replace_file, write_text

    try:
        outputs = [args.out / "demo.png", args.out / "demo.json"]
        check_free(outputs, args.force or is_demo(outputs[1]), args.image or ())
        args.out.mkdir(parents=True, exist_ok=True)
        check_at_least("--number", args.number, 1)
        if not 0 <= args.score <= 1:
            raise ValueError(f"--score must be in [0, 1], got {args.score}")
        least = args.score if args.image else min(args.score, 0.05)  # average precision counts low scores as well
        device = str(find_device(args.device))
        predictor = load_predictor(BALLOONS, device, least)
        demo = demo_images(predictor, args.image) if args.image else demo_photos(predictor, args.score)
        print(demo.text)
        sheet, metrics = demo.sheet, demo.metrics
        if not args.image:
            synthetic = demo_synthetic(load_predictor(SHAPES, device, least), args.number, args.seed, args.score)
            print(synthetic.text)
            sheet = stack_sheets(sheet, synthetic.sheet)
            metrics = {"photos": metrics, "synthetic": synthetic.metrics}
        metrics = metrics | {"times": print_times(predictor, demo.record.load(), least)}
        with replace_file(outputs[0]) as draft:
            sheet.save(draft)
        write_text(outputs[1], json.dumps(metrics, indent=1))
    except (OSError, ValueError, RuntimeError) as error:
        print_error(error, args)
        return 2
    print(f"\n{outputs[0]}, {outputs[1]}")
    return 0


def wait_passively() -> None:
    """Let OpenMP's threads sleep where they wait; PyTorch's import reads that.

    Spinning threads take each other's cores where other programs run: beside two busy ones on two cores the demo took
    117 seconds, and 49 so; on idle cores it takes 33 instead of 27.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def is_demo(path: Path) -> bool:
    """Whether the file was made here."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "times" in content
