"""What ``fastmask demo`` shows, and the time that it takes."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from fastmask.benchmarks.measure import name_of, versions
from fastmask.benchmarks.stages import time_stages
from fastmask.checks import check_at_least
from fastmask.cli._model import load_model
from fastmask.data.records import Record
from fastmask.demo import synthetic_dataset
from fastmask.demo.comparison import draw_comparison
from fastmask.evaluation import evaluate
from fastmask.evaluation.coco_results import to_coco_results
from fastmask.evaluation.tables import format_evaluation, to_dict
from fastmask.inference.predictor import Predictor
from fastmask.inference.program import Inputs
from fastmask.models._presets import to_float
from fastmask.preprocess import normalize

MODEL, WEIGHTS = "maskrcnn_slim_fpn", "SHAPES_V1"
SIZE = (192, 192)  # of synthetic images
SHOWN = 8
ROUNDS = 20
Told = dict[str, Any]  # for demo.json


def on_drawn_images(number: int, seed: int, score: float, device: str) -> tuple[Image.Image, Told]:
    """Average precision on synthetic images; some of them beside their annotations and what was found."""
    check_at_least("--number", number, 1)
    if not 0 <= score <= 1:
        raise ValueError(f"--score must be in [0, 1], got {score}")
    predictor, names = ready(device, min(score, 0.05))
    start = time.perf_counter()
    dataset = synthetic_dataset(number, seed, SIZE)
    records = [dataset.records[i] for i in tqdm(range(number), "draw", unit="img")]
    drawn = time.perf_counter() - start
    entries: list[Any] = []
    evaluation = evaluate(predictor, dataset._replace(records=records), names=names, results=entries)
    evaluation.seconds["draw"] = drawn
    seen = "which the weights were trained or chosen on" if seed in (1, 2) else "never seen in training"
    print(f"\nImages drawn with seed {seed}, {seen}: {number}\n\n{format_evaluation(evaluation)}\n")
    seconds = evaluation.seconds["inference"] + evaluation.seconds["wait"]
    print(f"{number / seconds:.1f} images a second, read and matched\n")
    shown = records[:SHOWN]
    found = [[one for one in entries if one["image_id"] == record.id and one["score"] >= score] for record in shown]
    sheet = draw_comparison(shown, found, names, columns=min(2, number), side=320)
    return sheet, {"seed": seed, **to_dict(evaluation), **times(predictor, shown[0], min(score, 0.05))}


def on_own_images(paths: Sequence[Path], score: float, device: str) -> tuple[Image.Image, Told]:
    """Shapes on images of anything."""
    predictor, names = ready(device, score)
    records = [Record(path, None, (), number) for number, path in enumerate(paths, 1)]
    found = []
    for record, answer in zip(records, predictor.stream(paths, errors="yield"), strict=True):
        if isinstance(answer, Exception):
            text = str(answer)
            raise ValueError(text if str(record.file) in text else f"{record.file}: {text}")
        found.append(to_coco_results(int(record.id or 0), answer))
        print(f"{record.file}: {len(found[-1])} shapes")
    print("These weights know drawn shapes; for photos: fastmask predict FILE --weights COCO_V1\n")
    told = {"images": [str(path) for path in paths], "detections": [one for each in found for one in each]}
    return draw_comparison(records, found, names), told | times(predictor, records[0], score)


def ready(device: str, score: float) -> tuple[Predictor, Sequence[str]]:
    model, names = load_model(MODEL, WEIGHTS, device, score)
    assert names is not None
    return Predictor(model, "exact"), names


def times(predictor: Predictor, record: Record, score: float) -> Told:
    """Print where the milliseconds of an image go, here, and on the CPU beside a GPU; with what they are of."""
    predictors = {str(predictor.device): predictor}
    if predictor.device.type != "cpu":
        predictors["cpu"], _ = ready("cpu", score)
    image = record.load()
    columns = {place: stages_of(one, image) for place, one in predictors.items()}
    print(f"{'milliseconds of an image':26}" + "".join(f"{place:>10}" for place in columns))
    for stage in next(iter(columns.values())):
        print(f"{stage:26}" + "".join(f"{column[stage]:10.2f}" for column in columns.values()))
    devices = {place: name_of(torch.device(place)) for place in columns}
    return {"milliseconds": columns, "devices": devices, "weights": f"{MODEL}, {WEIGHTS}", **versions()}


def stages_of(predictor: Predictor, image: Image.Image) -> dict[str, float]:
    """Median milliseconds of the model's stages, of all of it, and of a call with a PIL image."""
    original = (image.height, image.width)
    (shape,), size = predictor.resizer.resize_batch([original])
    device = predictor.device
    pixels = predictor.program.empty_pixels(1, size, predictor.dtype, device)
    resized = to_float(image.resize((shape[1], shape[0])))
    normalized = normalize(resized, predictor._mean.cpu(), predictor._std.cpu())
    pixels[0, :, : shape[0], : shape[1]] = normalized.to(device, predictor.dtype)
    inputs = Inputs(pixels, torch.tensor([shape], device=device), torch.tensor([original], device=device))
    with torch.inference_mode():
        parts, whole = time_stages(predictor.program, inputs, ROUNDS)
    calls = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        predictor([image])
        calls.append(1e3 * (time.perf_counter() - start))
    return parts | {"all of it": whole, "a call, image to RLE": sorted(calls[1:])[ROUNDS // 2]}
