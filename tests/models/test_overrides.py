"""What users override, replace or hook is called by a model called on images; static programs name it."""

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.slim import slim_model, slim_pair
from helpers.training import draw_batch
from torch import Tensor, nn

import fastmask
from fastmask.models.detection import _overrides, roi_heads, rpn
from fastmask.models.prepare import prepare_for_inference
from fastmask.training.loss_module import LossModule


def find_part(model: nn.Module, name: str) -> Any:
    part: Any = model
    for step in name.split("."):
        part = getattr(part, step)
    return part


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
    return draw_batch(torch.float32, keypoints=2)


@pytest.fixture(scope="module")
def slim() -> nn.Module:
    return slim_pair(keypoints=2, rpn_post_nms_top_n_train=60, rpn_post_nms_top_n_test=60)[1]


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

    options = {"box_score_thresh": 0.0, "rpn_post_nms_top_n_test": 60, "min_size": 64, "max_size": 96}
    model = slim_pair(**options)[1]
    model.roi_heads.__class__ = Heads
    images = [torch.rand(3, 64, 80)]
    program = torch.export.export(model, (images,), strict=False).module()
    for inputs in (images, [torch.rand(3, 64, 80)]):
        with torch.no_grad():
            expected = model(inputs)
        assert len(expected[0]["scores"]) > 0
        torch.testing.assert_close(program(inputs), [dict(each) for each in expected])
