"""fastmask.Predictor: the answers of the model in every form, from every kind of picture, in streams and threads."""

import gc
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from pictures import draw_picture
from PIL import ExifTags, Image
from pycocotools import mask as coco
from slim import slim_model, slim_pair
from static import NoDataDependence
from torch import Tensor, nn

import fastmask
from fastmask import Predictor, feed, ops, predictor
from fastmask.matching import matched_share
from fastmask.models.prepare import prepared
from fastmask.program import Inputs, Program, unpacked

SIZES = [(128, 160), (100, 130), (170, 120), (128, 160), (60, 200)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(7)
    return slim_pair()[1]


@pytest.fixture
def pictures() -> list[Tensor]:
    """uint8 [3, h, w]."""
    return [(draw_picture(*size)[0] * 255).to(torch.uint8) for size in SIZES]


def answers(model: nn.Module, pictures: list[Tensor]) -> list[dict[str, Any]]:
    """The model's own, one picture at a time."""
    with torch.no_grad():
        return [model([picture.float() / 255])[0] for picture in pictures]


def check(actual: list[dict[str, Any]], expected: list[dict[str, Any]], *left_out: str) -> None:
    assert len(actual) == len(expected)
    assert sum(len(one["boxes"]) for one in expected) > 20
    for ours, theirs in zip(actual, expected, strict=True):
        assert matched_share(ours, {name: value for name, value in theirs.items() if name not in left_out}) >= 0.99


@pytest.mark.parametrize("masks", predictor.MASKS)
def test_exact_is_the_model(masks: str, model: nn.Module, pictures: list[Tensor]) -> None:
    expected = answers(model, pictures)
    found = Predictor(model, "exact", masks=masks)(pictures)
    check(found, expected, *(() if masks == "float" else ("masks",)))
    with torch.no_grad():
        soft = [model.detect([picture.float() / 255])[0] for picture in pictures]
    for one, detected, size in zip(found, soft, SIZES, strict=True):
        assert {value.device.type for value in one.values() if isinstance(value, Tensor)} == {"cpu"}
        if masks == "soft":
            torch.testing.assert_close(one["masks"], detected["masks"], rtol=0, atol=1e-3)
        elif masks in ("bool", "packed"):
            pasted = ops.paste_masks(detected["masks"], one["boxes"], size, output=masks)
            assert one["masks"].shape == pasted.shape
            assert (one["masks"] != pasted).float().mean() < 1e-3
        elif masks == "rle":
            pasted = ops.paste_masks(detected["masks"], one["boxes"], size)
            inside = torch.from_numpy(coco.decode(one["masks"])).permute(2, 0, 1)
            assert (inside.bool() != pasted).float().mean() < 1e-3
            assert [mask["size"] for mask in one["masks"]] == [list(size)] * len(one["boxes"])


def test_exact_batches_are_the_models(model: nn.Module, pictures: list[Tensor]) -> None:
    """Padded together, as the model pads a list; the last batch is not full."""
    with torch.no_grad():
        images = [picture.float() / 255 for picture in pictures]
        expected = [one for start in (0, 2, 4) for one in model(images[start : start + 2])]
    check(Predictor(model, "exact", batch=2, masks="float")(pictures), expected)


def test_sizes(model: nn.Module, pictures: list[Tensor]) -> None:
    """Where the padded size is the model's own, so are the answers; standing pictures get it turned."""
    lying = [pictures[0], pictures[3]]
    expected = answers(model, lying)
    found = Predictor(model, (120, 150), batch=3, masks="float")  # rounded to 128 x 160
    check(found([lying[0], pictures[2], lying[1]])[::2], expected)
    assert list(found._runners) == [(160, 128), (128, 160)]
    square = Predictor(model, (160, 160), batch=5)
    square(pictures)
    assert list(square._runners) == [(160, 160)]
    for one, (height, width) in zip(found(pictures), SIZES, strict=True):
        assert (one["boxes"][:, 2:] <= torch.tensor([width, height]) + 1e-3).all()
        assert one["masks"].shape[2:] == (height, width)


def test_shapes_are_forgotten(model: nn.Module, pictures: list[Tensor]) -> None:
    found = Predictor(model, "exact", graphs=2)
    found(pictures)
    assert len(found._runners) == 2
    assert {key[:2] for key in found.anchors.known} == set(found._runners)


def test_pictures_of_every_kind(model: nn.Module, pictures: list[Tensor], tmp_path: Path) -> None:
    rows = pictures[0].permute(1, 2, 0).contiguous()
    Image.fromarray(rows.numpy()).save(tmp_path / "picture.png")
    kinds = [
        pictures[0],
        pictures[0].float() / 255,
        (pictures[0].double() / 255),
        rows,
        rows.numpy(),
        pictures[0].numpy(),
        rows.numpy()[::-1][::-1].astype(np.float32) / 255,
        Image.fromarray(rows.numpy()),
        tmp_path / "picture.png",
        str(tmp_path / "picture.png"),
    ]
    first, *others = Predictor(model, "exact", masks="soft")(kinds)
    for other in others:
        for name in first:
            torch.testing.assert_close(other[name], first[name], rtol=1e-4, atol=1e-4)
    small = [torch.zeros(3, 5, 3), np.zeros((3, 5, 3))]  # either way round
    assert [feed.to_planes(image, 0).shape for image in small] == [(3, 5, 3), (3, 3, 5)]


def test_a_stream_keeps_order_and_reads_only_ahead(
    model: nn.Module, pictures: list[Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = Predictor(model, "exact", masks="soft")(pictures * 3)
    read = []

    def reading() -> Iterator[Tensor]:
        for i, picture in enumerate(pictures * 3):
            read.append(i)
            yield picture

    stream = Predictor(model, "exact", masks="soft").stream(reading())
    first = next(stream)
    assert len(read) <= 5
    for one, other in zip([first, *stream], expected, strict=True):
        assert torch.equal(one["boxes"], other["boxes"])
    assert "15img" in capsys.readouterr().err
    assert Predictor(model)([]) == []


def test_a_camera_gets_its_answer_before_the_next_picture(model: nn.Module, pictures: list[Tensor]) -> None:
    """And may fill the same memory again."""
    expected = Predictor(model, "exact", masks="soft")(pictures[::3])
    read, frame = [], torch.zeros_like(pictures[0])

    def reading() -> Iterator[Tensor]:
        for i, picture in enumerate(pictures[::3]):
            read.append(i)
            yield frame.copy_(picture)

    for ahead in (0, 2):
        read.clear()
        found = []
        for i, one in enumerate(Predictor(model, "exact", masks="soft").stream(reading(), progress=False, ahead=ahead)):
            assert ahead or read[-1] == i
            found.append(one)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one["boxes"], other["boxes"])


def test_an_error_comes_after_the_answers_before_it(model: nn.Module, pictures: list[Tensor], tmp_path: Path) -> None:
    def source() -> Iterator[Tensor]:
        yield from pictures[:2]
        raise FileNotFoundError

    for images in ([*pictures[:2], tmp_path / "none.png"], source()):
        found = []
        with pytest.raises(FileNotFoundError):  # noqa: PT012  # what comes before it is what is tested
            for one in Predictor(model).stream(images, progress=False):
                found.append(one)
        assert len(found) == 2


def test_pil_images_are_what_their_files_are(model: nn.Module, pictures: list[Tensor], tmp_path: Path) -> None:
    """Turned by their EXIF; lazily read ones may be given several times."""
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pictures[0].permute(1, 2, 0).numpy()).save(path, exif=exif, quality=95)
    with Image.open(path) as image:
        first, *others = Predictor(model, "exact", masks="soft")([path, *[image] * 4])
    for other in others:
        assert torch.equal(other["boxes"], first["boxes"])
    with pytest.raises(ValueError, match=r"images\[0\] cannot be looked at: its pixels are floats"):
        Predictor(model)([Image.new("F", (5, 5))])


def test_autocast_around_it_changes_nothing(model: nn.Module, pictures: list[Tensor]) -> None:
    found = Predictor(model, "exact", masks="soft")
    expected = found(pictures[:1])
    with torch.autocast("cpu", torch.bfloat16):
        actual = found(pictures[:1])
    assert torch.equal(actual[0]["scores"], expected[0]["scores"])


def test_nothing_is_found(pictures: list[Tensor]) -> None:
    for options in ({"rpn_score_thresh": 1.1}, {"box_score_thresh": 1.0}, {"box_detections_per_img": 0}):
        quiet = slim_model(fastmask, **options).eval()
        for masks in predictor.MASKS:
            (found,) = Predictor(quiet, "exact", masks=masks)(pictures[:1])
            assert len(found["boxes"]) == len(found["masks"]) == 0


def test_a_fixed_size_is_never_turned(pictures: list[Tensor]) -> None:
    fixed = slim_model(fastmask, fixed_size=(160, 128)).eval()
    found = Predictor(fixed, (128, 160), masks="soft")
    found(pictures)
    assert list(found._runners) == [(128, 160)]


def test_threads_take_turns(model: nn.Module, pictures: list[Tensor]) -> None:
    shared = Predictor(model, (128, 160), masks="soft", graphs=1)
    expected = [shared([picture])[0]["boxes"] for picture in pictures]
    found: dict[int, list[Tensor]] = {}

    def work(number: int) -> None:
        found[number] = [shared([picture])[0]["boxes"] for picture in pictures]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for boxes in found.values():
        assert all(torch.equal(one, other) for one, other in zip(boxes, expected, strict=True))


def test_rle_that_does_not_fit(model: nn.Module, pictures: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Predictor(model, "exact")(pictures)
    monkeypatch.setattr(predictor, "BYTES_A_MASK", 1)
    for one, other in zip(Predictor(model, "exact")(pictures), expected, strict=True):
        assert one["masks"] == other["masks"]


def test_other_models(pictures: list[Tensor]) -> None:
    """Without a mask branch; the second versions with their other heads and norms."""
    options = {"weights": None, "weights_backbone": None, "min_size": 64, "box_detections_per_img": 5}
    (found,) = Predictor(fastmask.models.detection.fasterrcnn_resnet50_fpn(**options), "exact")(pictures[:1])
    assert set(found) == {"boxes", "labels", "scores"}


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_prepared_weights(name: str) -> None:
    """float64: the same answers from a copy without a single norm; the model is left as it was."""
    options = {"weights": None, "weights_backbone": None, "num_classes": 3}
    model = fastmask.models.get_model(name, **options).eval().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | ops.FrozenBatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                values.data.uniform_(0.5, 1.5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ready = prepared(model, torch.float64)
    assert not [m for m in ready.modules() if isinstance(m, nn.BatchNorm2d | ops.FrozenBatchNorm2d | nn.GroupNorm)]
    pixels, sizes = torch.randn(1, 3, 64, 96, dtype=torch.float64), torch.tensor([[60, 90]])
    rois = torch.randn(7, 256, 7, 7, dtype=torch.float64).to(memory_format=torch.channels_last)
    with torch.no_grad():
        maps, expected = (one.extract(pixels)[0] for one in (ready, model))
        for level in expected:
            scale = expected[level].abs().max()
            torch.testing.assert_close(maps[level] / scale, expected[level] / scale, rtol=0, atol=1e-9)
        heads = [one.roi_heads.box_head(rois) for one in (ready, model)]
        torch.testing.assert_close(*heads, rtol=1e-9, atol=1e-9)
        known = ready.rpn.anchor_generator.anchors((64, 96), list(maps.values()))
        assert known is ready.rpn.anchor_generator.anchors((64, 96), list(maps.values()))
        ready.infer(pixels, sizes)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_norm_that_is_watched_or_training_stays(model: nn.Module) -> None:
    watched = slim_model(fastmask, "BatchNorm2d").eval()
    watched.backbone.body["bn1"].register_forward_hook(lambda *_: None)
    left = [name for name, m in prepared(watched, torch.float32).named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == ["backbone.body.bn1"]


def test_shared_layers_are_not_folded() -> None:
    """Of a convolution used twice, folding one norm would change the other."""
    conv, norm, other = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    other.running_mean.uniform_(1, 2)
    model = slim_model(fastmask).eval()
    model.roi_heads.mask_head.add_module("one", nn.Sequential(conv, norm, nn.ReLU(), conv, norm))
    model.roi_heads.mask_head.add_module("two", nn.Sequential(conv, other))
    ready = prepared(model.eval(), torch.float32)
    x = torch.randn(1, 4, 5, 5)
    for name in ("one", "two"):
        expected = model.roi_heads.mask_head.get_submodule(name)(x)
        torch.testing.assert_close(ready.roi_heads.mask_head.get_submodule(name)(x), expected)


def test_half_types(model: nn.Module, pictures: list[Tensor]) -> None:
    for one in Predictor(model, (128, 160), dtype=torch.bfloat16)(pictures):
        assert one["boxes"].dtype == one["scores"].dtype == torch.float32
        assert len(one["masks"]) == len(one["boxes"]) > 0


@pytest.mark.parametrize("masks", ["rle", "soft", "bool"])
def test_the_program_is_static(masks: str, model: nn.Module) -> None:
    """Padded batch to packed answer: nothing depends on values, and trimming changes nothing but padding."""
    pixels, sizes = torch.randn(2, 3, 128, 160), torch.tensor([[120, 160], [128, 150]])
    inputs = Inputs(pixels, sizes, sizes * 2)
    ready = prepared(model, torch.float32)
    with torch.no_grad():
        with NoDataDependence():
            packed = Program(ready, masks, 0.5, 2048)(inputs)
        trimmed = Program(ready, masks, 0.5, 2048, trim=True)(inputs)
    whole, cut = unpacked(packed.data, packed.fields), unpacked(trimmed.data, trimmed.fields)
    assert whole["boxes"].shape == (2, 30, 4)
    assert torch.equal(whole["count"], cut["count"])
    for i, count in enumerate(whole["count"].tolist()):
        assert count > 0
        torch.testing.assert_close(whole["boxes"][i, :count], cut["boxes"][i, :count], rtol=1e-4, atol=1e-3)


def test_memory_stays_where_it_is(model: nn.Module) -> None:
    """1,000 pictures of 32 to 160 pixels: what is resident after 200 of them is what is after all."""

    def drawn() -> Iterator[Tensor]:
        for _ in range(1000):
            height, width = (int(side) for side in torch.randint(32, 161, (2,)))
            yield torch.randint(0, 256, (3, height, width), dtype=torch.uint8)

    small = slim_model(fastmask, min_size=48, max_size=64, rpn_post_nms_top_n_test=50, box_detections_per_img=5).eval()
    resident = {}
    for i, _ in enumerate(Predictor(small, (64, 64)).stream(drawn(), progress=False), 1):
        if i in (200, 1000):
            gc.collect()
            resident[i] = resident_bytes()
    assert resident[1000] - resident[200] < 20e6


def resident_bytes() -> int:
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("how much is resident is read from Linux's /proc")
    return int(status.read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, _: p(torch.zeros(3, 4, 4)), "images must be a list of pictures, got one Tensor"),
        (lambda p, _: p.stream("picture.png"), "images must be a list of pictures, got one str"),
        (lambda p, good: p([good, torch.zeros(3, 0, 5)]), r"images\[1\] must have pixels, got \(3, 0, 5\)"),
        (lambda p, _: p([torch.zeros(4, 4)]), r"images\[0\] must be \[3, H, W\] or \[H, W, 3\], got \(4, 4\)"),
        (lambda p, _: p([torch.zeros(3, 4, 4).int()]), r"images\[0\] must be uint8 or floating point, got torch.int32"),
        (lambda p, _: p([17]), r"images\[0\] must be a path, a PIL image, a tensor or an array, got int"),
        (lambda p, _: p([torch.zeros(3, 1, 5000)]), r"images of \(1, 5000\) pixels cannot be resized to \(0, 160\)"),
        (lambda p, _: p([Path(__file__)]), "test_predictor.py cannot be read as a picture"),
    ],
)
def test_pictures_that_cannot_be_looked_at(
    call: Callable[[Predictor, Tensor], Any], message: str, model: nn.Module, pictures: list[Tensor]
) -> None:
    with pytest.raises(ValueError, match=message):
        call(Predictor(model, (128, 160)), pictures[0])


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
    broken.transform = type("Own", (type(broken.transform),), {})(64, 64, [0.5] * 3, [0.5] * 3)
    with pytest.raises(ValueError, match=r"model.transform must be GeneralizedRCNNTransform, got Own"):
        Predictor(broken)


@pytest.mark.gpu
def test_replays_on_a_gpu(model: nn.Module, pictures: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's answers in float32; the same bits at every replay; nothing waits before the answer is asked for."""
    expected = Predictor(model, (128, 160), masks="float")(pictures)
    found = Predictor(model.cuda(), (128, 160), dtype=torch.float32, masks="float")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # ten bits, by default
    try:
        first = found(pictures)
        for ours, theirs in zip(first, expected, strict=True):
            assert matched_share({k: v.cpu() for k, v in ours.items()}, theirs) >= 0.95
        for _ in range(20):
            for one, other in zip(found(pictures), first, strict=True):
                assert all(torch.equal(one[name], other[name]) for name in one)
        planes = [pictures[0].cuda()]
        found._launch(planes)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        pending = found._launch(planes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        model.cpu()
    assert torch.equal(next(found._finish(pending))["boxes"], first[0]["boxes"])


@pytest.mark.gpu
def test_modes_on_a_gpu(model: nn.Module, pictures: list[Tensor]) -> None:
    """bfloat16, batches, several shapes of which few are kept, from two threads with streams of their own."""
    try:
        for masks in predictor.MASKS:
            found = Predictor(model.cuda(), "exact", batch=2, masks=masks, graphs=2)
            expected = [one["boxes"] for one in found(pictures)]
            results: list[list[Tensor]] = []

            def work(found: Predictor, results: list[list[Tensor]]) -> None:
                with torch.cuda.stream(torch.cuda.Stream()):
                    results.append([one["boxes"] for one in found(pictures)])

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
