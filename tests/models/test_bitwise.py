"""Fused decoding and selection are bitwise equal to the step-by-step formulas, which are written out here."""

import math

import pytest
import torch
from helpers.inputs import INF, draw_boxes
from helpers.slim import NUM_CLASSES, slim_model
from torch import Tensor

import fastmask
from fastmask.inference.program import Inputs, Program, split_fields
from fastmask.kernels import reference_layers
from fastmask.models.detection import _rpn_stages as rpn, _utils
from fastmask.models.detection.roi_heads import RoIHeads
from fastmask.models.detection.rpn import RegionProposalNetwork
from fastmask.ops import nms_padded
from fastmask.structures import Candidates, Detections, Proposals, RPNOutputs

SIZES = torch.tensor([[200, 300], [150, 90]])
SHAPES = [(40, 64), (20, 32), (10, 16), (5, 8), (3, 4)]
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


def upcast(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def decode(deltas: Tensor, boxes: Tensor, weights: tuple[float, ...]) -> Tensor:
    deltas = upcast(deltas)
    boxes = boxes.to(deltas.dtype)
    wx, wy, ww, wh = weights
    size = boxes[..., 2:] - boxes[..., :2]
    center = boxes[..., :2] + 0.5 * size
    shift = torch.stack((deltas[..., 0] / wx, deltas[..., 1] / wy), dim=-1)
    growth = torch.stack((deltas[..., 2] / ww, deltas[..., 3] / wh), dim=-1).clamp(max=_utils.LOG_RATIO_CLIP)
    center = shift * size + center
    half = 0.5 * (torch.exp(growth) * size)
    return torch.cat((center - half, center + half), dim=-1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    limit = sizes.flip(1).repeat(1, 2).to(boxes.dtype)
    limit = limit.view(limit.shape[0], *[1] * (boxes.ndim - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limit)


def take(values: Tensor, indices: Tensor) -> Tensor:
    safe = indices.clamp(min=0).view(*indices.shape, *[1] * (values.ndim - 2))
    rows = values.gather(1, safe.expand(*indices.shape, *values.shape[2:]))
    return rows.masked_fill((indices < 0).view(safe.shape), 0)


def flatten(values: Tensor, channels: int) -> Tensor:
    batch, _, height, width = values.shape
    return values.view(batch, -1, channels, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, channels)


def propose(net: RegionProposalNetwork, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor]) -> Proposals:
    boxes, scores = [], []
    for logit, delta, anchor in zip(logits, deltas, anchors, strict=True):
        logit = flatten(logit.contiguous(), 1).squeeze(2)
        best, index = logit.topk(min(net.pre_nms_top_n(), logit.shape[1]), dim=1)
        chosen = flatten(delta.contiguous(), 4).gather(1, index[:, :, None].expand(-1, -1, 4))
        boxes.append(clip(decode(chosen, anchor[index], net.box_coder.weights), SIZES))
        scores.append(upcast(best).sigmoid())
    candidates, score = torch.cat(boxes, 1), torch.cat(scores, 1)
    large = (candidates[..., 2:] - candidates[..., :2] >= net.min_size).all(2)
    kept, count = nms_padded(
        candidates,
        score,
        None,
        large & (score >= net.score_thresh),
        iou_threshold=net.nms_thresh,
        max_output=net.post_nms_top_n(),
        num_groups=len(scores),
        presorted=[level.shape[1] for level in scores],
    )
    return Proposals(take(candidates, kept), take(score, kept), count)


def candidates(heads: RoIHeads, logits: Tensor, deltas: Tensor, proposals: Proposals) -> tuple[Tensor, ...]:
    logits, deltas = (values.unflatten(0, proposals.boxes.shape[:2]) for values in (logits, deltas))
    scores = upcast(logits).softmax(2)[:, :, 1:]
    most = scores.shape[2]
    if heads.score_thresh > 0:
        most = min(most, max(math.ceil(1 / heads.score_thresh) - 1, 1))
    classes = scores.topk(most, dim=2).indices.sort(dim=2).values
    scores = scores.gather(2, classes)
    chosen = deltas[:, :, 1:].gather(2, classes[..., None].expand(-1, -1, -1, 4))
    boxes = clip(decode(chosen, proposals.boxes[:, :, None], heads.box_coder.weights), SIZES)
    large = (boxes[..., 2:] - boxes[..., :2] >= heads.min_size).all(3)
    valid = proposals.valid[:, :, None] & large & (scores > heads.score_thresh)
    return boxes.flatten(1, 2), (classes + 1).flatten(1), scores.flatten(1), valid.flatten(1)


def same(actual: tuple[Tensor | None, ...], expected: tuple[Tensor | None, ...]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def draw_outputs(layout: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and deltas of each level; "joined" puts them in one tensor with a pitch of 16 channels."""
    logits, deltas = [], []
    for shape in SHAPES:
        values = torch.randn(2, 16, *shape).to(dtype)
        if layout != "planes":
            values = values.contiguous(memory_format=torch.channels_last)
        logits.append(values[:, :3] if layout == "joined" else values[:, :3].clone())
        deltas.append(values[:, 3:15] if layout == "joined" else values[:, 3:15].clone())
    return logits, deltas


@DTYPES
@pytest.mark.parametrize("layout", ["planes", "channels last", "joined"])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (2.0, 3.0, 1.0, 4.0)], ids=str)
def test_proposals(dtype: torch.dtype, layout: str, weights: tuple[float, ...]) -> None:
    net = slim_model(fastmask).eval().rpn
    net.box_coder.weights = weights
    net.score_thresh = 0.3
    logits, deltas = draw_outputs(layout, dtype)
    anchors = net.anchor_generator.anchors((240, 320), logits)
    anchors_of_all = net.anchor_generator.all_anchors((240, 320), logits)
    actual = net.propose(RPNOutputs(logits, deltas, anchors_of_all), SIZES)
    assert int(actual.count.min()) > 0
    same(actual, propose(net, logits, deltas, anchors))


@DTYPES
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3])
def test_candidates_and_detections(dtype: torch.dtype, threshold: float) -> None:
    heads = slim_model(fastmask, box_score_thresh=threshold).eval().roi_heads
    boxes = torch.stack([draw_boxes(50), draw_boxes(50)]).to(upcast(torch.ones(1, dtype=dtype)).dtype)
    boxes[1, 40:] = 0
    proposals = Proposals(boxes, boxes[..., 0], torch.tensor([50, 40]))
    logits, deltas = (2 * torch.randn(100, NUM_CLASSES)).to(dtype), torch.randn(100, NUM_CLASSES, 4).to(dtype)
    found = heads.select_candidates(logits, deltas, proposals, SIZES)
    assert 0 < int(found.valid.sum()) < found.valid.numel()
    same(found[:4], candidates(heads, logits, deltas, proposals))
    chosen = heads.suppress(found)
    kept, count = nms_padded(
        *found[:1], found.scores, found.labels, found.valid, iou_threshold=heads.nms_thresh,
        max_output=heads.detections_per_img, num_groups=NUM_CLASSES,
    )  # fmt: skip
    taken = (take(values, kept) for values in (found.boxes, found.labels, found.scores))
    same(chosen, Detections(*taken, None, count))


def test_packed_boxes() -> None:
    sizes, originals = torch.tensor([[200, 300], [150, 90]]), torch.tensor([[427, 640], [999, 601]])
    boxes = torch.stack([draw_boxes(20), draw_boxes(20)])
    found = Detections(boxes, torch.ones(2, 20, dtype=torch.int64), boxes[..., 0], None, torch.tensor([20, 9]))
    program = Program(slim_model(fastmask).eval(), "rle", 0.5, 100)
    packed = program.pack(Inputs(torch.zeros(2, 3, 200, 300), sizes, originals), found)
    ratios = originals.to(boxes.dtype) / sizes.to(boxes.dtype)
    assert torch.equal(split_fields(packed.data, packed.fields)["boxes"], boxes * ratios.flip(1).repeat(1, 2)[:, None])


@pytest.mark.parametrize("layout", ["planes", "channels last", "joined"])
@pytest.mark.parametrize("number", [5, 100, 10_000])
def test_all_levels_at_once(layout: str, number: int, device: torch.device) -> None:
    """The top-k for compiled programs; a CPU's breaks ties otherwise, so there are none here."""
    logits = [logit.to(device) for logit in draw_outputs(layout, torch.float32)[0]]
    ranks = torch.randperm(sum(logit.numel() for logit in logits), device=device).float()
    logits = [part.view_as(logit) for part, logit in zip(ranks.split([x.numel() for x in logits]), logits, strict=True)]
    lengths = [min(number, logit[0].numel()) for logit in logits]
    for ours, theirs in zip(rpn._top_k_padded(logits, number), rpn._top_k_each(logits, lengths), strict=True):
        same(tuple(ours), tuple(theirs))
    logits[-1][:, 1:] = -INF  # as what the levels are filled up with
    best, places, _ = rpn.top_k_of_levels(logits, number)
    assert int(places.max()) < sum(logit[0].numel() for logit in logits)
    values, _ = rpn._top_k_padded(logits, number)
    assert torch.equal(best, torch.cat(values, 1))


@pytest.mark.gpu
def test_proposals_and_detections_on_a_gpu() -> None:
    """In bfloat16 the first anchors of a tie are candidates; boxes match to the rounding of the kernel."""
    logits, deltas = draw_outputs("channels last", torch.bfloat16)
    net = slim_model(fastmask).eval().rpn
    best, places, lengths = rpn.top_k_of_levels([logit.cuda() for logit in logits], 100)
    rows = torch.cat([flatten(logit.contiguous(), 1).squeeze(2) for logit in logits], 1).cuda()
    assert torch.equal(rows.gather(1, places), best)
    assert torch.equal(best.cpu(), torch.cat(rpn._top_k_each(logits, lengths)[0], 1))
    assert torch.equal(places.cpu(), reference_layers.top_anchors(logits, 100)[1])
    coder, anchors = net.box_coder, net.anchor_generator.all_anchors((240, 320), logits)
    every = torch.cat([flatten(delta.contiguous(), 4) for delta in deltas], 1)
    chosen = every.gather(1, places.cpu()[:, :, None].expand(-1, -1, 4))
    inputs = (chosen, anchors[places.cpu()], SIZES, best.cpu().float())
    limits = {"min_size": 1.0, "min_score": 0.1, "above": True}
    (ours, valid), (theirs, expected) = (
        coder.decode_candidates(*(values.to(where) for values in inputs), **limits) for where in ("cuda", "cpu")
    )
    torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=5e-3)
    assert (valid.cpu() != expected).float().mean() < 0.01


@pytest.mark.gpu
@pytest.mark.parametrize("fused_rows", [False, True], ids=["two tensors", "views of one"])
def test_candidates_on_a_gpu(fused_rows: bool) -> None:
    """Candidates above the threshold in the CPU's order, which has others between them, and the same detections."""
    heads = slim_model(fastmask, box_score_thresh=0.05).eval().roi_heads
    boxes = torch.stack([draw_boxes(50), draw_boxes(50)])
    proposals = Proposals(boxes, boxes[..., 0], torch.tensor([50, 40]))
    rows = torch.randn(100, 5 * NUM_CLASSES + 3)
    rows[:, 4 * NUM_CLASSES :] *= 2
    logits, deltas = rows[:, 4 * NUM_CLASSES : 5 * NUM_CLASSES], rows[:, : 4 * NUM_CLASSES].unflatten(1, (-1, 4))
    theirs = heads.select_candidates(logits, deltas, proposals, SIZES)
    values = [part.cuda() if fused_rows else part.contiguous().cuda() for part in (logits, deltas)]
    if fused_rows:
        there = rows.cuda()
        values = [there[:, 4 * NUM_CLASSES : 5 * NUM_CLASSES], there[:, : 4 * NUM_CLASSES].unflatten(1, (-1, 4))]
    on_gpu = Proposals(*(values.cuda() for values in proposals[:3]))
    ours = heads.select_candidates(*values, on_gpu, SIZES.cuda())
    for i in range(2):
        expected, actual = ([values[i][found.valid[i]].cpu() for values in found[:3]] for found in (theirs, ours))
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=5e-3)
    on_cpu = Candidates(*(values.cpu() for values in ours[:4]), NUM_CLASSES)
    kept, baseline = heads.suppress(ours), heads.suppress(on_cpu)
    same(tuple(values.cpu() for values in (*kept[:3], kept.count)), (*baseline[:3], baseline.count))
    assert kept.rois is not None
    assert torch.equal(kept.rois.flatten(0, 1), _utils.boxes_to_rois(kept.boxes))


@pytest.mark.gpu
def test_packed_boxes_on_a_gpu() -> None:
    """They are bitwise equal to the CPU's."""
    sizes, originals = torch.tensor([[200, 300], [150, 90]]), torch.tensor([[427, 640], [999, 601]])
    boxes = torch.stack([draw_boxes(20), draw_boxes(20)])
    program = Program(slim_model(fastmask).eval(), "rle", 0.5, 100)
    packed = []
    for device in ("cpu", "cuda"):
        labels, count = torch.ones(2, 20, dtype=torch.int64, device=device), torch.tensor([20, 9], device=device)
        there = boxes.to(device)
        found = Detections(there, labels, there[..., 0], None, count)
        inputs = Inputs(
            torch.zeros(2, 3, 200, 300, device=device), originals=originals.to(device), sizes=sizes.to(device)
        )
        out = program.pack(inputs, found)
        packed.append(split_fields(out.data.cpu(), out.fields)["boxes"])
    assert torch.equal(*packed)
