"""torchvision's methods on lists: their results are torchvision's; a model called on images honors those of users."""

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from helpers.slim import slim_model, slim_pair
from helpers.training import draw_batch, train_pair
from torch import Tensor, nn

import fastmask
from fastmask.models.detection import _overrides, _utils, roi_heads, rpn
from fastmask.models.prepare import prepare_for_inference
from fastmask.training.loss_module import LossModule

THEIRS = torchvision.models.detection
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, **CLOSE)


def find_part(model: nn.Module, name: str) -> Any:
    part: Any = model
    for step in name.split("."):
        part = getattr(part, step)
    return part


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
    """Losses, gradients and predictions of a subclass that changes nothing are those of the static program."""

    class Heads(roi_heads.RoIHeads):
        def forward(self, *args: Any) -> Any:
            return super().forward(*args)

    theirs, ours = train_pair()
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


def count_calls(method: Callable[..., Any], calls: list[str], name: str) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return method(*args, **kwargs)

    return counted


CASES = [
    (part, method, training)
    for part, (_, *methods) in _overrides.PARTS.items()
    for training in (False, True)
    for method in methods[training]
    if (part, method) != ("roi_heads.proposal_matcher", "set_low_quality_matches_")  # which it has no use for
]


@pytest.fixture(scope="module")
def pair_of_batches() -> tuple[Any, Any]:
    return draw_batch(torch.float32)


@pytest.fixture(scope="module")
def slim() -> nn.Module:
    return slim_pair(rpn_post_nms_top_n_train=60, rpn_post_nms_top_n_test=60)[1]


@pytest.mark.parametrize(("name", "method", "training"), CASES)
def test_a_method_of_a_subclass_is_called(
    name: str, method: str, training: bool, slim: nn.Module, pair_of_batches: Any
) -> None:
    """In a subclass, as users write them; programs that would not call it say so."""
    part, calls = find_part(slim.train(training), name), []
    base = type(part)
    part.__class__ = type("Mine", (base,), {method: count_calls(getattr(base, method), calls, method)})
    images, targets = pair_of_batches
    try:
        slim(images, targets if training else None)
        assert calls
        with pytest.raises(ValueError, match=rf"model must have fastmask's own {name}\.{method} in a static program"):
            LossModule(slim) if training else fastmask.Predictor(slim)
        batch, _ = slim.transform(images)
        if not training:
            with pytest.raises(ValueError, match=rf"{name}\.{method}"):
                slim.infer(batch.tensors, torch.tensor(batch.image_sizes))
    finally:
        part.__class__ = base


@pytest.mark.parametrize("kind", ["instance", "class", "function", "hook"])
def test_other_ways_to_replace(
    kind: str, slim: nn.Module, pair_of_batches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, targets = pair_of_batches
    calls: list[str] = []
    slim.train()
    static = set(slim(images, targets))
    if kind == "instance":
        monkeypatch.setattr(slim.rpn, "filter_proposals", count_calls(slim.rpn.filter_proposals, calls, "one"))
    elif kind == "class":
        base = rpn.RegionProposalNetwork
        monkeypatch.setattr(base, "compute_loss", count_calls(base.compute_loss, calls, "one"))
    elif kind == "function":
        for name in ("fastrcnn_loss", "maskrcnn_loss", "project_masks_on_boxes"):
            monkeypatch.setattr(roi_heads, name, count_calls(getattr(roi_heads, name), calls, name))
    else:
        for part in (slim.rpn, slim.roi_heads, slim.roi_heads.box_roi_pool, slim.rpn.anchor_generator):
            part.register_forward_hook(lambda *_: calls.append("hook"))
    try:
        assert set(slim(images, targets)) == static
        assert len(set(calls)) == (3 if kind == "function" else 1)
        assert len(calls) >= (4 if kind == "hook" else 1)
        with pytest.raises(ValueError, match="in a static program"):
            LossModule(slim)
    finally:
        for part in slim.modules():
            part._forward_hooks.clear()


def test_global_hooks_see_the_parts(slim: nn.Module, pair_of_batches: Any) -> None:
    """As torch.utils.flop_counter and other profilers set them."""
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(type(module).__name__))
    with handle:
        slim.eval()(pair_of_batches[0])
    assert {"RegionProposalNetwork", "RoIHeads", "MultiScaleRoIAlign", "AnchorGenerator", "RPNHead"} <= seen
    assert _overrides.is_static(slim, training=False)


def test_box_similarity_and_whole_parts_are_replaced(slim: nn.Module, pair_of_batches: Any) -> None:
    calls: list[str] = []
    images, targets = pair_of_batches
    slim.train()
    for part in (slim.rpn, slim.roi_heads):
        part.box_similarity = count_calls(fastmask.ops.box_iou, calls, "iou")
    generator, coder = slim.rpn.anchor_generator, slim.rpn.box_coder
    slim.rpn.anchor_generator = Grid(generator)
    slim.rpn.box_coder = types.SimpleNamespace(decode=coder.decode, encode=coder.encode)  # of no class of ours
    try:
        losses = slim(images, targets)
        assert len(calls) == 2 * len(images)
        assert all(loss.isfinite() for loss in losses.values())
    finally:
        for part in (slim.rpn, slim.roi_heads):
            part.box_similarity = fastmask.ops.box_iou
        slim.rpn.anchor_generator, slim.rpn.box_coder = generator, coder


class Grid(nn.Module):
    """A user's own anchors, which are no AnchorGenerator."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Any, maps: list[Tensor]) -> list[Tensor]:
        return [anchors + 0.5 for anchors in self.inner(images, maps)]


@pytest.mark.parametrize("method", ["normalize", "resize", "max_by_axis", "batch_images", "postprocess"])
def test_transforms_of_users(method: str, slim: nn.Module, pair_of_batches: Any) -> None:
    base, calls = type(slim.transform), []
    slim.eval().transform.__class__ = type("Mine", (base,), {method: count_calls(getattr(base, method), calls, "one")})
    try:
        slim(pair_of_batches[0])
        assert calls
        with pytest.raises(ValueError, match=rf"transform\.{method}"):
            fastmask.Predictor(slim)
    finally:
        slim.transform.__class__ = base


def test_losses_and_predictions_at_once(slim: nn.Module, pair_of_batches: Any) -> None:
    """eager_outputs gets both, as users who want losses in eval mode replace it."""
    slim.eager_outputs = lambda losses, detections: (losses, detections)
    try:
        losses, nothing = slim.train()(*pair_of_batches)
        empty, predictions = slim.eval()(pair_of_batches[0])
    finally:
        del slim.eager_outputs
    assert set(losses) >= {"loss_mask", "loss_objectness"}
    assert nothing == []
    assert empty == {}
    assert len(predictions) == len(pair_of_batches[0])


def test_targets_of_roi_heads(slim: nn.Module) -> None:
    heads = slim.train().roi_heads
    boxes, labels, masks = torch.rand(1, 4), torch.ones(1, dtype=torch.int64), torch.ones(1, 9, 9)
    whole = {"boxes": boxes, "labels": labels, "masks": masks}
    for key in whole:
        with pytest.raises(ValueError, match=f"Every element of targets should have a {key} key"):
            heads.check_targets([{name: value for name, value in whole.items() if name != key}])
    for missing in (lambda: heads.check_targets(None), lambda: slim.rpn.train()(*rpn_arguments(slim))):
        with pytest.raises(ValueError, match="targets must be one dict an image in training, got None"):
            missing()
    for key, value in (("boxes", boxes.long()), ("labels", labels.int())):
        with pytest.raises(TypeError, match=key):
            heads({}, [], [], [whole | {key: value}])


def rpn_arguments(model: nn.Module) -> tuple[Any, Any]:
    batch, _ = model.transform([torch.rand(3, 64, 64)])
    return batch, model.backbone(batch.tensors)


def test_eval_losses_of_a_changed_model(slim: nn.Module, pair_of_batches: Any) -> None:
    slim.eval().rpn.compute_loss = slim.rpn.compute_loss
    try:
        with pytest.raises(ValueError, match=r"rpn\.compute_loss"):
            slim.losses_of(*pair_of_batches)
        assert len(slim(pair_of_batches[0])) == len(pair_of_batches[0])  # inference does not need it
        assert slim.infer(*static_inputs(slim)).boxes.ndim == 3
    finally:
        del slim.rpn.compute_loss


def static_inputs(model: nn.Module) -> tuple[Tensor, Tensor]:
    batch, _ = model.transform([torch.rand(3, 64, 64)])
    return batch.tensors, torch.tensor(batch.image_sizes)


def test_without_masks() -> None:
    model = fastmask.models.detection.FasterRCNN(slim_model(fastmask).backbone, 3, min_size=64, max_size=64).eval()
    model.roi_heads.register_forward_hook(lambda *_: None)
    (prediction,) = model([torch.rand(3, 64, 64)])
    assert set(prediction) == {"boxes", "labels", "scores"}


LAYERS = ["backbone", "backbone.body", "backbone.fpn", "rpn.head", "rpn.head.conv"] + [
    f"roi_heads.{name}" for name in ("box_head", "box_predictor", "mask_head", "mask_predictor")
]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_a_subclass_is_called(name: str, slim: nn.Module, pair_of_batches: Any) -> None:
    """By the static program as well: nothing of what replaces layers for speed takes a subclass for its base."""
    layer, calls = slim.get_submodule(name), []
    base = type(layer)
    layer.__class__ = type("Mine", (base,), {"forward": count_calls(base.forward, calls, name)})
    images, targets = pair_of_batches
    try:
        for run in (
            lambda: slim.eval()(images),
            lambda: slim.train()(images, targets),
            lambda: slim.eval().infer(*static_inputs(slim)),
            lambda: prepare_for_inference(slim, torch.float32, "kernel").infer(*static_inputs(slim)),
        ):
            calls.clear()
            with torch.no_grad():
                run()
            assert calls
    finally:
        layer.__class__ = base


def test_a_changed_model_is_exported() -> None:
    """Data-dependent numbers of rows between its own parts; torchvision's whole model cannot be exported so."""

    class Heads(roi_heads.RoIHeads):
        def postprocess_detections(self, *args: Any) -> Any:
            return tuple([values[::2] for values in kind] for kind in super().postprocess_detections(*args))

    model = slim_pair(rpn_post_nms_top_n_test=60, min_size=64, max_size=96)[1]
    model.roi_heads.__class__ = Heads
    images = [torch.rand(3, 64, 80)]
    program = torch.export.export(model, (images,), strict=False).module()
    for inputs in (images, [torch.rand(3, 64, 80)]):
        with torch.no_grad():
            expected = model(inputs)
        assert len(expected[0]["scores"]) > 0
        torch.testing.assert_close(program(inputs), [dict(each) for each in expected])
