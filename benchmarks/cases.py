"""The operations that are measured: for each, the same inputs for torchvision and for us, and how answers are compared.

Shapes are those of a Mask R-CNN on a picture of 800 x 1344 pixels: P2 to P5 of 256 channels, 1000 RoIs, the 4819
candidates that an RPN keeps of its five levels, 100 masks of 28 x 28.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmask import models, ops
from fastmask.benchmarks.settled import settle
from fastmask.kernels.nms import nms_padded_op
from fastmask.kernels.paste import paste_masks_op
from fastmask.kernels.rle import encode_masks_op
from fastmask.kernels.roi_align import multilevel_roi_align_backward_op, multilevel_roi_align_op
from fastmask.kernels.roi_pool import roi_pool_op
from fastmask.kernels.traffic import least_bytes
from fastmask.matching import matched_share
from fastmask.ops.masks import LIKELY

IMAGE = (800, 1344)  # padded; pixels
PICTURE = (800, 1333)


class Case(NamedTuple):
    """One operation on one set of inputs, as functions without arguments."""

    torchvision: Callable[[], Any]
    fastmask: Callable[[], Any]
    agree: Callable[[Any, Any], None]  # raises AssertionError; called with both answers, ours first
    inputs: str  # shapes and dtypes, for the report
    least_bytes: int | None = None  # that must be moved; None: what binds is something else
    rounds: int = 11


def boxes_in(generator: torch.Generator, num: int, size: tuple[int, int], exponent: float = 3.2) -> Tensor:
    """Boxes of 16 to 16 * e^exponent pixels, log-uniform, inside the (height, width)."""
    corner = torch.rand(num, 2, generator=generator) * torch.tensor([size[1] - 100.0, size[0] - 100.0])
    sides = 16 * torch.exp(torch.rand(num, 2, generator=generator) * exponent)
    return ops.clip_boxes_to_image(torch.cat([corner, corner + sides], 1), size)


def roi_align(
    generator: torch.Generator,
    device: torch.device,
    layout: str,
    ratio: int,
    backward: bool,
    batch: int = 1,
    num: int = 1000,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """``num``: RoIs an image. In half types torchvision runs under autocast, which upcasts the maps."""
    import torchvision

    maps = {}
    for i, stride in enumerate((4, 8, 16, 32)):
        feature = torch.randn(batch, 256, IMAGE[0] // stride, IMAGE[1] // stride, generator=generator).to(device, dtype)
        memory_format = torch.channels_last if layout == "channels-last" else torch.contiguous_format
        maps[str(i)] = feature.contiguous(memory_format=memory_format).requires_grad_(backward)
    boxes = [boxes_in(generator, num, IMAGE).to(device) for _ in range(batch)]
    gradient = torch.randn(batch * num, 256, 7, 7, generator=generator).to(device, dtype)

    def runner(module: Any) -> Callable[[], list[Tensor]]:
        pooler = module.MultiScaleRoIAlign(list(maps), 7, ratio)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32 and module is not ops)

        def run() -> list[Tensor]:
            for feature in maps.values():
                feature.grad = None
            with autocast:
                pooled = pooler(maps, boxes, [IMAGE] * batch)
            if not backward:
                return [pooled]
            pooled.backward(gradient)
            return [pooled.detach(), *(feature.grad for feature in maps.values())]

        return run

    def agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
        tolerance = 1e-4 if dtype == torch.float32 else 2**-6  # of bfloat16, a rounding or two
        for actual, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)

    name = str(dtype).removeprefix("torch.")
    inputs = f"P2-P5 of {batch} x {IMAGE} x 256 {layout} {name}, {num} RoIs an image, 7 x 7"
    features, rois = list(maps.values()), torch.zeros(batch * num, 5)
    geometry = ([0.25, 0.125, 0.0625, 0.03125], [112.0, 224.0, 448.0, 896.0])
    moved = least_bytes(multilevel_roi_align_op, features, rois, *geometry, 7, 7, ratio, False)
    if backward:
        sizes = (batch, [feature.shape[2] for feature in features], [feature.shape[3] for feature in features])
        moved += least_bytes(multilevel_roi_align_backward_op, gradient, rois, *sizes, *geometry, ratio, False)
    return Case(runner(torchvision.ops), runner(ops), agree, inputs, moved)


def batched_nms(
    generator: torch.Generator, device: torch.device, num: int, groups: int, threshold: float, clustered: bool
) -> Case:
    import torchvision

    boxes = boxes_in(generator, num, PICTURE)
    if clustered:
        centers = boxes_in(generator, max(num // 80, 1), PICTURE)
        which = torch.randint(len(centers), (num,), generator=generator)
        boxes = centers[which] + 4 * torch.randn(num, 4, generator=generator)
    arguments = (
        boxes.to(device),
        torch.rand(num, generator=generator).to(device),
        torch.randint(groups, (num,), generator=generator).to(device),
        threshold,
    )

    def agree(ours: Tensor, theirs: Tensor) -> None:
        # torchvision's coordinate offsets round: a handful of boxes whose IoU is at the threshold may differ
        differing = len(set(ours.tolist()) ^ set(theirs.tolist()))
        assert differing <= max(2, num // 1000), f"{differing} of {num} boxes differ"

    return Case(
        lambda: torchvision.ops.batched_nms(*arguments),
        lambda: ops.batched_nms(*arguments),
        agree,
        f"{num} {'clustered' if clustered else 'random'} boxes float32 in {groups} groups, IoU {threshold}",
        least_bytes(nms_padded_op, *(tensor[None] for tensor in arguments[:3]), None, threshold, num),
    )


def rpn_nms(generator: torch.Generator, device: torch.device, batch: int) -> Case:
    """What an RPN does for a whole batch: torchvision image after image, ours in one call."""
    import torchvision

    boxes = torch.stack([boxes_in(generator, 4819, PICTURE) for _ in range(batch)]).to(device)
    scores = torch.rand(batch, 4819, generator=generator).to(device)
    levels = torch.randint(5, (batch, 4819), generator=generator).to(device)

    def theirs() -> list[Tensor]:
        images = zip(boxes, scores, levels, strict=True)
        return [torchvision.ops.batched_nms(*image, 0.7)[:1000] for image in images]

    def agree(ours: tuple[Tensor, Tensor], theirs: list[Tensor]) -> None:
        for indices, count, expected in zip(*ours, theirs, strict=True):
            differing = len(set(indices[:count].tolist()) ^ set(expected.tolist()))
            assert differing <= 2, f"{differing} of {len(expected)} boxes differ"

    return Case(
        theirs,
        lambda: ops.nms_padded(boxes, scores, levels, iou_threshold=0.7, max_output=1000),
        agree,
        f"{batch} x 4819 random boxes float32 in 5 levels, IoU 0.7, 1000 kept",
        least_bytes(nms_padded_op, boxes, scores, levels, None, 0.7, 1000),
    )


def mask_rcnn(generator: torch.Generator, device: torch.device) -> Case:
    """A whole model, from the picture to pasted masks; its weights settled, as trained ones are not to be had."""
    import torchvision

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs, ours = (
            library.get_model("maskrcnn_resnet50_fpn", weights=None, weights_backbone=None).eval()
            for library in (torchvision.models, models)
        )
    picture = textured(generator, PICTURE).to(device)
    settle(theirs, [textured(generator, PICTURE)])
    ours.load_state_dict(theirs.state_dict())
    theirs.to(device), ours.to(device)

    def runner(model: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.no_grad():
                return model([picture])[0]

        return run

    def agree(ours: Any, theirs: Any) -> None:
        assert len(ours["boxes"]) == 100, f"there must be 100 detections, got {len(ours['boxes'])}"
        share = matched_share(ours, theirs)
        assert share >= 0.99, f"only {share:.3f} of the detections match"

    kind = "float32 (TF32 convolutions)" if device.type == "cuda" else "float32"
    inputs = f"one picture of {PICTURE}, {kind}, ResNet-50 with FPN, 100 detections, masks pasted"
    return Case(runner(theirs), runner(ours), agree, inputs, rounds=5)


def textured(generator: torch.Generator, size: tuple[int, int]) -> Tensor:
    """A picture [3, H, W] in [0, 1] of rectangles on coarse and fine noise."""
    coarse = torch.rand(1, 3, size[0] // 16, size[1] // 16, generator=generator)
    picture = F.interpolate(coarse, size, mode="bilinear")[0] * 0.6 + 0.1 * torch.rand(3, *size, generator=generator)
    for x1, y1, x2, y2 in boxes_in(generator, 40, size).int().tolist():
        picture[:, y1:y2, x1:x2] = 0.3 * picture[:, y1:y2, x1:x2] + 0.7 * torch.rand(3, 1, 1, generator=generator)
    return picture


def hundred_masks(generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Probabilities [100, 1, 28, 28] of blobs with ragged edges, and their boxes."""
    axis = torch.linspace(-1, 1, 28)
    reach = 0.5 + 0.5 * torch.rand(100, 1, 1, generator=generator)
    noise = 0.3 * torch.randn(100, 28, 28, generator=generator)
    masks = torch.sigmoid(8 * (reach - torch.hypot(axis[:, None], axis[None])) + noise)
    return masks[:, None].to(device), boxes_in(generator, 100, PICTURE, 3.6).to(device)


def paste_masks_in_image(generator: torch.Generator, device: torch.device) -> Case:
    from torchvision.models.detection import roi_heads

    masks, boxes = hundred_masks(generator, device)

    def agree(ours: Tensor, theirs: Tensor) -> None:
        if device.type == "cpu":
            assert torch.equal(ours, theirs), "pasted masks differ"
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)

    return Case(
        lambda: roi_heads.paste_masks_in_image(masks, boxes, PICTURE),
        lambda: ops.paste_masks_in_image(masks, boxes, PICTURE),
        agree,
        f"100 masks of 28 x 28 float32 on {PICTURE}",
        least_bytes(paste_masks_op, masks[:, 0], boxes, *PICTURE, "float", 0.5, False, False, 1),
    )


def paste_masks(generator: torch.Generator, device: torch.device) -> Case:
    from torchvision.models.detection import roi_heads

    masks, boxes = hundred_masks(generator, device)

    def agree(ours: Tensor, theirs: Tensor) -> None:
        differing = (ours != theirs).sum() / theirs.sum()
        assert differing <= (0 if device.type == "cpu" else 1e-4), "more differs than pixels at the threshold itself"

    return Case(
        lambda: roi_heads.paste_masks_in_image(masks, boxes, PICTURE)[:, 0] > 0.5,
        lambda: ops.paste_masks(masks, boxes, PICTURE),
        agree,
        f"100 masks of 28 x 28 float32 on {PICTURE}, > 0.5",
        least_bytes(paste_masks_op, masks[:, 0], boxes, *PICTURE, "bool", 0.5, False, False, 1),
    )


def encode_masks(generator: torch.Generator, device: torch.device) -> Case:
    from pycocotools import mask as coco
    from torchvision.models.detection import roi_heads

    masks, boxes = hundred_masks(generator, device)

    def paste_and_encode() -> list[Any]:
        pasted = (roi_heads.paste_masks_in_image(masks, boxes, PICTURE) > 0.5).cpu().numpy().view(np.uint8)
        return [coco.encode(np.asfortranarray(mask[0])) for mask in pasted]

    def agree(ours: list[Any], theirs: list[Any]) -> None:
        if device.type == "cpu":
            assert ours == theirs, "RLE differs"
        pixels, others = coco.decode(ours), coco.decode(theirs)
        assert (pixels != others).sum() <= 1e-4 * others.sum(), "more differs than pixels at the threshold itself"

    inputs = f"100 masks of 28 x 28 float32 on {PICTURE}; against torchvision's paste and pycocotools.encode"
    sizes = torch.zeros(100, 2, dtype=torch.int64)
    moved = least_bytes(encode_masks_op, masks[:, 0], boxes, sizes, 100 * LIKELY, 0.5, False, False, 1)
    return Case(paste_and_encode, lambda: ops.encode_masks(masks, boxes, PICTURE), agree, inputs, moved)


def roi_pool(generator: torch.Generator, device: torch.device) -> Case:
    import torchvision

    features = torch.randn(1, 256, IMAGE[0] // 8, IMAGE[1] // 8, generator=generator).to(device)
    boxes = [boxes_in(generator, 500, IMAGE).to(device)]

    def agree(ours: Tensor, theirs: Tensor) -> None:
        assert torch.equal(ours, theirs), "pooled maxima differ"

    return Case(
        lambda: torchvision.ops.roi_pool(features, boxes, 7, 0.125),
        lambda: ops.roi_pool(features, boxes, 7, 0.125),
        agree,
        f"P3 of {IMAGE} x 256 float32, 500 RoIs, 7 x 7",
        least_bytes(roi_pool_op, features, torch.zeros(500, 5), 0.125, 7, 7),
    )


def a_batch(device: torch.device) -> dict[str, int]:
    """Images and RoIs of each that a training step has on a GPU; on a CPU a few, that it may end."""
    return {"batch": 8, "num": 512} if device.type == "cuda" else {"batch": 2, "num": 100}


CASES: dict[str, Callable[[torch.Generator, torch.device], Case]] = {
    "Mask R-CNN": mask_rcnn,
    "RoIAlign, channels-last": lambda g, d: roi_align(g, d, "channels-last", 2, backward=False),
    "RoIAlign, NCHW": lambda g, d: roi_align(g, d, "NCHW", 2, backward=False),
    "RoIAlign, adaptive, channels-last": lambda g, d: roi_align(g, d, "channels-last", -1, backward=False),
    "RoIAlign forward + backward, channels-last": lambda g, d: roi_align(g, d, "channels-last", 2, backward=True),
    "RoIAlign forward + backward, NCHW": lambda g, d: roi_align(g, d, "NCHW", 2, backward=True),
    "RoIAlign, bfloat16, channels-last": lambda g, d: roi_align(
        g, d, "channels-last", 2, backward=False, dtype=torch.bfloat16
    ),
    "RoIAlign of a batch, bfloat16": lambda g, d: roi_align(
        g, d, "channels-last", 2, backward=False, **a_batch(d), dtype=torch.bfloat16
    ),
    "RoIAlign of a batch, bfloat16, forward + backward": lambda g, d: roi_align(
        g, d, "channels-last", 2, backward=True, **a_batch(d), dtype=torch.bfloat16
    ),
    "RoIPool": roi_pool,
    "NMS, RPN, random": lambda g, d: batched_nms(g, d, 4819, 5, 0.7, clustered=False),
    "NMS, RPN, clustered": lambda g, d: batched_nms(g, d, 4819, 5, 0.7, clustered=True),
    "NMS, RPN, a batch": lambda g, d: rpn_nms(g, d, a_batch(d)["batch"]),
    "NMS, 20k in 80 classes, random": lambda g, d: batched_nms(g, d, 20_000, 80, 0.5, clustered=False),
    "NMS, 20k in 80 classes, clustered": lambda g, d: batched_nms(g, d, 20_000, 80, 0.5, clustered=True),
    "NMS, 100k in 80 classes, random": lambda g, d: batched_nms(g, d, 100_000, 80, 0.5, clustered=False),
    "NMS, 100k in 80 classes, clustered": lambda g, d: batched_nms(g, d, 100_000, 80, 0.5, clustered=True),
    "paste 100 masks": paste_masks_in_image,
    "paste 100 masks, bool": paste_masks,
    "RLE of 100 masks": encode_masks,
}
