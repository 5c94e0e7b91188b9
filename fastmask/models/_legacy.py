"""Calls of builders as torchvision took them before 0.13: positional, ``pretrained=``, ``weights=True``."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import nn

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])
Default = Any  # the weights that True stands for, or a function of the other arguments that chooses them


def accept_legacy(**parameters: tuple[str, Default]) -> Callable[[Builder], Builder]:
    """Let a builder of keywords also take positional arguments and the old names, with torchvision's warnings.

    Args:
        parameters: for each parameter of weights its old name, and the weights that True stands for: a WeightsEnum's
            member, or a function from the keywords to one.

    Source: torchvision/models/_utils.py. Unlike there, too many arguments and one given twice are a TypeError, and
    weights of a wrong type are left to the builder's check, where torchvision takes them for True.
    """

    def decorate(builder: Builder) -> Builder:
        names = [
            name
            for name, parameter in inspect.signature(builder).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        ]

        @functools.wraps(builder)
        def build(*arguments: Any, **options: Any) -> nn.Module:
            if arguments:
                options = _name_positional(builder.__name__, names, arguments, options)
            for name, (old, default) in parameters.items():
                if name in options and not _is_legacy(options[name]):
                    continue
                if name in options or old in options:
                    options[name] = _replace(name, old, default, options)
            return builder(**options)

        return cast(Builder, build)

    return decorate


def _name_positional(
    builder: str, names: list[str], arguments: tuple[Any, ...], options: dict[str, Any]
) -> dict[str, Any]:
    """All arguments by name, with a warning."""
    if len(arguments) > len(names):
        raise TypeError(f"{builder} must get at most {len(names)} positional arguments, got {len(arguments)}")
    positional = dict(zip(names, arguments, strict=False))
    for name in positional:
        if name in options:
            raise TypeError(f"{name} must be given to {builder} once, got {positional[name]!r} and {options[name]!r}")
    *first, last = map(repr, positional)
    listed = f"{', '.join(first)}{',' if len(first) > 1 else ''} and {last}" if first else last
    _warn(
        f"Using {listed} as positional parameter(s) is deprecated since 0.13 and may be removed in the future. "
        "Please use keyword parameter(s) instead."
    )
    return positional | options


def _is_legacy(value: object) -> bool:
    """Whether it is a value of ``pretrained``, given as weights."""
    return (isinstance(value, int) and value in (0, 1)) or (isinstance(value, str) and value == "legacy")


def _replace(name: str, old: str, default: Default, options: dict[str, Any]) -> Any:
    """The weights that an old argument stands for, with warnings; it leaves the options."""
    if name in options:
        options[old] = options.pop(name)
    else:
        _warn(
            f"The parameter '{old}' is deprecated since 0.13 and may be removed in the future, "
            f"please use '{name}' instead."
        )
    weights = None
    if options[old]:
        weights = default(options) if inspect.isfunction(default) else default
    del options[old]
    newest = f" You can also use `{name}={type(weights).__name__}.DEFAULT` to get the most up-to-date weights."
    _warn(
        f"Arguments other than a weight enum or `None` for '{name}' are deprecated since 0.13 and may be removed in "
        f"the future. The current behavior is equivalent to passing `{name}={weights}`.{newest if weights else ''}"
    )
    return weights


def _warn(message: str) -> None:
    """Warn about the line that called the builder."""
    warnings.warn(message, UserWarning, stacklevel=4)
