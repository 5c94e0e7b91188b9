"""The standard output of commands: a full disk or a reader that has gone ends them in one line, or in none."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

CLOSED_PIPE = 141  # a shell's code for a program that SIGPIPE ended


class OutputError(Exception):
    """The standard output cannot be written; no OSError, which commands take for one of their files."""


class CheckedOutput:
    """A text stream whose write errors are :class:`OutputError`."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with _name_errors():
            return int(self.stream.write(text))

    def flush(self) -> None:
        with _name_errors():
            self.stream.flush()


@contextlib.contextmanager
def _name_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(str(error)) from error


@contextlib.contextmanager
def checked_output() -> Iterator[None]:
    """Check what a block prints, to its last character; SystemExit where it cannot be written."""
    if sys.stdout is None:  # as under pythonw
        yield
        return
    output: Any = CheckedOutput(sys.stdout)
    try:
        with contextlib.redirect_stdout(output):
            try:
                yield
            except SystemExit:  # of --help
                output.flush()
                raise
            output.flush()
    except OutputError as error:
        with contextlib.suppress(OSError, ValueError):  # nor shall Python try once more when it ends
            number = output.fileno()
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        if isinstance(error.__cause__, BrokenPipeError):
            raise SystemExit(CLOSED_PIPE) from None
        print(f"fastmask: the standard output cannot be written: {error}", file=sys.stderr)
        raise SystemExit(2) from None
