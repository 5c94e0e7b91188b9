"""Self-test cases of the ops between the large layers, from candidates to detections."""

import torch
from torch import Tensor

from fastmask.kernels import reference_layers
from fastmask.kernels.decode import decode_levels_op, select_candidates_op
from fastmask.kernels.take import scale_boxes_op, take_kept_op
from fastmask.selftest.inputs import INF, NAN, adversarial_boxes, draw_boxes
from fastmask.selftest.op_case import OpCase, check_close, count_of

SIZES = [[200, 300], [150, 90]]
LEVEL_SHAPES = ((13, 19), (7, 10))
ANCHORS, CLASSES, SLOTS = 3, 7, 2  # one slot less than there can be classes above the threshold
LEVEL_SETTINGS = ([1.0, 1.0, 1.0, 1.0], 4.0, 1e-3, 0.3)  # weights, most growth, least side, least score
CLASS_SETTINGS = ([10.0, 10.0, 5.0, 5.0], 4.0, 1e-2, 0.25)
LENGTHS = [70, 40]  # candidates of each level
BOX_TOLERANCE = 0.05  # pixels, of boxes of up to 1e4
SCORE_TOLERANCE = 1e-5


def list_candidate_cases() -> list[OpCase]:
    """All of them; draws come from torch's own generator."""
    return [
        OpCase("RPN candidates", "decode_levels", draw_levels, decode_levels, check_levels),
        OpCase("box head candidates", "select_candidates", draw_classes, select_candidates, check_classes),
        OpCase("rows NMS keeps", "take_kept", draw_kept, take_kept, check_kept),
        OpCase("boxes scaled", "scale_boxes", draw_detections, scale_boxes, check_scaled),
    ]


def draw_levels(dtype: torch.dtype, kind: str) -> list[Tensor]:
    """Logits, their places, all anchors, image sizes, and the deltas of two levels, channels last."""
    batch, first, second = count_of(kind, 2), *(ANCHORS * height * width for height, width in LEVEL_SHAPES)
    places = [torch.randint(first, (batch, LENGTHS[0])), first + torch.randint(second, (batch, LENGTHS[1]))]
    places[1][:, -1:] = first + second - 1
    anchors = draw_boxes(first + second)
    deltas = [torch.randn(batch, 4 * ANCHORS, *shape) for shape in LEVEL_SHAPES]
    if kind == "adversarial":
        anchors[: len(adversarial_boxes())] = adversarial_boxes()
        for values, start in zip((NAN, INF, -INF), (0, 5, 11), strict=True):
            deltas[0].view(-1)[start::17] = values
    last = [level.to(dtype).contiguous(memory_format=torch.channels_last) for level in deltas]
    logits = (2 * torch.randn(batch, sum(LENGTHS))).to(dtype)
    return [logits, torch.cat(places, 1), anchors, torch.tensor(SIZES[:batch]).view(-1, 2), *last]


def decode_levels(logits: Tensor, index: Tensor, anchors: Tensor, sizes: Tensor, *deltas: Tensor) -> list[Tensor]:
    return list(decode_levels_op(logits, index, LENGTHS, list(deltas), anchors, sizes, *LEVEL_SETTINGS))


def check_levels(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    """Boxes that are numbers, and which count, but for those whose sides or scores are near the least."""
    logits, index, anchors, sizes, *deltas = inputs
    boxes, scores, valid = reference_layers.decode_levels(
        logits, index, LENGTHS, deltas, anchors, sizes, *LEVEL_SETTINGS
    )
    check_close(outputs[1], scores, SCORE_TOLERANCE)
    usual = (anchors[index].abs() < 1e4).all(2) & boxes.isfinite().all(2)
    check_close(outputs[0].where(usual[..., None], 0), boxes.where(usual[..., None], 0), 0, BOX_TOLERANCE)
    sure = usual & is_sure(boxes, LEVEL_SETTINGS[2]) & ((scores - LEVEL_SETTINGS[3]).abs() > SCORE_TOLERANCE)
    check_close(outputs[2] & sure, valid & sure, 0)


def is_sure(boxes: Tensor, min_size: float) -> Tensor:
    """Boxes [..., 4] none of whose sides is so near the least that rounding decides."""
    return ((boxes[..., 2:] - boxes[..., :2] - min_size).abs() > 2 * BOX_TOLERANCE).all(-1)


def draw_classes(dtype: torch.dtype, kind: str) -> list[Tensor]:
    """Logits, deltas, RoIs, image sizes and how many RoIs of each image count; views of rows as a fused model's."""
    num = count_of(kind, 40)
    rows = torch.randn(2 * num, 5 * CLASSES + 5) * torch.tensor([1.0] * 4 * CLASSES + [1.5] * (CLASSES + 5))
    boxes = torch.stack([draw_boxes(num), draw_boxes(num)])
    if kind == "adversarial":
        boxes[:, : len(adversarial_boxes())] = adversarial_boxes()
        rows[::7, 4 * CLASSES + 2], rows[1::7, 4 * CLASSES] = NAN, -INF
        rows[2::7, 3], rows[3::7, 8], rows[4::7, 4 * CLASSES + 1] = NAN, INF, INF
    rows = rows.to(dtype)
    deltas, logits = rows[:, : 4 * CLASSES].unflatten(1, (-1, 4)), rows[:, 4 * CLASSES : 5 * CLASSES]
    return [logits, deltas, boxes, torch.tensor(SIZES), torch.tensor([num, num // 2])]


def select_candidates(logits: Tensor, deltas: Tensor, boxes: Tensor, sizes: Tensor, count: Tensor) -> list[Tensor]:
    return list(select_candidates_op(logits, deltas, boxes, sizes, count, SLOTS, *CLASS_SETTINGS))


def check_classes(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    """All but RoIs with a score near the threshold, boxes that are no numbers, and sides that are near the least."""
    logits, deltas, references, sizes, count = inputs
    boxes, labels, scores, valid = reference_layers.select_candidates(
        logits, deltas, references, sizes, count, SLOTS, *CLASS_SETTINGS
    )
    shares = logits.double().softmax(1)
    sure = ((shares - CLASS_SETTINGS[3]).abs() > SCORE_TOLERANCE).all(1).view(references.shape[:2])
    sure = sure & (references.abs() < 1e4).all(2)
    each = deltas.reshape(len(references), references.shape[1] * CLASSES, 4)
    decoded, _ = reference_layers.decode_boxes(
        each, references, sizes, shares.view(each.shape[:2]), count, *CLASS_SETTINGS, True
    )
    clear = is_sure(decoded, CLASS_SETTINGS[2]) & decoded.isfinite().all(2)
    sure = (sure & clear.view(*sure.shape, CLASSES).all(2)).repeat_interleave(SLOTS, dim=1)
    assert torch.equal(outputs[3] & sure, valid & sure)
    assert torch.equal(outputs[1].where(sure, 0), labels.where(sure, 0))
    check_close(outputs[2].where(sure, 0), scores.where(sure, 0), SCORE_TOLERANCE)
    check_close(outputs[0].where(sure[..., None], 0), boxes.where(sure[..., None], 0), 0, BOX_TOLERANCE)
    empty = ~outputs[3]
    assert not outputs[0][empty].any()
    assert not outputs[1][empty].any()
    assert not outputs[2][empty].any()


def draw_kept(dtype: torch.dtype, kind: str) -> list[Tensor]:
    """Rows kept, fewer of the second image; boxes, scores and labels."""
    num = count_of(kind, 50)
    kept = torch.stack([torch.randperm(num), torch.randperm(num)])[:, :30]
    kept[1, num // 4 :] = -1
    boxes = torch.stack([draw_boxes(num), draw_boxes(num)])
    if kind == "adversarial":
        boxes[:, : len(adversarial_boxes())] = adversarial_boxes()
    return [kept, boxes.to(dtype), torch.rand(2, num).to(dtype), torch.randint(1, 99, (2, num))]


def take_kept(kept: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor) -> list[Tensor]:
    return [*take_kept_op(kept, boxes, scores, labels), *take_kept_op(kept, boxes, scores, None)]


def check_kept(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    """Bit for bit."""
    kept, boxes, scores, labels = inputs
    expected = [
        *reference_layers.take_kept(kept, boxes, scores, labels),
        *reference_layers.take_kept(kept, boxes, scores, None),
    ]
    for actual, values in zip(outputs, expected, strict=True):
        check_close(actual, values, 0)


def draw_detections(dtype: torch.dtype, kind: str) -> list[Tensor]:
    """Boxes of two images, and the images' sizes before and after they were resized."""
    num = count_of(kind, 50)
    boxes = torch.stack([draw_boxes(num), draw_boxes(num)])
    if kind == "adversarial":
        boxes[:, : len(adversarial_boxes())] = adversarial_boxes()
    return [boxes.to(dtype), torch.tensor([[427, 640], [999, 601]]), torch.tensor(SIZES)]


def scale_boxes(boxes: Tensor, originals: Tensor, sizes: Tensor) -> list[Tensor]:
    return list(scale_boxes_op(boxes, originals, sizes))


def check_scaled(inputs: list[Tensor], outputs: list[Tensor]) -> None:
    """Bit for bit in float32; of half types, to a rounding of the quotient."""
    expected = reference_layers.scale_boxes(*inputs)  # type: ignore[call-arg]
    check_close(outputs[0], expected[0], 0 if inputs[0].dtype in (torch.float32, torch.float64) else 1e-2)
    check_close(outputs[1], expected[1], 0)
