"""From a batch's packed answer on the host to a dict an image, with masks in the form that was asked for."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmask.inference.program import Field, unpacked
from fastmask.ops.masks import encode_masks, paste_masks, paste_masks_in_image

Found = dict[str, Any]


class Pending(NamedTuple):
    """A batch that has been given to the device."""

    data: Tensor  # uint8 on the host, once ``done``
    fields: list[Field]
    masks: Tensor | None  # [B, D, M, M] on the device, where they are still needed
    originals: list[tuple[int, int]]
    done: "torch.cuda.Event | None"


def answers(pending: Pending, form: str, threshold: float) -> Iterator[Found | Exception]:
    """A batch's answers, once its data is here; an error for an image whose masks are too much for memory.

    Args:
        pending: the batch.
        form: of masks, one of ``fastmask.inference.predictor.MASKS``.
        threshold: what counts as mask is above it.
    """
    if pending.done is not None:
        pending.done.synchronize()
        if pending.masks is not None:
            pending.masks.record_stream(torch.cuda.current_stream(pending.masks.device))
    found = unpacked(pending.data, pending.fields)
    for i, original in enumerate(pending.originals):
        count = int(found["count"][i])
        result: Found = {name: found[name][i, :count].clone() for name in ("boxes", "labels", "scores")}
        if form == "soft" and "masks" in found:
            result["masks"] = found["masks"][i, :count, None].clone()
        elif pending.masks is not None:
            masks = pending.masks[i, :count]
            pasted = count * original[0] * original[1] * (masks.element_size() if form == "float" else 1)
            size = pasted // 8 if form == "packed" else masks.nbytes if form == "rle" else pasted
            try:
                with naming_bytes(f"masks of an image of {original}", f"{count} of them", size):
                    result["masks"] = _masks(found, i, masks, result["boxes"], original, form, threshold)
            except Exception as error:
                yield error
                continue
        yield result


def _masks(
    found: dict[str, Tensor],
    image: int,
    masks: Tensor,
    boxes: Tensor,
    original: tuple[int, int],
    form: str,
    threshold: float,
) -> Any:
    """One image's masks from their probabilities [n, M, M], or from the RLE that came with the answer."""
    if form == "float":
        return paste_masks_in_image(masks[:, None], boxes.to(masks.device), original)
    if form != "rle":
        return paste_masks(masks, boxes.to(masks.device), original, output=form, threshold=threshold)
    first = image * found["labels"].shape[1]
    ends = found["offsets"][first : first + len(masks) + 1].tolist()
    if ends[-1] > len(found["rle"]):  # it did not fit the program's buffer
        return encode_masks(masks, boxes.to(masks.device), original, threshold=threshold)
    text = found["rle"].numpy()
    pairs = itertools.pairwise(ends)
    return [{"size": list(original), "counts": text[start:end].tobytes()} for start, end in pairs]


@contextlib.contextmanager
def naming_bytes(what: str, part: str, size: int) -> Iterator[None]:
    """Let an error of memory say how much was wanted; the CPU's has no type of its own."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        message = f"{what} need more memory than there is: {part} alone are {size} bytes ({error})"
        raise RuntimeError(message) from error


def forget_frames(error: BaseException | None) -> None:
    """Let go of what the functions held that an error and its causes came through: images, tensors."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
