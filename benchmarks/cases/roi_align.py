"""RoIAlign over the levels of a pyramid and on C4, forward and backward, and RoIPool."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask import ops
from fastmask.benchmarks.case import HAS_TORCHVISION, Case, CaseSpec
from fastmask.benchmarks.inputs import PADDED_SIZE, STRIDES, boxes_in, pyramid
from fastmask.kernels import reference
from fastmask.kernels.roi_align import multilevel_roi_align_backward_op, multilevel_roi_align_op
from fastmask.kernels.roi_pool import roi_pool_op
from fastmask.kernels.roofline import min_bytes
from fastmask.ops.roi_align import NO_LIMIT

GEOMETRY = ([1 / stride for stride in STRIDES], [112.0, 224.0, 448.0, 896.0])  # scales, largest sides of levels
C4_STRIDE, C4_CHANNELS = 16, 1024
C4_GEOMETRY = ([1 / C4_STRIDE], [NO_LIMIT])
SAMPLE = 4  # RoIs compared with the literal reference


def roi_align(
    generator: torch.Generator,
    device: torch.device,
    *,
    num: int = 1000,
    pooled: int = 7,
    batch: int = 1,
    ratio: int = 2,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
    way: str = "forward",
    size: tuple[int, int] = PADDED_SIZE,
    c4: bool = False,
) -> Case:
    """RoIAlign of ``num`` RoIs an image, on a pyramid or, with ``c4``, on the one map of a C4 model.

    ``way`` is "forward", "backward" alone, or "both"; ``size`` is that of padded images. In half precision torchvision
    runs under autocast, which upcasts the feature maps. It copies channels-last maps; "at its best" it has contiguous
    ones.
    """
    levels: tuple[tuple[int, ...], int] = ((C4_STRIDE,), C4_CHANNELS) if c4 else (STRIDES, 256)
    geometry = C4_GEOMETRY if c4 else GEOMETRY
    maps = pyramid(generator, device, batch, dtype, channels_last, size, *levels)
    boxes = [boxes_in(generator, num, size).to(device) for _ in range(batch)]
    gradient = torch.randn(batch * num, levels[1], pooled, pooled, generator=generator).to(device, dtype)

    def runner(module: Any, maps: dict[str, Tensor]) -> Callable[[], list[Tensor]]:
        pooler = module.MultiScaleRoIAlign(list(maps), pooled, ratio)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32 and module is not ops)
        for feature in maps.values():
            feature.requires_grad_(way != "forward")

        def pool() -> Tensor:
            with autocast:
                out: Tensor = pooler(maps, boxes, [size] * batch)
            return out

        def differentiate(out: Tensor) -> list[Tensor]:
            return list(torch.autograd.grad(out, list(maps.values()), gradient, retain_graph=way == "backward"))

        def run_both() -> list[Tensor]:
            out = pool()
            return [out.detach(), *differentiate(out)]

        if way == "forward":
            return lambda: [pool()]
        if way == "both":
            return run_both
        pooled_once = functools.cache(pool)
        return lambda: differentiate(pooled_once())

    providers: dict[str, Callable[[], Any]] = {}
    if HAS_TORCHVISION:
        import torchvision

        providers["torchvision"] = runner(torchvision.ops, maps)
        if channels_last:
            contiguous = {name: feature.detach().contiguous() for name, feature in maps.items()}
            providers["torchvision at its best"] = runner(torchvision.ops, contiguous)
    providers["fastmask"] = runner(ops, maps)

    def check(ours: list[Tensor], theirs: list[Tensor]) -> None:
        # float32: on a GPU each sums in its own way; bfloat16: a rounding or two
        tolerance = (1e-3 if device.type == "cuda" else 1e-4) if dtype == torch.float32 else 2**-6
        for actual, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)

    def sample() -> None:
        few = [boxes[0][:SAMPLE], *(box[:0] for box in boxes[1:])]
        actual = ops.MultiScaleRoIAlign(list(maps), pooled, ratio)(maps, few, [size] * batch).detach().cpu()
        rois = torch.cat([torch.zeros(SAMPLE, 1), boxes[0][:SAMPLE].cpu()], 1)
        features = [feature.detach()[:1, :8].cpu() for feature in maps.values()]  # the first channels
        expected = reference.multilevel_roi_align(features, rois, *geometry, pooled, pooled, ratio, False)
        check([actual[:, :8]], [expected.to(actual.dtype)])

    layout, name = "channels-last" if channels_last else "NCHW", str(dtype).removeprefix("torch.")
    inputs = f"{'C4' if c4 else 'P2-P5'} of {batch} x {size} x {levels[1]} {layout} {name}, {num} RoIs an image"
    inputs += f", {pooled} x {pooled}"
    features, rois = [feature.detach() for feature in maps.values()], rois_of_images(boxes)
    forward_args = (features, rois, *geometry, pooled, pooled, ratio, False)
    sizes = (batch, [feature.shape[2] for feature in features], [feature.shape[3] for feature in features])
    backward_args = (gradient, rois, *sizes, *geometry, ratio, False)
    calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
    if way != "backward":
        calls.append((multilevel_roi_align_op, forward_args))
    if way != "forward":
        calls.append((multilevel_roi_align_backward_op, backward_args))
    moved = sum(min_bytes(op, *args) for op, args in calls)

    def run_ops() -> list[Any]:
        return [op(*args) for op, args in calls]

    return Case(providers, check, inputs, moved, sample=sample, capturable={"fastmask": run_ops})


def rois_of_images(boxes: list[Tensor]) -> Tensor:
    """Boxes [N, 4] of each image -> RoIs [K, 5] with image indices."""
    return torch.cat([F.pad(box, (1, 0), value=float(image)) for image, box in enumerate(boxes)])


def roi_pool(generator: torch.Generator, device: torch.device, *, num: int = 500) -> Case:
    features = torch.randn(1, 256, PADDED_SIZE[0] // 8, PADDED_SIZE[1] // 8, generator=generator).to(device)
    boxes = [boxes_in(generator, num, PADDED_SIZE).to(device)]
    providers: dict[str, Callable[[], Any]] = {}
    if HAS_TORCHVISION:
        import torchvision

        providers["torchvision"] = lambda: torchvision.ops.roi_pool(features, boxes, 7, 0.125)
    providers["fastmask"] = lambda: ops.roi_pool(features, boxes, 7, 0.125)

    def check(ours: Tensor, theirs: Tensor) -> None:
        assert torch.equal(ours, theirs), "pooled maxima differ"

    def sample() -> None:
        rois = torch.cat([torch.zeros(SAMPLE, 1), boxes[0][:SAMPLE].cpu()], 1)
        expected, _ = reference.roi_pool(features[:, :8].cpu(), rois, 0.125, 7, 7)
        check(ops.roi_pool(features, [boxes[0][:SAMPLE]], 7, 0.125)[:, :8].cpu(), expected)

    inputs = f"P3 of {PADDED_SIZE} x 256 float32, {num} RoIs, 7 x 7"
    args = (features, rois_of_images(boxes), 0.125, 7, 7)
    capturable = {"fastmask": lambda: roi_pool_op(*args)[0]}
    return Case(providers, check, inputs, min_bytes(roi_pool_op, *args), sample=sample, capturable=capturable)


def make_spec(*, default: bool = True, rois: int | None = None, images: int | None = None, **options: Any) -> CaseSpec:
    best = ("torchvision at its best",) if options.get("channels_last", True) else ()
    providers = ("torchvision", *best, "fastmask")
    numbers = {"RoIs": rois, "images of 512 RoIs": images}
    scales = tuple(("RoIAlign 7 x 7", what, number) for what, number in numbers.items() if number is not None)
    build = functools.partial(roi_align, **options)
    return CaseSpec(build, default, scales, providers=providers)


def make_batch_spec(**options: Any) -> CaseSpec:
    """As many images and RoIs as a training step has on a GPU; fewer on a CPU."""

    def build(generator: torch.Generator, device: torch.device) -> Case:
        size: dict[str, Any] = {"batch": 8, "num": 512} if device.type == "cuda" else {"batch": 2, "num": 100}
        return roi_align(generator, device, **size, **options)

    return make_spec()._replace(build=build)


def make_c4_spec(rois: int, **options: Any) -> CaseSpec:
    """As many RoIs as an image has in inference or in training on a GPU; fewer on a CPU."""

    def build(generator: torch.Generator, device: torch.device) -> Case:
        num = rois if device.type == "cuda" else 100
        return roi_align(generator, device, num=num, pooled=14, c4=True, **options)

    return make_spec()._replace(build=build)


BF16 = torch.bfloat16
SPECS: dict[str, CaseSpec] = {
    "RoIAlign, channels-last": make_spec(rois=1000),
    "RoIAlign, NCHW": make_spec(channels_last=False),
    "RoIAlign, adaptive, channels-last": make_spec(ratio=-1),
    "RoIAlign 14 x 14, 100 RoIs": make_spec(num=100, pooled=14),
    "RoIAlign 14 x 14 on C4": make_c4_spec(1000),
    "RoIAlign 14 x 14 on C4, bfloat16": make_c4_spec(1000, dtype=BF16),
    "RoIAlign 14 x 14 on C4, bfloat16, backward": make_c4_spec(512, dtype=BF16, way="backward"),
    "RoIAlign, 100 RoIs": make_spec(num=100, rois=100),
    "RoIAlign, 4000 RoIs": make_spec(num=4000, rois=4000),
    "RoIAlign forward + backward, channels-last": make_spec(way="both"),
    "RoIAlign forward + backward, NCHW": make_spec(way="both", channels_last=False),
    "RoIAlign, bfloat16, channels-last": make_spec(dtype=BF16),
    "RoIAlign of a batch, bfloat16": make_batch_spec(dtype=BF16),
    "RoIAlign of a batch, bfloat16, forward + backward": make_batch_spec(dtype=BF16, way="both"),
    "RoIAlign of a batch, bfloat16, backward": make_batch_spec(dtype=BF16, way="backward"),
    "RoIPool": CaseSpec(roi_pool),
}
for number in (1, 2, 4, 8):
    SPECS[f"RoIAlign, {number} x 512 RoIs"] = make_spec(default=False, num=512, batch=number, images=number)
for way, pooled, batch, num in itertools.product(("forward", "both"), (7, 14), (1, 8), (100, 512, 1000, 4000)):
    name = (
        f"RoIAlign {pooled} x {pooled}, {batch} x {num} RoIs, bfloat16{', forward + backward' if way == 'both' else ''}"
    )
    SPECS[name] = make_spec(default=False, num=num, pooled=pooled, batch=batch, way=way, dtype=BF16)
