"""Settings files of ``fastmask train``: the values of options by their names, in YAML or JSON."""

import argparse
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SETTINGS = "settings.json"  # a run's own, which fastmask.training.api writes
FACTS = ("peak_lr", "fastmask", "torch")  # in it, which are no options
REQUIRED = ("data_path", "epochs")
KINDS = {int: "an integer", float: "a number"}


def add_negations(parser: argparse.ArgumentParser) -> None:
    """Add ``--no-NAME`` for each flag, which a file may have set."""
    for action in list(parser._actions):
        if isinstance(action, argparse._StoreTrueAction):
            name = action.option_strings[0].replace("--", "--no-", 1)
            parser.add_argument(name, dest=action.dest, action="store_false", help=argparse.SUPPRESS)


def parse_with_files(parser: argparse.ArgumentParser, parse: Callable[[], argparse.Namespace]) -> argparse.Namespace:
    """Parse a command line, whose options come from files where it leaves them out.

    With ``--resume``, the settings of the run in ``--out`` come first, then those of the file of ``--config``, then the
    command line's own.

    Args:
        parser: the command's parser, whose defaults become those of the files.
        parse: parses the command line.

    Raises:
        ImportError, OSError, ValueError: a file cannot be read, or has something that is no option's value.
    """
    args = parse()
    config = {} if args.config is None else read_settings(args.config, parser)
    parser.set_defaults(**config)
    args = parse()
    own = args.out / SETTINGS
    if args.resume and own.exists():
        settings = read_settings(own, parser, to_resume=True)
        parser.set_defaults(**settings | config)
        args = parse()
    missing = [name for name in REQUIRED if getattr(args, name) is None]
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        if args.resume and not own.exists():
            raise ValueError(f"--resume needs a run in --out, or {options} to start one, got {args.out} without one")
        parser.error(f"the following arguments are required, here or in the file of --config: {options}")
    for name, value in vars(args).items():
        if str(value).startswith("<") and str(value).endswith(">"):  # as train() writes objects
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} must be given: {own if args.resume else args.config} has {value}, of Python")
    return args


def read_settings(path: Path, parser: argparse.ArgumentParser, to_resume: bool = False) -> dict[str, Any]:
    """Values of options by name, as the parser keeps them, of a YAML or JSON file.

    Args:
        path: the file; one that ends in .json needs no PyYAML.
        parser: whose options may be in the file; dashes in their names may be underscores. Null stands for an option
            that is not given.
        to_resume: leave out where the run is, and whether to resume it.

    Raises:
        ImportError: PyYAML is not installed.
        ValueError: the file is broken, or has a name that is no option's, or a value that the option does not take.
        OSError: the file cannot be read.
    """
    content = _read(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must have options and their values, got {_describe(content)}")
    options = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    if "arguments" in content:
        if to_resume:
            return {}  # as before: all is on the command line
        raise ValueError(f"{path} must have options by name, got one of an earlier version: leave out its 'arguments'")
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name == "transform" and value is not None:
            raise ValueError(f"{path} has transform {value}, a function of Python: fastmask.training.train takes it")
        if name in (*FACTS, "transform") or (to_resume and name in ("out", "resume")):
            continue
        if name not in options:
            short = "".join(word[:1] for word in name.split("_"))  # such as lr
            near = short if short in options else difflib.get_close_matches(name, options, 1, 0)[0]
            raise ValueError(f"{path} must have names of options, got {key!r}: did you mean {near!r}?")
        if name in values:
            raise ValueError(f"{path} must have each option once, got {name} in both spellings")
        if value is not None:
            try:
                values[name] = _convert(value, options[name])
            except ValueError as error:
                raise ValueError(f"{path}: {key} must be {error}, got {_describe(value)}") from error
    return values


def _read(path: Path) -> Any:
    if path.suffix.lower() != ".json":
        from fastmask.files import read_yaml

        return read_yaml(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_make_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a JSON file: {error}") from error


def _make_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
    if twice is not None:
        raise ValueError(f"it has {twice!r} twice")
    return dict(pairs)


def _convert(value: Any, action: argparse.Action) -> Any:
    """A value as the option keeps it; ValueError, with the rule alone, if it does not take it."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value
    if action.nargs is None:
        return _convert_one(value, action)
    items = value if isinstance(value, list) else [value]
    number = action.nargs if isinstance(action.nargs, int) else None
    if not items or number not in (None, len(items)):
        raise ValueError(f"a list of {number or 'one or more'}")
    return [_convert_one(item, action) for item in items]


def _convert_one(value: Any, action: argparse.Action) -> Any:
    kind: Any = action.type or str
    if kind in KINDS:  # YAML 1.1 has 1e-3 as text
        try:
            if isinstance(value, bool) or not isinstance(value, (int, str) if kind is int else (int, float, str)):
                raise TypeError
            return kind(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(KINDS[kind]) from error
    if not isinstance(value, str):
        raise ValueError("text, in quotes where it looks like something else" if action.choices is None else "text")
    if action.choices is not None and value not in action.choices:
        raise ValueError(f"one of {', '.join(action.choices)}")
    return kind(value)


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    return "nothing" if value is None else repr(value)[:80]
