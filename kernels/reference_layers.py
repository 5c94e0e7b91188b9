"""The ops of a prepared model's layers in plain PyTorch: the specification of each, as in reference.py."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def bias_act(y: Tensor, bias: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    """relu(y + bias + residual) for y [B, C, H, W] and bias [C]; a residual [B, C, h, w] is read at the nearest pixel.

    Nearest as torch.nn.functional.interpolate has it: floor(i * h / H), the quotient and the product in float32.
    """
    height, width = y.shape[2:]
    out = y.double() + bias.double()[:, None, None]
    if residual is not None:
        rows, columns = (
            [min(int(torch.tensor(small / large) * i), small - 1) for i in range(large)]
            for small, large in ((residual.shape[2], height), (residual.shape[3], width))
        )
        out = out + residual.double()[:, :, rows][:, :, :, columns]
    return torch.where(out < 0, 0, out) if relu else out


def decode_boxes(
    deltas: Tensor,
    references: Tensor,
    sizes: Tensor,
    scores: Tensor,
    count: Tensor | None,
    weights: Sequence[float],
    most_growth: float,
    min_size: float,
    min_score: float,
    above: bool,
) -> tuple[Tensor, Tensor]:
    """Shapes as in cpu_decode.decode_boxes; each box by itself, in float64 -> boxes, valid.

    (dx, dy, dw, dh), divided by their weights, move a reference's center by shares of its sides and stretch these by
    e^dw and e^dh, at most e^most_growth. Source: Fast R-CNN, appendix C.
    """
    batch, num = deltas.shape[:2]
    boxes = torch.zeros(batch, num, 4, dtype=torch.float64)
    valid = torch.zeros(batch, num, dtype=torch.bool)
    for b in range(batch):
        for n in range(num):
            reference = n // (num // references.shape[1])
            for axis, limit in ((0, float(sizes[b, 1])), (1, float(sizes[b, 0]))):
                low, high = (float(references[b, reference, axis + end]) for end in (0, 2))
                shift = float(deltas[b, n, axis]) / weights[axis]
                growth = float(deltas[b, n, axis + 2]) / weights[axis + 2]
                growth = most_growth if growth > most_growth else growth
                center = (low + high) / 2 + shift * (high - low)
                half = math.exp(growth) * (high - low) / 2
                for end, value in ((0, center - half), (2, center + half)):
                    value = 0.0 if value < 0 else value
                    boxes[b, n, axis + end] = limit if value > limit else value
            large = bool((boxes[b, n, 2:] - boxes[b, n, :2] >= min_size).all())
            score = float(scores[b, n])
            valid[b, n] = large and (score > min_score if above else score >= min_score)
            if count is not None and reference >= int(count[b]):
                valid[b, n] = False
    return boxes, valid


def class_masks(
    hidden: Tensor, weight: Tensor, bias: Tensor, last_weight: Tensor, last_bias: Tensor, labels: Tensor, count: Tensor
) -> Tensor:
    """The mask of each detection's class -> float64 [N, 2h, 2w]; zeros from its image's count on, and of no class.

    ``hidden``: [N, C, h, w], N / B detections of each image; ``weight``, ``bias``: [C, D, 2, 2] and [D] of a
    deconvolution of stride 2; ``last_weight``, ``last_bias``: [K, D] and [K] of a 1 x 1 convolution after a ReLU.
    Source: torchvision/models/detection/mask_rcnn.py MaskRCNNPredictor, roi_heads.py maskrcnn_inference.
    """
    number, _, height, width = hidden.shape
    out = torch.zeros(number, 2 * height, 2 * width, dtype=torch.float64)
    hidden, weight, bias = hidden.double(), weight.double(), bias.double()
    for n, label in enumerate(labels.tolist()):
        image, row = divmod(n, number // len(count))
        if row >= count[image] or not 0 <= label < len(last_weight):
            continue
        for i in range(2):
            for j in range(2):
                up = torch.einsum("chw,cd->dhw", hidden[n], weight[:, :, i, j]) + bias[:, None, None]
                logit = torch.einsum("d,dhw->hw", last_weight[label].double(), up.clamp(min=0))
                out[n, i::2, j::2] = (logit + last_bias[label].double()).sigmoid()
    return out


def preprocess(
    images: Sequence[Tensor], sizes: Sequence[tuple[int, int]], mean: Tensor, std: Tensor, shape: tuple[int, int]
) -> Tensor:
    """Images [3, h, w] normalized, resized to ``sizes`` and padded with zeros -> float64 [len(images), 3, *shape].

    Bilinear between pixel centers, the border repeated. Source: torchvision/models/detection/transform.py.
    """
    out = torch.zeros(len(images), 3, *shape, dtype=torch.float64)
    for padded, image, (height, width) in zip(out, images, sizes, strict=True):
        scaled = image.double() / (1 if image.is_floating_point() else 255)
        normalized = (scaled - mean.double()[:, None, None]) / std.double()[:, None, None]
        for y in range(height):
            y0, y1, share_y = _resize_taps(y, image.shape[1], height)
            for x in range(width):
                x0, x1, share_x = _resize_taps(x, image.shape[2], width)
                above = (1 - share_x) * normalized[:, y0, x0] + share_x * normalized[:, y0, x1]
                below = (1 - share_x) * normalized[:, y1, x0] + share_x * normalized[:, y1, x1]
                padded[:, y, x] = (1 - share_y) * above + share_y * below
    return out


def _resize_taps(pixel: int, size: int, resized: int) -> tuple[int, int, float]:
    """The two input pixels of an output pixel along one axis, and the second one's share.

    The scale is float32's and the position is rounded to float32 once, as torch's own: float64's would lie 1e-4 pixels
    away at the far end of a large image.
    """
    if size == resized:
        return pixel, pixel, 0.0
    scale = float(torch.tensor(float(size)) / torch.tensor(float(resized)))
    position = max(float(torch.tensor(scale * (pixel + 0.5) - 0.5, dtype=torch.float32)), 0.0)
    lower = min(int(position), size - 1)
    return lower, min(lower + 1, size - 1), min(position - lower, 1.0)


def top_anchors(logits: Sequence[Tensor], number: int) -> tuple[Tensor, Tensor]:
    """Logits [B, A, H, W] of each level -> the best [B, N], at most ``number`` of each level, and their places [B, N].

    NaN first, then descending, then in the order of rows, columns and anchors; places count through all levels.
    """
    images = []
    for image in range(logits[0].shape[0]):
        chosen: list[tuple[Tensor, int]] = []
        before = 0
        for level in logits:
            values = level[image].permute(1, 2, 0).flatten()
            numbers = values.tolist()
            order = sorted(range(len(numbers)), key=lambda i, x=numbers: (x[i] == x[i], -x[i], i))  # type: ignore[misc]
            chosen += [(values[i], before + i) for i in order[:number]]
            before += len(numbers)
        images.append(chosen)
    best = [torch.stack([value for value, _ in chosen]) for chosen in images]
    return torch.stack(best), torch.tensor([[place for _, place in chosen] for chosen in images])
