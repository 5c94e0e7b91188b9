"""The time that ``fastmask demo`` takes, by stages."""

import time
from typing import Any

import torch
from PIL import Image

from fastmask.benchmarks.measure import name_of, versions
from fastmask.benchmarks.stages import time_stages
from fastmask.demo.run import MODEL, WEIGHTS, load_predictor
from fastmask.inference.predictor import Predictor
from fastmask.inference.program import Inputs
from fastmask.models._presets import to_float
from fastmask.preprocess import normalize

ROUNDS = 20


def print_times(predictor: Predictor, image: Image.Image, score: float) -> dict[str, Any]:
    """Print where the milliseconds of an image go, here, and on the CPU beside a GPU; with what they are of."""
    predictors = {str(predictor.device): predictor}
    if predictor.device.type != "cpu":
        predictors["cpu"] = load_predictor("cpu", score)
    columns = {place: measure_stages(each, image) for place, each in predictors.items()}
    print(f"{'milliseconds of an image':26}" + "".join(f"{place:>10}" for place in columns))
    for stage in next(iter(columns.values())):
        print(f"{stage:26}" + "".join(f"{column[stage]:10.2f}" for column in columns.values()))
    devices = {place: name_of(torch.device(place)) for place in columns}
    return {"milliseconds": columns, "devices": devices, "weights": f"{MODEL}, {WEIGHTS}", **versions()}


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
    with torch.inference_mode():
        parts, whole = time_stages(predictor.program, inputs, ROUNDS)
    calls = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        predictor([image])
        calls.append(1e3 * (time.perf_counter() - start))
    return parts | {"all of it": whole, "a call, image to RLE": sorted(calls[1:])[ROUNDS // 2]}
