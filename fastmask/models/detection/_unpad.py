"""Padded detections as one dict an image: the only host sync of inference, in eager and compiled programs."""

from typing import Any

import torch
from torch import Tensor

from fastmask.structures import Detections, Prediction


def unpad(detections: Detections) -> list[Prediction]:
    """Padded detections -> the valid rows of each image, masks as [n, 1, M, M]; a host sync reads the counts."""
    predictions = []
    padded = [values for values in detections[:4] if values is not None]
    for boxes, labels, scores, *masks in zip(*split_valid(detections.count, *padded), strict=True):
        prediction: Prediction = {"boxes": boxes, "labels": labels, "scores": scores}
        if masks:
            prediction["masks"] = masks[0][:, None]
        predictions.append(prediction)
    return predictions


def split_valid(count: Tensor, *values: Tensor) -> list[list[Tensor]]:
    """The valid rows of each image, from counts [B], of all the values [B, D, ...]; a host sync reads the counts."""
    compiling = torch.compiler.is_compiling()
    rows: list[Any] = valid_rows(count, values[0].shape[1]) if compiling else [slice(n) for n in count.tolist()]
    return [[value[i][valid] for i, valid in enumerate(rows)] for value in values]


@torch.library.custom_op("fastmask::valid_rows", mutates_args=(), tags=[torch.Tag.cudagraph_unsafe])
def valid_rows(count: Tensor, most: int) -> list[Tensor]:
    """Row numbers below each of the counts [B], which are at most ``most``."""
    return [torch.arange(number, device=count.device) for number in count.tolist()]


@valid_rows.register_fake
def _(count: Any, most: int) -> list[Tensor]:
    """Sizes known when the program runs, also where torch.compile is not asked for these: it would break the graph."""
    from torch._library.fake_impl import allocate_size  # private: not before it is needed

    shapes = count.fake_mode.shape_env
    return [count.new_empty(allocate_size(shapes, 0, most)) for _ in range(count.shape[0])]
