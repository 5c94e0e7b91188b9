"""fastmask.patch_torchvision: torchvision's code runs on our ops, forward and backward, and is restored after it."""

import collections
import contextlib
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from helpers.exact import assert_exact
from helpers.images import draw_image
from helpers.inputs import draw_boxes, draw_pyramid, with_images
from helpers.slim import calibrate_on_images, slim_model
from torch import Tensor
from torchvision.models.detection import roi_heads, transform
from torchvision.ops import batched_nms, poolers, roi_align

import fastmask
from fastmask import ops
from fastmask.compat import patch, torchvision_ops

KEYS = {"cpu": ("CPU",), "cuda": ("CUDA",)}
NAMES = [
    (torchvision.ops.boxes, "_batched_nms_coordinate_trick"),
    (torchvision.ops.boxes, "_batched_nms_vanilla"),
    (sys.modules["torchvision.ops.roi_align"], "_roi_align"),
    (poolers, "_multiscale_roi_align"),
    (roi_heads, "paste_masks_in_image"),
    (transform, "paste_masks_in_image"),
]
ORIGINALS = [getattr(module, name) for module, name in NAMES]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    fastmask.unpatch_torchvision()
    assert [getattr(module, name) for module, name in NAMES] == ORIGINALS


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """How often each of our ops is called."""
    counter: collections.Counter[str] = collections.Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            counter[name] += 1
            return function(*args, **kwargs)

        return run

    for module, names in (
        (ops, ("nms", "batched_nms", "roi_align", "multilevel_roi_align", "paste_masks_in_image")),
        (torchvision_ops, ("multilevel_roi_align_backward_op", "roi_pool_op", "roi_pool_backward_op")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return counter


def gradients(pool: Callable[[Tensor], Tensor], features: Tensor) -> tuple[Tensor, Tensor]:
    leaf = features.clone().requires_grad_()
    pooled = pool(leaf)
    pooled.backward(torch.linspace(-1, 1, pooled.numel(), device=leaf.device, dtype=pooled.dtype).view(pooled.shape))
    return pooled.detach(), leaf.grad


@pytest.mark.parametrize("name", ["roi_align", "roi_pool"])
def test_forward_and_backward_are_ours(name: str, calls: collections.Counter[str], device: torch.device) -> None:
    """torchvision's autograd formula stays: its backward must be overridden too. Once before, within and after."""
    features = torch.randn(2, 3, 25, 38, device=device)
    rois = with_images(draw_boxes(9, (25, 38), 20), 2).to(device)
    op = getattr(torch.ops.torchvision, name)

    def pool(leaf: Tensor) -> Tensor:
        return op(leaf, rois, 0.5, 3, 2, 2, True) if name == "roi_align" else op(leaf, rois, 0.5, 3, 2)[0]

    expected = gradients(pool, features)
    assert not calls
    with fastmask.patch_torchvision(KEYS[device.type]):
        actual = gradients(pool, features)
    ours = (
        {"roi_align": 1, "multilevel_roi_align_backward_op": 1}
        if name == "roi_align"
        else {"roi_pool_op": 1, "roi_pool_backward_op": 1}
    )
    assert calls == ours
    for ours_now, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours_now, theirs, rtol=1e-4, atol=1e-4)
        assert ours_now.stride() == theirs.stride()
    assert torch.equal(gradients(pool, features)[0], expected[0])
    assert calls == ours


def test_argmaxima_are_torchvisions(device: torch.device) -> None:
    features = torch.randn(2, 3, 25, 38, device=device)
    rois = with_images(draw_boxes(9, (25, 38), 20), 2).to(device)
    expected = torch.ops.torchvision.roi_pool(features, rois, 1.0, 3, 2)
    with fastmask.patch_torchvision(KEYS[device.type]):
        actual = torch.ops.torchvision.roi_pool(features, rois, 1.0, 3, 2)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_names(calls: collections.Counter[str], device: torch.device) -> None:
    """What torchvision does in Python around its ops; a pooler that was built before is patched too."""
    boxes, scores = draw_boxes(60, largest=80).to(device), torch.rand(60, device=device)
    idxs = torch.randint(3, (60,), device=device)
    masks = torch.rand(4, 1, 28, 28, device=device)
    maps = {str(i): feature for i, feature in enumerate(draw_pyramid(4))}
    maps = {name: feature.to(device) for name, feature in maps.items()}
    pooler = torchvision.ops.MultiScaleRoIAlign(list(maps), 3, 2)
    images = [boxes[:20], boxes[20:]]

    def everything() -> list[Tensor]:
        return [
            torchvision.ops.nms(boxes, scores, 0.4),
            torchvision.ops.batched_nms(boxes, scores, idxs, iou_threshold=0.4),
            torchvision.ops.roi_align(maps["0"], images, 3, 0.25, 2),
            pooler(maps, images, [(200, 300), (190, 280)]),
            roi_heads.paste_masks_in_image(masks, boxes[:4].clamp(5, 60), (70, 90)),  # torchvision's fails off them
        ]

    expected = everything()
    assert not calls
    with fastmask.patch_torchvision(KEYS[device.type]) as patched:
        assert patched.keys == KEYS[device.type]
        actual = everything()
    assert calls == dict.fromkeys(
        ("nms", "batched_nms", "roi_align", "multilevel_roi_align", "paste_masks_in_image"), 1
    )
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_other_devices_keep_torchvisions(calls: collections.Counter[str]) -> None:
    """CUDA alone is the default: CPU tensors go where they always went, by name and by op."""
    boxes, scores = draw_boxes(9), torch.rand(9)
    with fastmask.patch_torchvision():
        torchvision.ops.nms(boxes, scores, 0.5)
        torchvision.ops.batched_nms(boxes, scores, torch.zeros(9), 0.5)
        torchvision.ops.roi_align(torch.randn(1, 2, 9, 9), [boxes], 2)
        roi_heads.paste_masks_in_image(torch.rand(1, 1, 28, 28), torch.tensor([[2.0, 3, 9, 9]]), (20, 20))
    assert not calls


def is_patched(calls: collections.Counter[str]) -> bool:
    before = calls["nms"]
    torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    return calls["nms"] > before


def test_patches_overlap(calls: collections.Counter[str]) -> None:
    """Each patch holds until it is undone itself, in whatever order, however often; and can be taken up again."""
    first = fastmask.patch_torchvision(("CPU",))
    with fastmask.patch_torchvision(("CPU", "CUDA")) as inner:
        first.undo()
        first.undo()
        assert is_patched(calls)
    assert not is_patched(calls)
    with inner:
        first.undo()
        assert is_patched(calls)
    assert not is_patched(calls)
    with contextlib.suppress(KeyError), fastmask.patch_torchvision(key for key in ("CPU",)):
        assert is_patched(calls)
        raise KeyError
    assert not is_patched(calls)


def test_threads_while_patches_come_and_go() -> None:
    """A kernel that were taken out of the dispatcher would leave another thread in freed memory."""
    boxes, scores = draw_boxes(20), torch.rand(20)
    expected = torchvision.ops.nms(boxes, scores, 0.5)
    wrong, stop = [], threading.Event()

    def work() -> None:
        while not stop.is_set():
            if not torch.equal(torchvision.ops.nms(boxes, scores, 0.5), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        with fastmask.patch_torchvision(("CPU",)):
            torchvision.ops.nms(boxes, scores, 0.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_autocast_leaves_features_half_and_boxes_full(device: torch.device) -> None:
    """torchvision's own autocast kernel would upcast the features first."""
    seen = []
    rois = with_images(draw_boxes(5), 1).to(device)
    features = torch.randn(1, 3, 50, 75, device=device, dtype=torch.bfloat16)
    with pytest.MonkeyPatch.context() as monkeypatch, fastmask.patch_torchvision(KEYS[device.type]):
        original = ops.roi_align
        monkeypatch.setattr(ops, "roi_align", lambda *args: seen.append(args[:2]) or original(*args))
        with torch.autocast(device.type, torch.bfloat16):
            pooled = torch.ops.torchvision.roi_align(features, rois, 0.25, 3, 3, 2, False)
            assert torch.is_autocast_enabled(device.type)
    assert [tensor.dtype for tensor in seen[0]] == [torch.bfloat16, torch.float32]
    expected = torch.ops.torchvision.roi_align(features.float(), rois, 0.25, 3, 3, 2, False)
    torch.testing.assert_close(pooled, expected.bfloat16(), rtol=2**-7, atol=1e-3)


def test_a_model_answers_the_same(calls: collections.Counter[str], device: torch.device) -> None:
    """float64: detections and all losses' gradients of torchvision's own model, patched and not."""
    model = slim_model(torchvision).eval()
    calibrate_on_images(model)
    model.double().to(device)
    drawn = [draw_image(128, 160) for _ in range(2)]
    images = [image.double().to(device) for image, _ in drawn]
    targets = [{key: value.to(device) for key, value in target.items()} for _, target in drawn]
    targets = [target | {"boxes": target["boxes"].double()} for target in targets]

    def run() -> tuple[Any, Any, list[Tensor]]:
        with torch.no_grad():
            detections = model.eval()(images)
        torch.manual_seed(0)  # torchvision draws which proposals to train on
        losses = model.train()(images, targets)
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return detections, losses, list(torch.autograd.grad(sum(losses.values()), wanted))

    detections, losses, grads = run()
    with fastmask.patch_torchvision(KEYS[device.type]):
        assert not calls
        patched_detections, patched_losses, patched_grads = run()
        assert {"batched_nms", "roi_align", "multilevel_roi_align", "paste_masks_in_image"} <= set(calls)
    assert sum(len(found["boxes"]) for found in detections) > 10
    for ours, theirs in zip(patched_detections, detections, strict=True):
        assert_exact(ours, theirs)
        torch.testing.assert_close(ours["masks"], theirs["masks"], rtol=0, atol=1e-9)
    torch.testing.assert_close(patched_losses, losses, rtol=0, atol=1e-9)
    torch.testing.assert_close(patched_grads, grads, rtol=1e-6, atol=1e-9)


def test_deterministic_mode(device: torch.device, calls: collections.Counter[str]) -> None:
    """There torchvision's roi_align takes a path of its own on a GPU, which never reaches its op."""
    features, boxes = torch.randn(1, 2, 20, 20, device=device), [draw_boxes(3, (20, 20), 15).to(device)]
    expected = torchvision.ops.roi_align(features, boxes, 3)
    torch.use_deterministic_algorithms(True)
    try:
        with fastmask.patch_torchvision(KEYS[device.type]):
            actual = torchvision.ops.roi_align(features, boxes, 3)
    finally:
        torch.use_deterministic_algorithms(False)
    assert calls["roi_align"] == 1
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


class EverythingFinest(poolers.LevelMapper):
    def __call__(self, boxlists: list[Tensor]) -> Tensor:
        return torch.zeros(sum(len(boxes) for boxes in boxlists), dtype=torch.int64)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_what_we_have_no_equal_of_stays_torchvisions(calls: collections.Counter[str]) -> None:
    maps = {str(i): torch.full((1, 2, 64 >> i, 64 >> i), float(i)) for i in range(4)}
    boxes, shapes = [torch.tensor([[0.0, 0, 200, 250], [3, 3, 9, 9]])], [(256, 256)]
    own = torchvision.ops.MultiScaleRoIAlign(list(maps), 2, 2)
    own(maps, boxes, shapes)
    own.map_levels = EverythingFinest(2, 5)
    gap = torchvision.ops.MultiScaleRoIAlign(["0", "3"], 2, 2)
    empty = torch.empty(0)
    mask, box = torch.rand(1, 2, 28, 28), torch.tensor([[1, 2, 9, 12]])

    def everything() -> list[Tensor]:
        return [
            own(maps, boxes, shapes),
            gap(maps, boxes, shapes),
            torchvision.ops.batched_nms(empty, empty, empty, 0.5),
            roi_heads.paste_masks_in_image(mask, box, torch.tensor([20, 20])),
            torch.vmap(lambda x: torchvision.ops.roi_align(x, boxes, 2))(torch.rand(3, 1, 2, 9, 9)),
        ]

    torch.manual_seed(0)
    expected = everything()
    calls.clear()
    torch.manual_seed(0)
    with fastmask.patch_torchvision(("CPU",)):
        actual = everything()
    assert set(calls) <= {"roi_align"}
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_functions_taken_earlier_are_patched_and_pickled(calls: collections.Counter[str]) -> None:
    boxes = draw_boxes(9)
    with fastmask.patch_torchvision(("CPU",)):
        batched_nms(boxes, torch.rand(9), torch.zeros(9), 0.5)
        roi_align(torch.rand(1, 2, 9, 9), [boxes], 2)
        assert pickle.loads(pickle.dumps(roi_align)) is roi_align
    assert calls == {"batched_nms": 1, "roi_align": 1}


def test_wrong_keys() -> None:
    with pytest.raises(ValueError, match=r"keys must be a sequence of dispatch keys such as \('CUDA',\), got 'CUDA'"):
        fastmask.patch_torchvision("CUDA")
    with pytest.raises(ValueError, match="keys must be of CUDA, CPU, MPS and XPU, got 'cuda'"):
        fastmask.patch_torchvision(("CPU", "cuda"))
    assert not patch._active
