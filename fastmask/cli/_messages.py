"""What commands print, and how options are named there."""

import argparse
import re
import sys
from typing import TextIO

from fastmask.files import describe_error

POSITIONAL = {"evaluate": "annotations", "export": "file", "data": "source"}  # no options; --images is named below
ALIASES = {
    "data": "data_path",
    "dataset": "data_path",
    "attribute": "class_attribute",
    "box_nms": "nms",
    "builder": "model",
    "box_score_thresh": "score",
    "flip_test": "flip",
    "height": "size",
    "width": "size",
}
WORDS = ("lr", "bf16", "zoom")  # in messages of the library always the arguments


def print_error(error: object, args: argparse.Namespace) -> None:
    """Print why a command ends, in one line, with the options' names."""
    text = describe_error(error) if isinstance(error, OSError) else error
    print(f"fastmask {args.command}: {name_options(text, args)}", file=sys.stderr)


def name_options(text: object, args: argparse.Namespace) -> str:
    """A library's message with the options' names for the arguments': "batch must be ..." -> "--batch must be ...".

    An argument is the message's first word, before "must", or what "was" and is another one "now"; names with an
    underscore, and :data:`WORDS`, are arguments everywhere but in paths and quotes.
    """
    options = {name for name in vars(args) if name not in ("command", "what", "images", POSITIONAL.get(args.command))}

    def name_option(match: re.Match[str]) -> str:
        name = ALIASES.get(match[0], match[0])
        return f"--{name.replace('_', '-')}" if name in options else match[0]

    text = re.sub(r"^\w+(?=(?: and \w+)? must )|(?<=^opset and )\w+", name_option, str(text))
    text = re.sub(r"(?:(?<=, got )|(?<=\), ))\w+(?= .*\(now )", name_option, text)
    anywhere = "|".join([r"[a-z]+(?:_[a-z]+)+", *WORDS])
    return re.sub(rf"(?<![\w/.\\'\"-])(?:{anywhere})(?![\w/.\\'\"-])", name_option, text)


class Default(str):
    """An option's default, which an option that is given is told from."""


def is_given(value: object) -> bool:
    """Whether an option whose default is None or a :class:`Default` was given."""
    return value is not None and not isinstance(value, Default)


def print_line(text: str, output: TextIO) -> None:
    """Print a line that may have names of files, which need not be of the output's encoding."""
    encoding = output.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True, file=output)
