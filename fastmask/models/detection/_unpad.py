"""From padded detections to a list of dicts: where the host waits for the counts, in eager and compiled programs."""

from typing import Any

import torch
from torch import Tensor

from fastmask.structures import Detections


def split(detections: Detections) -> list[dict[str, Tensor]]:
    """Padded detections -> a dict an image, masks as [N, 1, M, M]; here alone the host waits for the counts."""
    count, most = detections.count, detections.labels.shape[1]
    compiling = torch.compiler.is_compiling()
    rows: list[Any] = real_rows(count, most) if compiling else [slice(number) for number in count.tolist()]
    results = []
    for i, real in enumerate(rows):
        result = {name: getattr(detections, name)[i][real] for name in ("boxes", "labels", "scores")}
        if detections.masks is not None:
            result["masks"] = detections.masks[i][real][:, None]
        results.append(result)
    return results


@torch.library.custom_op("fastmask::real_rows", mutates_args=(), tags=[torch.Tag.cudagraph_unsafe])
def real_rows(count: Tensor, most: int) -> list[Tensor]:
    """Row numbers below each of the counts [B], which are at most ``most``."""
    return [torch.arange(number, device=count.device) for number in count.tolist()]


@real_rows.register_fake
def _(count: Any, most: int) -> list[Tensor]:
    """Sizes known when the program runs, also where torch.compile is not asked for these: it would break the graph."""
    from torch._library.fake_impl import allocate_size  # private: not before it is needed

    shapes = count.fake_mode.shape_env
    return [count.new_empty(allocate_size(shapes, 0, most)) for _ in range(count.shape[0])]
