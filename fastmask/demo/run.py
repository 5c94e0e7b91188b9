"""Detections of the weights that come with the package, on synthetic images or on a user's."""

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from fastmask.data.records import Record
from fastmask.demo.comparison import draw_comparison
from fastmask.demo.drawing import synthetic_dataset
from fastmask.evaluation.run import evaluate
from fastmask.evaluation.tables import format_evaluation, to_dict
from fastmask.inference.coco_results import to_coco_results
from fastmask.inference.predictor import Predictor

MODEL, WEIGHTS = "maskrcnn_slim_fpn", "SHAPES_V1"
SIZE = (192, 192)  # of synthetic images
SHOWN = 8


class Demo(NamedTuple):
    """What a demonstration shows."""

    sheet: Image.Image
    text: str
    metrics: dict[str, Any]  # ready for JSON
    record: Record  # the first image


def load_predictor(device: str, score: float) -> Predictor:
    """The slim model on a device, exact."""
    return Predictor.from_pretrained(MODEL, WEIGHTS, device=device, score=score, size="exact")


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
    results: list[Any] = []
    names = predictor.categories or ()
    bar = sys.stderr.isatty()
    evaluation = evaluate(predictor, dataset._replace(records=records), names=names, results=results, progress=bar)
    evaluation.seconds["draw"] = seconds_drawing
    seen = "which the weights were trained or chosen on" if seed in (1, 2) else "never seen in training"
    seconds = evaluation.seconds["inference"] + evaluation.seconds["wait"]
    text = (
        f"\nImages drawn with seed {seed}, {seen}: {number}\n\n{format_evaluation(evaluation)}\n\n"
        f"{number / seconds:.1f} images a second, read and matched\n"
    )
    shown = records[:SHOWN]
    found = [[r for r in results if r["image_id"] == record.id and r["score"] >= score] for record in shown]
    sheet = draw_comparison(shown, found, names, columns=min(2, number), side=320)
    return Demo(sheet, text, {"seed": seed, **to_dict(evaluation)}, shown[0])


def demo_images(predictor: Predictor, paths: Sequence[Path]) -> Demo:
    """Shapes on a user's images.

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
    lines = [f"{path}: {len(results)} shapes" for path, results in zip(paths, found, strict=True)]
    lines.append("These weights know drawn shapes; for photos: fastmask predict FILE --weights COCO_V1\n")
    metrics = {"images": [str(path) for path in paths], "detections": list(itertools.chain(*found))}
    return Demo(draw_comparison(records, found, names), "\n".join(lines), metrics, records[0])
