"""fastmask.Predictor: the predictions of the model in every form, from every kind of image, in streams and threads."""

import gc
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from helpers.exact import assert_matched, pair_masks
from helpers.slim import slim_model
from helpers.static import NoDataDependence
from torch import Tensor, nn

import fastmask
from fastmask import Predictor, ops
from fastmask.benchmarks.baselines import decode_masks
from fastmask.inference import predictor
from fastmask.inference.program import Inputs, Program, Runner, split_fields
from fastmask.models.prepare import prepare_for_inference

CPU = torch.device("cpu")


def predictions(model: nn.Module, images: list[Tensor]) -> list[dict[str, Any]]:
    """The model's own, one image at a time."""
    with torch.no_grad():
        return [model([image.float() / 255])[0] for image in images]


def check(actual: list[dict[str, Any]], expected: list[dict[str, Any]], *left_out: str) -> None:
    kept = [{name: value for name, value in prediction.items() if name not in left_out} for prediction in expected]
    assert assert_matched(actual, kept) > 20


@pytest.mark.parametrize("masks", predictor.MASKS)
def test_exact_is_the_model(masks: str, model: nn.Module, images: list[Tensor]) -> None:
    expected = predictions(model, images)
    found = Predictor(model, "exact", masks=masks)(images)
    check(found, expected, *(() if masks == "float" else ("masks",)))
    with torch.no_grad():
        soft = [model.detect([image.float() / 255])[0] for image in images]
    for one, detected, image in zip(found, soft, images, strict=True):
        size = (image.shape[1], image.shape[2])
        assert {value.device.type for value in one.values() if isinstance(value, Tensor)} == {"cpu"}
        ours, theirs = pair_masks(one, detected)
        probabilities = detected["masks"][theirs]
        if masks == "soft":
            torch.testing.assert_close(one["masks"][ours], probabilities, rtol=0, atol=1e-3)
        elif masks in ("bool", "packed"):
            pasted = ops.paste_masks(probabilities, one["boxes"][ours], size, output=masks)
            assert one["masks"][ours].shape == pasted.shape
            assert (one["masks"][ours] != pasted).float().mean() < 1e-3
        elif masks == "rle":
            pasted = ops.paste_masks(probabilities, one["boxes"][ours], size)
            inside = torch.from_numpy(decode_masks(one["masks"]))[ours]
            assert (inside.bool() != pasted).float().mean() < 1e-3
            assert [mask["size"] for mask in one["masks"]] == [list(size)] * len(one["boxes"])


def test_exact_batches_are_the_models(model: nn.Module, images: list[Tensor]) -> None:
    """Padded together, as the model pads a list; the last batch is not full."""
    with torch.no_grad():
        inputs = [image.float() / 255 for image in images]
        expected = [prediction for start in (0, 2, 4) for prediction in model(inputs[start : start + 2])]
    check(Predictor(model, "exact", batch=2, masks="float")(images), expected)


def test_sizes(model: nn.Module, images: list[Tensor]) -> None:
    """Where the padded size is the model's own, so are the predictions; portrait images get it transposed."""
    landscape = [images[0], images[3]]
    expected = predictions(model, landscape)
    found = Predictor(model, (120, 150), batch=3, masks="float")  # rounded to 128 x 160
    check(found([landscape[0], images[2], landscape[1]])[::2], expected)
    assert list(found._runners) == [((160, 128),), ((128, 160),)]
    square = Predictor(model, (160, 160), batch=5)
    square(images)
    assert list(square._runners) == [((160, 160),)]
    for one, image in zip(found(images), images, strict=True):
        height, width = image.shape[1:]
        assert (one["boxes"][:, 2:] <= torch.tensor([width, height]) + 1e-3).all()
        assert one["masks"].shape[2:] == (height, width)


def test_shapes_are_forgotten(model: nn.Module, images: list[Tensor]) -> None:
    found = Predictor(model, "exact", graphs=2)
    found(images)
    assert len(found._runners) == 2
    assert {key[:2] for key in found.anchors.cache} == {size for sizes in found._runners for size in sizes}


def test_autocast_around_it_changes_nothing(model: nn.Module, images: list[Tensor]) -> None:
    found = Predictor(model, "exact", masks="soft")
    expected = found(images[:1])
    with torch.autocast("cpu", torch.bfloat16):
        actual = found(images[:1])
    assert torch.equal(actual[0]["scores"], expected[0]["scores"])


def test_nothing_is_found(images: list[Tensor]) -> None:
    for options in ({"rpn_score_thresh": 1.1}, {"box_score_thresh": 1.0}, {"box_detections_per_img": 0}):
        quiet = slim_model(fastmask, **options).eval()
        for masks in predictor.MASKS:
            (found,) = Predictor(quiet, "exact", masks=masks)(images[:1])
            assert len(found["boxes"]) == len(found["masks"]) == 0


def test_a_fixed_size_is_never_turned(images: list[Tensor]) -> None:
    fixed = slim_model(fastmask, fixed_size=(160, 128)).eval()
    found = Predictor(fixed, (128, 160), masks="soft")
    found(images)
    assert list(found._runners) == [((128, 160),)]


RANGES = ((17, 30, 30), (9, 17, 16), (1, 9, 8))  # of detections, and the rows that are made for so many


@pytest.mark.parametrize("masks", predictor.MASKS)
def test_mask_buckets(masks: str, model: nn.Module, images: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks are predicted for the smallest of 8, 16 and 30 rows that hold all detections, and equal those of 30."""
    (found,) = Predictor(model, "exact")(images[:1])
    assert len(found["scores"]) == 30
    gaps = (found["scores"][:-1] - found["scores"][1:]).tolist()  # a threshold between equal scores is none
    widest = {rows: max(range(first, past), key=lambda most: gaps[most - 1]) for first, past, rows in RANGES}
    for most, rows in ((30, 30), *((most, rows) for rows, most in widest.items()), (0, 8)):
        if most < 30:
            above, below = found["scores"][most - 1] if most else 1.0, found["scores"][most]
            monkeypatch.setattr(model.roi_heads, "score_thresh", float((above + below) / 2))
        expected = Predictor(model, "exact", masks=masks)(images[:1])
        bucketed = Predictor(model, "exact", masks=masks, mask_buckets=True)
        monkeypatch.setattr(bucketed.program, "trim", False)  # as on a GPU
        pending = bucketed._launch(images[:1])
        assert {name: shape for name, shape, _ in pending.fields}["labels"] == (1, rows)
        actual = list(bucketed._unpack([pending]))
        assert len(actual[0]["boxes"]) == most
        left_out = () if masks == "float" else ("masks",)
        assert_matched(actual, [{k: v for k, v in expected[0].items() if k not in left_out}])
        if masks == "soft":
            ours, theirs = pair_masks(actual[0], expected[0])
            torch.testing.assert_close(actual[0]["masks"][ours], expected[0]["masks"][theirs], rtol=0, atol=1e-3)


def test_fewer_detections(model: nn.Module, images: list[Tensor]) -> None:
    expected = Predictor(model, "exact", masks="soft")(images)
    for one, other in zip(Predictor(model, "exact", masks="soft", detections=7)(images), expected, strict=True):
        assert len(one["boxes"]) == 7
        for name in one:
            torch.testing.assert_close(one[name], other[name][:7], rtol=1e-4, atol=1e-3)


def test_too_much_for_memory(model: nn.Module, images: list[Tensor]) -> None:
    """The bytes are named, of pixels and of pasted masks."""
    large = Predictor(model, (2**29, 2**29))
    with pytest.raises(RuntimeError, match=r"images of \[\(128, 160\)\] need .* are 3458764513820540928 bytes"):
        large(images[:1])
    found = Predictor(model, "exact", masks="bool")
    pending = found._launch(images[:1])
    (error,) = found._unpack([pending._replace(originals=[(2**22, 2**22)])])
    assert isinstance(error, RuntimeError)
    assert "masks of an image of (4194304, 4194304) need more memory than there is: 30 of them" in str(error)
    assert f"{30 * 2**44} bytes" in str(error)


def test_threads_take_turns(model: nn.Module, images: list[Tensor]) -> None:
    shared = Predictor(model, (128, 160), masks="soft", graphs=1)
    expected = [shared([image])[0]["boxes"] for image in images]
    found: dict[int, list[Tensor]] = {}

    def work(number: int) -> None:
        found[number] = [shared([image])[0]["boxes"] for image in images]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for boxes in found.values():
        assert all(torch.equal(one, other) for one, other in zip(boxes, expected, strict=True))


def test_rle_that_does_not_fit(model: nn.Module, images: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Predictor(model, "exact")(images)
    monkeypatch.setattr(predictor, "BYTES_PER_MASK", 1)
    for one, other in zip(Predictor(model, "exact")(images), expected, strict=True):
        assert one["masks"] == other["masks"]


def test_other_models(images: list[Tensor]) -> None:
    """Without a mask branch; the second versions with their other heads and norms."""
    options = {"weights": None, "weights_backbone": None, "min_size": 64, "box_detections_per_img": 5}
    (found,) = Predictor(fastmask.models.detection.fasterrcnn_resnet50_fpn(**options), "exact")(images[:1])
    assert set(found) == {"boxes", "labels", "scores"}


def test_half_types(model: nn.Module, images: list[Tensor]) -> None:
    for prediction in Predictor(model, (128, 160), dtype=torch.bfloat16)(images):
        assert prediction["boxes"].dtype == prediction["scores"].dtype == torch.float32
        assert len(prediction["masks"]) == len(prediction["boxes"]) > 0


@pytest.mark.parametrize("masks", ["rle", "soft", "bool"])
def test_the_program_is_static(masks: str, model: nn.Module) -> None:
    """Padded batch to packed prediction: nothing depends on values, and trimming changes nothing but padding."""
    pixels, sizes = torch.randn(2, 3, 128, 160), torch.tensor([[120, 160], [128, 150]])
    inputs = Inputs(pixels, sizes, sizes * 2)
    ready = prepare_for_inference(model, torch.float32)
    with torch.no_grad():
        with NoDataDependence():
            packed = Program(ready, masks, 0.5, 2048)(inputs)
        trimmed = Program(ready, masks, 0.5, 2048, trim=True)(inputs)
    whole, cut = split_fields(packed.data, packed.fields), split_fields(trimmed.data, trimmed.fields)
    assert whole["boxes"].shape == (2, 30, 4)
    assert torch.equal(whole["count"], cut["count"])
    for i, count in enumerate(whole["count"].tolist()):
        assert count > 0
        torch.testing.assert_close(whole["boxes"][i, :count], cut["boxes"][i, :count], rtol=1e-4, atol=1e-3)


def test_memory_stays_where_it_is(model: nn.Module) -> None:
    """600 images of 32 to 160 pixels: what is resident after 200 of them is what is after all."""

    def drawn() -> Iterator[Tensor]:
        for _ in range(600):
            height, width = (int(side) for side in torch.randint(32, 161, (2,)))
            yield torch.randint(0, 256, (3, height, width), dtype=torch.uint8)

    small = slim_model(fastmask, min_size=48, max_size=64, rpn_post_nms_top_n_test=50, box_detections_per_img=5).eval()
    resident = {}
    for i, _ in enumerate(Predictor(small, (64, 64)).stream(drawn(), progress=False), 1):
        if i in (200, 600):
            gc.collect()
            resident[i] = resident_bytes()
    assert resident[600] - resident[200] < 10e6


def resident_bytes() -> int:
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("how much is resident is read from Linux's /proc")
    return int(status.read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": "polygons"}, "masks must be one of rle, bool, packed, soft, float, got 'polygons'"),
        ({"size": "large"}, r"size must be \(height, width\) or 'exact', got 'large'"),
        ({"size": 800}, r"size must be \(height, width\) or 'exact', got 800"),
        ({"size": (0, 5)}, r"size must be at least 1, got \(0, 5\)"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"batch": 2.0}, "batch must be an int, got 2.0"),
        ({"graphs": 0}, "graphs must be at least 1, got 0"),
        ({"detections": 31}, r"detections must be in \[0, 30\], as box_detections_per_img .* keeps no more, got 31"),
        ({"detections": 2.5}, r"detections must be in \[0, 30\], .* got 2.5"),
        ({"dtype": "bfloat16"}, "dtype must be 'auto' or a floating torch.dtype, got 'bfloat16'"),
        ({"dtype": torch.int8}, "dtype must be 'auto' or a floating torch.dtype, got torch.int8"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str, model: nn.Module) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(model, **options)


def test_wrong_models() -> None:
    with pytest.raises(ValueError, match=r"model must be one of fastmask.models.detection, .* got MaskRCNN"):
        Predictor(slim_model(torchvision))
    broken = slim_model(fastmask)
    broken.roi_heads.box_predictor.cls_score.weight.data[2, 3] = float("nan")
    name = "roi_heads.box_predictor.cls_score.weight"
    with pytest.raises(ValueError, match=f"weights must be finite in torch.float32, got NaN or infinity in {name}"):
        Predictor(broken)
    broken.roi_heads.box_predictor.cls_score.weight.data[2, 3] = 1e5
    with pytest.raises(ValueError, match=f"weights must be finite in torch.float16, got NaN or infinity in {name}"):
        Predictor(broken, dtype=torch.float16)


def test_sizes_are_written_where_they_change(model: nn.Module) -> None:
    runner = Runner(
        Program(prepare_for_inference(model, torch.float32), "rle", 0.5, 2048),
        2,
        (64, 96),
        torch.float32,
        CPU,
        None,
        None,
    )
    assert runner.inputs.sizes.tolist() == runner.inputs.originals.tolist() == [[64, 96]] * 2
    runner.write_sizes([(60, 90), (64, 80)], [(30, 45), (32, 40)])
    assert runner.inputs.sizes.tolist() == [[60, 90], [64, 80]]
    assert runner.inputs.originals.tolist() == [[30, 45], [32, 40]]
    runner.inputs.sizes.zero_()
    runner.write_sizes([(60, 90), (64, 80)], [(30, 45), (32, 40)])
    assert not runner.inputs.sizes.any()  # they are there already, as far as it knows
    runner.write_sizes([(60, 90)], [(30, 45)])
    assert runner.inputs.sizes.tolist() == [[60, 90], [1, 1]]
    assert runner.inputs.originals.tolist() == [[30, 45], [1, 1]]
