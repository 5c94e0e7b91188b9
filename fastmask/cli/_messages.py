"""What commands print, and how options are named there."""

import argparse
import os
import re
import sys
from typing import TextIO


def name_options(text: object, args: argparse.Namespace) -> str:
    """A library's message with the option's name for the argument's: "batch must be ..." -> "--batch must be ..."."""
    match = re.match(r"(\w+)(?= must )", str(text))
    if match is None or match[1] not in vars(args) or match[1] == "images":  # no option
        return str(text)
    return f"--{match[1].replace('_', '-')}{str(text)[match.end() :]}"


class Default(str):
    """An option's default, which an option that is given is told from."""


def is_given(value: object) -> bool:
    """Whether an option whose default is None or a :class:`Default` was given."""
    return value is not None and not isinstance(value, Default)


def print_line(text: str, output: TextIO) -> None:
    """Print a line that may have names of files, which need not be of the output's encoding."""
    encoding = output.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True, file=output)


def silence_output() -> None:
    """Drop what is still printed to the standard output, which nobody reads any more, also by Python at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
