"""Pictures through a Predictor, drawn and written down while the next ones are looked at."""

import collections
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastmask.answers import Found
from fastmask.cli._journal import Journal
from fastmask.images import read_image
from fastmask.predictor import Predictor
from fastmask.results import coco_results
from fastmask.visualize import draw_detections

THREADS = 2
WAITING = 8  # pictures that are being drawn, at most

Entries = list[dict[str, Any]]


def predict(
    predictor: Predictor,
    paths: Sequence[Path],
    overlays: Mapping[Path, Path],
    categories: Sequence[str] | None,
    journal: Journal,
    progress: bool,
) -> int:
    """Find, draw and write down what is in pictures -> how many were skipped, each of which is named.

    Args:
        predictor: with masks as RLE.
        paths: of the pictures.
        overlays: where each one is drawn, if it is.
        categories: their names, if they are known.
        journal: of the answers.
        progress: show a bar where there are several.
    """
    skipped = 0
    answers = predictor.stream(paths, progress=progress and len(paths) > 1, errors="yield")
    waiting: collections.deque[tuple[Path, Future[Entries]]] = collections.deque()
    with ThreadPoolExecutor(THREADS) as threads:
        for path, found in zip(paths, answers, strict=True):
            waiting.append((path, threads.submit(_drawn, path, found, overlays.get(path), categories)))
            while len(waiting) > WAITING or (waiting and waiting[0][1].done()):
                skipped += _write_down(*waiting.popleft(), journal)
        for path, drawn in waiting:
            skipped += _write_down(path, drawn, journal)
    return skipped


def _drawn(path: Path, found: Found | Exception, overlay: Path | None, categories: Sequence[str] | None) -> Entries:
    """A picture's entries for the results file, once its overlay is written."""
    if isinstance(found, Exception):
        raise found
    if overlay is not None:
        draw_detections(read_image(path), found, categories).save(overlay)
    return coco_results(0, found)


def _write_down(path: Path, drawn: Future[Entries], journal: Journal) -> int:
    """-> 1 if the picture is skipped."""
    try:
        entries = drawn.result()
    except (OSError, ValueError, RuntimeError) as error:  # torch's: out of memory
        reason = str(error) if str(path) in str(error) else f"{path}: {error}"
        tqdm.write(f"fastmask predict: skipped: {reason}", file=sys.stderr)
        return 1
    journal.add(path, entries)
    return 0
