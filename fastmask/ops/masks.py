"""Mask pasting and COCO RLE encoding of masks of fixed size: probabilities, bool, bits or run-length encoding."""

import itertools
from typing import TypedDict

import torch
from torch import Tensor

from fastmask.checks import (
    ArgumentError,
    check_at_least,
    check_choice,
    check_device,
    check_floating,
    check_pair,
    check_shape,
    not_scriptable,
)
from fastmask.kernels.paste import paste_masks_op
from fastmask.kernels.rle import encode_masks_op

OUTPUTS = ("bool", "packed", "float")
MODES = ("torchvision", "continuous")
CAPACITY = 4096  # bytes per mask, or 8 bytes per column; if they are not enough, the op runs again
LIKELY = 1024  # bytes per mask in the first copy to the host


class RLE(TypedDict):
    """COCO's compressed run-length encoding, as in pycocotools."""

    size: list[int]  # [height, width]
    counts: bytes


@not_scriptable
def paste_masks_in_image(masks: Tensor, boxes: Tensor, img_shape: tuple[int, int], padding: int = 1) -> Tensor:
    """Mask pasting: probabilities into images of zeros; torchvision's function, bitwise on the CPU.

    Args:
        masks (Tensor[N, 1, M, M]): probabilities, any float dtype.
        boxes (Tensor[N, 4]): (x1, y1, x2, y2) in pixels of the image.
        img_shape: (height, width) in pixels.
        padding: zeros around each mask before it is resized to its box, which grows in proportion.

    Returns:
        Tensor[N, 1, H, W]: dtype of the masks. A box that is NaN, inf, over 2^24 pixels away or out of the image gives
        zeros. Differentiable in the masks (once).

    Raises:
        ValueError: a shape, dtype, device or size does not fit.

    Source: torchvision/models/detection/roi_heads.py.
    """
    check_shape("masks", masks, "N", 1, "M", "M")
    return paste_masks(masks, boxes, img_shape, output="float", padding=padding)[:, None]


@not_scriptable
def paste_masks(
    masks: Tensor,
    boxes: Tensor,
    img_shape: tuple[int, int],
    *,
    output: str = "bool",
    threshold: float = 0.5,
    mode: str = "torchvision",
    logits: bool = False,
    padding: int = 1,
) -> Tensor:
    """Mask pasting into images of one size, as bool, bits or probabilities.

    Args:
        masks (Tensor[N, M, M] or Tensor[N, 1, M, M]): probabilities, or logits if ``logits``; any float dtype.
        boxes (Tensor[N, 4]): (x1, y1, x2, y2) in pixels of the image.
        img_shape: (height, width) in pixels.
        output: "bool"; "packed", 8 pixels a byte, the first one in the highest bit, as
            ``numpy.unpackbits(packed, axis=-1, count=width)`` reads it; or "float", the probabilities.
        threshold: pixels of the mask are ``>`` it in torchvision's mode, ``>=`` it in the continuous one. There are
            none outside the box.
        mode: "torchvision" (padded masks on boxes truncated to whole pixels) or "continuous" (detectron2's: pixel
            centers sampled in the exact box).
        logits: apply the sigmoid first.
        padding: torchvision's mode only; see :func:`paste_masks_in_image`.

    Returns:
        Tensor[N, H, W] bool, or of the masks' dtype; or uint8 [N, H, ceil(W / 8)]. Boxes as in
        :func:`paste_masks_in_image`. "float" is differentiable in the masks (once).

    Raises:
        ValueError: a shape, dtype, device, size or choice does not fit.

    Source: torchvision/models/detection/roi_heads.py; detectron2/layers/mask_ops.py.
    """
    masks = _check_masks(masks, boxes, mode, padding)
    height, width = check_pair("img_shape", img_shape, 0)
    check_choice("output", output, OUTPUTS)
    pasted: Tensor = paste_masks_op(
        masks, boxes, height, width, output, float(threshold), mode == "continuous", logits, padding
    )
    return pasted


@not_scriptable
def encode_masks(
    masks: Tensor,
    boxes: Tensor,
    img_shape: tuple[int, int] | Tensor,
    *,
    threshold: float = 0.5,
    mode: str = "torchvision",
    logits: bool = False,
    padding: int = 1,
) -> list[RLE]:
    """COCO run-length encoding (RLE) of each mask as :func:`paste_masks` would paste it, without pasting it.

    Args:
        masks, boxes, threshold, mode, logits, padding: see :func:`paste_masks`.
        img_shape: (height, width) in pixels, or an integer Tensor[N, 2] of them, one for each mask.

    Returns:
        list of ``{"size": [height, width], "counts": bytes}``, byte-equal to ``pycocotools.mask.encode``.

    Raises:
        ValueError: a shape, dtype, device, size or choice does not fit.
        NotImplementedError: in an exported program, which returns tensors.

    Source: cocoapi/common/maskApi.c.
    """
    if torch.compiler.is_exporting():
        raise NotImplementedError(
            "encode_masks cannot be exported, as it returns bytes: export paste_masks(..., output='packed')"
        )
    masks = _check_masks(masks, boxes, mode, padding)
    sizes = _check_sizes(img_shape, masks)
    number = masks.shape[0]
    shape = None if isinstance(img_shape, Tensor) else check_pair("img_shape", img_shape, 0)
    capacity = choose_capacity(number, 0 if shape is None else shape[1])
    while True:
        options = (float(threshold), mode == "continuous", logits, padding)
        buffer, offsets = encode_masks_op(masks, boxes, sizes, capacity, *options)
        # one copy from the device holds all that is usually needed
        numbers = offsets if shape is not None else torch.cat([offsets, sizes.flatten()])
        head = to_host(torch.cat([numbers.view(torch.uint8), buffer[: number * LIKELY]]))
        *ends, total = head[: 8 * (number + 1)].view(torch.int64).tolist()
        if total <= capacity:
            break
        capacity = total
    counts = head[8 * len(numbers) :].numpy().tobytes()
    if total > number * LIKELY:
        counts += to_host(buffer[number * LIKELY : total]).numpy().tobytes()
    if shape is None:
        shapes = head[8 * (number + 1) : 8 * len(numbers)].view(torch.int64).view(number, 2).tolist()
    else:
        shapes = [list(shape) for _ in range(number)]
    return [
        {"size": size, "counts": counts[start:end]}
        for size, (start, end) in zip(shapes, itertools.pairwise([*ends, total]), strict=True)
    ]


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the host; from a GPU over pinned memory, which PyTorch keeps."""
    if not tensor.is_cuda:
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return host


def choose_capacity(number: int, columns: int) -> int:
    """Bytes of the first buffer for a number of masks on images of so many columns (0: not known)."""
    return number * max(CAPACITY, 8 * columns)


def _check_masks(masks: Tensor, boxes: Tensor, mode: str, padding: int) -> Tensor:
    """Check masks and boxes -> masks [N, M, M]."""
    if isinstance(masks, Tensor) and masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    check_shape("masks", masks, "N", "M", "M")
    if masks.shape[1] != masks.shape[2] or masks.shape[1] == 0:
        raise ArgumentError(f"masks must be square and not empty, got {tuple(masks.shape)}")
    check_floating("masks", masks)
    check_shape("boxes", boxes, masks.shape[0], 4)
    check_floating("boxes", boxes)
    check_device("boxes", boxes, masks)
    check_choice("mode", mode, MODES)
    check_at_least("padding", padding, 0)
    return masks


def _check_sizes(img_shape: tuple[int, int] | Tensor, masks: Tensor) -> Tensor:
    """Image sizes as int64 [N, 2]."""
    if not isinstance(img_shape, Tensor):
        height, width = check_pair("img_shape", img_shape, 0)
        sizes = masks.new_full((masks.shape[0], 2), width, dtype=torch.int64)
        sizes[:, 0].fill_(height)
        return sizes
    check_shape("img_shape", img_shape, masks.shape[0], 2)
    if img_shape.is_floating_point() or img_shape.dtype == torch.bool:
        raise ArgumentError(f"img_shape must be integer, got {img_shape.dtype}")
    check_device("img_shape", img_shape, masks)
    return img_shape.to(torch.int64)
