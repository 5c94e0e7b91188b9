"""Losses by name: literal formulas in float64 with their gradients, degenerate boxes, programs of lists and tensors."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers.inputs import draw_boxes
from helpers.training import draw_batch, train_pair
from torch import Tensor, nn

from fastmask.models.detection import roi_heads
from fastmask.models.detection._named_losses import box_error, mask_error, objectness_error
from fastmask.models.detection._utils import BoxCoder
from fastmask.variants import CHOICES

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
ON_BOXES = ("giou", "diou", "ciou")


def literal_deltas(box: list[float], gt: list[float]) -> list[float]:
    (x1, y1, x2, y2), (gx1, gy1, gx2, gy2) = box, gt
    w, h, gw, gh = x2 - x1, y2 - y1, gx2 - gx1, gy2 - gy1
    shift = [10 * ((gx1 + gw / 2) - (x1 + w / 2)) / w, 10 * ((gy1 + gh / 2) - (y1 + h / 2)) / h]
    return [*shift, 5 * math.log(gw / w), 5 * math.log(gh / h)]


def literal_box(delta: Tensor, box: list[float]) -> list[Tensor]:
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    x, y = x1 + w / 2 + delta[0] / 10 * w, y1 + h / 2 + delta[1] / 10 * h
    new_w, new_h = w * torch.exp(delta[2] / 5), h * torch.exp(delta[3] / 5)
    return [x - new_w / 2, y - new_h / 2, x + new_w / 2, y + new_h / 2]


def literal_iou_loss(name: str, ours: list[Tensor], gt: list[float]) -> Tensor:
    eps = 1e-7
    wanted = [ours[0].new_tensor(value) for value in gt]
    across, down = (torch.minimum(ours[i + 2], wanted[i + 2]) - torch.maximum(ours[i], wanted[i]) for i in (0, 1))
    inter = across * down if across > 0 and down > 0 else 0 * across
    sides = [(box[2] - box[0], box[3] - box[1]) for box in (ours, wanted)]
    union = sides[0][0] * sides[0][1] + sides[1][0] * sides[1][1] - inter
    iou = inter / (union + eps)
    hull = [torch.maximum(ours[i + 2], wanted[i + 2]) - torch.minimum(ours[i], wanted[i]) for i in (0, 1)]
    if name == "giou":
        return 1 - iou + (hull[0] * hull[1] - union) / (hull[0] * hull[1] + eps)
    apart = sum(((ours[i] + ours[i + 2]) / 2 - (wanted[i] + wanted[i + 2]) / 2) ** 2 for i in (0, 1))
    loss = 1 - iou + apart / (hull[0] ** 2 + hull[1] ** 2 + eps)
    if name == "diou":
        return loss
    v = 4 / math.pi**2 * (torch.atan(sides[1][0] / sides[1][1]) - torch.atan(sides[0][0] / sides[0][1])) ** 2
    return loss + (v / (1 - iou + v + eps)).detach() * v


def literal_box_loss(name: str, deltas: Tensor, boxes: Tensor, gt: Tensor, positive: Tensor, area: Tensor) -> Tensor:
    total = deltas.sum() * 0
    for delta, box, other, counts, pixels in zip(deltas, boxes.tolist(), gt.tolist(), positive, area, strict=True):
        if not counts:
            continue
        if name in ON_BOXES:
            total = total + literal_iou_loss(name, literal_box(delta, box), other)
            continue
        weight = 1.0
        if name == "weighted_smooth_l1":
            weight = 2 - min((other[2] - other[0]) * (other[3] - other[1]) / float(pixels), 1)
        for value, wanted in zip(delta, literal_deltas(box, other), strict=True):
            error = (value - wanted).abs()
            smooth = error**2 / 2 * 9 if error < 1 / 9 else error - 1 / 18
            total = total + weight * (error if name == "l1" else smooth)
    return total


@pytest.mark.parametrize("name", CHOICES["box_loss"])
def test_box_losses_are_literal(name: str) -> None:
    """Boxes that overlap and that do not; every second row does not count."""
    boxes, gt = draw_boxes(12).double(), draw_boxes(12).double()
    gt[:6] = boxes[:6] + torch.rand(6, 4)
    deltas = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    positive, area = torch.arange(12) % 2 == 0, torch.full((12,), 9000.0, dtype=torch.float64)
    results = []
    for compute in (
        lambda: box_error(name, BoxCoder(WEIGHTS), deltas, boxes, gt, positive, area),
        lambda: literal_box_loss(name, deltas, boxes, gt, positive, area),
    ):
        loss = compute()
        results.append((loss.detach(), *torch.autograd.grad(loss, deltas)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)
    assert bool((results[0][1].abs().sum(1) > 0).eq(positive).all())


@pytest.mark.parametrize("name", CHOICES["box_loss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_degenerate_boxes_are_finite(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Of tiny, of no and of huge predictions; on decoded boxes also of references without area. And of no row."""
    boxes = torch.tensor([[0.0, 0, 800, 600], [700, 500, 701, 501], [10, 10, 30, 30], [0, 0, 1e-3, 40]], device=device)
    gt = boxes.flip(0).clone()
    if name in ON_BOXES:
        boxes, gt = torch.cat((boxes, boxes, gt * 0)), torch.cat((gt, gt * 0, boxes))
    boxes, gt = boxes.repeat(5, 1), gt.repeat(5, 1)
    scales = torch.tensor([0.0, 1, 20, 400, -1000], device=device).repeat_interleave(len(boxes) // 5)
    deltas = (torch.tensor([0.1, -0.1, 1, -1], device=device) * scales[:, None]).to(dtype).requires_grad_()
    area = torch.full_like(scales, 480_000.0)
    for every in (torch.ones_like(scales, dtype=torch.bool), torch.zeros_like(scales, dtype=torch.bool)):
        loss = box_error(name, BoxCoder(WEIGHTS), deltas, boxes, gt, every, area)
        (grad,) = torch.autograd.grad(loss, deltas)
        assert loss.isfinite()
        assert grad.isfinite().all()
    assert loss == 0
    assert box_error(name, BoxCoder(WEIGHTS), deltas[:0], boxes[:0], gt[:0], every[:0], area[:0]) == 0


def literal_objectness(name: str, logit: Tensor, wanted: float) -> Tensor:
    p = 1 / (1 + torch.exp(-logit))
    p_true, alpha = (p, 0.25) if wanted else (1 - p, 0.75)
    return -torch.log(p_true) * (1 if name == "bce" else alpha * (1 - p_true) ** 2)


def literal_mask(name: str, logits: Tensor, wanted: Tensor) -> Tensor:
    p = 1 / (1 + torch.exp(-logits))
    entropy = dice = overlap = total = 0.0
    for row, share in zip(p, wanted, strict=True):
        for q, g in zip(row, share, strict=True):
            entropy = entropy - (g * torch.log(q) + (1 - g) * torch.log(1 - q))
            overlap, total = overlap + q * g, total + q**2 + g**2
    entropy, dice = entropy / logits.numel(), 1 - (2 * overlap + 1) / (total + 1)
    return {"bce": entropy, "dice": dice, "bce_dice": entropy + dice}[name]


def check_gradients(compute: Callable[[Tensor], Tensor], literal: Callable[[Tensor], Tensor], logits: Tensor) -> None:
    results = []
    for function in (compute, literal):
        loss = function(logits)
        results.append((loss.detach(), *torch.autograd.grad(loss.sum(), logits)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_objectness_and_masks_are_literal() -> None:
    logits = (3 * torch.randn(10, dtype=torch.float64)).requires_grad_()
    wanted = torch.arange(10) % 3 == 0
    for name in CHOICES["rpn_loss"]:
        literal = lambda x, name=name: torch.stack(  # noqa: E731
            [literal_objectness(name, each, bool(w)) for each, w in zip(x, wanted, strict=True)]
        )
        check_gradients(lambda x, name=name: objectness_error(name, x, wanted), literal, logits)
    masks = (2 * torch.randn(3, 4, 4, dtype=torch.float64)).requires_grad_()
    shares = torch.rand(3, 4, 4, dtype=torch.float64)
    shares[1] = 0
    for name in CHOICES["mask_loss"]:
        literal = lambda x, name=name: torch.stack(  # noqa: E731
            [literal_mask(name, each, share) for each, share in zip(x, shares, strict=True)]
        )
        check_gradients(lambda x, name=name: mask_error(name, x, shares), literal, masks)


@pytest.mark.parametrize("extreme", [-1e4, 1e4])
def test_sure_logits_are_finite(extreme: float) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.full((2, 3, 3), extreme, dtype=dtype, requires_grad=True)
        wanted = torch.stack((torch.zeros(3, 3), torch.ones(3, 3))).to(dtype)
        losses = [mask_error(name, logits, wanted).sum() for name in CHOICES["mask_loss"]]
        losses += [objectness_error(name, logits, wanted).sum() for name in CHOICES["rpn_loss"]]
        for loss in losses:
            assert loss.isfinite()
            assert torch.autograd.grad(loss, logits)[0].isfinite().all()
        assert mask_error("dice", logits[:0], wanted[:0]).shape == (0,)


class Heads(roi_heads.RoIHeads):
    """Of a user, who calls the methods on lists."""

    def forward(self, *args: object) -> object:
        return super().forward(*args)


def name_losses(model: nn.Module, rpn_loss: str, box_loss: str, mask_loss: str) -> None:
    model.rpn.rpn_loss, model.roi_heads.box_loss, model.roi_heads.mask_loss = rpn_loss, box_loss, mask_loss


def test_models_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients are torchvision's with its functions exchanged, of one program and of the methods on lists.

    A loss that torchvision's arguments do not suffice for is the same in both programs, and has gradients.
    """
    theirs, ours = train_pair()
    images, targets = draw_batch(empty=True)
    detection = torchvision.models.detection

    class Dice(F.__class__):
        cross_entropy = staticmethod(F.cross_entropy)

        @staticmethod
        def smooth_l1_loss(deltas: Tensor, wanted: Tensor, **_: object) -> Tensor:
            return (deltas - wanted).abs().sum()

        @staticmethod
        def binary_cross_entropy_with_logits(logits: Tensor, wanted: Tensor) -> Tensor:
            return mask_error("dice", logits, wanted).mean()  # which is literal, see above

    class Focal(F.__class__):
        smooth_l1_loss = staticmethod(F.smooth_l1_loss)

        @staticmethod
        def binary_cross_entropy_with_logits(logits: Tensor, labels: Tensor) -> Tensor:
            return torchvision.ops.sigmoid_focal_loss(logits, labels, reduction="mean")

    with monkeypatch.context() as patch:
        patch.setattr(detection.roi_heads, "F", Dice("F"))
        patch.setattr(detection.rpn, "F", Focal("F"))
        expected = theirs(images, targets)
    sum(expected.values()).backward()
    wanted = dict(theirs.named_parameters())
    for kind in (roi_heads.RoIHeads, Heads):
        ours.roi_heads.__class__ = kind
        ours.zero_grad()
        name_losses(ours, "focal", "l1", "dice")
        actual = ours(images, targets)
        torch.testing.assert_close(dict(actual), dict(expected), rtol=1e-9, atol=1e-9)
        sum(actual.values()).backward()
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-7, atol=1e-7)
    for box_loss, mask_loss in (("weighted_smooth_l1", "bce_dice"), ("ciou", "bce")):
        name_losses(ours, "focal", box_loss, mask_loss)
        losses = []
        for kind in (roi_heads.RoIHeads, Heads):
            ours.roi_heads.__class__ = kind
            with torch.no_grad():
                losses.append(dict(ours(images, targets)))
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=1e-9)
        assert (losses[0]["loss_box_reg"] - expected["loss_box_reg"].detach()).abs() > 1e-6


def test_a_replaced_function_must_take_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of torchvision's signature is honored as long as the losses are; no other loss is dropped silently."""
    _, ours = train_pair()
    original = roi_heads.maskrcnn_loss
    monkeypatch.setattr(roi_heads, "maskrcnn_loss", lambda a, b, c, d, e: 7 * original(a, b, c, d, e))
    losses = ours(*draw_batch())
    assert losses["loss_mask"] > 0
    ours.roi_heads.mask_loss = "dice"
    with pytest.raises(TypeError, match="mask_loss"):
        ours(*draw_batch())


def test_they_compile_under_autocast() -> None:
    """As one graph, and with the same values as without."""
    torch._dynamo.reset()
    boxes, gt = draw_boxes(6), draw_boxes(6)
    deltas, logits = torch.randn(6, 4).bfloat16(), torch.randn(6, 3, 3).bfloat16()

    def compute(deltas: Tensor, logits: Tensor) -> list[Tensor]:
        area, every = torch.full((6,), 1e4), torch.ones(6, dtype=torch.bool)
        rows = (deltas, boxes, gt, every, area)
        losses = [box_error(name, BoxCoder(WEIGHTS), *rows) for name in CHOICES["box_loss"]]
        losses += [objectness_error(name, logits, logits > 0) for name in CHOICES["rpn_loss"]]
        return losses + [mask_error(name, logits, logits.sigmoid()) for name in CHOICES["mask_loss"]]

    with torch.autocast("cpu", torch.bfloat16):
        expected = compute(deltas, logits)
        actual = torch.compile(compute, fullgraph=True, backend="eager")(deltas, logits)
    assert all(loss.isfinite().all() for loss in expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
