"""Detections of the weights that come with the package, on photos, on synthetic images or on a user's."""

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from fastmask.data.formats import read_dataset
from fastmask.data.records import Dataset, Record
from fastmask.demo.comparison import draw_comparison
from fastmask.demo.drawing import synthetic_dataset
from fastmask.evaluation.evaluator import Evaluation
from fastmask.evaluation.run import evaluate
from fastmask.evaluation.tables import format_evaluation, to_dict
from fastmask.inference.coco_results import to_coco_results
from fastmask.inference.predictor import Predictor
from fastmask.structures import CocoResult

BALLOONS, SHAPES = "BALLOON_V1", "SHAPES_V1"
PHOTOS = Path(__file__).parent / "photos"  # README.md in it tells whose they are
SIDES = 480, 320  # shorter sides of what is shown, in pixels: of one image in a row, and of each of two
SIZE = (192, 192)  # of synthetic images
SHOWN = 8


class Demo(NamedTuple):
    """What a demonstration shows."""

    sheet: Image.Image
    text: str
    metrics: dict[str, Any]  # ready for JSON
    record: Record  # the first image


def load_predictor(weights: str, device: str, score: float) -> Predictor:
    """The model of these weights on a device, exact."""
    return Predictor.from_pretrained(None, weights, device=device, score=score, size="exact")


def demo_photos(predictor: Predictor, score: float) -> Demo:
    """Average precision on the photos that come with the package; all of them beside their annotations and detections.

    Args:
        predictor, score: as in :func:`demo_synthetic`.
    """
    dataset = read_dataset(PHOTOS)
    evaluation, results = _evaluate(predictor, dataset)
    heading = f"Photos, on which the weights were chosen, not trained: {len(dataset.records)}"
    text = f"\n{heading}\n\n{format_evaluation(evaluation)}\n"
    groups: tuple[list[Record], list[Record]] = ([], [])
    for record in dataset.records:
        image = record.load()
        groups[image.height > image.width].append(record)  # rows of both are equally wide
    sheets = [_draw_sheet(group, results, predictor, score, i + 1) for i, group in enumerate(groups)]
    metrics = {"weights": BALLOONS, **to_dict(evaluation)}
    return Demo(stack_sheets(*sheets), text, metrics, dataset.records[0])


def demo_synthetic(predictor: Predictor, number: int, seed: int, score: float) -> Demo:
    """Average precision on ``number`` synthetic images; some of them beside their annotations and detections.

    Args:
        predictor: see :func:`load_predictor`; average precision counts all of its detections.
        number, seed: of images, see :class:`fastmask.demo.Scenes`.
        score: minimum score of a detection that is shown.
    """
    start = time.perf_counter()
    dataset = synthetic_dataset(number, seed, SIZE)
    records = [dataset.records[i] for i in tqdm(range(number), "draw", unit="img", disable=None)]
    seconds_drawing = time.perf_counter() - start
    evaluation, results = _evaluate(predictor, dataset._replace(records=records))
    evaluation.seconds["draw"] = seconds_drawing
    seen = "which the weights were trained or chosen on" if seed in (1, 2) else "never seen in training"
    seconds = evaluation.seconds["inference"] + evaluation.seconds["wait"]
    text = (
        f"\nImages drawn with seed {seed}, {seen}: {number}\n\n{format_evaluation(evaluation)}\n\n"
        f"{number / seconds:.1f} images a second, read and matched\n"
    )
    sheet = _draw_sheet(records[:SHOWN], results, predictor, score, min(2, number))
    return Demo(sheet, text, {"weights": SHAPES, "seed": seed, **to_dict(evaluation)}, records[0])


def _evaluate(predictor: Predictor, dataset: Dataset) -> tuple[Evaluation, list[CocoResult]]:
    results: list[CocoResult] = []
    names, bar = predictor.categories or (), sys.stderr.isatty()
    return evaluate(predictor, dataset, names=names, results=results, progress=bar), results


def _draw_sheet(
    records: Sequence[Record], results: Sequence[CocoResult], predictor: Predictor, score: float, columns: int
) -> Image.Image:
    """Images beside their annotations and detections, one or two in a row."""
    found = [[r for r in results if r["image_id"] == record.id and r["score"] >= score] for record in records]
    return draw_comparison(records, found, predictor.categories or (), columns, SIDES[columns - 1])


def stack_sheets(*sheets: Image.Image) -> Image.Image:
    """Sheets below each other, centered on white."""
    width = max(sheet.width for sheet in sheets)
    stacked, top = Image.new("RGB", (width, sum(sheet.height for sheet in sheets)), "white"), 0
    for sheet in sheets:
        stacked.paste(sheet, ((width - sheet.width) // 2, top))
        top += sheet.height
    return stacked


def demo_images(predictor: Predictor, paths: Sequence[Path]) -> Demo:
    """Balloons on a user's images.

    Raises:
        ValueError: an image cannot be read.
    """
    records = [Record(path, None, (), number) for number, path in enumerate(paths, 1)]
    names = predictor.categories or ()
    found: list[list[Any]] = []
    bar = len(paths) > 1 and sys.stderr.isatty()
    for record, prediction in zip(records, predictor.stream(paths, progress=bar, errors="yield"), strict=True):
        if isinstance(prediction, Exception):
            text = str(prediction)
            raise ValueError(text if str(record.file) in text else f"{record.file}: {text}")
        found.append(to_coco_results(int(record.id or 0), prediction))
    lines = [
        f"{path}: {len(results)} balloon{'s' * (len(results) != 1)}" for path, results in zip(paths, found, strict=True)
    ]
    lines.append("These weights know balloons alone; for 80 classes: fastmask predict FILE --weights COCO_V1\n")
    metrics = {"images": [str(path) for path in paths], "detections": list(itertools.chain(*found))}
    return Demo(draw_comparison(records, found, names), "\n".join(lines), metrics, records[0])
