"""fastmask::encode_masks against its specification and pycocotools, on what paste_masks gives."""

import importlib.util
import itertools

import numpy as np
import pytest
import torch
from helpers.inputs import adversarial_boxes, draw_boxes, draw_masks
from torch import Tensor

from fastmask.cocoapi import mask as coco
from fastmask.kernels import reference
from fastmask.kernels.fallback import masks as masks_fallback
from fastmask.kernels.launch import HAS_TRITON, INTERPRET
from fastmask.kernels.paste import paste_masks_op
from fastmask.kernels.rle import encode_masks_op

HAS_PYCOCOTOOLS = importlib.util.find_spec("pycocotools") is not None


def is_interpreted(device: torch.device) -> bool:
    return INTERPRET and device.type == "cpu"


def encode(masks: Tensor, boxes: Tensor, sizes: Tensor, *options: object, capacity: int = 2**22) -> list[bytes]:
    buffer, offsets = encode_masks_op(masks, boxes, sizes, capacity, *options)
    assert buffer.shape == (capacity,)
    text, ends = buffer.cpu().numpy().tobytes(), offsets.tolist()
    assert ends[0] == 0
    assert ends[-1] <= capacity
    return [text[start:end] for start, end in itertools.pairwise(ends)]


def from_pycocotools(inside: Tensor) -> list[bytes]:
    """pycocotools' encoding; without it the specification's, which another test compares with it."""
    if not HAS_PYCOCOTOOLS:
        return [reference.encode_mask(mask) for mask in inside.cpu()]
    return [coco.encode(np.asfortranarray(mask.cpu().numpy().view(np.uint8)))["counts"] for mask in inside]


@pytest.mark.parametrize("continuous", [False, True], ids=["torchvision", "continuous"])
@pytest.mark.parametrize("logits", [False, True], ids=["probabilities", "logits"])
def test_bytes_equal_pycocotools(continuous: bool, logits: bool, device: torch.device) -> None:
    """10,000 masks over the four cases, on images of many shapes, some boxes adversarial.

    In the interpreter 60, and of the adversarial boxes each in both modes, with either logits or probabilities.
    """
    few = is_interpreted(device)
    for _ in range(1 if few else 50):
        height, width = (int(side) for side in torch.randint(1, 40 if few else 70, (2,)))
        adversarial = adversarial_boxes((height, width))[int(logits) if few else 0 :: 2 if few else 1]
        boxes = torch.cat([draw_boxes(5 if few else 30, (height, width), 80), adversarial]).to(device)
        masks = draw_masks(len(boxes), int(torch.randint(1, 29, ()))).to(device)
        masks = 8 * masks - 4 if logits else masks
        threshold = float(torch.rand(()))
        inside = paste_masks_op(masks, boxes, height, width, "bool", threshold, continuous, logits, 1)
        sizes = torch.tensor([[height, width]], device=device).expand(len(masks), 2)
        assert encode(masks, boxes, sizes, threshold, continuous, logits, 1) == from_pycocotools(inside)


def test_reference_is_pycocotools() -> None:
    """The specification itself, on masks of every kind of run, full, empty and single-pixel ones among them."""
    pytest.importorskip("pycocotools", reason="what the specification is compared with")
    for height, width in ((1, 1), (1, 9), (9, 1), (13, 17), (64, 63)):
        masks = torch.rand(20, height, width) < torch.linspace(0, 1, 20)[:, None, None]
        assert [reference.encode_mask(mask) for mask in masks] == from_pycocotools(masks)


def test_runs_over_all_lengths() -> None:
    """Characters of one to six groups of five bits, of either sign."""
    runs = torch.randint(1, 2**27, (400,)) >> torch.randint(27, (400,))
    size = [int(runs.sum()), 1]
    expected = coco.frPyObjects({"counts": runs.tolist(), "size": size}, *size)["counts"]
    assert masks_fallback._compress(runs.numpy()) == expected


def test_image_sizes_of_each_mask(device: torch.device) -> None:
    masks, boxes = draw_masks(6).to(device), draw_boxes(6, (40, 50), 60).to(device)
    sizes = torch.tensor([[40, 50], [1, 1], [50, 40], [0, 7], [7, 0], [40, 50]], device=device)
    texts = encode(masks, boxes, sizes, 0.5, False, False, 1)
    for i, (height, width) in enumerate(sizes.tolist()):
        alone = encode(masks[i : i + 1], boxes[i : i + 1], sizes[i : i + 1], 0.5, False, False, 1)
        assert alone == [texts[i]]
        if height and width:
            inside = paste_masks_op(masks, boxes, height, width, "bool", 0.5, False, False, 1)
            assert texts[i] == from_pycocotools(inside)[i]
        else:
            assert texts[i] == b"0"


def test_full_height_columns_run_on(device: torch.device) -> None:
    """Ones to the bottom of one column and from the top of the next are one run."""
    masks = torch.ones(3, 4, 4, device=device)
    boxes = torch.tensor([[2.0, -20, 5, 30], [0, -20, 8, 30], [-9, -20, 30, 30]], device=device)
    sizes = torch.tensor([[6, 9]], device=device).expand(3, 2)
    inside = paste_masks_op(masks, boxes, 6, 9, "bool", 0.5, False, False, 0)
    assert inside[2].all()
    assert encode(masks, boxes, sizes, 0.5, False, False, 0) == from_pycocotools(inside)


@pytest.mark.parametrize("height", [27, 28, 29, 56, 57], ids="H{}".format)
def test_words_of_a_column(height: int, device: torch.device) -> None:
    """The Triton kernel reads a column in words of 28 pixels: what begins, ends and runs on at their borders."""
    masks = torch.ones(4, 1, 1, device=device)
    boxes = torch.tensor([[1.0, 0, 3, height], [0, -5, 6, height - 2], [0, 0, 6, height - 1], [1, 28, 2, 28]])
    sizes = torch.tensor([[height, 5]], device=device).expand(4, 2)
    inside = paste_masks_op(masks, boxes.to(device), height, 5, "bool", 0.5, False, False, 0)
    assert encode(masks, boxes.to(device), sizes, 0.5, False, False, 0) == from_pycocotools(inside)


@pytest.mark.skipif(not HAS_TRITON, reason="how the Triton kernel shares its work out")
@pytest.mark.parametrize(("programs", "slots"), [(1, 128), (1, 4096), (40, 16)])
def test_any_number_of_chunks(programs: int, slots: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of several steps, of more changes than they keep, which they look for again, and of none."""
    from fastmask.kernels.triton import rle as rle_triton

    masks = torch.rand(2, 28, 28, device=device)
    boxes = torch.tensor([[-3.0, 2, 60, 33], [10, -20, 40, 60]], device=device)
    sizes = torch.tensor([[35, 55]], device=device).expand(2, 2)
    inside = paste_masks_op(masks, boxes, 35, 55, "bool", 0.5, False, False, 1)
    monkeypatch.setattr(rle_triton, "PROGRAMS", 2 * programs)
    monkeypatch.setattr(rle_triton, "SLOTS", slots)
    monkeypatch.setattr(rle_triton, "BLOCK", 64)
    assert encode(masks, boxes, sizes, 0.5, False, False, 1) == from_pycocotools(inside)
    ends = encode_masks_op(masks, boxes, sizes, 300, 0.5, False, False, 1)[1]
    assert ends[1] > 300


def test_capacity(device: torch.device) -> None:
    """Too small a buffer keeps the masks that fit whole; the last offset is then a capacity that all of them fit in."""
    masks, boxes = draw_masks(3).to(device), draw_boxes(3, (60, 80), 50).to(device)
    sizes = torch.tensor([[60, 80]], device=device).expand(3, 2)
    texts = encode(masks, boxes, sizes, 0.5, False, False, 1)
    ends = np.cumsum([0] + [len(text) for text in texts])
    for capacity in (0, ends[1], ends[2] - 1, ends[2], ends[3]):
        buffer, offsets = encode_masks_op(masks, boxes, sizes, int(capacity), 0.5, False, False, 1)
        fits = ends[ends <= capacity].max()
        assert offsets[ends <= capacity].tolist() == ends[ends <= capacity].tolist()
        assert (offsets[1:] > capacity).tolist() == (ends[1:] > capacity).tolist()
        whole, exact = encode_masks_op(masks, boxes, sizes, int(offsets[-1]), 0.5, False, False, 1)
        assert exact.tolist() == ends.tolist()
        assert whole[: ends[-1]].cpu().numpy().tobytes() == b"".join(texts)
        assert buffer.cpu().numpy().tobytes() == b"".join(texts)[:fits].ljust(capacity, b"\0")


def test_images_of_over_two_to_the_31_pixels(device: torch.device) -> None:
    """The full-size mask never exists: an image of 65,536 x 65,536 costs what its box does."""
    masks = draw_masks(1).to(device)
    boxes = torch.tensor([[65360.0, 65380, 65480, 65500]], device=device)
    (text,) = encode(masks, boxes, torch.tensor([[2**16, 2**16]], device=device), 0.5, False, False, 1)
    inside = paste_masks_op(masks, boxes - 65340, 196, 196, "bool", 0.5, False, False, 1)[0].cpu()
    runs = torch.tensor(coco_runs(text))
    assert runs.sum() == 2**32
    assert runs[1::2].sum() == inside.sum()


def coco_runs(text: bytes) -> list[int]:
    """The run lengths of a compressed text, read back by the format's definition."""
    runs, value, shift = [], 0, 0
    for character in text:
        bits = character - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            value -= (1 << shift) if bits & 0x10 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return runs


def test_registration_is_sound(device: torch.device) -> None:
    masks, boxes = draw_masks(3).to(device), draw_boxes(3, (20, 30), 20).to(device)
    sizes = torch.tensor([[20, 30]], device=device).repeat(3, 1)
    for grad in (False, True):
        args = (masks.clone().requires_grad_(grad), boxes, sizes, 100, 0.5, False, True, 1)
        torch.library.opcheck(encode_masks_op, args)
