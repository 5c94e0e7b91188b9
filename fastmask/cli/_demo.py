"""The time that ``fastmask demo`` takes, by stages."""

import statistics
import time
from typing import Any

import torch
from PIL import Image

from fastmask.benchmarks.measure import name_of, versions
from fastmask.benchmarks.stages import time_stages
from fastmask.demo.run import BALLOONS, load_predictor
from fastmask.inference.predictor import Predictor
from fastmask.inference.program import Inputs
from fastmask.models._presets import to_float
from fastmask.preprocess import normalize

ROUNDS = 3, 20  # the fewest, where a call takes long, and the most
SECONDS = 2.0  # that the calls of one kind may take


def print_times(predictor: Predictor, image: Image.Image, score: float) -> dict[str, Any]:
    """Print where the milliseconds of an image go, here, and on the CPU beside a GPU; with what they are of."""
    predictors = {str(predictor.device): predictor}
    if predictor.device.type != "cpu":
        predictors["cpu"] = load_predictor(BALLOONS, "cpu", score)
    columns = {place: measure_stages(each, image) for place, each in predictors.items()}
    print(f"the first image's milliseconds, {BALLOONS}")
    print(f"{'':26}" + "".join(f"{place:>10}" for place in columns))
    for stage in next(iter(columns.values())):
        print(f"{stage:26}" + "".join(f"{column[stage]:10.2f}" for column in columns.values()))
    devices = {place: name_of(torch.device(place)) for place in columns}
    return {"milliseconds": columns, "devices": devices, "weights": BALLOONS, **versions()}


def measure_stages(predictor: Predictor, image: Image.Image) -> dict[str, float]:
    """Median milliseconds of the model's stages, of all of it, and of a call with a PIL image."""
    original = (image.height, image.width)
    (shape,), size = predictor.resizers[0].resize_batch([original])
    device = predictor.device
    pixels = predictor.program.empty_pixels(1, size, predictor.dtype, device)
    resized = to_float(image.resize((shape[1], shape[0])))
    normalized = normalize(resized, predictor._mean.cpu(), predictor._std.cpu())
    pixels[0, :, : shape[0], : shape[1]] = normalized.to(device, predictor.dtype)
    inputs = Inputs(pixels, torch.tensor([shape], device=device), torch.tensor([original], device=device))
    calls = [time_call(predictor, image) for _ in range(ROUNDS[0] + 1)][1:]
    rounds = max(ROUNDS[0], min(ROUNDS[1], int(1e3 * SECONDS / min(calls))))
    calls += [time_call(predictor, image) for _ in range(rounds - len(calls))]
    with torch.inference_mode():
        parts, whole = time_stages(predictor.program, inputs, rounds)
    return parts | {"all of it": whole, "a call, image to RLE": statistics.median(calls)}


def time_call(predictor: Predictor, image: Image.Image) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    predictor([image])
    return 1e3 * (time.perf_counter() - start)
