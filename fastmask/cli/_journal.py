"""What is found in each picture, written down as it is found, by any number of ranks, so that a run can be taken up."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastmask.cli._pictures import image_ids

if TYPE_CHECKING:
    from fastmask.distributed import Ranks

RESULTS = "predictions.json"
PARTS = "predictions.parts"  # a folder beside the results until they are complete

Entries = list[dict[str, Any]]


class Journal:
    """One file of a rank in one run: a line of settings, then a line a picture.

    Args:
        folder: of the results; on a disk that all ranks see.
        run, rank: whose file it is; it must not be there.
        settings: what the answers depend on.
    """

    def __init__(self, folder: Path, run: int, rank: int, settings: dict[str, Any]) -> None:
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        self.file = open(folder / PARTS / f"{run:04}-{rank:05}.jsonl", "x")  # noqa: SIM115  closed by __exit__
        self._write(settings)

    def add(self, picture: Path, entries: Entries) -> None:
        """A picture is done."""
        self._write([str(picture), state(picture), entries])

    def _write(self, value: Any) -> None:
        self.file.write(json.dumps(value) + "\n")
        self.file.flush()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()


def state(file: Path) -> list[int] | None:
    """What changes with a file; None if it cannot be had."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def prepare(folder: Path) -> Path:
    """Make the folder of the results -> the file of the results, which can be written to."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / RESULTS, "a"):  # fails here, not after the last picture
        return folder / RESULTS


def forget(folder: Path) -> None:
    """Remove what journals are there."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)


def take_up(
    folder: Path, pictures: Sequence[Path], settings: dict[str, Any], own: "Ranks"
) -> tuple[Journal, list[Path]]:
    """This rank's new journal, and the pictures that all ranks are still to look at, as the first one sees it.

    Raises:
        ValueError: see :func:`found_so_far`.
    """
    done = found_so_far(folder, pictures, settings) if own.rank == 0 else {}
    number = max((int(part.name[:4]) for part in _parts(folder)), default=-1) + 1
    number, todo = own.gather((number, [picture for picture in pictures if picture not in done]))[0]
    return Journal(folder, number, own.rank, settings), todo


def merge(results: Path, pictures: Sequence[Path], settings: dict[str, Any]) -> dict[Path, Entries]:
    """Write what is found so far as COCO's results, in the pictures' order -> the entries of each picture."""
    found = found_so_far(results.parent, pictures, settings)
    rows = [
        entry | {"image_id": image_id, "file_name": str(picture)}
        for picture, image_id in zip(pictures, image_ids(pictures), strict=True)
        for entry in found.get(picture, [])
    ]
    whole = results.with_suffix(".tmp")
    whole.write_text(json.dumps(rows))
    os.replace(whole, results)
    return found


def found_so_far(folder: Path, pictures: Sequence[Path], settings: dict[str, Any]) -> dict[Path, Entries]:
    """The entries of those pictures that are done and have not changed since.

    Raises:
        ValueError: a journal is of other settings, or broken.
    """
    settings = json.loads(json.dumps(settings))  # as they come back
    done: dict[tuple[str, str], Entries] = {}
    for part in _parts(folder):
        lines = _lines(part)
        before = next(lines, settings)
        if before != settings:
            other = ", ".join(f"{name} {value}" for name, value in before.items() if settings.get(name) != value)
            raise ValueError(
                f"{part.parent} must be an unfinished run with these settings, got one with {other}: run it as it was, "
                "or with --restart"
            )
        for name, then, entries in lines:
            done[name, str(then)] = entries
    keys = {picture: (str(picture), str(state(picture))) for picture in pictures}
    return {picture: done[key] for picture, key in keys.items() if key in done}


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / PARTS).glob("*.jsonl"))


def _lines(part: Path) -> Iterator[Any]:
    """A journal's lines but for a last one that was cut off."""
    for number, line in enumerate(part.read_text().split("\n")[:-1], 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise ValueError(f"{part} must hold JSON, got {line[:40]!r} in line {number}: use --restart") from error
