"""matterport's Mask_RCNN, written out: its file of weights, and its predictions, literal, in float64 and NumPy.

Boxes are (y1, x1, y2, x2), normalized as matterport's: 0 and 1 are the centers of the canvas's first and last pixels.
Source: github.com/matterport/Mask_RCNN 2.1, mrcnn/model.py, mrcnn/utils.py; TensorFlow's documentation of
crop_and_resize. Convolutions are PyTorch's, with TensorFlow's padding.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Weights = dict[str, dict[str, Array]]  # arrays by layer and kind
MEAN_PIXEL = np.array([123.7, 116.8, 103.9])
STD_DEV = np.array([0.1, 0.1, 0.2, 0.2])
RATIOS = (0.5, 1, 2)
# of drawn kernels: pixels are up to 255, and no probability of the RPN is rounded to 1
FACTORS = {"bbox": 0.4, "mrcnn_": 1, "conv1": 0.02, "branch2c": 0.5, "fpn_c": 0.1, "rpn_class": 0.2}


class Widths(NamedTuple):
    """Of a file; the defaults are those of mask_rcnn_coco.h5."""

    stem: int = 64
    planes: tuple[int, ...] = (64, 128, 256, 512)
    blocks: tuple[int, ...] = (3, 4, 23, 3)
    pyramid: int = 256
    rpn: int = 512
    hidden: int = 1024
    mask: int = 256
    classes: int = 81


SLIM = Widths(8, (4, 6, 8, 10), (2, 1, 3, 1), 16, 12, 20, 10, 4)


class Settings(NamedTuple):
    """Of mrcnn/config.py."""

    min_dim: int = 64
    max_dim: int = 128
    scales: tuple[int, ...] = (8, 16, 32, 64, 128)
    pre_nms: int = 400
    proposals: int = 60
    rpn_nms: float = 0.7
    confidence: float = 0.0
    nms: float = 0.3
    instances: int = 60


def list_shapes(w: Widths) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """Layers with weights, and the shapes of these."""

    def conv(name: str, kernel: int, before: int, after: int, norm: str | None = None) -> Iterator[Any]:
        yield name, {"kernel": (kernel, kernel, before, after), "bias": (after,)}
        if norm:
            yield norm, dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (after,))

    yield from conv("conv1", 7, 3, w.stem, "bn_conv1")
    before = w.stem
    for stage, (planes, blocks) in enumerate(zip(w.planes, w.blocks, strict=True), 2):
        for block in map(chr, range(97, 97 + blocks)):
            name = f"{stage}{block}_branch"
            yield from conv(f"res{name}2a", 1, before, planes, f"bn{name}2a")
            yield from conv(f"res{name}2b", 3, planes, planes, f"bn{name}2b")
            yield from conv(f"res{name}2c", 1, planes, 4 * planes, f"bn{name}2c")
            if block == "a":
                yield from conv(f"res{name}1", 1, before, 4 * planes, f"bn{name}1")
            before = 4 * planes
    for level, planes in enumerate(w.planes, 2):
        yield from conv(f"fpn_c{level}p{level}", 1, 4 * planes, w.pyramid)
        yield from conv(f"fpn_p{level}", 3, w.pyramid, w.pyramid)
    yield from conv("rpn_conv_shared", 3, w.pyramid, w.rpn)
    yield from conv("rpn_class_raw", 1, w.rpn, 2 * len(RATIOS))
    yield from conv("rpn_bbox_pred", 1, w.rpn, 4 * len(RATIOS))
    yield from conv("mrcnn_class_conv1", 7, w.pyramid, w.hidden, "mrcnn_class_bn1")
    yield from conv("mrcnn_class_conv2", 1, w.hidden, w.hidden, "mrcnn_class_bn2")
    yield "mrcnn_class_logits", {"kernel": (w.hidden, w.classes), "bias": (w.classes,)}
    yield "mrcnn_bbox_fc", {"kernel": (w.hidden, 4 * w.classes), "bias": (4 * w.classes,)}
    for i in range(1, 5):
        yield from conv(f"mrcnn_mask_conv{i}", 3, w.pyramid if i == 1 else w.mask, w.mask, f"mrcnn_mask_bn{i}")
    yield "mrcnn_mask_deconv", {"kernel": (2, 2, w.mask, w.mask), "bias": (w.mask,)}
    yield from conv("mrcnn_mask", 1, w.mask, w.classes)


def draw_weights(seed: int, widths: Widths = SLIM) -> Weights:
    """Random weights that keep the size of activations; scores, boxes and masks vary."""
    generator = np.random.default_rng(seed)
    weights: Weights = {}
    for name, shapes in list_shapes(widths):
        drawn = {}
        for kind, shape in shapes.items():
            values = generator.standard_normal(shape)
            if kind == "kernel":
                values *= np.sqrt(2 / np.prod(shape[:-1]))
            elif kind in ("gamma", "moving_variance"):
                values = generator.uniform(0.7, 1.3, shape)
            else:
                values *= 0.1
            factor = next((each for part, each in FACTORS.items() if part in name and kind == "kernel"), 1)
            drawn[kind] = values * factor
        weights[name] = drawn
    return weights


def write_h5(path: str | os.PathLike[str], weights: Weights, wrapper: str = "") -> None:
    """A file as Keras writes it: a group for each layer, of a name in it that repeats the layer's."""
    with h5py.File(path, "w") as file:
        root = file.create_group(wrapper) if wrapper else file
        root.attrs["layer_names"] = np.array(["input_image", *weights], dtype="S")
        root.create_group("input_image")
        for name, arrays in weights.items():
            group = root.require_group("rpn_model" if name.startswith("rpn_") else name)
            for kind, values in arrays.items():
                group.create_dataset(f"{name}/{kind}:0", data=values)


def convolve(weights: Weights, name: str, x: Tensor, stride: int = 1, padding: int | str = "same") -> Tensor:
    arrays = weights[name]
    kernel = torch.from_numpy(arrays["kernel"]).permute(3, 2, 0, 1)
    padding = 0 if stride > 1 and padding == "same" else padding  # of 1x1 kernels
    return F.conv2d(x, kernel, torch.from_numpy(arrays["bias"]), stride, padding)


def normalize(weights: Weights, name: str, x: Tensor) -> Tensor:
    gamma, beta, mean, variance = (
        torch.from_numpy(weights[name][kind])[:, None, None]
        for kind in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    return gamma * (x - mean) / (variance + 0.001).sqrt() + beta


def run_pyramid(weights: Weights, widths: Widths, x: Tensor) -> list[Tensor]:
    """Molded images [1, 3, H, W] -> P2 to P6."""
    x = convolve(weights, "conv1", F.pad(x, (3, 3, 3, 3)), 2, "valid")
    x = normalize(weights, "bn_conv1", x).relu()
    x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2)  # "same" on an even side
    ends = []
    for stage, blocks in enumerate(widths.blocks, 2):
        for block in map(chr, range(97, 97 + blocks)):
            name, stride = f"{stage}{block}_branch", 2 if block == "a" and stage > 2 else 1
            y = normalize(weights, f"bn{name}2a", convolve(weights, f"res{name}2a", x, stride)).relu()
            y = normalize(weights, f"bn{name}2b", convolve(weights, f"res{name}2b", y)).relu()
            y = normalize(weights, f"bn{name}2c", convolve(weights, f"res{name}2c", y))
            if block == "a":
                x = normalize(weights, f"bn{name}1", convolve(weights, f"res{name}1", x, stride))
            x = (x + y).relu()
        ends.append(x)
    top = convolve(weights, "fpn_c5p5", ends[3])
    levels = [top]
    for level in (4, 3, 2):
        top = top.repeat_interleave(2, 2).repeat_interleave(2, 3)
        top = top + convolve(weights, f"fpn_c{level}p{level}", ends[level - 2])
        levels.insert(0, top)
    levels = [convolve(weights, f"fpn_p{i}", level) for i, level in enumerate(levels, 2)]
    return [*levels, levels[3][:, :, ::2, ::2]]


def make_anchors(settings: Settings, side: int) -> Array:
    boxes = []
    for scale, stride in zip(settings.scales, (4, 8, 16, 32, 64), strict=True):
        for y in range(0, side, stride):
            for x in range(0, side, stride):
                for ratio in RATIOS:
                    height, width = scale / np.sqrt(ratio), scale * np.sqrt(ratio)
                    boxes.append((y - height / 2, x - width / 2, y + height / 2, x + width / 2))
    return (np.array(boxes) - [0, 0, 1, 1]) / (side - 1)


def apply_deltas(boxes: Array, deltas: Array) -> Array:
    size = boxes[:, 2:] - boxes[:, :2]
    center = boxes[:, :2] + 0.5 * size + deltas[:, :2] * size
    size = size * np.exp(deltas[:, 2:])
    return np.concatenate((center - 0.5 * size, center - 0.5 * size + size), 1)


def clip(boxes: Array, window: Array) -> Array:
    return np.stack([boxes[:, i].clip(window[i % 2], window[2 + i % 2]) for i in range(4)], 1)


def suppress(boxes: Array, scores: Array, threshold: float, most: int) -> list[int]:
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        low, high = np.maximum(boxes[i, :2], boxes[kept][:, :2]), np.minimum(boxes[i, 2:], boxes[kept][:, 2:])
        both = (high - low).clip(0).prod(1)
        areas = (boxes[[i, *kept], 2:] - boxes[[i, *kept], :2]).prod(1)
        union = areas[0] + areas[1:] - both
        if len(kept) < most and not (both > threshold * union).any():
            kept.append(int(i))
    return kept


def crop_and_resize(levels: list[Array], boxes: Array, side: int, size: int) -> Array:
    """Each box on its level -> [N, C, size, size]."""
    crops = np.zeros((len(boxes), levels[0].shape[0], size, size))
    for n, (y1, x1, y2, x2) in enumerate(boxes):
        with np.errstate(divide="ignore"):
            level = np.round(np.log2(np.sqrt((y2 - y1) * (x2 - x1)) / (224 / np.sqrt(side * side))))
        feature = levels[int(min(5, max(2, 4 + level))) - 2]
        last = feature.shape[1] - 1
        for i in range(size):
            for j in range(size):
                y, x = y1 * last + i * (y2 - y1) * last / (size - 1), x1 * last + j * (x2 - x1) * last / (size - 1)
                if not (-1e-9 <= y <= last + 1e-9 and -1e-9 <= x <= last + 1e-9):  # beyond rounding: extrapolation
                    continue
                top, left = int(min(max(y, 0), last)), int(min(max(x, 0), last))
                bottom, right = min(top + 1, last), min(left + 1, last)
                upper = feature[:, top, left] + (x - left) * (feature[:, top, right] - feature[:, top, left])
                lower = feature[:, bottom, left] + (x - left) * (feature[:, bottom, right] - feature[:, bottom, left])
                crops[n, :, i, j] = upper + (y - top) * (lower - upper)
    return crops


def compute_ious(boxes: Array, others: Array) -> Array:
    """[N, 4] and [M, 4] -> [N, M]."""
    low, high = np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:])
    both = (high - low).clip(0).prod(2)
    areas, other_areas = ((each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, others))
    return both / (areas[:, None] + other_areas - both)


def sum_losses(boxes: Array, truth: Array) -> float:
    """Smooth L1 (of torchvision's beta, 1/9) of zeros against the refinements of boxes [N, 4], summed."""
    size, true_size = boxes[:, 2:] - boxes[:, :2], truth[:, 2:] - truth[:, :2]
    shift = (truth[:, :2] + 0.5 * true_size - boxes[:, :2] - 0.5 * size) / size
    error = np.abs(np.concatenate((shift, np.log(true_size / size)), 1) / STD_DEV)
    return float(np.where(error < 1 / 9, 0.5 * error**2 * 9, error - 0.5 / 9).sum())


def softmax(x: Array) -> Array:
    grown = np.exp(x - x.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


class Found(NamedTuple):
    """Detections, best first."""

    boxes: Array  # [n, 4] normalized
    labels: Array
    scores: Array
    masks: Array  # [n, 28, 28]
    window: Array  # [4] of the image, normalized

    def unmold(self, size: tuple[int, int]) -> Array:
        """Boxes (x1, y1, x2, y2) in pixels of an image of (height, width), before matterport rounds them."""
        shift, scale = np.tile(self.window[:2], 2), np.tile(self.window[2:] - self.window[:2], 2)
        boxes = (self.boxes - shift) / scale
        pixels = boxes * (np.tile(size, 2) - 1) + [0, 0, 1, 1]
        return pixels[:, [1, 0, 3, 2]]


def embed(
    weights: Weights, image: Array, settings: Settings, widths: Widths
) -> tuple[list[Array], Array, Array, Array]:
    """A resized image -> P2 to P5, its window, RoIs and what the box head predicts from."""
    side, (height, width, _) = settings.max_dim, image.shape
    top, left = (side - height) // 2, (side - width) // 2
    canvas = np.zeros((side, side, 3))
    canvas[top : top + height, left : left + width] = image
    window = (np.array([top, left, top + height, left + width]) - [0, 0, 1, 1]) / (side - 1)
    molded = torch.from_numpy(canvas - MEAN_PIXEL).permute(2, 0, 1)[None]
    pyramid = run_pyramid(weights, widths, molded)
    logits, deltas = [], []
    for level in pyramid:
        hidden = convolve(weights, "rpn_conv_shared", level).relu()
        for name, number, outputs in (("rpn_class_raw", 2, logits), ("rpn_bbox_pred", 4, deltas)):
            outputs.append(convolve(weights, name, hidden).permute(0, 2, 3, 1).reshape(-1, number).numpy())
    scores = softmax(np.concatenate(logits))[:, 1]
    best = np.argsort(-scores, kind="stable")[: settings.pre_nms]
    anchors = make_anchors(settings, side)
    boxes = apply_deltas(anchors[best], np.concatenate(deltas)[best] * STD_DEV)
    boxes = clip(boxes, np.array([0, 0, 1, 1]))
    rois = boxes[suppress(boxes, scores[best], settings.rpn_nms, settings.proposals)]

    levels = [level[0].numpy() for level in pyramid[:4]]
    x = torch.from_numpy(crop_and_resize(levels, rois, side, 7))
    x = normalize(weights, "mrcnn_class_bn1", convolve(weights, "mrcnn_class_conv1", x, padding="valid")).relu()
    x = normalize(weights, "mrcnn_class_bn2", convolve(weights, "mrcnn_class_conv2", x)).relu()
    return levels, window, rois, x[:, :, 0, 0].numpy()


def vary_classes(weights: Weights, image: Array, settings: Settings) -> None:
    """Move the classes' biases, in place, so that an image's RoIs are of several."""
    hidden = embed(weights, image, settings, SLIM)[3]
    kernel = weights["mrcnn_class_logits"]["kernel"]
    weights["mrcnn_class_logits"] = {"kernel": kernel, "bias": -hidden.mean(0) @ kernel}


def detect(weights: Weights, image: Array, settings: Settings = Settings(), widths: Widths = SLIM) -> Found:  # noqa: B008
    """A resized image [h, w, 3] of 0 to 255 -> its detections."""
    levels, window, rois, hidden = embed(weights, image, settings, widths)
    logits_of, deltas_of = (
        hidden @ weights[name]["kernel"] + weights[name]["bias"] for name in ("mrcnn_class_logits", "mrcnn_bbox_fc")
    )
    probabilities = softmax(logits_of)
    labels, scores = probabilities.argmax(1), probabilities.max(1)
    own = deltas_of.reshape(len(rois), -1, 4)[np.arange(len(rois)), labels]
    boxes = clip(apply_deltas(rois, own * STD_DEV), window)
    valid = (labels > 0) & (scores >= settings.confidence)
    kept = []
    for label in np.unique(labels[valid]):
        rows = np.flatnonzero(valid & (labels == label))
        kept += [rows[i] for i in suppress(boxes[rows], scores[rows], settings.nms, settings.instances)]
    kept = sorted(kept, key=lambda i: -scores[i])[: settings.instances]
    boxes, labels, scores = boxes[kept], labels[kept], scores[kept]

    x = torch.from_numpy(crop_and_resize(levels, boxes, settings.max_dim, 14))
    for i in range(1, 5):
        x = normalize(weights, f"mrcnn_mask_bn{i}", convolve(weights, f"mrcnn_mask_conv{i}", x)).relu()
    kernel, bias = (torch.from_numpy(weights["mrcnn_mask_deconv"][kind]) for kind in ("kernel", "bias"))
    up = torch.zeros(len(x), kernel.shape[2], 28, 28, dtype=x.dtype)
    for i in range(2):
        for j in range(2):  # the transpose of a convolution of stride 2: its kernel is of (height, width, out, in)
            up[:, :, i::2, j::2] = torch.einsum("nihw,oi->nohw", x, kernel[i, j]) + bias[:, None, None]
    masks = convolve(weights, "mrcnn_mask", up.relu()).sigmoid().numpy()
    return Found(boxes, labels, scores, masks[np.arange(len(labels)), labels], window)


def unmold_mask(mask: Array, box: Array, size: tuple[int, int]) -> Array:
    """A mask [M, M] in an image of (height, width): bilinear, mixed with zeros at the edge of a whole-pixel box."""
    x1, y1, x2, y2 = box.round().astype(int)
    rows, columns = (
        (1 - np.abs(((np.arange(n) + 0.5) * len(mask) / n - 0.5)[:, None] - np.arange(len(mask)))).clip(0)
        for n in (y2 - y1, x2 - x1)
    )
    full = np.zeros(size, bool)
    full[y1:y2, x1:x2] = rows @ mask @ columns.T >= 0.5
    return full


def options(settings: Settings = Settings()) -> dict[str, Any]:  # noqa: B008
    """The same settings as a builder's arguments."""
    return {
        "min_size": settings.min_dim,
        "max_size": settings.max_dim,
        "anchor_sizes": settings.scales,
        "rpn_pre_nms_top_n_test": settings.pre_nms,
        "rpn_post_nms_top_n_test": settings.proposals,
        "box_score_thresh": settings.confidence,
        "box_detections_per_img": settings.instances,
    }
