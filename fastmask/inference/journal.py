"""Predictions written to disk image by image, by any number of ranks, so that an interrupted run can be resumed."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

from fastmask.structures import CocoResult

RESULTS = "predictions.json"
PARTIAL = "predictions.partial.json"  # of a run that was interrupted
PARTS = "predictions.parts"  # a folder beside the results until they are complete
FINISHED = "finished"  # a file in PARTS: all images without predictions were skipped


class Job(NamedTuple):
    """An image to predict, and what to write of it besides its results."""

    image: Path
    state: str  # of the image's file, see file_state
    name: str  # of its overlay and crops, with folders, without ending
    overlay: Path | None
    crops: Path | None  # without number and ending


class Journal:
    """The file of one rank in one run: a line of settings, then a line for each image.

    Args:
        folder: of the results, on a disk that all ranks see.
        run, rank: they name the file, which must not exist.
        settings: what the predictions depend on, as JSON values.
    """

    def __init__(self, folder: Path, run: int, rank: int, settings: Mapping[str, Any]) -> None:
        self.file = open(folder / PARTS / f"{run:04}-{rank:05}.jsonl", "x")  # noqa: SIM115  closed by __exit__
        self._write(settings)

    def add(self, job: Job, results: list[CocoResult]) -> None:
        """Write down an image's results, once its overlay and crops are saved."""
        self._write([str(job.image), job.state, job.overlay and job.name, results])

    def _write(self, value: Any) -> None:
        self.file.write(json.dumps(value) + "\n")
        self.file.flush()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()


def file_state(file: Path) -> str:
    """Size and time of modification, which tell whether a file has changed; empty if it cannot be read."""
    try:
        found = os.stat(file)
    except OSError:
        return ""
    return f"{found.st_size} bytes, {found.st_mtime_ns}"


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create the folder of the results, and keep other runs out of it.

    Raises:
        ValueError: another run uses it.
        OSError: it cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / RESULTS).is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / RESULTS))
    check_results(folder / RESULTS)
    (folder / PARTS).mkdir(exist_ok=True)
    with open(folder / PARTS / "lock", "w") as file:
        lock_file(file, folder)
        yield


def lock_file(file: IO[str], place: Path) -> None:
    """Lock an open file until it is closed; ValueError, which names ``place``, if another run has locked it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(f"{place} must be free, got another run in it ({error})") from error


def check_results(path: Path) -> None:
    """Raise a FileExistsError if a file has results of another origin: ours begin with no detection, or name files."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        start = file.read(2)
        if start != b"[\n" or (b'"file_name": ' not in file.readline() and file.tell() > len(b"[\n\n]\n")):
            raise FileExistsError(f"{path} must be of an earlier run, or not be there, got another file of that name")


def resume(folder: Path, jobs: Sequence[Job], settings: Mapping[str, Any], restart: bool) -> tuple[int, list[Job]]:
    """A number for this run, and its jobs: images without predictions, that have changed, or without their overlay.

    With ``restart`` these are all images. A finished run that skipped images is resumed only with the same images and
    settings.

    Raises:
        ValueError: an unfinished run has other settings or images, or is broken.
    """
    if restart:
        _remove_parts(folder)
    try:
        done = _read_parts(folder, settings)
        _check_images(folder, jobs, done)
    except ValueError:
        if not (folder / PARTS / FINISHED).exists():
            raise
        _remove_parts(folder)
        done = {}
    (folder / PARTS / FINISHED).unlink(missing_ok=True)
    rest = [job for job in jobs if not _is_done(job, done)]
    return max((int(part.name[:4]) for part in _list_parts(folder)), default=-1) + 1, rest


def merge(folder: Path, jobs: Sequence[Job], ids: Sequence[int], settings: Mapping[str, Any]) -> tuple[int, int]:
    """Write all results so far as one file in COCO's format, in the images' order -> numbers of images, detections."""
    done = _read_parts(folder, settings)
    images = detections = 0
    with open(folder / PARTIAL, "w") as file:
        file.write("[")
        for job, image_id in zip(jobs, ids, strict=True):
            if not _is_done(job, done):
                continue
            images += 1
            for result in done[str(job.image)].read_results():
                file.write(",\n" if detections else "\n")
                json.dump({**result, "image_id": image_id, "file_name": str(job.image)}, file)
                detections += 1
        file.write("\n]\n")
    return images, detections


def finish(folder: Path, skipped: bool) -> None:
    """Make the merged results final; remove the journals, or keep them for another try where images were skipped."""
    os.replace(folder / PARTIAL, folder / RESULTS)
    if skipped:
        (folder / PARTS / FINISHED).touch()
    else:
        shutil.rmtree(folder / PARTS, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove what a run has left that predicted nothing; results of an earlier run stay."""
    (folder / PARTIAL).unlink(missing_ok=True)
    shutil.rmtree(folder / PARTS, ignore_errors=True)


class Line(NamedTuple):
    """Where an image's line stands in a journal."""

    part: Path
    offset: int
    state: str
    overlay: str | None

    def read_results(self) -> list[CocoResult]:
        with open(self.part, "rb") as file:
            file.seek(self.offset)
            results: list[CocoResult] = json.loads(file.readline())[3]
            return results


def _is_done(job: Job, done: Mapping[str, Line]) -> bool:
    line = done.get(str(job.image))
    if line is None or line.state != job.state:
        return False
    return job.overlay is None or (line.overlay == job.name and job.overlay.exists())


def _read_parts(folder: Path, settings: Mapping[str, Any]) -> dict[str, Line]:
    """The last line of each image in the journals; a line that was cut off does not count."""
    settings = json.loads(json.dumps(settings))  # as they come back
    done = {}
    for part in _list_parts(folder):
        offset = 0
        with open(part, "rb") as file:
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    break
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise ValueError(
                        f"{part} must hold JSON, got {line[:40]!r} in line {number + 1}: use --restart (restart=True)"
                    ) from error
                if number == 0:
                    _check_settings(folder, value, settings)
                else:
                    done[value[0]] = Line(part, offset, value[1], value[2])
                offset += len(line)
    return done


def _check_settings(folder: Path, before: dict[str, Any], settings: Mapping[str, Any]) -> None:
    other = [f"{name} {value}" for name, value in before.items() if settings.get(name) != value]
    if other:
        raise ValueError(
            f"{folder / PARTS} must be an unfinished run with these settings, got one with {', '.join(other)}: run it "
            "as it was, or with --restart"
        )


def _check_images(folder: Path, jobs: Sequence[Job], done: Mapping[str, Line]) -> None:
    known = {str(job.image) for job in jobs}
    others = [name for name in done if name not in known and os.path.exists(name)]
    if others:
        raise ValueError(
            f"{folder / PARTS} must be an unfinished run on these images, got one on others ({others[0]}, ...): run "
            "it as it was, or with --restart"
        )


def _list_parts(folder: Path) -> list[Path]:
    return sorted((folder / PARTS).glob("[0-9][0-9][0-9][0-9]-[0-9][0-9][0-9][0-9][0-9].jsonl"))


def _remove_parts(folder: Path) -> None:
    for part in _list_parts(folder):
        part.unlink()
