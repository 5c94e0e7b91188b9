"""``fastmask::take_kept``: the rows that NMS keeps, and the same boxes as RoIs: zeros where it keeps none.

One op, because on a GPU its steps on a thousand boxes are eight to ten launches. Not differentiable: who needs
gradients, a compiled or an exported program takes rows by gathering.
"""

import torch
from torch import Tensor

from fastmask.kernels import cpu_take
from fastmask.kernels.launch import HAS_TRITON, register

take_kept_op = torch.library.custom_op("fastmask::take_kept", cpu_take.take_kept, mutates_args=())


if HAS_TRITON:
    from fastmask.kernels import gpu_take

    register(take_kept_op, gpu_take.take_kept, cpu_take.take_kept)


@take_kept_op.register_fake
def _(kept: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, num = kept.shape
    taken = kept.new_empty(0 if labels is None else kept.shape)
    return (
        boxes.new_empty(batch, num, 4),
        scores.new_empty(batch, num),
        taken,
        boxes.new_empty(batch, num, 5),
    )
