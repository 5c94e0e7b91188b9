"""What users do with parts of a model, beside torchvision: modes, hooks on heads, poolers, NMS, their own targets."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from helpers.slim import slim_model, slim_pair
from helpers.training import draw_batch, train_pair
from torch import Tensor, nn

import fastmask
import fastmask.export
from fastmask.training.loss_module import LossModule

LIBRARIES = (torchvision, fastmask)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
SMALL = {"min_size": 64, "max_size": 96}


@pytest.fixture(scope="module")
def batch() -> tuple[Any, Any]:
    return draw_batch()


def exact_pair(**options: Any) -> tuple[nn.Module, nn.Module]:
    """In float64, in which no two scores swap their places."""
    theirs, ours = slim_pair(**SMALL, **options)
    return theirs.double(), ours.double()


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize(("rpn", "heads"), [(False, True), (True, False), (True, True), (False, False)])
def test_parts_in_another_mode(rpn: bool, heads: bool, training: bool) -> None:
    """A frozen RPN has no losses; an eval model whose parts train gives losses to eager_outputs."""
    results = []
    images, targets = draw_batch()
    for model in train_pair():
        model.train(training)
        model.rpn.train(rpn)
        model.roi_heads.train(heads)
        model.eager_outputs = lambda losses, detections: (losses, detections)
        with torch.no_grad():
            losses, detections = model(images, targets)
        results.append((losses, [dict(each) for each in detections]))
    expected, actual = results
    assert list(actual[0]) == list(expected[0])
    assert len(actual[0]) == 3 * heads + 2 * rpn
    assert len(actual[1]) == (0 if heads else 3)
    torch.testing.assert_close(actual, expected, **CLOSE)


def test_results_of_heads_in_training_are_none() -> None:
    for library in LIBRARIES:
        transform = library.models.detection.transform.GeneralizedRCNNTransform(64, 96, [0.5], [0.5])
        assert transform.eval().postprocess([], [(64, 64)], [(32, 32)]) == []


@pytest.mark.parametrize("kind", ["hook", "hook inside", "class"])
def test_heads_of_users_see_no_padding(kind: str, batch: Any) -> None:
    """Images have different numbers of proposals and of detections, which the static program pads."""
    images, results = [batch[0][0], torch.rand(3, 10, 120).double()], []  # few boxes of the second are left by NMS
    pair = exact_pair(rpn_post_nms_top_n_test=1000, box_score_thresh=0.3)
    padded, _ = pair[0].transform(images)
    proposals, _ = pair[0].rpn(padded, pair[0].backbone(padded.tensors))
    assert len({len(boxes) for boxes in proposals}) > 1
    for model in pair:
        seen: list[Tensor] = []

        def see(_: Any, __: Any, output: Tensor, seen: list[Tensor] = seen) -> None:
            seen.append(output)

        for head, inner in ((model.roi_heads.box_head, "fc7"), (model.roi_heads.mask_head, "1")):
            if kind == "class":
                base = type(head)
                head.__class__ = type("Mine", (base,), {"forward": keep_output(base.forward, seen)})
            else:
                (head if kind == "hook" else head.get_submodule(inner)).register_forward_hook(see)
        with torch.no_grad():
            model(images)
        results.append(seen)
    torch.testing.assert_close(results[1], results[0], **CLOSE)


def keep_output(forward: Callable[..., Any], outputs: list[Tensor]) -> Callable[..., Any]:
    def kept(self: nn.Module, x: Tensor) -> Tensor:
        outputs.append(forward(self, x))
        return outputs[-1]

    return kept


def test_order_of_the_heads_layers() -> None:
    orders = []
    for library in LIBRARIES:
        head, order = library.models.detection.rpn.RPNHead(4, 3), []
        for name in ("conv", "cls_logits", "bbox_pred"):
            getattr(head, name).register_forward_hook(lambda *_, name=name, order=order: order.append(name))
        head([torch.rand(1, 4, 8, 8), torch.rand(1, 4, 4, 4)])
        orders.append(order)
    assert orders[0] == orders[1] == ["conv", "cls_logits", "bbox_pred"] * 2


class Whole(fastmask.models.detection.MaskRCNN):
    def forward(self, images: Any, targets: Any = None) -> Any:
        return super().forward(images, targets)


REPLACED = {
    r"model\.forward": lambda model: setattr(model, "__class__", Whole),
    r"model\.eager_outputs": lambda model: setattr(model, "eager_outputs", lambda *both: both),
    "model with hooks": lambda model: model.register_forward_hook(lambda *_: None),
    "transform with hooks": lambda model: model.transform.register_forward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("name", REPLACED)
def test_programs_name_what_surrounds_the_parts(name: str) -> None:
    """A Predictor, training and exports would call none of these; infer is itself called instead."""
    model = slim_model(fastmask, **SMALL).eval()
    REPLACED[name](model)
    for program in (fastmask.Predictor, lambda model: LossModule(model.train())):
        with pytest.raises(ValueError, match=f"model must have fastmask's own {name} in a static program"):
            program(model)
    assert model.eval().infer(torch.rand(1, 3, 64, 64), torch.tensor([[64, 64]])).boxes.ndim == 3


def test_batched_nms_of_users(batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of both libraries look it up in ops.boxes."""
    results = []
    pair = exact_pair()
    for library, model in zip(LIBRARIES, pair, strict=True):
        boxes = library.ops.boxes

        def agnostic(box: Tensor, score: Tensor, group: Tensor, threshold: float, boxes: Any = boxes) -> Tensor:
            return boxes.nms(box, score, threshold / 2)

        with torch.no_grad():
            before = model(batch[0])
        monkeypatch.setattr(boxes, "batched_nms", agnostic)
        with torch.no_grad():
            results.append([dict(each) for each in model(batch[0])])
        assert len(results[-1][0]["scores"]) < len(before[0]["scores"])
    with pytest.raises(ValueError, match=r"boxes\.batched_nms"):
        fastmask.Predictor(pair[1])
    torch.testing.assert_close(results[1], results[0], **CLOSE)


class Halved(nn.Module):
    """A pooler that is no MultiScaleRoIAlign."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Tensor:
        pooled: Tensor = self.inner(*args)
        return pooled / 2


def test_poolers_of_users(batch: Any) -> None:
    results = []
    for model in exact_pair():
        for name in ("box_roi_pool", "mask_roi_pool"):
            setattr(model.roi_heads, name, Halved(getattr(model.roi_heads, name)))
        with torch.no_grad():
            results.append([dict(each) for each in model(batch[0])])
    torch.testing.assert_close(results[1], results[0], **CLOSE)


class Fixed(nn.Module):
    """An RPN of no class of ours: the same boxes for all images."""

    def forward(self, images: Any, features: Any, targets: Any = None) -> Any:
        boxes = torch.tensor([[0.0, 0, 30, 30], [10, 10, 50, 50]]).to(features["0"])
        return [boxes for _ in images.image_sizes], {"loss_fixed": features["0"].sum()} if self.training else {}


class Relabeled(nn.Module):
    """RoI heads of no class of ours."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Any:
        results, losses = self.inner(*args)
        return [{**result, "more": result["labels"] + 1} for result in results], losses


def test_whole_parts_of_users(batch: Any) -> None:
    results = []
    images, targets = batch
    pair = exact_pair(box_batch_size_per_image=2000)
    for model in pair:
        model.rpn, model.roi_heads = Fixed(), Relabeled(model.roi_heads)
        with torch.no_grad():
            results.append([*model.eval()(images), model.train()(images, targets)])
    torch.testing.assert_close(results[1], results[0], **CLOSE)
    pair[1].transform = nn.Identity()  # without any of its settings
    for program in (fastmask.Predictor, fastmask.export.ExportableModel, LossModule):
        with pytest.raises(ValueError, match="own rpn, roi_heads, transform in a static program"):
            program(pair[1])


@pytest.mark.parametrize("kind", ["multilabel heads", "no background"])
def test_targets_of_users(kind: str, batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's code reads them, and may want other labels and no masks; boxes are checked all the same."""
    losses = []
    images, targets = batch
    for library, model in zip(LIBRARIES, exact_pair(), strict=True):
        heads = library.models.detection.roi_heads
        model.train()
        if kind == "multilabel heads":
            model.roi_heads.__class__ = type("MultiLabel", (heads.RoIHeads,), {"forward": score_all_labels})
            used = [{"boxes": t["boxes"], "labels": nn.functional.one_hot(t["labels"], 5).float()} for t in targets]
        else:
            monkeypatch.setattr(heads, "fastrcnn_loss", score_without_background)
            model.roi_heads.box_predictor.cls_score = nn.Linear(64, 4).double()  # for labels 1 to 4
            used = [t | {"labels": torch.full_like(t["labels"], 4)} for t in targets]
        losses.append(set(model(images, used)))
        with pytest.raises(AssertionError, match="positive"):
            model(images, [used[0] | {"boxes": used[0]["boxes"].flip(1)}, *used[1:]])
    assert losses[0] == losses[1]


def score_all_labels(self: Any, features: Any, _: Any, shapes: Any, targets: Any) -> Any:
    boxes, labels = ([target[key] for target in targets] for key in ("boxes", "labels"))
    logits, _ = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes, shapes)))
    return [], {"loss": nn.functional.binary_cross_entropy_with_logits(logits, torch.cat(labels))}


def score_without_background(logits: Tensor, deltas: Tensor, labels: list[Tensor], _: Any) -> tuple[Tensor, Tensor]:
    wanted = nn.functional.one_hot(torch.cat(labels), logits.shape[1] + 1)[:, 1:]
    return nn.functional.binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype)), deltas.sum()


def test_targets_in_eval_mode_reach_the_parts(batch: Any) -> None:
    """As of a user's RoIHeads that compute validation losses."""
    for library, model in zip(LIBRARIES, exact_pair(), strict=True):
        base, seen = library.models.detection.roi_heads.RoIHeads, []

        def forward(self: Any, *args: Any, base: Any = base, seen: list[Any] = seen) -> Any:
            seen.append(args[3])
            return base.forward(self, *args)

        model.roi_heads.__class__ = type("Mine", (base,), {"forward": forward})
        with torch.no_grad():
            model(*batch)
        assert [len(target["boxes"]) for target in seen[0]] == [len(target["boxes"]) for target in batch[1]]


def test_boxes_of_integers() -> None:
    """They become float32 when they are resized; beside float64 anchors its rounding may decide a tie of IoUs."""
    images, targets = draw_batch()
    whole, single = (
        [target | {"boxes": target["boxes"].to(dtype)} for target in targets] for dtype in (torch.int64, torch.float32)
    )
    assert torch.equal(whole[0]["boxes"].double(), targets[0]["boxes"])
    theirs, ours = train_pair(min_size=80)
    losses = ours(images, whole)
    torch.testing.assert_close(losses, ours(images, single), rtol=0, atol=0)
    torch.testing.assert_close(losses, theirs(images, whole), rtol=0.05, atol=0.05)


def test_parts_by_position() -> None:
    """Code that hands on torchvision's arguments: half a branch is none."""
    heads = slim_model(fastmask).roi_heads
    assert not heads.has_keypoint()
    settings = (0.5, 0.5, 8, 0.25, None, 0.05, 0.5, 10, None, None, None)
    parts = heads.box_roi_pool, heads.box_head, heads.box_predictor
    assert type(heads)(*parts, *settings, None, None, None).keypoint_head is None
    assert not type(heads)(*parts, *settings, keypoint_head=nn.Identity()).has_keypoint()
