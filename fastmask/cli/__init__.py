"""The ``fastmask`` command: one file a subcommand, with ``add_arguments(parser)`` and ``run(args) -> int``."""

import argparse
import importlib
from collections.abc import Sequence

from fastmask._version import __version__

COMMANDS = {
    "demo": "detect shapes on synthetic images: no network, no data, under a minute",
    "export": "export a model to ONNX or AOTInductor, checked against the model itself",
    "predict": "detect objects in images and videos; write overlays and results",
    "compare": "compare each of Predictor's settings with the model itself, on images of yours",
    "train": "train a model on annotated images, from weights or from scratch",
    "evaluate": "compute COCO's average precision of boxes and masks on annotated images",
    "data": "check annotated images, convert annotations, draw synthetic images",
    "bench": "measure ops and a model on this machine, beside torchvision where it is installed",
    "selftest": "check that every op and a model give the right values on this machine",
    "tune": "find the fastest block sizes and settings on this GPU, for later runs",
    "env": "print versions and devices, for a bug report",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="fastmask", description="Train, run, evaluate and export Mask R-CNN; a drop-in for torchvision's."
    )
    parser.add_argument("--version", action="version", version=f"fastmask {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = importlib.import_module(f"fastmask.cli.{name}")
        command.add_arguments(subparsers.add_parser(name, help=summary, description=summary))
    args = parser.parse_args(argv)
    try:
        return int(importlib.import_module(f"fastmask.cli.{args.command}").run(args))
    except KeyboardInterrupt:
        return 130  # a shell's code for it
