"""Masks on images: pasted as probabilities, bool or packed bits, and encoded as COCO's RLE."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmask import ops
from fastmask.benchmarks.baselines import ENCODER, decode_masks, detectron2_paste, encode_pasted
from fastmask.benchmarks.case import HAS_PYCOCOTOOLS, HAS_TORCHVISION, Case, Entry
from fastmask.benchmarks.inputs import IMAGE_SIZE, blob_masks
from fastmask.kernels import reference
from fastmask.kernels.paste import paste_masks_op
from fastmask.kernels.rle import encode_masks_op
from fastmask.kernels.roofline import min_bytes
from fastmask.ops.masks import LIKELY, choose_capacity

SAMPLE = 2  # masks that are compared with the literal reference
AT_THRESHOLD = 1e-4  # of pixels, whose probability is 0.5 but for rounding


def paste(
    generator: torch.Generator,
    device: torch.device,
    *,
    output: str,
    num: int = 100,
    size: tuple[int, int] = IMAGE_SIZE,
    continuous: bool = False,
) -> Case:
    """``continuous``: as detectron2 does it, beside its algorithm; else beside torchvision's."""
    masks, boxes = blob_masks(generator, device, num, size)
    mode = "continuous" if continuous else "torchvision"

    def ours() -> Tensor:
        if output == "float":
            return ops.paste_masks_in_image(masks, boxes, size)
        return ops.paste_masks(masks, boxes, size, output=output, mode=mode)

    providers: dict[str, Callable[[], Any]] = {}
    if continuous:
        providers["detectron2's algorithm"] = lambda: detectron2_paste(masks, boxes, size)
    elif HAS_TORCHVISION:
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        whole = functools.partial(paste_masks_in_image, masks, boxes, size)
        providers["torchvision"] = whole if output == "float" else lambda: whole()[:, 0] > 0.5
    providers["fastmask"] = ours

    def agree(ours: Tensor, theirs: Tensor) -> None:
        if output == "float":
            if device.type == "cpu":
                assert torch.equal(ours, theirs), "pasted masks differ"
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
            return
        if output == "packed":
            bits = np.unpackbits(ours.cpu().numpy(), axis=-1, count=size[1])
            ours = torch.from_numpy(bits).bool().to(theirs.device)
        exact = device.type == "cpu" and not continuous
        differing = float((ours != theirs).sum() / theirs.sum())
        assert differing <= (0 if exact else AT_THRESHOLD), f"{differing:.2%} of the pixels differ"

    def sample() -> None:
        few = (masks[:SAMPLE], boxes[:SAMPLE], size)
        expected = reference.paste_masks(masks[:SAMPLE, 0].cpu(), boxes[:SAMPLE].cpu(), size, continuous, 1)
        actual = ops.paste_masks(*few, output="float", mode=mode).cpu()
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-4)

    kind = {"float": "probabilities", "bool": "> 0.5, bool", "packed": "> 0.5, 8 pixels a byte; baseline: bool"}[output]
    inputs = f"{num} masks of 28 x 28 float32 on {size}, {kind}"
    args = (masks[:, 0], boxes, *size, output, 0.5, continuous, False, 1)
    capturable = {"fastmask": lambda: paste_masks_op(*args)}
    return Case(providers, agree, inputs, min_bytes(paste_masks_op, *args), sample=sample, capturable=capturable)


def encode(
    generator: torch.Generator, device: torch.device, *, num: int = 100, size: tuple[int, int] = IMAGE_SIZE
) -> Case:
    """Beside torchvision's paste and pycocotools.encode."""
    masks, boxes = blob_masks(generator, device, num, size)

    providers: dict[str, Callable[[], Any]] = {}
    if HAS_TORCHVISION:
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        providers["torchvision"] = lambda: encode_pasted(paste_masks_in_image(masks, boxes, size)[:, 0] > 0.5)
    providers["fastmask"] = lambda: ops.encode_masks(masks, boxes, size)

    def agree(ours: list[Any], theirs: list[Any]) -> None:
        if device.type == "cpu" and HAS_PYCOCOTOOLS:
            assert ours == theirs, "RLE differs"
        pixels, others = decode_masks(ours), decode_masks(theirs)
        share = 0 if device.type == "cpu" else AT_THRESHOLD
        assert (pixels != others).sum() <= share * others.sum(), "more differs than pixels at the threshold"

    def sample() -> None:
        pasted = ops.paste_masks(masks[:SAMPLE], boxes[:SAMPLE], size).cpu()
        expected = [reference.encode_mask(mask) for mask in pasted]
        actual = [rle["counts"] for rle in ops.encode_masks(masks[:SAMPLE], boxes[:SAMPLE], size)]
        assert actual == expected, "RLE differs"

    inputs = f"{num} masks of 28 x 28 float32 on {size}; baseline: paste, then {ENCODER}"
    sizes = torch.tensor([size] * num, device=device)
    options = (0.5, False, False, 1)
    moved = min_bytes(encode_masks_op, masks[:, 0], boxes, sizes, num * LIKELY, *options)
    capacity = choose_capacity(num, size[1])
    capturable = {"fastmask": lambda: encode_masks_op(masks[:, 0], boxes, sizes, capacity, *options)}
    return Case(providers, agree, inputs, moved, sample=sample, capturable=capturable)


SIZES = {"480 x 640": (480, 640), "800 x 1333": IMAGE_SIZE, "1080 x 1920": (1080, 1920), "2160 x 3840": (2160, 3840)}


def paste_entry(output: str, chosen: bool = True, **options: Any) -> Entry:
    baseline = "detectron2's algorithm" if options.get("continuous") else "torchvision"
    return Entry(functools.partial(paste, output=output, **options), chosen, providers=(baseline, "fastmask"))


ENTRIES: dict[str, Entry] = {
    "paste 100 masks": paste_entry("float"),
    "paste 100 masks, packed": paste_entry("packed"),
    "paste 100 masks as detectron2, bool": paste_entry("bool", continuous=True),
}
for name, size in SIZES.items():
    usual, pixels = size == IMAGE_SIZE, size[0] * size[1]
    for num in (20, 100, 500):
        title = f"{num} masks{'' if usual else f' on {name}'}"
        points = [(f"of {num} masks", "pixels", pixels)] if num == 100 else []
        points += [("on 800 x 1333", "masks", num)] if usual else []
        if not points and num == 500:
            continue
        chosen = bool(points) and pixels <= 1080 * 1920
        for output in ("float", "bool", "packed"):
            scales = tuple((f"paste {of}, bool", what, number) for of, what, number in points if output == "bool")
            entry = paste_entry(output, chosen and output == "bool", num=num, size=size)._replace(scales=scales)
            ENTRIES.setdefault(f"paste {title}{'' if output == 'float' else f', {output}'}", entry)
        scales = tuple((f"RLE {of}", what, number) for of, what, number in points)
        ENTRIES[f"RLE of {title}"] = Entry(functools.partial(encode, num=num, size=size), chosen, scales)
