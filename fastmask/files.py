"""Files that are written whole or not at all, and never over something that another made; folders; YAML files."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; what is there at the end becomes the file, in one step.

    Where writing fails, what was at ``path`` before stays as it was, and nothing else is left.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    draft = path.with_name(f".part.{path.name}")  # with its ending, by which some writers choose a format
    try:
        yield draft
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(draft)):  # none where the disk is full
            error.filename = str(path)
        raise


def describe_error(error: Exception) -> str:
    """An error's message; of the operating system's, the file and what is wrong, without its number."""
    if not isinstance(error, OSError) or error.errno is None or not error.strerror:
        return str(error)
    text = error.strerror[:1].lower() + error.strerror[1:]
    return text if error.filename is None else f"{error.filename}: {text}"


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file of UTF-8, see :func:`replace_file`."""
    with replace_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def check_free(targets: Iterable[Path], force: bool, inputs: Iterable[Path] = ()) -> None:
    """Raise an error if a file that is to be written is there, unless ``force``, or is an input, in any case.

    Raises:
        FileExistsError: it is there.
        ValueError: it is an input.
    """
    targets = list(targets)
    read = {os.path.realpath(path) for path in inputs}
    over = [path for path in targets if os.path.realpath(path) in read]
    if over:
        raise ValueError(f"{over[0]} must be another file than what is read")
    folder = next((path for path in targets if path.is_dir()), None)
    if folder is not None:
        raise FileExistsError(f"{folder} must be a file, got a folder")
    there = [path for path in targets if os.path.lexists(path)]
    if there and not force:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise FileExistsError(f"{there[0]}{more} must not be there already; --force (force=True) replaces it")


def walk_folders(folder: Path, seen: set[str] | None = None) -> Iterator[Path]:
    """Yield a folder and those inside it, each once, sorted by name: links are followed, hidden ones left out."""
    seen = set() if seen is None else seen
    seen.add(os.path.realpath(folder))
    yield folder
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and os.path.realpath(path) not in seen:
            yield from walk_folders(path, seen)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Value of a YAML file: mappings, lists, strings, numbers, booleans and None, never other objects.

    Raises:
        ImportError: PyYAML is not installed.
        ValueError: the file is not YAML in UTF-8, or has a key twice.
        OSError: the file cannot be read.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"{path} needs PyYAML: pip install 'fastmask-rcnn[yaml]'") from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Which keeps no last one of several values in silence."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node, seen = super().compose_mapping_node(anchor), set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if (key.tag, key.value) in seen:
                    raise ValueError(f"line {key.start_mark.line + 1} has {key.value!r} once more")
                seen.add((key.tag, key.value))
            return node

    try:
        return yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        fault = " ".join(str(error).split())
        raise ValueError(f"{path} must be a YAML file: {fault}") from error
