"""Padded detections as one dict an image: the only host sync of inference, in eager and compiled programs."""

from typing import Any

import torch
from torch import Tensor

from fastmask.structures import Detections, Prediction


def unpad(detections: Detections) -> list[Prediction]:
    """Padded detections -> the valid rows of each image, masks as [n, 1, M, M]; a host sync reads the counts."""
    count, most = detections.count, detections.labels.shape[1]
    compiling = torch.compiler.is_compiling()
    rows: list[Any] = valid_rows(count, most) if compiling else [slice(number) for number in count.tolist()]
    predictions = []
    for i, valid in enumerate(rows):
        boxes, labels, scores = (values[i][valid] for values in detections[:3])
        prediction: Prediction = {"boxes": boxes, "labels": labels, "scores": scores}
        if detections.masks is not None:
            prediction["masks"] = detections.masks[i][valid][:, None]
        predictions.append(prediction)
    return predictions


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
