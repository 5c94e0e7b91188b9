"""Unpacking: a batch's packed detections become one Prediction an image, with masks in the form asked for."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmask.inference.program import Field, split_fields
from fastmask.ops.masks import encode_masks, paste_masks, paste_masks_in_image
from fastmask.structures import Prediction


class Pending(NamedTuple):
    """A batch that the device is working on."""

    data: Tensor  # uint8 on the host, once ``done``
    fields: list[Field]
    masks: Tensor | None  # [B, D, M, M] on the device, where they are still needed
    originals: list[tuple[int, int]]
    done: "torch.cuda.Event | None"


def unpack(pending: Pending, form: str, threshold: float) -> Iterator[Prediction | Exception]:
    """Yield a batch's predictions, once its data is here; an error for an image whose masks are too much for memory.

    Args:
        pending: the batch.
        form: of the masks, one of ``fastmask.inference.predictor.MASKS``.
        threshold: probability above which a pixel belongs to a mask.
    """
    if pending.done is not None:
        pending.done.synchronize()
        if pending.masks is not None:
            pending.masks.record_stream(torch.cuda.current_stream(pending.masks.device))
    fields = split_fields(pending.data, pending.fields)
    for i, original in enumerate(pending.originals):
        count = int(fields["count"][i])
        boxes, labels, scores = (fields[name][i, :count].clone() for name in ("boxes", "labels", "scores"))
        prediction = Prediction(boxes=boxes, labels=labels, scores=scores)
        if "keypoints" in fields:
            prediction["keypoints"] = fields["keypoints"][i, :count].float().clone()
            prediction["keypoints_scores"] = fields["keypoints_scores"][i, :count].float().clone()
        if form == "soft" and "masks" in fields:
            prediction["masks"] = fields["masks"][i, :count, None].clone()
        elif pending.masks is not None:
            masks = pending.masks[i, :count]
            pasted = count * original[0] * original[1] * (masks.element_size() if form == "float" else 1)
            size = pasted // 8 if form == "packed" else masks.nbytes if form == "rle" else pasted
            try:
                with explain_out_of_memory(f"masks of an image of {original}", f"{count} of them", size):
                    prediction["masks"] = _make_masks(fields, i, masks, boxes, original, form, threshold)
            except Exception as error:
                yield error
                continue
        yield prediction


def _make_masks(
    fields: dict[str, Tensor],
    image: int,
    masks: Tensor,
    boxes: Tensor,
    original: tuple[int, int],
    form: str,
    threshold: float,
) -> Any:
    """One image's masks, from their probabilities [n, M, M] or from the RLE that came with the boxes."""
    if form == "float":
        return paste_masks_in_image(masks[:, None], boxes.to(masks.device), original)
    if form != "rle":
        return paste_masks(masks, boxes.to(masks.device), original, output=form, threshold=threshold)
    first = image * fields["labels"].shape[1]
    ends = fields["offsets"][first : first + len(masks) + 1].tolist()
    if ends[-1] > len(fields["rle"]):  # it did not fit the program's buffer
        return encode_masks(masks, boxes.to(masks.device), original, threshold=threshold)
    text = fields["rle"].numpy()
    pairs = itertools.pairwise(ends)
    return [{"size": list(original), "counts": text[start:end].tobytes()} for start, end in pairs]


@contextlib.contextmanager
def explain_out_of_memory(what: str, part: str, size: int) -> Iterator[None]:
    """Add the size asked for to an out-of-memory error, which on a CPU is a plain RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        message = f"{what} need more memory than there is: {part} alone are {size} bytes ({error})"
        raise RuntimeError(message) from error


def drop_tracebacks(error: BaseException | None) -> None:
    """Free what an error's tracebacks hold, and those of its causes: images, tensors."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
