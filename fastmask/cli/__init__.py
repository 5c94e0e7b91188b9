"""The ``fastmask`` command: one file a subcommand, with ``add_arguments(parser)`` and ``run(args) -> int``.

A command whose options may come from files has ``parse(parser, parse_line) -> args``, too.
"""

import argparse
import functools
import importlib
from collections.abc import Sequence

from fastmask._version import __version__
from fastmask.cli._completion import SHELLS, PrintCompletion
from fastmask.cli._messages import print_error
from fastmask.cli._output import checked_output

COMMANDS = {
    "demo": "find balloons on photos, shapes on synthetic images: no network, no data, under a minute",
    "export": "export a model to ONNX or AOTInductor, checked against the model itself",
    "predict": "detect objects in images and videos; write overlays and results",
    "compare": "compare each of Predictor's settings with the model itself, on images of yours",
    "train": "train a model on annotated images, from weights or from scratch",
    "evaluate": "compute COCO's average precision of boxes and masks on annotated images",
    "data": "check annotated images, convert annotations, draw synthetic images",
    "push": "upload weights to the Hugging Face Hub, with a model card",
    "models": "list every model and its published weights, with parameters, GMAC and accuracy",
    "bench": "measure ops and a model on this machine, beside torchvision where it is installed",
    "selftest": "check that every op and a model give the right values on this machine",
    "tune": "find the fastest block sizes and settings on this GPU, for later runs",
    "env": "print versions and devices, for a bug report",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit code."""
    with checked_output():
        return _run(argv)


def make_parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of command lines, and those of the commands by name."""
    parser = argparse.ArgumentParser(
        prog="fastmask", description="Train, run, evaluate and export Mask R-CNN; a drop-in for torchvision's."
    )
    parser.add_argument("--version", action="version", version=f"fastmask {__version__}")
    completion = "print a script that completes command lines: source <(fastmask --completion bash)"
    parser.add_argument("--completion", action=PrintCompletion, choices=SHELLS, help=completion)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands = {}
    for name, summary in COMMANDS.items():
        commands[name] = subparsers.add_parser(name, help=summary, description=summary)
        importlib.import_module(f"fastmask.cli.{name}").add_arguments(commands[name])
    return parser, commands


def _run(argv: Sequence[str] | None) -> int:
    parser, commands = make_parsers()
    args = parser.parse_args(argv)
    command = importlib.import_module(f"fastmask.cli.{args.command}")
    if hasattr(command, "parse"):
        try:
            args = command.parse(commands[args.command], functools.partial(parser.parse_args, argv))
        except (ImportError, OSError, ValueError) as error:
            print_error(error, args)
            return 2
    try:
        return int(command.run(args))
    except KeyboardInterrupt:
        return 130  # a shell's code for it
