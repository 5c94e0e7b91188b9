"""Keypoint R-CNN against torchvision: state dict, detections, losses and gradients; static; with and without masks."""

import pytest
import torch
import torchvision
from helpers.exact import assert_exact
from helpers.images import draw_image, draw_keypoints
from helpers.keypoints import decode_with_torch
from helpers.slim import slim_pair
from helpers.static import NoDataDependence
from helpers.training import draw_batch, train_pair
from torch import Tensor, nn

import fastmask
from fastmask.compat import torchvision_ops
from fastmask.models import Checkpoint
from fastmask.models.detection import (
    keypointrcnn_resnet50_fpn,
    roi_heads as our_heads,
)
from fastmask.models.detection.keypoint_rcnn import KeypointRCNNPredictor
from fastmask.models.detection.transform import resize_keypoints
from fastmask.structures import pad_targets

POINTS = 4
BRANCHES = pytest.mark.parametrize("masks", [False, True], ids=["keypoints", "keypoints and masks"])
their_heads = torchvision.models.detection.roi_heads


def draw_images() -> list[Tensor]:
    return [draw_image(height, width)[0] for height, width in [(100, 140), (150, 90)]]


def test_parts_are_torchvisions() -> None:
    """The same random numbers make the same weights; heatmaps of them are equal."""
    for build in (
        lambda names: names.KeypointRCNNHeads(6, (5, 4)),
        lambda names: names.KeypointRCNNPredictor(6, POINTS),
    ):
        parts = []
        for library in (torchvision, fastmask):
            torch.manual_seed(0)
            parts.append(build(library.models.detection.keypoint_rcnn))
        theirs, ours = (part.state_dict() for part in parts)
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
        x = torch.randn(2, 6, 14, 14)
        assert torch.equal(parts[0](x), parts[1](x))


def test_defaults() -> None:
    with torch.device("meta"):
        theirs, ours = (
            library.models.detection.keypointrcnn_resnet50_fpn(weights_backbone=None)
            for library in (torchvision, fastmask)
        )
        more = keypointrcnn_resnet50_fpn(weights_backbone=None, num_classes=3, num_keypoints=5)
    assert tuple(ours.transform.min_size) == tuple(theirs.transform.min_size)
    heads = ours.roi_heads, more.roi_heads
    assert [(each.num_classes(), each.num_keypoints()) for each in heads] == [(2, 17), (3, 5)]


def test_arguments() -> None:
    backbone = nn.Conv2d(3, 8, 3)
    backbone.out_channels = 8
    build = fastmask.models.detection.KeypointRCNN
    with pytest.raises(ValueError, match="num_keypoints or keypoint_predictor must be given, got both"):
        build(backbone, 2, num_keypoints=3, keypoint_predictor=KeypointRCNNPredictor(512, 3))
    with pytest.raises(TypeError, match="keypoint_roi_pool must be a MultiScaleRoIAlign or None, got int"):
        build(backbone, 2, keypoint_roi_pool=7)
    with pytest.raises(ValueError, match=r"num_keypoints must be 17 with \w+.COCO_V1, got 5"):
        keypointrcnn_resnet50_fpn(weights="COCO_V1", num_keypoints=5)


@BRANCHES
def test_exact_in_float64(masks: bool) -> None:
    """Lists against torchvision's (whose keypoints are float32); the static program against its heatmaps in float64."""
    theirs, ours = slim_pair(keypoints=POINTS, masks=masks)
    theirs.double(), ours.double()
    images = [image.double() for image in draw_images()]
    heatmaps, boxes = [], []
    original = their_heads.heatmaps_to_keypoints
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            their_heads,
            "heatmaps_to_keypoints",
            lambda maps, rois: (heatmaps.append(maps), boxes.append(rois), original(maps, rois))[2],
        )
        expected, actual = theirs(images), ours(images)
        batch, _ = ours.transform(images)
        detections = ours.infer(batch.tensors, torch.tensor(batch.image_sizes))
    for mine, wanted in zip(actual, expected, strict=True):
        assert_exact(mine, wanted)
        assert len(wanted["boxes"]) > 5
        for name, tolerance in (("keypoints", 2e-4), ("keypoints_scores", 1e-6)):
            assert mine[name].dtype == wanted[name].dtype == torch.float32
            torch.testing.assert_close(mine[name], wanted[name], rtol=1e-6, atol=tolerance)
    for i, count in enumerate(detections.count.tolist()):
        keypoints, scores = decode_with_torch(heatmaps[i], boxes[i])
        torch.testing.assert_close(detections.keypoints[i, :count], keypoints, rtol=0, atol=1e-6)
        torch.testing.assert_close(detections.keypoints_scores[i, :count], scores, rtol=0, atol=1e-9)
        assert not detections.keypoints[i, count:].any()
        assert not detections.keypoints_scores[i, count:].any()


def test_float32_matches() -> None:
    """Keypoints of paired detections lie within a pixel, but for those whose maxima are tied to a rounding."""
    theirs, ours = slim_pair(keypoints=POINTS, masks=False)
    images = draw_images()
    with torch.no_grad():
        pairs = list(zip(ours(images), theirs(images), strict=True))
    apart = []
    for mine, wanted in pairs:
        distance, row = (mine["boxes"][:, None] - wanted["boxes"]).abs().amax(2).min(0)
        near = distance < 0.01
        assert near.float().mean() > 0.95
        apart.append((mine["keypoints"][row] - wanted["keypoints"])[near].abs().amax(2).flatten())
    assert (torch.cat(apart) < 1).float().mean() > 0.99


@pytest.mark.parametrize("empty", [False, True], ids=["objects", "one image without"])
@BRANCHES
def test_losses_and_gradients_are_torchvisions(masks: bool, empty: bool) -> None:
    theirs, ours = train_pair(keypoints=POINTS, masks=masks)
    images, targets = draw_batch(empty=empty, keypoints=POINTS)
    expected, actual = theirs(images, targets), ours(images, targets)
    assert list(actual) == list(expected)
    assert expected["loss_keypoint"] > 0
    for name, loss in expected.items():
        torch.testing.assert_close(actual[name], loss, rtol=1e-9, atol=1e-9)
    for losses in (expected, actual):
        sum(losses.values()).backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-7, atol=1e-7)


def test_loss_without_a_visible_keypoint() -> None:
    _, ours = train_pair(keypoints=POINTS, masks=False)
    images, targets = draw_batch(keypoints=POINTS)
    for target in targets:
        target["keypoints"][..., 2] = 0
    losses = ours(images, targets)
    assert losses["loss_keypoint"] == 0
    losses["loss_keypoint"].backward()
    assert not ours.roi_heads.keypoint_predictor.kps_score_lowres.weight.grad.any()


def test_targets_are_checked() -> None:
    _, ours = train_pair(keypoints=POINTS, masks=False)
    images, targets = draw_batch(keypoints=POINTS)
    for keypoints, message in (
        (None, r"targets\[0\] must have boxes, labels, keypoints, got boxes, labels, masks"),
        (torch.zeros(len(targets[0]["boxes"]), 3, 3), rf"targets\[0\]\['keypoints'\] must be \[\d+, {POINTS}, 3\]"),
        (targets[0]["keypoints"].long(), r"targets\[0\]\['keypoints'\] must be floating point, got torch.int64"),
        (targets[0]["keypoints"] / 0, r"targets\[0\]\['keypoints'\] must be finite, got \["),
    ):
        own = {name: value for name, value in targets[0].items() if name != "keypoints"}
        bad = own if keypoints is None else own | {"keypoints": keypoints}
        with pytest.raises(ValueError, match=message):
            ours(images, [bad, *targets[1:]])


def test_static(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation depends on values, in inference and in the losses as they run on a GPU."""
    _, ours = slim_pair(keypoints=POINTS, rpn_post_nms_top_n_train=100)
    images, targets = draw_batch(torch.float32, keypoints=POINTS)
    batch, resized = ours.transform(images, targets)
    sizes, padded = torch.tensor(batch.image_sizes), pad_targets(resized, batch.tensors, True, True)
    with torch.no_grad(), NoDataDependence():
        ours.infer(batch.tensors, sizes)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with NoDataDependence():
        ours.train().losses(batch.tensors, sizes, padded)


@pytest.mark.parametrize("name", ["heatmaps_to_keypoints", "keypointrcnn_inference", "keypointrcnn_loss"])
def test_replaced_functions_are_called(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    training = name.endswith("loss")
    model = train_pair(keypoints=POINTS, masks=False)[1].train(training)
    calls, original = [], getattr(our_heads, name)
    monkeypatch.setattr(our_heads, name, lambda *args: (calls.append(1), original(*args))[1])
    model(*draw_batch(keypoints=POINTS))
    assert calls


def test_patched_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own function is ours, but where its scores are to have gradients."""
    heatmaps, boxes = torch.randn(3, 2, 56, 56), torch.tensor([[0.0, 0, 90, 70], [5, 5, 20, 9], [3, 4, 60, 60]])
    expected = their_heads.heatmaps_to_keypoints(heatmaps, boxes)
    calls, op = [], torchvision_ops.decode_keypoints_op
    monkeypatch.setattr(torchvision_ops, "decode_keypoints_op", lambda *args: (calls.append(1), op(*args))[1])
    with fastmask.patch_torchvision(("CPU",)):
        actual = their_heads.heatmaps_to_keypoints(heatmaps, boxes)
        assert len(calls) == 1
        assert their_heads.heatmaps_to_keypoints(heatmaps.requires_grad_(), boxes)[1].requires_grad
    assert len(calls) == 1
    for mine, wanted in zip(actual, expected, strict=True):
        assert mine.dtype == wanted.dtype
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-4)


def test_functions_are_torchvisions() -> None:
    _, target = draw_image(100, 140)
    keypoints, boxes = draw_keypoints(target, 9), target["boxes"]
    for mine, wanted in zip(
        our_heads.keypoints_to_heatmap(keypoints, boxes, 56),
        their_heads.keypoints_to_heatmap(keypoints, boxes, 56),
        strict=True,
    ):
        assert torch.equal(mine, wanted)
    assert torch.equal(
        resize_keypoints(keypoints, (100, 140), (57, 331)),
        torchvision.models.detection.transform.resize_keypoints(keypoints, (100, 140), (57, 331)),
    )
    logits = torch.randn(len(boxes), 9, 56, 56, dtype=torch.float64)
    index = torch.randperm(len(boxes))
    arguments = logits, [boxes], [keypoints], [index]
    torch.testing.assert_close(our_heads.keypointrcnn_loss(*arguments), their_heads.keypointrcnn_loss(*arguments))
    with pytest.raises(ValueError, match="keypoint_logits must be as high as wide, got 56 x 50"):
        our_heads.keypointrcnn_loss(logits[..., :50], *arguments[1:])


def test_checkpoints_remember_keypoints(tmp_path: object) -> None:
    """A file tells the number of keypoints; another number is refused, unless predictors are to be new."""
    with torch.device("meta"):
        state = keypointrcnn_resnet50_fpn(weights_backbone=None, num_keypoints=5).state_dict()
    path = f"{tmp_path}/five.pth"
    torch.save({name: torch.zeros(value.shape) for name, value in state.items()}, path)
    assert Checkpoint(path).meta["num_keypoints"] == 5
    with pytest.raises(ValueError, match=f"num_keypoints must be 5 with {path}, got 6"):
        keypointrcnn_resnet50_fpn(weights=path, num_keypoints=6)
    assert fastmask.models._state.find_builder(state) == "keypointrcnn_resnet50_fpn"
