"""What commands print to the standard error."""

import argparse
import re


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
