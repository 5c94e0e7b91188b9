"""torchvision's methods on lists: their results are torchvision's; a model called on images honors those of users."""

from typing import Any

import pytest
import torch
import torchvision
from helpers.slim import MASK_VARIANTS
from helpers.training import draw_batch, train_pair
from torch import Tensor, nn

from fastmask.models.detection import _utils, roi_heads, rpn

THEIRS = torchvision.models.detection
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, **CLOSE)


def call_parts(model: nn.Module, empty: bool = False) -> list[Any]:
    """The steps of torchvision's own forward."""
    torch.manual_seed(0)
    images, targets = draw_batch(empty=empty)
    batch, resized = model.transform(images, targets)
    features = model.backbone(batch.tensors)
    proposals, rpn_losses = model.rpn(batch, features, resized)
    predictions, losses = model.roi_heads(features, proposals, batch.image_sizes, resized)
    return [proposals, rpn_losses, [dict(each) for each in predictions], losses]


@pytest.mark.parametrize("empty", [False, True], ids=["objects", "one image without"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_parts_called_one_by_one(training: bool, empty: bool) -> None:
    theirs, ours = train_pair()
    expected, actual = (call_parts(model.train(training), empty) for model in (theirs, ours))
    assert_same(actual, expected)
    assert len(actual[0][0]) > 10
    assert len(actual[3]) == (3 if training else 0)
    assert training or len(actual[2][0]["scores"]) > 0


def test_a_model_that_calls_its_parts() -> None:
    """Losses, gradients and predictions of a subclass that changes nothing are those of the static program.

    Its mask head is a U-Net, whose only mask is that of all classes; RoIs have as many samples as pixels.
    """

    class Heads(roi_heads.RoIHeads):
        def forward(self, *args: Any) -> Any:
            return super().forward(*args)

    theirs, ours = train_pair(**MASK_VARIANTS, sampling_ratio=0)
    ours.roi_heads.__class__ = Heads
    images, targets = draw_batch()
    expected, actual = theirs(images, targets), ours(images, targets)
    assert list(actual) == list(expected)
    assert_same(actual, expected)
    for losses in (expected, actual):
        sum(losses.values()).backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-7, atol=1e-7)
    for model in (theirs.eval(), ours.eval()):
        model.zero_grad()
    assert_same([dict(each) for each in ours(images)], theirs(images))
    soft = ours.detect(images)
    ours.roi_heads.__class__ = roi_heads.RoIHeads
    assert_same([dict(each) for each in soft], [dict(each) for each in ours.detect(images)])


def test_methods_on_the_same_inputs() -> None:
    """Each of the smaller methods and functions, with an image without objects and one without proposals."""
    theirs, ours = train_pair()
    generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, dtype=torch.float64, generator=generator)

    def boxes(number: int) -> Tensor:
        corner = draw(number, 2, scale=20).abs()
        return torch.cat((corner, corner + 1 + draw(number, 2, scale=30).abs()), 1)

    anchors, targets = [boxes(50), boxes(40)], [{"boxes": boxes(3)}, {"boxes": boxes(0)}]
    assigned = [net.assign_targets_to_anchors(anchors, targets) for net in (ours.rpn, theirs.rpn)]
    for label, wanted in zip(assigned[0][0], assigned[1][0], strict=True):
        assert_same(label.double(), wanted.double())
    assert_same(assigned[0][1][0], assigned[1][1][0])
    assert not assigned[0][1][1].any()

    proposals, labels = [boxes(30), boxes(0)], [torch.tensor([2, 1, 4]), torch.tensor([1])]
    pair = ours.roi_heads, theirs.roi_heads
    for gt in ([boxes(3), boxes(0)], [proposals[0][:3], boxes(0)]):
        assert_same(*(list(map(list, head.assign_targets_to_proposals(proposals, gt, labels))) for head in pair))
    full = [{"boxes": proposals[0][5:8], "labels": labels[0]}, {"boxes": boxes(1), "labels": labels[1]}]
    full = [target | {"masks": torch.ones(len(target["labels"]), 9, 9, dtype=torch.uint8)} for target in full]
    assert_same(*([list(values) for values in head.select_training_samples(proposals, full)] for head in pair))

    logits, deltas = draw(30, 5, scale=3), draw(30, 20, scale=0.3)
    shapes = [(60, 70), (50, 50)]
    assert_same(*(list(map(list, h.postprocess_detections(logits, deltas, proposals, shapes))) for h in pair))
    decoded, objectness = torch.stack((boxes(90), boxes(90))), draw(180, 1)
    for net in (ours.rpn, theirs.rpn):
        net._pre_nms_top_n = {"training": 25, "testing": 25}
    assert_same(
        *(
            list(map(list, n.filter_proposals(decoded, objectness, shapes, [60, 20, 10])))
            for n in (ours.rpn, theirs.rpn)
        )
    )

    heads = [draw(2, 3 * c, size, size + 1) for c, size in ((2, 5), (2, 3))], [draw(2, 12, s, s + 1) for s in (5, 3)]
    assert_same(rpn.concat_box_prediction_layers(*heads), THEIRS.rpn.concat_box_prediction_layers(*heads))

    label, wanted = [torch.randint(0, 5, (20,)), torch.zeros(10, dtype=torch.int64)], [draw(20, 4), draw(10, 4)]
    args = (logits, deltas, label, wanted)
    assert_same(roi_heads.fastrcnn_loss(*args), THEIRS.roi_heads.fastrcnn_loss(*args))
    masks = draw(30, 5, 14, 14)
    assert_same(roi_heads.maskrcnn_inference(masks, label), list(THEIRS.roi_heads.maskrcnn_inference(masks, label)))
    gt_masks = [torch.randint(0, 2, (3, 60, 70), dtype=torch.uint8), torch.zeros(0, 60, 70, dtype=torch.uint8)]
    index = [torch.randint(0, 3, (30,)), torch.zeros(0, dtype=torch.int64)]
    args = (masks, proposals, gt_masks, [labels[0], labels[1][:0]], index)
    assert_same(roi_heads.maskrcnn_loss(*args), THEIRS.roi_heads.maskrcnn_loss(*args))
    none = (masks[:0], [boxes(0)], gt_masks[1:], [labels[1][:0]], index[1:])
    assert roi_heads.maskrcnn_loss(*none) == THEIRS.roi_heads.maskrcnn_loss(*none) == 0


def test_sampler_and_matcher_of_utils() -> None:
    labels = [torch.tensor([1, 0, -1, 0, 2, 0]), torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64)]
    for each in (_utils, THEIRS._utils):
        positive, negative = each.BalancedPositiveNegativeSampler(4, 0.25)(labels)
        assert [int(mask.sum()) for mask in positive] == [1, 0, 0]
        assert [int(mask.sum()) for mask in negative] == [3, 2, 0]
        assert positive[0].dtype == torch.uint8
        assert (labels[0][positive[0].bool()] > 0).all()
        assert (labels[0][negative[0].bool()] == 0).all()
        for empty, words in ((torch.zeros(0, 3), "No ground-truth boxes"), (torch.zeros(2, 0), "No proposal boxes")):
            with pytest.raises(ValueError, match=words):
                each.Matcher(0.7, 0.3)(empty)
    quality, matches = torch.rand(4, 9), torch.full((9,), -1)
    results = []
    for each in (_utils, THEIRS._utils):
        low = matches.clone()
        each.Matcher(0.7, 0.3, True).set_low_quality_matches_(low, quality.argmax(0), quality)
        results.append(low)
    assert torch.equal(*results)
