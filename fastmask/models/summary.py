"""What every model costs, what is published of its weights, and whether they are here: ``fastmask models``."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastmask.models._api import WeightsEnum, get_model_builder, get_model_weights, list_models
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.sizes import compute_padded_size, compute_resized_size

IMAGE_SIZE, CLASSIFIER_SIZE = (800, 1333), (224, 224)
METRICS = {"box_map": "box AP", "mask_map": "mask AP", "kp_map": "keypoint AP", "acc@1": "top-1"}


class ModelSummary(NamedTuple):
    """A model and one of its weights."""

    name: str  # of its builder
    weights: WeightsEnum | None  # None if none are published
    num_params: int  # without those of norms that trained weights freeze, as torchvision counts them
    gmac: float  # 10^9 multiply-accumulates of one image's convolutions and matrix products
    data: str  # on which the next were measured, as COCO-val2017
    metrics: dict[str, float]  # published, in percent, by METRICS' names


def summarize_models(include: Iterable[str] | str | None = None) -> Iterator[ModelSummary]:
    """Summarize each model, once for each of its weights.

    A model is built and run on meta tensors, which hold no values: a detector by its static program on one image of 800
    x 1333, resized and padded as its builder does, with all proposals and all detections; a classifier on 224 x 224.

    Args:
        include: shell patterns of names; None for all.
    """
    for name in list_models(include=include):
        num_params, gmac = count(name)
        published: list[WeightsEnum | None] = list(get_model_weights(name))
        for weights in published or [None]:
            data, values = "", {}
            if weights is not None:
                ((data, values),) = weights.meta["_metrics"].items()
                num_params = weights.meta["num_params"]
            metrics = {METRICS[key]: float(value) for key, value in values.items() if key in METRICS}
            yield ModelSummary(name, weights, num_params, gmac, data, metrics)


def count(name: str, **options: Any) -> tuple[int, float]:
    """Parameters, and 10^9 multiply-accumulates of one image.

    Args:
        name: a builder's name.
        options: the builder's arguments.
    """
    builder = get_model_builder(name)
    if "weights_backbone" in inspect.signature(builder).parameters:
        options = {"weights_backbone": None} | options
    with torch.device("meta"):
        model = builder(**options).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if isinstance(model, GeneralizedRCNN):
            transform = model.transform
            limits = transform.min_size[-1], transform.max_size
            size = compute_resized_size(IMAGE_SIZE, *limits, enlarge_only=transform._enlarge_only)
            padded = compute_padded_size([size], transform.size_divisible)
            model.infer(torch.empty(1, 3, *padded, device="meta"), torch.tensor([size], device="meta"))
        else:
            model(torch.empty(1, 3, *CLASSIFIER_SIZE, device="meta"))
    frozen = [m for m in model.modules() if type(m) is nn.BatchNorm2d] if _freezes_norms(builder) else []
    norms = sum(parameter.numel() for norm in frozen for parameter in norm.parameters())
    return sum(parameter.numel() for parameter in model.parameters()) - norms, counter.get_total_flops() / 2e9


def _freezes_norms(builder: Callable[..., nn.Module]) -> bool:
    """Whether norms are frozen with trained weights: in builders whose backbone has some by default."""
    default = inspect.signature(builder).parameters.get("weights_backbone")
    return default is not None and default.default is not None


def format_table(summaries: Iterable[ModelSummary]) -> str:
    """A table in Markdown, for the README: without what a machine's cache has."""
    lines = ["| model | weights | parameters | GMAC | published |", "| --- | --- | ---: | ---: | --- |"]
    previous = ""
    for summary in summaries:
        again = summary.name == previous
        cells = ["" if again else f"`{summary.name}`", *format_cells(summary)]
        if again:
            cells[2:4] = ["", ""]
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))
        previous = summary.name
    return "\n".join(lines) + "\n"


def format_cells(summary: ModelSummary) -> list[str]:
    """Weights, parameters, GMAC and published metrics as text."""
    weights = "-" if summary.weights is None else summary.weights.name
    published = f"{summary.data}: " if summary.metrics else ""
    published += ", ".join(f"{name} {value:.1f}" for name, value in summary.metrics.items())
    return [weights, f"{summary.num_params / 1e6:.1f} M", f"{summary.gmac:.1f}", published]


if __name__ == "__main__":
    print(format_table(summarize_models()), end="")
