"""fastmask.Predictor on an NVIDIA GPU: graphs, host syncs, threads with streams of their own."""

import itertools
import threading
from typing import Any

import pytest
import torch
from helpers.exact import assert_matched
from torch import Tensor, nn

from fastmask import Predictor
from fastmask.inference import predictor


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [{}, {"box_nms": "soft_gaussian"}, {"flip_test": True, "test_sizes": (96, 128)}],
    ids=["plain", "soft-NMS", "augmented"],
)
def test_replays_on_a_gpu(
    options: Any, model: nn.Module, images: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's predictions in float32, bitwise reproducible at every replay; nothing syncs before they are read."""
    expected = Predictor(model, (128, 160), masks="float", **options)(images)
    found = Predictor(model.cuda(), (128, 160), dtype=torch.float32, masks="float", **options)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # ten bits, by default
    try:
        first = found(images)
        assert_matched([{k: v.cpu() for k, v in ours.items()} for ours in first], expected, 0.95)
        for _ in range(20):
            for one, other in zip(found(images), first, strict=True):
                assert all(torch.equal(one[name], other[name]) for name in one)
        planes = [images[0].cuda()]
        found._launch(planes)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        pending = found._launch(planes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        model.cpu()
    (last,) = found._unpack([pending])
    assert torch.equal(last["boxes"], first[0]["boxes"])


@pytest.mark.gpu
def test_a_call_waits_for_its_answer_alone(model: nn.Module, images: list[Tensor]) -> None:
    """From images on the device to RLE, nothing is copied from memory that is not pinned."""
    try:
        found = Predictor(model.cuda(), (128, 160))
        inputs = [image.cuda() for image in images[:2]]
        expected = found(inputs)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        actual = found(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        model.cpu()
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one["boxes"], other["boxes"])
        assert one["masks"] == other["masks"]


@pytest.mark.gpu
def test_modes_on_a_gpu(model: nn.Module, images: list[Tensor]) -> None:
    """bfloat16, batches, several shapes of which few are kept, from two threads with streams of their own."""
    try:
        for masks, mask_buckets in itertools.product(predictor.MASKS, (False, True)):
            found = Predictor(model.cuda(), "exact", batch=2, masks=masks, graphs=2, mask_buckets=mask_buckets)
            expected = [prediction["boxes"] for prediction in found(images)]
            results: list[list[Tensor]] = []

            def work(found: Predictor, results: list[list[Tensor]]) -> None:
                with torch.cuda.stream(torch.cuda.Stream()):
                    results.append([prediction["boxes"] for prediction in found(images)])

            threads = [threading.Thread(target=work, args=(found, results)) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(results) == 2
            for boxes in results:
                assert all(torch.equal(one, other) for one, other in zip(boxes, expected, strict=True))
    finally:
        model.cpu()
