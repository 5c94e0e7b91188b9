"""``fastmask::decode_boxes``: candidates' boxes from regression deltas, clipped to their images, and which count.

Source: Fast R-CNN, appendix C; torchvision/models/detection/_utils.py (BoxCoder), rpn.py and roi_heads.py.
One op, because on a GPU its twenty steps on a few thousand boxes are twenty launches. Not differentiable: who needs
gradients, a compiled or an exported program calls cpu_decode.decode_boxes, which PyTorch sees through.
"""

from typing import Any

import torch
from torch import Tensor

from fastmask.kernels import cpu_decode
from fastmask.kernels.launch import HAS_TRITON, register
from fastmask.kernels.reference import compute_dtype

decode_boxes_op = torch.library.custom_op("fastmask::decode_boxes", cpu_decode.decode_boxes, mutates_args=())


if HAS_TRITON:
    from fastmask.kernels import gpu_decode

    register(decode_boxes_op, gpu_decode.decode_boxes, cpu_decode.decode_boxes)


@decode_boxes_op.register_fake
def _(deltas: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    boxes = deltas.new_empty(deltas.shape, dtype=compute_dtype(deltas))
    return boxes, deltas.new_empty(deltas.shape[:2], dtype=torch.bool)
