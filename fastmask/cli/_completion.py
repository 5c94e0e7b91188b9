"""``fastmask --completion``: a script by which a shell completes commands, options, choices, names and files."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastmask.cli._device import DEVICES

SHELLS = ("bash", "zsh")
MODELS = (  # fastmask.models.detection's, without its import of PyTorch; a test compares them
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_resnet101_c4",
    "fasterrcnn_resnet101_fpn",
    "fasterrcnn_resnet152_fpn",
    "fasterrcnn_resnet18_fpn",
    "fasterrcnn_resnet34_fpn",
    "fasterrcnn_resnet50_c4",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_resnext101_32x8d_fpn",
    "keypointrcnn_resnet101_fpn",
    "keypointrcnn_resnet50_fpn",
    "keypointrcnn_resnext101_32x8d_fpn",
    "keypointrcnn_slim_fpn",
    "maskrcnn_efficientnet_lite0_fpn",
    "maskrcnn_matterport",
    "maskrcnn_resnet101_c4",
    "maskrcnn_resnet101_fpn",
    "maskrcnn_resnet152_fpn",
    "maskrcnn_resnet18_fpn",
    "maskrcnn_resnet34_fpn",
    "maskrcnn_resnet50_c4",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "maskrcnn_resnext101_32x8d_fpn",
    "maskrcnn_slim_fpn",
)
WEIGHTS = ("BALLOON_V1", "COCO_LEGACY", "COCO_V1", "SHAPES_V1")
START = ("imagenet", "none")  # also --weights, of train
FILES = ("FILE", "SOURCE", "DIR", "PATH", "IMAGE")  # metavars of files and folders
FUNCTIONS = {
    "bash": '{0}() {{\n  compgen -W "{1}" -- "$1"\n  compgen -f -- "$1"\n}}',
    "zsh": "{0}() {{\n  _alternative 'names:name:({1})' 'files:file:_files'\n}}",
}


class PrintCompletion(argparse.Action):
    """Print the script for a shell, and exit."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        try:
            print(make_script(parser, str(values)))
        except ImportError:
            parser.exit(2, "fastmask: --completion needs shtab: pip install 'fastmask-rcnn[completion]'\n")
        parser.exit()


def make_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of a parser and those of its commands, which it changes.

    Raises:
        ImportError: shtab is not installed.
    """
    import shtab

    functions = {"_fastmask_weights_or_files": WEIGHTS, "_fastmask_start_or_files": (*START, *WEIGHTS)}
    for path, action in _list_actions(parser):
        if action.dest == "weights":
            name = "_fastmask_start_or_files" if path == ("train",) else "_fastmask_weights_or_files"
            action.complete = dict.fromkeys(SHELLS, name)  # type: ignore[attr-defined]
        elif action.dest == "model":
            action.choices = MODELS
        elif action.dest == "device":
            action.choices = ("auto", *DEVICES)
        elif action.type is Path or action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    preamble = [FUNCTIONS[shell].format(name, " ".join(words)) for name, words in functions.items()]
    return str(shtab.complete(parser, shell, preamble="\n".join(preamble)))


def _list_actions(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Options and arguments, with the commands that they are of."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from _list_actions(command, (*path, name))
        else:
            yield path, action
