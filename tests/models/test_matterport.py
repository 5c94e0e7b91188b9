"""matterport's .h5 files: predictions against a literal Mask_RCNN in float64, and what the converted model can do."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import matterport
from helpers.exact import assert_matched, assert_parity
from helpers.matterport import MEAN_PIXEL, Settings, draw_weights, vary_classes, write_h5
from helpers.runtimes import least_share, open_onnx
from helpers.static import NoDataDependence
from torch import Tensor

from fastmask import Predictor
from fastmask.export import ExportableModel, Shape, TensorRTExportableModel, compare_outputs, write_onnx
from fastmask.models import Checkpoint, detection, save_weights
from fastmask.models._metadata import describe_model
from fastmask.models.converters.matterport import build_matterport, is_matterport
from fastmask.models.detection._matterport_stages import STRIDES
from fastmask.ops import paste_masks_in_image
from fastmask.structures import Features, pad_targets

SIZES = [(100, 120), (40, 70), (200, 300)]  # stays, is enlarged, is shrunk


@pytest.fixture(scope="module")
def weights(request: pytest.FixtureRequest) -> matterport.Weights:
    """Of a model whose RoIs are never background, so that there are detections in each image."""
    drawn = draw_weights(request.config.fastmask_seed)
    drawn["mrcnn_class_logits"]["bias"][0] = -1000
    return drawn


@pytest.fixture(scope="module")
def file(weights: matterport.Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matterport") / "slim.h5"
    write_h5(path, weights)
    return path


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def scenes() -> list[Tensor]:
    return [torch.rand(3, *size) for size in SIZES]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(min_dim=100, scales=(6, 12, 24, 48, 96), confidence=1, proposals=100, pre_nms=9999, instances=20),
    ],
    ids=["all", "confident"],
)
def test_predictions_are_matterports(settings: Settings, weights: matterport.Weights, tmp_path: Path) -> None:
    """Boxes, scores and masks; in pixels of the original image, too, where that is not resized."""
    images, weights = scenes(), dict(weights)
    first = 255 * images[0].permute(1, 2, 0).numpy()
    vary_classes(weights, first, settings)
    if settings.confidence:  # half of the detections
        every = matterport.detect(weights, first, settings._replace(confidence=0))
        settings = settings._replace(confidence=float(np.median(every.scores)))
    write_h5(tmp_path / "slim.h5", weights, "model_weights" if settings.confidence else "")
    assert is_matterport(tmp_path / "slim.h5")
    model = build_matterport(tmp_path / "slim.h5", **matterport.options(settings))
    numbers, first_labels = [], set()
    with torch.no_grad():
        batch, _ = model.transform(images)
        found = model.infer(batch.tensors, torch.tensor(batch.image_sizes))
        unscaled = model.detect(images)
    for i, (image, size) in enumerate(zip(images, batch.image_sizes, strict=True)):
        resized = batch.tensors[i, :, : size[0], : size[1]].permute(1, 2, 0).numpy() + MEAN_PIXEL
        expected = matterport.detect(weights, resized, settings)
        rows = int(found.count[i])
        assert rows == len(expected.boxes)
        assert found.labels[i, :rows].tolist() == expected.labels.tolist()
        for ours, theirs in (
            (found.boxes, expected.unmold(size)),
            (found.scores, expected.scores),
            (found.masks, expected.masks),
        ):
            assert ours is not None
            np.testing.assert_allclose(ours[i, :rows].numpy(), theirs, rtol=0, atol=1e-6)
            assert not ours[i, rows:].any()
        pixels = expected.unmold((image.shape[1], image.shape[2]))
        ratio = max(image.shape[1] / size[0], image.shape[2] / size[1])
        np.testing.assert_allclose(unscaled[i]["boxes"].numpy(), pixels, rtol=0, atol=1e-6 + abs(ratio - 1))
        numbers.append(rows)
        first_labels |= set(expected.labels.tolist()) if i == 0 else set()
    assert numbers[0] >= 5
    assert settings.confidence or len(first_labels) >= 2


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("bins", [7, 14])
def test_crops_are_tensorflows(bins: int, file: Path) -> None:
    """RoIAlign of longer RoIs, on all levels: boxes of any size, without area, and up to the canvas's last pixels."""
    side, offset = 512, torch.tensor([[3, 40], [0, 0]])
    maps = {str(i): torch.randn(2, 2, side // stride, side // stride) for i, stride in enumerate(STRIDES)}
    features = Features(maps, {name: 1 / stride for name, stride in zip(maps, STRIDES, strict=True)}, offset)
    spread = torch.exp(6.2 * torch.rand(2, 20, 2))
    centers = torch.rand(2, 20, 2) * (side - 1)
    boxes = torch.cat((centers - spread / 2, centers + spread / 2), 2).clamp(0, side - 1)
    boxes[:, 0], boxes[:, 1, 2:], boxes[:, 2] = torch.tensor([0, 0, side - 1, side - 1]), boxes[:, 1, :2], side - 1
    model = build_matterport(file)
    pooler = model.roi_heads.box_roi_pool if bins == 7 else model.roi_heads.mask_roi_pool
    corners = offset.flip(1).repeat(1, 2)[:, None]
    found = model.roi_heads.pool_rois(pooler, features, boxes - corners).unflatten(0, (2, 20))
    for image in range(2):
        levels = [feature[image].numpy() for feature in maps.values()]
        own = boxes[image].numpy()[:, [1, 0, 3, 2]] / (side - 1)
        expected = matterport.crop_and_resize(levels, own, side, bins)
        np.testing.assert_allclose(found[image].numpy(), expected, rtol=0, atol=1e-9)


def test_masks_are_pasted_nearly_alike() -> None:
    """The page's figures: the mean IoU of torchvision's pasting and matterport's, by the size of boxes."""
    away = torch.linspace(-1, 1, 28)
    away = (away**2 + away[:, None] ** 2).sqrt()
    for side, expected in ((20, 0.88), (50, 0.94), (100, 0.97), (300, 0.99)):
        noise = F.interpolate(torch.randn(40, 1, 7, 7), size=(28, 28), mode="bicubic")
        masks = (6 * (0.8 - away + 0.3 * noise)).sigmoid()
        corners = 50 * torch.rand(40, 2)
        boxes = torch.cat((corners, corners + side * (0.7 + 0.6 * torch.rand(40, 2))), 1)
        shares = []
        for ours, mask, box in zip(paste_masks_in_image(masks, boxes, (450, 450)), masks, boxes, strict=True):
            theirs = torch.from_numpy(matterport.unmold_mask(mask[0].numpy(), box.numpy(), (450, 450)))
            pasted = ours[0] >= 0.5
            shares.append(((pasted & theirs).sum() / (pasted | theirs).sum()).item())
        assert np.mean(shares) == pytest.approx(expected, abs=0.04)


def test_static_program(file: Path) -> None:
    """No op of inference depends on values; neither do detections on the padding."""
    model = build_matterport(file, **matterport.options())
    batch, _ = model.transform(scenes())
    pixels, sizes = batch.tensors, torch.tensor(batch.image_sizes)
    with torch.no_grad(), NoDataDependence():
        expected = model.infer(pixels, sizes)
        wide = model.infer(F.pad(pixels, (0, 64), value=9), sizes)
    torch.testing.assert_close(tuple(wide)[:5], tuple(expected)[:5], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_compiled(file: Path) -> None:
    """Inference and losses are one graph each; losses draw other samples, but of as many anchors and RoIs."""
    model = build_matterport(file, **matterport.options())
    images = scenes()
    targets = draw_targets(images)
    batch, resized = model.transform(images, targets)
    assert resized is not None
    inputs = batch.tensors, torch.tensor(batch.image_sizes)
    torch._dynamo.reset()
    with torch.no_grad():
        found = torch.compile(model.infer, fullgraph=True, backend="eager")(*inputs)
        torch.testing.assert_close(tuple(found)[:5], tuple(model.infer(*inputs))[:5])
    model.train()
    padded = pad_targets(resized, batch.tensors, True)
    losses = torch.compile(model.losses, fullgraph=True, backend="eager")(*inputs, padded)
    expected = model.losses(*inputs, padded)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert 0.3 * expected[name] < value < 3 * expected[name]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fixed", "trimmed", "for TensorRT"])
def test_exported_to_onnx(kind: str, file: Path, tmp_path: Path) -> None:
    """A file of one shape, that of the canvas, detects what the model detects; TensorRT's table knows its operators."""
    model = build_matterport(file, **matterport.options())
    exportable = ExportableModel(model, trim=kind == "trimmed")
    if kind == "for TensorRT":
        exportable = TensorRTExportableModel(model)
    write_onnx(exportable, tmp_path / "model.onnx", Shape(1, 128, 128))
    images = [(255 * image).to(torch.uint8) for image in scenes()]
    for session in open_onnx(tmp_path / "model.onnx"):
        found = compare_outputs(ExportableModel(model).predict_arrays, session, images)
        assert_parity(found, least_share(session))
        assert session.resizer.resize((100, 120)) == (100, 120)


@pytest.mark.usefixtures("double")
def test_a_predictor(file: Path) -> None:
    """It resizes as the model, and its default size has room for the canvas; fused layers keep their strides."""
    model = build_matterport(file, **matterport.options())
    images = scenes()
    with torch.no_grad():
        expected = model(images)
    for size, fuse in (((800, 1344), "off"), ("exact", "kernel")):
        predictions = Predictor(model, size, batch=3, masks="float", fuse=fuse)(images)  # type: ignore[arg-type]
        assert assert_matched(predictions, expected, 1) >= len(images)
    for views in ({"flip_test": True}, {"test_sizes": [64, 96]}):
        with pytest.raises(ValueError, match="flip_test and test_sizes must not be given for a maskrcnn_matterport"):
            Predictor(model, **views)  # type: ignore[arg-type]


@pytest.mark.usefixtures("double")
def test_rebuilt_from_a_file_alone(file: Path, tmp_path: Path) -> None:
    """A converted model is saved with what makes its predictions; commands read the .h5 file itself, too."""
    assert Predictor.from_pretrained(file, device="cpu").program.model.roi_heads.num_classes() == 4
    model = build_matterport(
        file, **matterport.options(Settings(scales=(9, 16, 32, 64, 128))), anchor_ratios=(0.4, 1, 2)
    )
    described = describe_model(model, "maskrcnn_matterport", list("_abc"))
    saved = tmp_path / "saved.safetensors"
    save_weights(model.state_dict(), saved, **described)
    assert json.loads(json.dumps(described)) == described
    predictor = Predictor.from_pretrained(saved, score=0.0, size="exact", masks="float", device="cpu")
    images = scenes()
    with torch.no_grad():
        assert assert_matched(predictor(images), model(images), 1) >= len(images)
    assert predictor.categories == list("_abc")
    fine = detection.maskrcnn_matterport(weights=saved, num_classes=2, new_predictors=True)
    assert fine.roi_heads.num_classes() == 2
    assert not fine.backbone.body.conv1.weight.requires_grad
    with pytest.raises(ValueError, match=r"num_classes must be 4 with .*saved.safetensors, got 2"):
        detection.maskrcnn_matterport(weights=saved, num_classes=2)
    assert Checkpoint(saved).meta["options"]["anchor_ratios"] == [0.4, 1, 2]


def draw_targets(images: list[Tensor]) -> list[dict[str, Tensor]]:
    """Five boxes of each image, with masks that fill them."""
    targets = []
    for image in images:
        height, width = image.shape[1:]
        corners = torch.rand(5, 2) * torch.tensor([width - 30, height - 30])
        boxes = torch.cat((corners, corners + 12 + 18 * torch.rand(5, 2)), 1)
        masks = torch.zeros(5, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 2, 3, 1, 2]), "masks": masks})
    return targets


@pytest.mark.usefixtures("double")
def test_losses_are_of_matterports_boxes(file: Path) -> None:
    """With deltas of zero, regression losses are those of matterport's refinements of normalized boxes.

    No two anchors overlap a box most: in a tie, as inside of two anchors, the rounding of either's pixels would decide.
    """
    settings, images = Settings(), [torch.rand(3, 100, 120), torch.rand(3, 128, 70)]
    model = build_matterport(file, **matterport.options(), rpn_post_nms_top_n_train=100).train()
    for layer in (model.rpn.head.bbox_pred, model.roi_heads.box_predictor.bbox_pred):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    batch, _ = model.transform(images)
    assert batch.image_sizes == [(100, 120), (128, 70)]
    sizes, side = torch.tensor(batch.image_sizes), settings.max_dim
    anchors = matterport.make_anchors(settings, side)
    corners = [np.tile((side - np.array(size)) // 2, 2) for size in batch.image_sizes]

    def normalize(target: dict[str, torch.Tensor], corner: np.ndarray) -> np.ndarray:
        return (target["boxes"].numpy()[:, [1, 0, 3, 2]] + corner - [0, 0, 1, 1]) / (side - 1)

    def is_tied(target: dict[str, torch.Tensor], corner: np.ndarray) -> bool:
        overlaps = np.sort(matterport.compute_ious(anchors, normalize(target, corner)), 0)
        return bool((overlaps[-1] - overlaps[-2] < 1e-6).any() or (abs(overlaps - 0.7) < 1e-6).any())

    targets = draw_targets(images)
    while any(map(is_tied, targets, corners)):
        targets = draw_targets(images)
    losses = model.losses_of(images, targets)
    proposals = model.rpn.propose(model.rpn.predict(model.read_images(batch.tensors, sizes), (side, side)), sizes)
    sums, numbers = [0.0, 0.0], [0, 0]
    for i, corner in enumerate(corners):
        truth = normalize(targets[i], corner)
        overlaps = matterport.compute_ious(anchors, truth)
        positive = (overlaps.max(1) >= 0.7) | (overlaps == overlaps.max(0)).any(1)
        assert positive.sum() <= 128
        sums[0] += matterport.sum_losses(anchors[positive], truth[overlaps[positive].argmax(1)])
        numbers[0] += 256
        boxes = (proposals.boxes[i, : proposals.count[i]].numpy()[:, [1, 0, 3, 2]] + corner) / (side - 1)
        boxes = np.concatenate((boxes, truth))
        overlaps = matterport.compute_ious(boxes, truth)
        positive = overlaps.max(1) >= 0.5
        assert positive.sum() <= 66
        sums[1] += matterport.sum_losses(boxes[positive], truth[overlaps[positive].argmax(1)])
        numbers[1] += len(boxes)
    assert losses["loss_rpn_box_reg"].item() == pytest.approx(sums[0] / numbers[0], abs=1e-9)
    assert losses["loss_box_reg"].item() == pytest.approx(sums[1] / numbers[1], abs=1e-9)


def test_fine_tuning(file: Path) -> None:
    """Each parameter that is trained gets a gradient, of a target below a pixel, too; large images are an error."""
    model = build_matterport(file, **matterport.options(), trainable_backbone_layers=5).train()
    images = scenes()
    targets = draw_targets(images)
    targets[0]["boxes"][0, 2:] = targets[0]["boxes"][0, :2] + 0.5
    losses = model(images, targets)
    assert len(losses) == 5
    assert all(value.isfinite() for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    large = torch.zeros(1, 3, 192, 128)
    with pytest.raises(ValueError, match="images must be at most 128 pixels, as max_size"):
        model.losses(large, torch.tensor([[190, 120]]), pad_targets(draw_targets([large[0]]), large, True))


def test_parts_that_users_replace(file: Path) -> None:
    """Methods on lists have torchvision's conventions, so that a model that would call them says no."""
    model = build_matterport(file, **matterport.options())
    model.rpn.filter_proposals = model.rpn.filter_proposals
    with pytest.raises(ValueError, match=r"rpn.filter_proposals .* got one that is replaced"):
        model(scenes())
    del model.rpn.filter_proposals
    model.rpn.train()
    with pytest.raises(ValueError, match="matterport's conventions are in the static program alone"):
        model(scenes())
