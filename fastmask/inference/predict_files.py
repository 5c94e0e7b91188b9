"""Predictions of image files as one results file in COCO's format and overlays; resumable, on any number of ranks."""

import collections
import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from fastmask.checks import check_choice
from fastmask.distributed import Ranks, join_ranks
from fastmask.fonts import choose_names
from fastmask.image_io import count_frames, read_image
from fastmask.inference import journal
from fastmask.inference.choose_classes import find_labels, keep_labels
from fastmask.inference.coco_results import to_coco_results
from fastmask.inference.crops import save_crops
from fastmask.inference.image_files import (
    CROPS,
    FORMATS,
    OVERLAY_SUFFIXES,
    choose_suffix,
    find_images,
    image_ids,
    name_outputs,
)
from fastmask.inference.prefetch import check_is_list
from fastmask.skeletons import Skeleton
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


class Drawing(NamedTuple):
    """What is written of an image's detections."""

    labels: set[int] | None  # of the detections that are kept; None: all
    names: Sequence[str] | None  # written on overlays, by label
    color_by: str
    skeletons: Mapping[int, Skeleton]  # of keypoints, by label


def predict_files(
    predictor: StreamingPredictor,
    images: Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str] = "predictions",
    *,
    recursive: bool = False,
    categories: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    overlays: bool = True,
    format: Literal["auto", "jpeg", "png"] = "auto",
    color_by: Literal["instance", "class"] = "instance",
    crops: bool = False,
    restart: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    on_skip: Callable[[str], object] = lambda reason: None,
    on_note: Callable[[str], object] = lambda note: None,
    ranks: Ranks | None = None,
) -> PredictedFiles:
    """Detect objects in image files; write ``predictions.json`` (COCO's results format) and overlays to a folder.

    A run that was interrupted goes on when it is called again with the same arguments; images that were skipped are
    then tried again. Under ``torchrun`` all ranks call this, each predicts its share, and all return the same.

    Args:
        predictor: a :class:`fastmask.Predictor` or :class:`fastmask.export.ExportedPredictor`, with masks as RLE.
        images: files, and folders of images.
        folder: of the output, on a disk that all ranks see; created if it does not exist.
        recursive: take images of folders inside folders, too; their overlays and crops are in folders of these names.
        categories: names by label, from 0, the background; None: the predictor's, if it has any.
        classes: names of the categories whose detections are kept, of those that the predictor returns; None: all.
        overlays: also write each image with its detections drawn on it, as ``NAME.predicted.jpg`` or ``.png``.
        format: of overlays; "auto" is JPEG of quality 90 where the image is a JPEG, else PNG.
        color_by: give each instance of an image a color of its own, or each class.
        crops: also write each detection, cut out of its image, to ``crops/NAME.1.crop.png`` and so on, in the order of
            the results, with its mask as alpha.
        restart: discard what an interrupted run has predicted.
        settings: what the predictions depend on, as JSON values, such as weights and score. An unfinished run with
            other settings is not resumed.
        progress: show a bar, on the first rank; None: where the standard error is a terminal.
        on_skip: called with the reason for each image that is skipped, on its rank.
        on_note: called with what is to be known of an image, such as that its first frame alone is predicted, on its
            rank, and of names that no font can write.
        ranks: the ranks, where they are known already.

    Raises:
        ValueError: nothing is there to predict, a folder holds no images or cannot be written to, another run uses it,
            an unfinished run there has other settings or images, or a class is none of the predictor's.
    """
    check_is_list(images)
    check_choice("format", format, FORMATS)
    check_choice("color_by", color_by, ("instance", "class"))
    folder, sources = Path(folder), [Path(image) for image in images]
    categories = getattr(predictor, "categories", None) if categories is None else categories
    labels = None if classes is None else find_labels(classes, categories)
    names, legend = choose_names(tuple(categories)) if overlays and categories is not None else (categories, "")
    settings = {**(settings or {}), "overlays": overlays, "color_by": color_by if overlays else None, "crops": crops}
    settings["format"] = format if overlays else None
    settings["classes"] = None if labels is None else sorted(labels)
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(join_ranks(keep=True)) if ranks is None else ranks
        paths = ranks.run_on_first(lambda: find_images(sources, recursive))
        ranks.run_on_first(lambda: stack.enter_context(journal.lock_folder(folder)))
        roots, choose = sources if recursive else (), functools.partial(choose_suffix, format=format)
        jobs = ranks.run_on_first(lambda: _list_jobs(paths, folder, roots, choose, overlays=overlays, crops=crops))
        run, rest = ranks.run_on_first(lambda: journal.resume(folder, jobs, settings, restart))
        lines = ranks.run_on_all(lambda: journal.Journal(folder, run, ranks.rank, settings))
        for note in (legend, _name_others(jobs, folder)) if ranks.rank == 0 else ():
            if note:
                on_note(note)
        bar = (sys.stderr.isatty() if progress is None else progress) and ranks.rank == 0
        drawing = Drawing(labels, names, color_by, label_skeletons(predictor, categories))
        draw = functools.partial(_draw, drawing=drawing)
        try:
            with lines:
                share = rest[ranks.rank :: ranks.world_size]
                skipped = _predict(predictor, share, draw, lines, bar, on_skip, on_note)
            skipped = [reason for each in ranks.all_gather(skipped) for reason in each]
        finally:  # predictions before an interruption are kept
            counts = journal.merge(folder, jobs, image_ids(paths), settings) if ranks.rank == 0 else (0, 0)
        return ranks.run_on_first(lambda: _finish(folder, jobs, counts, skipped))


def label_skeletons(predictor: object, categories: Sequence[str] | None) -> dict[int, Skeleton]:
    """The skeletons that a predictor knows, by label."""
    known: Mapping[str, Skeleton] = getattr(predictor, "skeletons", {})
    return {label: known[name] for label, name in enumerate(categories or ()) if name in known}


def _list_jobs(
    paths: Sequence[Path],
    folder: Path,
    roots: Sequence[Path],
    choose: Callable[[Path], str],
    *,
    overlays: bool,
    crops: bool,
) -> list[journal.Job]:
    """The images as they are now, with what is asked for in that folder; see :func:`name_outputs`."""
    place = Path(os.path.realpath(folder / CROPS))
    inside = [path for path in paths if crops and place in Path(os.path.realpath(path)).parents]
    if inside:
        raise ValueError(f"images must not be in {folder / CROPS}, which crops are written to, got {inside[0]}")
    jobs = []
    for path, name in zip(paths, name_outputs(paths, folder, roots, choose), strict=True):
        overlay = Path(f"{folder / name}{choose(path)}") if overlays else None
        cut = folder / CROPS / name if crops else None
        jobs.append(journal.Job(path, journal.file_state(path), name.as_posix(), overlay, cut))
    return jobs


def _name_others(jobs: Sequence[journal.Job], folder: Path) -> str:
    """A note on the overlays of an earlier run that are in another format, and so are not replaced; "" without any."""
    bases = [folder / job.name for job in jobs if job.overlay]
    names = [Path(f"{base}{suffix}") for base in bases for suffix in OVERLAY_SUFFIXES.values()]
    own = {path for job in jobs for path in (job.image, job.overlay)}
    others = [name for name in names if name not in own and name.exists()]
    plural = "s" * (len(others) > 1)
    return f"{len(others)} overlay{plural} of another format stay{'s' * (not plural)}: {others[0]}" if others else ""


def _predict(
    predictor: StreamingPredictor,
    jobs: Sequence[journal.Job],
    draw: Callable[[journal.Job, Prediction], tuple[list[CocoResult], str]],
    lines: journal.Journal,
    progress: bool,
    on_skip: Callable[[str], object],
    on_note: Callable[[str], object],
) -> list[str]:
    """Predict images, draw and write down their detections while the next ones are predicted -> reasons of skipping."""
    skipped: list[str] = []

    def skip(image: Path, error: Exception) -> None:
        text = "no such file" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
        skipped.append(text if str(image) in text else f"{image}: {text}")
        on_skip(skipped[-1])

    def write_down(job: journal.Job, drawn: Future[tuple[list[CocoResult], str]]) -> None:
        try:
            found, note = drawn.result()
        except (OSError, ValueError, MemoryError) as error:
            skip(job.image, error)
        else:
            lines.add(job, found)
            if note:
                on_note(note)

    paths = [job.image for job in jobs]
    predictions = predictor.stream(paths, progress=progress and len(paths) > 1, errors="yield")
    waiting: collections.deque[tuple[journal.Job, Future[tuple[list[CocoResult], str]]]] = collections.deque()
    with ThreadPoolExecutor(THREADS) as threads:
        for job, prediction in zip(jobs, predictions, strict=True):
            if isinstance(prediction, Exception):
                skip(job.image, prediction)
                continue
            waiting.append((job, threads.submit(draw, job, prediction)))
            while len(waiting) > WAITING or (waiting and waiting[0][1].done()):
                write_down(*waiting.popleft())
        for job, drawn in waiting:
            write_down(job, drawn)
    return skipped


def _draw(job: journal.Job, prediction: Prediction, drawing: Drawing) -> tuple[list[CocoResult], str]:
    """Save an image's overlay and crops, if there are to be any -> its results, and a note on the image, if any."""
    if drawing.labels is not None:
        prediction = keep_labels(prediction, drawing.labels)
    if job.overlay is not None or job.crops is not None:
        image = read_image(job.image)
        if job.overlay is not None:
            colors = prediction["labels"].tolist() if drawing.color_by == "class" else None
            job.overlay.parent.mkdir(parents=True, exist_ok=True)
            overlay = draw_detections(image, prediction, drawing.names, colors, drawing.skeletons)
            save_overlay(overlay, job.overlay)
        if job.crops is not None:
            save_crops(image, prediction, job.crops)
    frames = count_frames(job.image)
    note = f"{job.image} has {frames} frames or pages: only the first is predicted" if frames > 1 else ""
    return to_coco_results(0, prediction), note


def _finish(folder: Path, jobs: Sequence[journal.Job], counts: tuple[int, int], skipped: list[str]) -> PredictedFiles:
    """Make the results final."""
    images, detections = counts
    if images + len(skipped) < len(jobs):
        raise ValueError(
            f"{len(jobs) - images - len(skipped)} images have no predictions: {folder} must be on a disk that all "
            "ranks see, and images and overlays must stay as they are"
        )
    if not images and skipped:  # the disk's fault, or the device's: results of an earlier run stay
        journal.discard(folder)
        return PredictedFiles(0, 0, skipped, None, [job.overlay for job in jobs if job.overlay])
    journal.finish(folder, bool(skipped))
    return PredictedFiles(
        images, detections, skipped, folder / journal.RESULTS, [job.overlay for job in jobs if job.overlay]
    )
