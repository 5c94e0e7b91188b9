"""The ``fastmask`` command: one file a subcommand, with ``add_arguments(parser)`` and ``run(args) -> int``."""

import argparse
import importlib
from collections.abc import Sequence

from fastmask._version import __version__

COMMANDS = {
    "demo": "draw images, find what is on them, and show it: no network, no data, under a minute",
    "export": "a model as an ONNX file, checked against the model itself",
    "predict": "find objects in images: overlays and one COCO-results file",
    "compare": "how much of a model's answers each of Predictor's settings keeps, on images of yours",
    "train": "a model on annotated images, from weights or from scratch",
    "evaluate": "COCO's average precision of boxes and masks on annotated images",
    "data": "annotations of images: what is wrong with them, and from one format to another",
    "bench": "how fast ops and a model are here, beside torchvision where it is installed",
    "selftest": "whether every op and a model give the right values on this machine",
    "tune": "try block sizes and settings on this GPU, and keep what is faster for later runs",
    "env": "versions and devices, for a bug report",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit code."""
    parser = argparse.ArgumentParser(prog="fastmask", description="Mask R-CNN at the speed the GPU allows.")
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
