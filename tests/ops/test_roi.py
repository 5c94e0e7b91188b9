"""roi_align, MultiScaleRoIAlign and roi_pool against torchvision, forward and backward."""

import json
import subprocess
import sys

import pytest
import torch
import torchvision.ops as tv
from helpers.inputs import (
    FLOATS,
    LAYOUTS,
    adversarial_boxes,
    draw_boxes,
    draw_pyramid,
    finite,
    strided,
    with_images,
)
from helpers.poolers import ReferenceRoIPool
from torch import Tensor

from fastmask import ops


def draw_rois(num: int = 30) -> Tensor:
    """Every box that does not crash torchvision's CPU kernel."""
    boxes = torch.cat([draw_boxes(num), adversarial_boxes()])
    return with_images(boxes[finite(boxes)], 2)


def forward_backward(function: object, features: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    leaf = features.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    pooled = function(leaf, *rest)
    (pooled * torch.linspace(-1, 1, pooled.numel(), dtype=pooled.dtype).view(pooled.shape)).sum().backward()
    return pooled.detach(), leaf.grad


@pytest.mark.parametrize("aligned", [False, True], ids=["legacy", "aligned"])
@pytest.mark.parametrize("ratio", [-1, 0, 1, 2, 3], ids="ratio{}".format)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_roi_align(dtype: torch.dtype, ratio: int, aligned: bool) -> None:
    features, rois = torch.randn(2, 4, 50, 75, dtype=dtype), draw_rois().to(dtype)
    if aligned and ratio <= 0:  # torchvision fails on a grid of fewer than no samples
        rois = rois[(rois[:, 3:] >= rois[:, 1:3]).all(1)]
    arguments = (rois, (3, 5), 0.25, ratio, aligned)
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    for actual, expected in zip(
        forward_backward(ops.roi_align, features, *arguments),
        forward_backward(tv.roi_align, features, *arguments),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("aligned", [False, True], ids=["legacy", "aligned"])
@pytest.mark.parametrize("scale", [0.25, 0.0625], ids="scale{}".format)
def test_adaptive_boxes_of_whole_bins(scale: float, aligned: bool) -> None:
    """In float32 a side of 7 bins may be 7.0000001 pixels: both libraries must take the same number of samples."""
    corner = torch.rand(200, 2) * 300
    sides = torch.randint(1, 4, (200, 2)) * 7 / scale
    rois = torch.cat([torch.zeros(200, 1), corner, corner + sides], 1)
    features = torch.randn(1, 3, int(800 * scale), int(800 * scale))
    actual, expected = (module.roi_align(features, rois, 7, scale, -1, aligned) for module in (ops, tv))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    features = strided(torch.randn(2, 4, 50, 75), layout)
    rois = draw_rois()
    for ours, theirs in ((ops.roi_align, tv.roi_align), (ops.roi_pool, tv.roi_pool)):
        actual, expected = ours(features, rois, 7, 0.25), theirs(features, rois, 7, 0.25)
        torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)
        format_ = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        assert actual.is_contiguous(memory_format=format_)


def test_list_of_boxes() -> None:
    features = torch.randn(3, 4, 50, 75)
    boxes = [draw_boxes(5), draw_boxes(0), draw_boxes(7)]
    actual, expected = ops.roi_align(features, boxes, 2, 0.25), tv.roi_align(features, boxes, 2, 0.25)
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)
    for ours, theirs in (
        (ops.RoIAlign((2, 3), 0.25, 2, True), tv.RoIAlign((2, 3), 0.25, 2, True)),
        (ops.RoIPool(2, 0.25), tv.RoIPool(2, 0.25)),
    ):
        torch.testing.assert_close(ours(features, boxes), theirs(features, boxes), rtol=2e-5, atol=2e-5)
        assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("roi_dtype", FLOATS, ids="rois{}".format)
def test_mixed_and_half_types(dtype: torch.dtype, roi_dtype: torch.dtype) -> None:
    """Ours equals float64 on the given values, rounded once, where torchvision refuses or computes in half types."""
    features, rois = torch.randn(2, 4, 50, 75).to(dtype), draw_rois().to(roi_dtype)
    rois = rois[finite(rois)]  # rounding to half may have made inf of a corner
    tolerance = {torch.float64: 2e-5, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    expected = tv.roi_align(features.double(), rois.double(), 3, 0.25, 2)
    actual = ops.roi_align(features, rois, 3, 0.25, 2)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
    pooled = ops.roi_pool(features, rois.double(), 3, 0.25)
    assert torch.equal(pooled.double(), tv.roi_pool(features.double(), rois.double(), 3, 0.25))


@pytest.mark.parametrize("scale", [1.0, 0.25], ids="scale{}".format)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_roi_pool(dtype: torch.dtype, scale: float) -> None:
    features, rois = torch.randn(2, 4, 50, 75, dtype=dtype), draw_rois().to(dtype)
    rois[:5, 1:] = rois[:5, 1:].round() + 0.5
    actual = forward_backward(ops.roi_pool, features, rois, (3, 5), scale)
    expected = forward_backward(tv.roi_pool, features, rois, (3, 5), scale)
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5], ids="L{}".format)
@pytest.mark.parametrize("ratio", [-1, 2], ids="ratio{}".format)
def test_pooler(levels: int, ratio: int) -> None:
    size = (200, 300)
    maps = {f"p{i}": f.double() for i, f in enumerate(draw_pyramid(levels))} | {"not used": torch.zeros(2, 9, 1, 1)}
    boxes = [torch.cat([draw_boxes(40), adversarial_boxes()]).double(), draw_boxes(25).double()]
    boxes = [b[finite(b)] for b in boxes]
    arguments = ([f"p{i}" for i in range(levels)], (3, 2), ratio)
    options = {"canonical_scale": 56, "canonical_level": 4}  # so that the boxes reach all levels
    ours, theirs = ops.MultiScaleRoIAlign(*arguments, **options), tv.MultiScaleRoIAlign(*arguments, **options)
    actual, expected = (pooler(maps, boxes, [size, (150, 280)]) for pooler in (ours, theirs))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)
    assert repr(ours) == repr(theirs)


def test_a_sampling_ratio_of_each_level() -> None:
    """torchvision's pooler of a level's ratio, for the boxes of that level; values and gradients."""
    ratios, options = [3, 0, -1, 2], {"canonical_scale": 56, "canonical_level": 4}
    maps = {f"p{i}": f.double().requires_grad_() for i, f in enumerate(draw_pyramid(4))}
    boxes = [torch.cat([draw_boxes(40), adversarial_boxes()]).double(), draw_boxes(25).double()]
    boxes = [b[finite(b) & (b[:, 2:] >= b[:, :2]).all(1)] for b in boxes]
    sizes = [(200, 300), (150, 280)]
    ours = ops.MultiScaleRoIAlign(list(maps), (3, 2), ratios, **options)
    theirs = [tv.MultiScaleRoIAlign(list(maps), (3, 2), ratio, **options) for ratio in ratios]
    pooled = torch.stack([pooler(maps, boxes, sizes) for pooler in theirs])
    level = theirs[0].map_levels(boxes)
    expected = pooled[level, torch.arange(len(level))]
    actual = ours(maps, boxes, sizes)
    assert len(level.unique()) == 4
    for one, other in zip(
        (actual, *torch.autograd.grad(actual.square().sum(), list(maps.values()))),
        (expected, *torch.autograd.grad(expected.square().sum(), list(maps.values()))),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    with pytest.raises(ValueError, match=r"sampling_ratio must be an int or one for each level \(4\), got \[2, 2\]"):
        ops.MultiScaleRoIAlign(list(maps), 3, (2, 2))(maps, boxes, sizes)


@pytest.mark.parametrize("levels", [1, 2, 4], ids="L{}".format)
def test_roi_pool_over_levels(levels: int) -> None:
    """Maxima and their gradients; levels as RoIAlign's."""
    maps = {f"p{i}": f.double().requires_grad_() for i, f in enumerate(draw_pyramid(levels))}
    boxes = [torch.cat([draw_boxes(40), adversarial_boxes()]).double(), draw_boxes(25).double()]
    boxes = [b[finite(b)] for b in boxes]
    options = {"canonical_scale": 56, "canonical_level": 4}
    poolers = [kind(list(maps), 3, **options) for kind in (ops.MultiScaleRoIPool, ReferenceRoIPool)]
    for feature in maps.values():
        feature.grad = None
    results = []
    for pooler in poolers:
        pooled = pooler(maps, boxes, [(200, 300), (150, 280)])
        results.append([pooled, *torch.autograd.grad(pooled.square().sum(), list(maps.values()))])
    assert torch.equal(results[0][0], results[1][0])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert repr(poolers[0]) == f"MultiScaleRoIPool(featmap_names={list(maps)}, output_size=(3, 3))"


def test_roi_pool_on_no_level() -> None:
    """RoIs of no image, of negative area and NaN give zeros, as RoIAlign's; half types keep theirs."""
    maps = [torch.rand(2, 3, 32 >> i, 32 >> i).bfloat16() + 1 for i in range(2)]
    rois = torch.tensor(
        [[0.0, 1, 2, 60, 60], [1, 2, 2, 9, 9], [-1, 2, 2, 9, 9], [0, 9, 2, 2, 9], [0, float("nan"), 2, 9, 9]]
    )
    pooled = ops.multilevel_roi_pool(maps, rois, 2, [0.5, 0.25], canonical_scale=16, canonical_level=1)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled[0], tv.roi_pool(maps[1].float(), rois[:1], 2, 0.25)[0].bfloat16())
    assert torch.equal(pooled[1], tv.roi_pool(maps[0].float(), rois[1:2], 2, 0.5)[0].bfloat16())
    assert not pooled[2:].any()
    with pytest.raises(ValueError, match=r"scales must have one entry a level \(2\), got 1"):
        ops.multilevel_roi_pool(maps, rois, 2, [0.5])
    with pytest.raises(ValueError, match=r"rois must be \[K, 5\], got \(5, 4\)"):
        ops.multilevel_roi_pool(maps, rois[:, 1:], 2, [0.5, 0.25])


def test_pooler_without_boxes_on_a_level_or_at_all() -> None:
    maps = {str(i): f for i, f in enumerate(draw_pyramid(4))}
    pooler, other = (module.MultiScaleRoIAlign(list(maps), 3, 2) for module in (ops, tv))
    for boxes in ([torch.zeros(0, 4)] * 2, [torch.tensor([[2.0, 3, 9, 9]]), torch.zeros(0, 4)]):
        actual, expected = (p(maps, boxes, [(200, 300)] * 2) for p in (pooler, other))
        torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)


def test_pooler_infers_scales_at_every_call() -> None:
    """torchvision keeps the scales of its first call, here 1/2 and 1/4, for all others."""
    pooler = ops.MultiScaleRoIAlign(["a", "b"], 2, 2)
    boxes = [draw_boxes(9, (64, 64), 60)]
    first = {"a": torch.randn(1, 3, 32, 32), "b": torch.randn(1, 3, 16, 16)}
    second = {"a": torch.randn(1, 3, 16, 16), "b": torch.randn(1, 3, 8, 8)}
    for maps in (first, second):
        expected = tv.MultiScaleRoIAlign(["a", "b"], 2, 2)(maps, boxes, [(64, 64)])
        torch.testing.assert_close(pooler(maps, boxes, [(64, 64)]), expected, rtol=2e-5, atol=2e-5)
    pooler.scales = [0.5, 0.25]
    expected = ops.roi_align(second["a"], boxes, 2, 0.5, 2)
    torch.testing.assert_close(pooler(second, boxes, [(64, 64)]), expected)


SPECIAL = ("nan", "inf", "-inf", "1e30")
# torchvision may crash, so each case runs in a process of its own, forked before any thread is started
PROGRAM = """
import json, os, sys, torch, torchvision
features, cases = json.loads(sys.stdin.read())
for name, rois in cases:
    child = os.fork()
    if child == 0:
        pooled = getattr(torchvision.ops, name)(torch.tensor(features), torch.tensor(rois), 2, sampling_ratio=2) \
            if name == "roi_align" else torchvision.ops.roi_pool(torch.tensor(features), torch.tensor(rois), 2)
        print(json.dumps(pooled[[0, 2]].flatten().tolist()), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        print("null", flush=True)
"""


def test_special_coordinates_give_zeros() -> None:
    """That RoI gives zeros, and the ordinary ones beside it torchvision's values, where it does not crash."""
    features = torch.randn(1, 2, 10, 10)
    names = [(name, corner) for name in ("roi_align", "roi_pool") for corner in SPECIAL]
    cases = [
        (name, torch.tensor([[0, 1.0, 1, 6, 7], [0, 1, 1, float(corner), 7], [0, 2, 3, 9, 9]]))
        for name, corner in names
    ]
    stdin = json.dumps([features.tolist(), [(name, rois.tolist()) for name, rois in cases]])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=stdin, capture_output=True, text=True, timeout=300, check=True
    )
    outputs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outputs) == len(cases)
    assert any(output is not None for output in outputs)
    for (name, rois), output in zip(cases, outputs, strict=True):
        options = {"sampling_ratio": 2} if name == "roi_align" else {}
        actual = getattr(ops, name)(features, rois, 2, **options)
        assert not actual[1].any()
        if output is not None:
            expected = torch.tensor(output)
            torch.testing.assert_close(actual[[0, 2]].flatten(), expected, rtol=1e-5, atol=1e-5)


def test_adaptive_grids_of_a_million_pixels() -> None:
    """torchvision lists every sample, and raises or runs out of memory; ours computes only those on the feature map."""
    features, rois = torch.randn(1, 2, 10, 10), torch.tensor([[0, -1e6, -1e6, 1e6, 1e6]])
    assert ops.roi_align(features, rois, 2).isfinite().all()


@pytest.mark.parametrize("name", ["roi_align", "roi_pool"])
def test_outputs_may_be_changed_in_place(name: str) -> None:
    """No output is a view of hidden memory, so that an in-place ReLU after pooling works in training."""
    features = torch.randn(2, 3, 16, 16, requires_grad=True)
    for maps in (features, features.to(memory_format=torch.channels_last)):
        pooled = getattr(ops, name)(maps, with_images(draw_boxes(5, (16, 16), 16), 2), 2)
        pooled.relu_().sum().backward()
    pooled = ops.multilevel_roi_align([features], with_images(draw_boxes(5, (16, 16), 16), 2), 2, [1.0])
    pooled.relu_().sum().backward()
    assert features.grad.any()


def test_infinite_features_stay_infinite() -> None:
    """A tap that only fills up a row must not multiply them by 0."""
    features = torch.randn(1, 1, 8, 8)
    features[0, 0, 3, 3] = float("inf")
    rois = torch.tensor([[0, 0.3, 0.2, 7, 7], [0, -3.3, -2.2, 5.1, 5.3], [0, 0.0, 0, 3.1, 3.3]])
    for ratio in (-1, 2):
        actual, expected = (module.roi_align(features, rois, 2, 1.0, ratio) for module in (ops, tv))
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        assert actual.isinf().any()


def test_default_dtype_does_not_matter() -> None:
    features, rois = torch.randn(1, 2, 9, 9), torch.tensor([[0, 1.0, 1, 6, 7]])
    expected = ops.roi_align(features, rois, 2, 1.0, 2)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(ops.roi_align(features, rois, 2, 1.0, 2), expected)
        assert ops.masks_to_boxes(torch.zeros(0, 4, 4)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_many_small_maps() -> None:
    """One RoI on each of many maps, as in a mask loss: images give the same apart and together."""
    masks = (torch.rand(150, 1, 30, 40) < 0.5).float()
    rois = torch.cat([torch.arange(150.0)[:, None], draw_boxes(150, (30, 40), 30)], 1)
    for maps in (masks, masks.expand(-1, 3, -1, -1)):
        actual, expected = (module.roi_align(maps, rois, 14) for module in (ops, tv))
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


class Pools(torch.nn.Module):
    """All three poolings, for torch.fx."""

    def __init__(self) -> None:
        super().__init__()
        self.align, self.pool = ops.RoIAlign(2, 1.0, 2), ops.RoIPool(2, 1.0)
        self.scales = ops.MultiScaleRoIAlign(["a"], 2, 2)

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        multi = self.scales({"a": x}, [boxes], [(16, 16)])
        return self.align(x, [boxes]) + self.pool(x, [boxes]) + multi


def test_symbolic_tracing() -> None:
    """torch.fx records each pooling as one node, as it does torchvision's."""
    x, boxes = torch.randn(1, 3, 16, 16), draw_boxes(4, (16, 16), 16)
    assert torch.equal(torch.fx.symbolic_trace(Pools())(x, boxes), Pools()(x, boxes))
