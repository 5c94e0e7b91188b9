"""Reference implementations of the ops of a prepared model's layers: their specification, as in reference.py."""

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
    xform_clip: float,
    min_size: float,
    min_score: float,
    above: bool,
) -> tuple[Tensor, Tensor]:
    """Shapes as in fallback.decode.decode_boxes; each box by itself, in float64 -> boxes, valid.

    (dx, dy, dw, dh), divided by their weights, move a reference's center by shares of its sides and scale these by
    e^dw and e^dh, at most e^xform_clip. Source: Fast R-CNN, appendix C; torchvision's bbox_xform_clip.
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
                growth = xform_clip if growth > xform_clip else growth
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


def decode_levels(
    logits: Tensor,
    index: Tensor,
    lengths: Sequence[int],
    deltas: Sequence[Tensor],
    anchors: Tensor,
    sizes: Tensor,
    weights: Sequence[float],
    xform_clip: float,
    min_size: float,
    min_score: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes as in fallback.decode.decode_levels; each candidate by itself -> boxes, scores, valid.

    The anchors of all levels follow each other pixel by pixel, row by row; the channels of a level's deltas are those
    of its first anchor, then of its second. Source: torchvision/models/detection/rpn.py concat_box_prediction_layers.
    """
    batch, num = logits.shape
    chosen = torch.zeros(batch, num, 4, dtype=torch.float64)
    for b in range(batch):
        for n in range(num):
            place = int(index[b, n])
            for delta in deltas:
                each, width = delta.shape[1] // 4, delta.shape[3]
                if place < each * delta.shape[2] * width:
                    pixel, anchor = divmod(place, each)
                    row, column = divmod(pixel, width)
                    chosen[b, n] = delta[b, 4 * anchor : 4 * anchor + 4, row, column].double()
                    break
                place -= each * delta.shape[2] * width
    scores = logits.double().sigmoid()
    boxes, valid = decode_boxes(
        chosen, anchors[index], sizes, scores, None, weights, xform_clip, min_size, min_score, above=False
    )
    return boxes, scores, valid


def select_candidates(
    logits: Tensor,
    deltas: Tensor,
    references: Tensor,
    sizes: Tensor,
    count: Tensor,
    slots: int,
    weights: Sequence[float],
    xform_clip: float,
    min_size: float,
    min_score: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shapes as in fallback.decode.select_candidates; each RoI by itself, in float64 -> boxes, labels, scores, valid.

    Source: torchvision/models/detection/roi_heads.py postprocess_detections, up to its NMS.
    """
    batch, each = references.shape[:2]
    boxes = torch.zeros(batch, each, slots, 4, dtype=torch.float64)
    labels = torch.zeros(batch, each, slots, dtype=torch.int64)
    scores = torch.zeros(batch, each, slots, dtype=torch.float64)
    valid = torch.zeros(batch, each, slots, dtype=torch.bool)
    for b in range(batch):
        for p in range(int(count[b])):
            roi = b * each + p
            powers = (logits[roi].double() - logits[roi].double().max()).exp()
            share = powers / powers.sum()
            above = [label for label in range(1, logits.shape[1]) if float(share[label]) > min_score]
            for slot, label in enumerate(above[:slots]):
                box, score = references[b : b + 1, p : p + 1], share[label].view(1, 1)
                limits = (weights, xform_clip, min_size, min_score)
                found, counts = decode_boxes(
                    deltas[roi, label].view(1, 1, 4), box, sizes[b : b + 1], score, None, *limits, above=True
                )
                if bool(counts):
                    boxes[b, p, slot], labels[b, p, slot] = found[0, 0], label
                    scores[b, p, slot], valid[b, p, slot] = share[label], True
    return boxes.flatten(1, 2), labels.flatten(1), scores.flatten(1), valid.flatten(1)


def take_kept(
    kept: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shapes as in fallback.take.take_kept; each row by itself."""
    batch, num = kept.shape
    out = [boxes.new_zeros(batch, num, 4), scores.new_zeros(batch, num), kept.new_zeros(batch, num)]
    rois = boxes.new_zeros(batch, num, 5)
    for b in range(batch):
        for n, row in enumerate(kept[b].tolist()):
            rois[b, n, 0] = b
            if row >= 0:
                out[0][b, n], out[1][b, n] = boxes[b, row], scores[b, row]
                rois[b, n, 1:] = boxes[b, row]
                if labels is not None:
                    out[2][b, n] = labels[b, row]
    return out[0], out[1], kept.new_zeros(0) if labels is None else out[2], rois


def scale_boxes(boxes: Tensor, originals: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes as in fallback.take.scale_boxes; each box by itself. Source: torchvision's resize_boxes (transform.py)."""
    batch, each = boxes.shape[:2]
    scaled, own = boxes.new_zeros(boxes.shape), originals.new_zeros(batch * each, 2)
    for b in range(batch):
        height, width = (originals[b, axis].to(boxes.dtype) / sizes[b, axis].to(boxes.dtype) for axis in (0, 1))
        for d in range(each):
            own[b * each + d] = originals[b]
            for corner, ratio in enumerate((width, height, width, height)):
                scaled[b, d, corner] = boxes[b, d, corner] * ratio
    return scaled, own


def class_masks(
    hidden: Tensor, weight: Tensor, bias: Tensor, last_weight: Tensor, last_bias: Tensor, labels: Tensor, count: Tensor
) -> Tensor:
    """The mask of each detection's class -> float64 [N, 2h, 2w]; zeros from its image's count on, and without a class.

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
    """Images [C, h, w] normalized, resized to ``sizes`` and padded with zeros -> float64 [len(images), C, *shape].

    Bilinear between pixel centers, the border repeated. Source: torchvision/models/detection/transform.py.
    """
    out = torch.zeros(len(images), len(mean), *shape, dtype=torch.float64)
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


def stem_conv(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """A convolution of stride 2: images x [B, 3, H, W], weight [O, 3, k, k] -> float64 [B, O, H', W']."""
    side = weight.shape[2]
    padded = torch.nn.functional.pad(x.double(), [padding] * 4)
    rows, columns = ((size - side) // 2 + 1 for size in padded.shape[2:])
    out = torch.zeros(len(x), len(weight), rows, columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            window = padded[:, :, 2 * i : 2 * i + side, 2 * j : 2 * j + side]
            out[:, :, i, j] = torch.einsum("bcyx,ocyx->bo", window, weight.double())
    return out


def max_pool2d(x: Tensor, bias: Tensor | None, kernel_size: int, stride: int, padding: int) -> Tensor:
    """x [B, C, H, W] -> float64 [B, C, H', W'], the largest of each window, NaN before all; relu(that + bias)."""
    padded = torch.nn.functional.pad(x.double(), [padding] * 4, value=-math.inf)
    rows, columns = ((size - kernel_size) // stride + 1 for size in padded.shape[2:])
    out = torch.zeros(*x.shape[:2], rows, columns, dtype=torch.float64)
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride, j * stride
            out[:, :, i, j] = padded[:, :, top : top + kernel_size, left : left + kernel_size].amax((2, 3))
    if bias is None:
        return out
    out = out + bias.double()[:, None, None]
    return torch.where(out < 0, 0, out)


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


def decode_keypoints(heatmaps: Tensor, boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where each heatmap, resized to its box, is largest -> float64 [N, K, 3] (x, y, 1) and its values there [N, K].

    ``heatmaps``: [N, K, h, w]; ``boxes``: [N, 4]. Bicubic between pixel centers (A = -0.75, the border repeated), to
    the box's sides, at least 1, rounded up; of equal values the first in rows. Zeros where a box is not finite, or a
    side that is rounded up is above the limit. Source: torchvision/models/detection/roi_heads.py heatmaps_to_keypoints;
    R. Keys, "Cubic convolution interpolation for digital image processing", 1981.
    """
    number, points, rows, columns = heatmaps.shape
    keypoints = torch.zeros(number, points, 3, dtype=torch.float64)
    scores = torch.zeros(number, points, dtype=torch.float64)
    wide = torch.promote_types(torch.promote_types(heatmaps.dtype, boxes.dtype), torch.float32)
    for n, box in enumerate(boxes.to(wide)):
        side_x, side_y = (float((box[2 + axis] - box[axis]).clamp(min=1)) for axis in (0, 1))
        if not math.isfinite(float(box.sum())) or math.ceil(side_x) > width or math.ceil(side_y) > height:
            continue
        (near_y, weigh_y), (near_x, weigh_x) = _cubic_taps(rows, side_y), _cubic_taps(columns, side_x)
        for k in range(points):
            across = (heatmaps[n, k].double()[:, near_x] * weigh_x).sum(2)  # [h, side_x]
            resized = (across[near_y] * weigh_y[:, :, None]).sum(1)
            y, x = divmod(int(resized.argmax()), len(weigh_x))
            keypoints[n, k, 0] = float(box[0]) + (x + 0.5) * side_x / len(weigh_x)
            keypoints[n, k, 1] = float(box[1]) + (y + 0.5) * side_y / len(weigh_y)
            keypoints[n, k, 2] = 1
            scores[n, k] = resized[y, x]
    return keypoints, scores


def _cubic_taps(cells: int, side: float) -> tuple[Tensor, Tensor]:
    """The four cells of each sample's cubic convolution along a side in pixels, and their weights: [samples, 4]."""
    samples = math.ceil(side)
    near = torch.zeros(samples, 4, dtype=torch.int64)
    weights = torch.zeros(samples, 4, dtype=torch.float64)
    for i in range(samples):
        place = (i + 0.5) * cells / samples - 0.5
        for tap in range(4):
            cell = math.floor(place) - 1 + tap
            away = abs(place - cell)
            inner = 1.25 * away**3 - 2.25 * away**2 + 1
            outer = -0.75 * (away**3 - 5 * away**2 + 8 * away - 4)
            near[i, tap], weights[i, tap] = min(max(cell, 0), cells - 1), inner if away <= 1 else outer
    return near, weights
