"""Self-test cases of the ops of a prepared model's layers."""

import math

import torch
from torch import Tensor

from fastmask.kernels import reference_layers
from fastmask.kernels.bias_act import bias_act_op
from fastmask.kernels.class_masks import class_masks_op
from fastmask.kernels.decode import decode_boxes_op
from fastmask.kernels.fallback import stem as stem_fallback
from fastmask.kernels.keypoints import decode_keypoints_op
from fastmask.kernels.linear_add_relu import linear_add_relu_op
from fastmask.kernels.max_pool2d import max_pool2d_op
from fastmask.kernels.predict_anchors import predict_anchors_op
from fastmask.kernels.preprocess import preprocess_op
from fastmask.kernels.stem_conv import stem_conv_op
from fastmask.kernels.top_anchors import top_anchors_op
from fastmask.selftest.inputs import INF, NAN, adversarial_boxes, draw_boxes
from fastmask.selftest.op_case import OpCase, check_close, count_of, fill_like

CHANNELS, OUTPUTS, ANCHORS, CLASSES = 256, 128, 3, 5
# sums of unit size, in float32 and rounded once
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SIZES = [[200, 300], [150, 90]]
BOX_SETTINGS = ([10.0, 10.0, 5.0, 5.0], math.log(1000 / 16), 1e-2, 0.25, True)  # a box head's
BOX_TOLERANCE = {torch.float64: 1e-9, torch.float32: 0.05}  # pixels, of boxes of up to 1e4
IMAGE = (48, 64)  # padded
RESIZED = [(40, 61), (48, 33)]


def list_layer_cases() -> list[OpCase]:
    """All of them; draws come from torch's own generator."""
    return [
        OpCase("preprocessing", "preprocess", _draw_images, _preprocess, _check_preprocess),
        OpCase("stem's convolution", "stem_conv", _draw_pixels, _stem, _check_stem),
        OpCase("max pooling", "max_pool2d", _draw_map, _max_pool, _check_max_pool),
        OpCase("convolution's epilogue", "bias_act_", _draw_sum, _add, _check_add),
        OpCase("bottleneck's end", "linear_add_relu", _draw_product, _multiply, _check_multiply),
        OpCase("RPN head", "predict_anchors", _draw_hidden, _predict_anchors, _check_predict_anchors),
        OpCase("best anchors", "top_anchors", _draw_logits, _choose, _check_choice),
        OpCase("decoded boxes", "decode_boxes", _draw_deltas, _decode, _check_decode),
        OpCase("keypoints in heatmaps", "decode_keypoints", _draw_heatmaps, _decode_keypoints, _check_keypoints),
        OpCase("mask branch's end", "class_masks", _draw_masks, _class_masks, _check_class_masks),
    ]


def _draw(*shape: int, dtype: torch.dtype, kind: str = "ordinary") -> Tensor:
    values = torch.randn(shape)
    if kind == "adversarial" and values.numel():
        places = torch.randint(values.numel(), (3,))
        values.view(-1)[places] = torch.tensor([NAN, INF, -INF])
    return values.to(dtype)


def _draw_images(dtype: torch.dtype, kind: str) -> list[Tensor]:
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in ((70, 107), (32, 22))]
    if kind == "adversarial":
        images = [_draw(3, 33, 51, dtype=torch.float32, kind=kind), torch.rand(3, 1, 1)]
    return [torch.zeros((), dtype=dtype), *images[: count_of(kind, 2)]]


def _preprocess(like: Tensor, *images: Tensor) -> list[Tensor]:
    mean, std = (fill_like(values, like) for values in ([0.48, 0.46, 0.41], [0.23, 0.22, 0.22]))
    pixels = like.new_full((2, 3, *IMAGE), NAN).contiguous(memory_format=torch.channels_last)
    heights, widths = ([size[axis] for size in RESIZED[: len(images)]] for axis in (0, 1))
    preprocess_op(images, heights, widths, mean, std, pixels)
    return [pixels]


def _check_preprocess(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    like, *images = inputs
    mean, std = torch.tensor([0.48, 0.46, 0.41]), torch.tensor([0.23, 0.22, 0.22])
    expected = reference_layers.preprocess(images, RESIZED[: len(images)], mean, std, IMAGE)
    expected = torch.cat([expected, expected.new_zeros(2 - len(images), 3, *IMAGE)])
    tolerance = max(TOLERANCE[like.dtype], 1e-5)  # the image itself counts in float32
    check_close(outputs[0], expected, tolerance)


def _draw_pixels(dtype: torch.dtype, kind: str) -> list[Tensor]:
    """Images with a fourth channel that does not count, and a weight."""
    pixels = _draw(count_of(kind, 2), 4, 38, 70, dtype=dtype)
    pixels[:, 3] = NAN
    return [pixels.contiguous(memory_format=torch.channels_last), _draw(64, 3, 7, 7, dtype=dtype) / 12]


def _stem(pixels: Tensor, weight: Tensor) -> list[Tensor]:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # which has ten bits
        return [stem_conv_op(pixels[:, :3], stem_fallback.arrange_weight(weight, 3), 3)]


def _check_stem(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    pixels, weight = inputs
    check_close(outputs[0], reference_layers.stem_conv(pixels[:, :3], weight, 3), TOLERANCE[pixels.dtype])


def _draw_map(dtype: torch.dtype, kind: str) -> list[Tensor]:
    """Draw a convolution's output, and the bias behind the pooling."""
    x = _draw(count_of(kind, 2), 64, 13, 30, dtype=dtype, kind=kind).contiguous(memory_format=torch.channels_last)
    return [x, _draw(64, dtype=dtype)]


def _max_pool(x: Tensor, bias: Tensor) -> list[Tensor]:
    return [max_pool2d_op(x, None, 1, 2, 0), max_pool2d_op(x, bias, 3, 2, 1)]


def _check_max_pool(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    x, bias = inputs
    check_close(outputs[0], reference_layers.max_pool2d(x, None, 1, 2, 0), 0)
    check_close(outputs[1], reference_layers.max_pool2d(x, bias, 3, 2, 1), TOLERANCE[x.dtype])


def _draw_sum(dtype: torch.dtype, kind: str) -> list[Tensor]:
    """Draw a convolution's output, bias, and a coarser map as an FPN adds it."""
    batch = count_of(kind, 2)
    y = _draw(batch, CHANNELS, 26, 19, dtype=dtype, kind=kind).contiguous(memory_format=torch.channels_last)
    return [y, _draw(CHANNELS, dtype=dtype), _draw(batch, CHANNELS, 13, 10, dtype=dtype)]


def _add(y: Tensor, bias: Tensor, residual: Tensor) -> list[Tensor]:
    alone, both = y.clone(), y.clone()
    bias_act_op(alone, bias, None, True)
    bias_act_op(both, bias, residual, False)
    return [alone, both]


def _check_add(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    y, bias, residual = inputs
    check_close(outputs[0], reference_layers.bias_act(y, bias, None, True), TOLERANCE[y.dtype])
    check_close(outputs[1], reference_layers.bias_act(y, bias, residual, False), TOLERANCE[y.dtype])


def _draw_product(dtype: torch.dtype, kind: str) -> list[Tensor]:
    pixels = count_of(kind, 300)
    weight = (torch.randn(OUTPUTS, CHANNELS) / CHANNELS**0.5).to(dtype)
    x, residual = (_draw(pixels, number, dtype=dtype, kind=kind) for number in (CHANNELS, OUTPUTS))
    return [x, weight, _draw(OUTPUTS, dtype=dtype), residual]


def _multiply(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> list[Tensor]:
    return [linear_add_relu_op(x, weight, bias, residual)]


def _check_multiply(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    x, weight, bias, residual = (values.double() for values in inputs)
    sums = x @ weight.t() + bias + residual
    check_close(outputs[0], torch.where(sums < 0, 0, sums), TOLERANCE[inputs[0].dtype])


def _draw_hidden(dtype: torch.dtype, kind: str) -> list[Tensor]:
    """Maps of two levels, weights and biases of both convolutions."""
    batch = count_of(kind, 2)
    maps = [_draw(batch, CHANNELS, *size, dtype=dtype, kind=kind) for size in ((25, 38), (13, 19))]
    weight = (torch.randn(5 * ANCHORS, CHANNELS) / CHANNELS**0.5).to(dtype)
    last = [feature.contiguous(memory_format=torch.channels_last) for feature in maps]
    return [*last, _draw(CHANNELS, dtype=dtype), weight, _draw(5 * ANCHORS, dtype=dtype)]


def _predict_anchors(first: Tensor, second: Tensor, hidden_bias: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    return list(predict_anchors_op([first, second], hidden_bias, weight, bias, ANCHORS))


def _check_predict_anchors(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    *maps, hidden_bias, weight, bias = inputs
    rows = []
    for feature in maps:
        hidden = reference_layers.bias_act(feature, hidden_bias, None, True).to(feature.dtype)
        rows.append(hidden.permute(0, 2, 3, 1).flatten(0, 2).double() @ weight.double().t() + bias.double())
    expected = torch.cat(rows).split([ANCHORS, 4 * ANCHORS], dim=1)
    for actual, values in zip(outputs, expected, strict=True):
        check_close(actual, values, TOLERANCE[weight.dtype])


def _draw_logits(dtype: torch.dtype, kind: str) -> list[Tensor]:
    """Draw logits of two levels, channels-last, many of them equal."""
    batch = count_of(kind, 2)
    maps = [_draw(batch, ANCHORS, *size, dtype=dtype, kind=kind) * 8 for size in ((50, 75), (13, 19))]
    return [feature.round().contiguous(memory_format=torch.channels_last) for feature in maps]


def _choose(first: Tensor, second: Tensor) -> list[Tensor]:
    return list(top_anchors_op([first, second], 500))


def _check_choice(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    if inputs[0].shape[0] > 0:
        for actual, expected in zip(outputs, reference_layers.top_anchors(inputs, 500), strict=True):
            check_close(actual, expected, 0)


def _draw_deltas(dtype: torch.dtype, kind: str) -> list[Tensor]:
    """Three candidates of each reference, scores of which some lie on the threshold, and how many references count."""
    num = count_of(kind, 40)
    boxes = torch.stack([draw_boxes(num), draw_boxes(num)])
    if kind == "adversarial":
        adversarial = adversarial_boxes()
        boxes[:, : len(adversarial)] = adversarial
    deltas = _draw(2, 3 * num, 4, dtype=dtype, kind=kind)
    scores = (torch.rand(2, 3 * num) * 8).round() / 8
    return [deltas, boxes, torch.tensor(SIZES), scores, torch.tensor([num, num // 2])]


def _decode(deltas: Tensor, boxes: Tensor, sizes: Tensor, scores: Tensor, count: Tensor) -> list[Tensor]:
    return list(decode_boxes_op(deltas, boxes, sizes, scores, count, *BOX_SETTINGS))


def _check_decode(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    """Boxes that are numbers, and which count, but for those whose sides are near the least."""
    deltas, references, sizes, scores, count = inputs
    expected, valid = reference_layers.decode_boxes(deltas, references, sizes, scores, count, *BOX_SETTINGS)
    tolerance = BOX_TOLERANCE[outputs[0].dtype]
    usual = (references.abs() < 1e4).all(2).repeat_interleave(3, dim=1) & expected.isfinite().all(2)
    check_close(outputs[0].where(usual[..., None], 0), expected.where(usual[..., None], 0), 0, tolerance)
    sides = expected[..., 2:] - expected[..., :2]
    sure = usual & ((sides - BOX_SETTINGS[2]).abs() > 2 * tolerance).all(2)
    check_close(outputs[1] & sure, valid & sure, 0)


def _draw_masks(dtype: torch.dtype, kind: str) -> list[Tensor]:
    """Hidden maps, both layers' weights and biases, labels, and how many detections of each image count."""
    num = 2 * count_of(kind, 4)
    hidden = _draw(num, CHANNELS, 14, 14, dtype=dtype, kind=kind).contiguous(memory_format=torch.channels_last)
    weight, last = torch.randn(CHANNELS, OUTPUTS, 2, 2) / CHANNELS**0.5, torch.randn(CLASSES, OUTPUTS) / OUTPUTS**0.5
    biases = [_draw(number, dtype=dtype) for number in (OUTPUTS, CLASSES)]
    labels = torch.randint(CLASSES, (num,))
    if kind == "adversarial":
        labels[:2] = torch.tensor([-1, CLASSES])
    return [hidden, weight.to(dtype), biases[0], last.to(dtype), biases[1], labels, torch.tensor([num // 2, num // 4])]


def _class_masks(*inputs: Tensor) -> list[Tensor]:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # which has ten bits
        return [class_masks_op(*inputs)]


def _check_class_masks(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    check_close(outputs[0], reference_layers.class_masks(*inputs), TOLERANCE[inputs[0].dtype])  # type: ignore[call-arg,arg-type]


def _draw_heatmaps(dtype: torch.dtype, kind: str) -> list[Tensor]:
    """Heatmaps with a peak, and boxes of up to 60 pixels; the adversarial ones are no boxes, too."""
    num = count_of(kind, 4)
    heatmaps, low = _draw(num, 2, 14, 14, dtype=torch.float32, kind=kind), torch.rand(num, 2) * 20
    heatmaps[:, :, 5, 9] += 12
    boxes = torch.cat((low, low + 60 * torch.rand(num, 2)), 1)
    if kind == "adversarial":
        boxes[0, 2], boxes[1, 2:] = NAN, low[1] - 9
    return [heatmaps.to(dtype), boxes]


def _decode_keypoints(*inputs: Tensor) -> list[Tensor]:
    return [*decode_keypoints_op(*inputs, 100, 100)]


def _check_keypoints(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    keypoints, scores = reference_layers.decode_keypoints(inputs[0], inputs[1], 100, 100)
    check_close(outputs[1], scores, 1e-4)
    check_close(outputs[0], keypoints, 1e-4)
