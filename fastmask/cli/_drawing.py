"""Images through a Predictor, drawn and written down while the next ones are looked at."""

import collections
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

from tqdm import tqdm

from fastmask.cli._journal import Entries, Journal, Todo
from fastmask.evaluation.coco_results import to_coco_results
from fastmask.image_io import read_image
from fastmask.structures import Prediction
from fastmask.visualize import draw_detections, save_overlay

THREADS = 2
WAITING = 8  # images that are being drawn, at most


class Streaming(Protocol):
    """A Predictor, or what does the same for an exported model."""

    def stream(
        self, images: Sequence[Path], *, progress: bool, errors: Literal["yield"]
    ) -> Iterator[Prediction | Exception]: ...


def predict(
    predictor: Streaming,
    todo: Sequence[Todo],
    categories: Sequence[str] | None,
    journal: Journal,
    progress: bool,
) -> int:
    """Find, draw and write down what is in images -> how many were skipped, each of which is named.

    Args:
        predictor: with masks as RLE.
        todo: the images.
        categories: their names, if they are known.
        journal: of the answers.
        progress: show a bar where there are several.
    """
    skipped = 0
    paths = [one.image for one in todo]
    answers = predictor.stream(paths, progress=progress and len(paths) > 1, errors="yield")
    waiting: collections.deque[tuple[Todo, Future[Entries]]] = collections.deque()
    with ThreadPoolExecutor(THREADS) as threads:
        for one, found in zip(todo, answers, strict=True):
            if isinstance(found, Exception):
                skipped += _skip(one.image, found)
                continue
            waiting.append((one, threads.submit(_drawn, one, found, categories)))
            while len(waiting) > WAITING or (waiting and waiting[0][1].done()):
                skipped += _write_down(*waiting.popleft(), journal)
        for one, drawn in waiting:
            skipped += _write_down(one, drawn, journal)
    return skipped


def _drawn(one: Todo, found: Prediction, categories: Sequence[str] | None) -> Entries:
    """An image's entries for the results file, once its overlay is written."""
    if one.overlay is not None:
        save_overlay(draw_detections(read_image(one.image), found, categories), one.overlay)
    return to_coco_results(0, found)


def _write_down(one: Todo, drawn: Future[Entries], journal: Journal) -> int:
    """-> 1 if the image is skipped."""
    try:
        entries = drawn.result()
    except (OSError, ValueError, MemoryError) as error:
        return _skip(one.image, error)
    journal.add(one, entries)
    return 0


def _skip(image: Path, error: Exception) -> int:
    text = str(error) or type(error).__name__
    reason = text if str(image) in text else f"{image}: {text}"
    tqdm.write(f"fastmask predict: skipped: {reason}", file=sys.stderr)
    return 1
