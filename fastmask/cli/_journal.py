"""What is found in each image, written down as it is found, by any number of ranks, so that a run can be taken up."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

RESULTS = "predictions.json"
PARTIAL = "predictions.partial.json"  # of a run that was interrupted
PARTS = "predictions.parts"  # a folder beside the results until they are complete
FINISHED = "finished"  # a file in it: all that is missing was skipped

Entries = list[dict[str, Any]]


class Todo(NamedTuple):
    """An image that is still to be looked at."""

    image: Path
    state: str  # as it was before
    overlay: Path | None


class Journal:
    """One file of a rank in one run: a line of settings, then a line an image.

    Args:
        folder: of the results; on a disk that all ranks see.
        run, rank: whose file it is; it must not be there.
        settings: what the answers depend on.
    """

    def __init__(self, folder: Path, run: int, rank: int, settings: Mapping[str, Any]) -> None:
        self.file = open(folder / PARTS / f"{run:04}-{rank:05}.jsonl", "x")  # noqa: SIM115  closed by __exit__
        self._write(settings)

    def add(self, one: Todo, entries: Entries) -> None:
        """An image is done."""
        self._write([str(one.image), one.state, one.overlay and one.overlay.name, entries])

    def _write(self, value: Any) -> None:
        self.file.write(json.dumps(value) + "\n")
        self.file.flush()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()


def state_of(file: Path) -> str:
    """What changes with a file; empty if it cannot be had."""
    try:
        found = os.stat(file)
    except OSError:
        return ""
    return f"{found.st_size} bytes, {found.st_mtime_ns}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder of the results, and keep other runs out of it.

    Raises:
        ValueError: another run is in it.
        OSError: it cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / RESULTS).is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / RESULTS))
    (folder / PARTS).mkdir(exist_ok=True)
    with open(folder / PARTS / "lock", "w") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            pass
        else:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(f"{folder} must be free, got another run in it ({error})") from error
        yield


def take_up(folder: Path, todo: Sequence[Todo], settings: Mapping[str, Any], restart: bool) -> tuple[int, list[Todo]]:
    """A number for this run, and what is still to be looked at: all that has no answer, has changed, or is not drawn.

    With ``restart``, everything.

    A finished run of which images were skipped counts only for the same images and settings.

    Raises:
        ValueError: an unfinished run is of other settings or images, or broken.
    """
    if restart:
        _forget_parts(folder)
    try:
        done = _found(folder, settings)
        _check_images(folder, todo, done)
    except ValueError:
        if not (folder / PARTS / FINISHED).exists():
            raise
        _forget_parts(folder)
        done = {}
    (folder / PARTS / FINISHED).unlink(missing_ok=True)
    rest = [one for one in todo if not _is_done(one, done)]
    return max((int(part.name[:4]) for part in _parts(folder)), default=-1) + 1, rest


def merge(folder: Path, todo: Sequence[Todo], ids: Sequence[int], settings: Mapping[str, Any]) -> tuple[int, int]:
    """Write what is found as COCO's results, in the images' order, not yet final -> how many images, detections."""
    done = _found(folder, settings)
    images = detections = 0
    with open(folder / PARTIAL, "w") as file:
        file.write("[")
        for one, image_id in zip(todo, ids, strict=True):
            if not _is_done(one, done):
                continue
            images += 1
            for entry in done[str(one.image)].entries():
                file.write(",\n" if detections else "\n")
                json.dump(entry | {"image_id": image_id, "file_name": str(one.image)}, file)
                detections += 1
        file.write("\n]\n")
    return images, detections


def finish(folder: Path, skipped: bool) -> None:
    """The results are complete: forget the journals, or, where images were skipped, keep them for another try."""
    os.replace(folder / PARTIAL, folder / RESULTS)
    if skipped:
        (folder / PARTS / FINISHED).touch()
    else:
        shutil.rmtree(folder / PARTS, ignore_errors=True)


class Done(NamedTuple):
    """Where an image's line is."""

    part: Path
    offset: int
    state: str
    overlay: str | None

    def entries(self) -> Entries:
        with open(self.part, "rb") as file:
            file.seek(self.offset)
            entries: Entries = json.loads(file.readline())[3]
            return entries


def _is_done(one: Todo, done: Mapping[str, Done]) -> bool:
    before = done.get(str(one.image))
    if before is None or before.state != one.state:
        return False
    return one.overlay is None or (before.overlay == one.overlay.name and one.overlay.exists())


def _found(folder: Path, settings: Mapping[str, Any]) -> dict[str, Done]:
    """What the journals hold, the last line of an image first; a line that was cut off does not count."""
    settings = json.loads(json.dumps(settings))  # as they come back
    done = {}
    for part in _parts(folder):
        offset = 0
        with open(part, "rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise ValueError(
                        f"{part} must hold JSON, got {line[:40]!r} in line {number + 1}: use --restart"
                    ) from error
                if number == 0:
                    _check_settings(folder, value, settings)
                else:
                    done[value[0]] = Done(part, offset, value[1], value[2])
                offset += len(line)
    return done


def _check_settings(folder: Path, before: dict[str, Any], settings: Mapping[str, Any]) -> None:
    other = [f"{name} {value}" for name, value in before.items() if settings.get(name) != value]
    if other:
        raise ValueError(
            f"{folder / PARTS} must be an unfinished run with these settings, got one with {', '.join(other)}: run it "
            "as it was, or with --restart"
        )


def _check_images(folder: Path, todo: Sequence[Todo], done: Mapping[str, Done]) -> None:
    known = {str(one.image) for one in todo}
    others = [name for name in done if name not in known and os.path.exists(name)]
    if others:
        raise ValueError(
            f"{folder / PARTS} must be an unfinished run on these images, got one on others ({others[0]}, ...): run "
            "it as it was, or with --restart"
        )


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / PARTS).glob("[0-9][0-9][0-9][0-9]-[0-9][0-9][0-9][0-9][0-9].jsonl"))


def _forget_parts(folder: Path) -> None:
    for part in _parts(folder):
        part.unlink()
