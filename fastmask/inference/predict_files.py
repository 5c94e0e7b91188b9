"""Predictions of image files as one results file in COCO's format and overlays; resumable, on any number of ranks."""

import collections
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from fastmask.distributed import Ranks, join_ranks
from fastmask.image_io import read_image
from fastmask.inference import journal
from fastmask.inference.coco_results import to_coco_results
from fastmask.inference.image_files import find_images, image_ids, overlay_paths
from fastmask.inference.predictor import check_is_list
from fastmask.structures import CocoResult, Prediction
from fastmask.visualize import draw_detections, save_overlay

THREADS = 2
WAITING = 8  # overlays that are being drawn, at most


class StreamingPredictor(Protocol):
    """:class:`fastmask.Predictor`, or :class:`fastmask.export.ExportedPredictor`; with masks as RLE."""

    def stream(
        self, images: Sequence[Path], *, progress: bool, errors: Literal["yield"]
    ) -> Iterator[Prediction | Exception]: ...


class PredictedFiles(NamedTuple):
    """Outcome of :func:`predict_files`, over all ranks and, of a resumed run, over all its parts."""

    images: int  # with predictions
    detections: int
    skipped: list[str]  # why each image that could not be predicted was skipped, with its name
    results: Path | None  # None where no image could be predicted: results of an earlier run then stay as they were
    overlays: list[Path]  # one for each image, in order; those of skipped images are not written


def predict_files(
    predictor: StreamingPredictor,
    images: Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str] = "predictions",
    *,
    categories: Sequence[str] | None = None,
    overlays: bool = True,
    restart: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
    on_skip: Callable[[str], object] = lambda reason: None,
    ranks: Ranks | None = None,
) -> PredictedFiles:
    """Detect objects in image files; write ``predictions.json`` (COCO's results format) and overlays to a folder.

    A run that was interrupted goes on when it is called again with the same arguments; images that were skipped are
    then tried again. Under ``torchrun`` all ranks call this, each predicts its share, and all return the same.

    Args:
        predictor: a :class:`fastmask.Predictor` or :class:`fastmask.export.ExportedPredictor`, with masks as RLE.
        images: files, and folders of images.
        folder: of the output, on a disk that all ranks see; created if it does not exist.
        categories: names by label, for the overlays; None: the predictor's, if it has any.
        overlays: also write each image with its detections drawn on it, as ``NAME.predicted.png``.
        restart: discard what an interrupted run has predicted.
        settings: what the predictions depend on, as JSON values, such as weights and score. An unfinished run with
            other settings is not resumed.
        progress: show a bar, on the first rank.
        on_skip: called with the reason for each image that is skipped, on its rank.
        ranks: the ranks, where they are known already.

    Raises:
        ValueError: a folder holds no images or cannot be written to, another run uses it, or an unfinished run there
            has other settings or images.
    """
    check_is_list(images)
    folder, settings = Path(folder), {**(settings or {}), "overlays": overlays}
    categories = getattr(predictor, "categories", None) if categories is None else categories
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(join_ranks(keep=True)) if ranks is None else ranks
        paths = ranks.run_on_first(lambda: find_images(images))
        ranks.run_on_first(lambda: stack.enter_context(journal.lock_folder(folder)))
        jobs = ranks.run_on_first(lambda: _list_jobs(paths, folder if overlays else None))
        run, rest = ranks.run_on_first(lambda: journal.resume(folder, jobs, settings, restart))
        lines = ranks.run_on_all(lambda: journal.Journal(folder, run, ranks.rank, settings))
        try:
            with lines:
                bar = progress and ranks.rank == 0
                skipped = _predict(predictor, rest[ranks.rank :: ranks.world_size], categories, lines, bar, on_skip)
            skipped = [reason for each in ranks.all_gather(skipped) for reason in each]
        finally:  # predictions before an interruption are kept
            counts = journal.merge(folder, jobs, image_ids(paths), settings) if ranks.rank == 0 else (0, 0)
        return ranks.run_on_first(lambda: _finish(folder, jobs, counts, skipped))


def _list_jobs(paths: Sequence[Path], folder: Path | None) -> list[journal.Job]:
    """The images as they are now, with their overlays in that folder, if any are asked for."""
    overlays = [None] * len(paths) if folder is None else overlay_paths(paths, folder)
    return [journal.Job(path, journal.file_state(path), made) for path, made in zip(paths, overlays, strict=True)]


def _predict(
    predictor: StreamingPredictor,
    jobs: Sequence[journal.Job],
    categories: Sequence[str] | None,
    lines: journal.Journal,
    progress: bool,
    on_skip: Callable[[str], object],
) -> list[str]:
    """Predict images, draw and write down their detections while the next ones are predicted -> reasons of skipping."""
    skipped: list[str] = []

    def skip(image: Path, error: Exception) -> None:
        text = str(error) or type(error).__name__
        skipped.append(text if str(image) in text else f"{image}: {text}")
        on_skip(skipped[-1])

    def write_down(job: journal.Job, results: Future[list[CocoResult]]) -> None:
        try:
            found = results.result()
        except (OSError, ValueError, MemoryError) as error:
            skip(job.image, error)
        else:
            lines.add(job, found)

    paths = [job.image for job in jobs]
    predictions = predictor.stream(paths, progress=progress and len(paths) > 1, errors="yield")
    waiting: collections.deque[tuple[journal.Job, Future[list[CocoResult]]]] = collections.deque()
    with ThreadPoolExecutor(THREADS) as threads:
        for job, prediction in zip(jobs, predictions, strict=True):
            if isinstance(prediction, Exception):
                skip(job.image, prediction)
                continue
            waiting.append((job, threads.submit(_draw, job, prediction, categories)))
            while len(waiting) > WAITING or (waiting and waiting[0][1].done()):
                write_down(*waiting.popleft())
        for job, results in waiting:
            write_down(job, results)
    return skipped


def _draw(job: journal.Job, prediction: Prediction, categories: Sequence[str] | None) -> list[CocoResult]:
    """Save an image's overlay, if there is to be one -> its results."""
    if job.overlay is not None:
        save_overlay(draw_detections(read_image(job.image), prediction, categories), job.overlay)
    return to_coco_results(0, prediction)


def _finish(folder: Path, jobs: Sequence[journal.Job], counts: tuple[int, int], skipped: list[str]) -> PredictedFiles:
    """Make the results final."""
    images, detections = counts
    if images + len(skipped) < len(jobs):
        raise ValueError(
            f"{len(jobs) - images - len(skipped)} images have no predictions: {folder} must be on a disk that all "
            "ranks see, and images and overlays must stay as they are"
        )
    results: Path | None = folder / journal.RESULTS
    if not images and skipped and (folder / journal.RESULTS).exists():  # the disk's fault, or the device's
        results = None
    else:
        journal.finish(folder, bool(skipped))
    return PredictedFiles(images, detections, skipped, results, [job.overlay for job in jobs if job.overlay])
