"""Test-time augmentation: one view is the model, views against their stages composed by hand, mirrored images."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.exact import assert_matched
from helpers.images import draw_image
from helpers.slim import slim_model, slim_pair
from helpers.static import NoDataDependence
from torch import Tensor, nn

import fastmask
from fastmask import Predictor, ops
from fastmask.inference.program import Buffers
from fastmask.kernels import reference
from fastmask.sizes import compute_resized_size

SIZES = [(128, 160), (100, 130), (170, 120)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(7)
    return slim_pair(box_score_thresh=0.0, rpn_post_nms_top_n_test=12)[1].double()


@pytest.fixture
def images() -> list[Tensor]:
    """uint8 [3, h, w]."""
    return [(draw_image(*size)[0] * 255).to(torch.uint8) for size in SIZES]


@pytest.mark.parametrize("nms", ["hard", "soft_gaussian"])
def test_one_view_is_the_plain_prediction(nms: Any, model: nn.Module, images: list[Tensor]) -> None:
    """Bit by bit, in a batch as well, and at another size that of a model of that size."""
    other = slim_model(fastmask, box_score_thresh=0.0, rpn_post_nms_top_n_test=12, min_size=96, max_size=150)
    other.double().eval().load_state_dict(model.state_dict())
    for plain, size in ((model, 128),) if nms == "hard" else ((other, 96),):
        expected = Predictor(plain, "exact", batch=2, masks="soft", box_nms=nms)(images[1:])
        found = Predictor(model, "exact", batch=2, masks="soft", box_nms=nms, test_sizes=[size])(images[1:])
        for mine, theirs in zip(found, expected, strict=True):
            assert len(mine["boxes"])
            for name, values in theirs.items():
                assert torch.equal(mine[name], values), name


def predict_by_hand(model: Any, image: Tensor, sizes: list[int], nms: str) -> dict[str, Tensor]:
    """An image uint8 [3, h, w] in sizes and mirrored, with literal NMS of boxes in its own pixels."""
    heads, transform, original = model.roi_heads, model.transform, tuple(image.shape[1:])
    mean, std = (torch.tensor(values)[:, None, None] for values in (transform.image_mean, transform.image_std))
    views, found = [], []
    for shorter in sizes:
        height, width = compute_resized_size(original, shorter, round(200 * shorter / 128))
        resized = F.interpolate((image[None] / 255 - mean) / std, (height, width), mode="bilinear")[0].double()
        for flipped in (False, True):
            pixels = F.pad(resized.flip(2) if flipped else resized, (0, -width % 32, 0, -height % 32))[None]
            features, candidates = model.detect_candidates(pixels, torch.tensor([[height, width]]))
            boxes, labels, scores, valid = (values[0] for values in candidates[:4])
            scale = torch.tensor([original[1] / width, original[0] / height] * 2).double()
            views.append((features, scale, flipped))
            boxes = boxes * scale
            boxes = (
                torch.stack([original[1] - boxes[:, 2], boxes[:, 1], original[1] - boxes[:, 0], boxes[:, 3]], 1)
                if flipped
                else boxes
            )
            found.append((boxes, labels, scores, valid))
    boxes, labels, scores, valid = (torch.cat(values) for values in zip(*found, strict=True))
    if nms == "hard":
        kept = reference.nms(boxes, scores, labels, valid, heads.nms_thresh, heads.detections_per_img)
        scores = scores[kept]
    else:
        settings = (heads.nms_thresh, 0.5, True, 0.001, heads.detections_per_img)
        kept, decayed = reference.soft_nms(boxes, scores, labels, valid, *settings)
        scores = torch.tensor(decayed).double()
    boxes, labels = boxes[kept], labels[kept]
    masks = []
    for features, scale, flipped in views:
        own = boxes
        if flipped:
            own = torch.stack([original[1] - boxes[:, 2], boxes[:, 1], original[1] - boxes[:, 0], boxes[:, 3]], 1)
        rois = [own / scale]
        names = heads.mask_roi_pool.featmap_names
        pooled = ops.multilevel_roi_align(
            [features.maps[n] for n in names],
            torch.cat([torch.zeros(len(kept), 1).double(), rois[0]], 1),
            14,
            [features.scales[n] for n in names],
            2,
        )
        logits = heads.mask_predictor(heads.mask_head(pooled))[torch.arange(len(kept)), labels]
        masks.append(logits.sigmoid().flip(2) if flipped else logits.sigmoid())
    return {"boxes": boxes, "labels": labels, "scores": scores, "masks": torch.stack(masks).mean(0)[:, None]}


@pytest.mark.parametrize("nms", ["hard", "soft_gaussian"])
def test_views_by_hand(nms: Any, model: nn.Module, images: list[Tensor]) -> None:
    found = Predictor(model, "exact", masks="soft", box_nms=nms, flip_test=True, test_sizes=(128, 96))(images[2:])
    with torch.no_grad():
        expected = [predict_by_hand(model, image, [128, 96], nms) for image in images[2:]]
    for mine, theirs in zip(found, expected, strict=True):
        assert len(mine["boxes"]) == 30
        for name, values in theirs.items():
            torch.testing.assert_close(mine[name], values.to(mine[name].dtype), rtol=1e-5, atol=1e-5)


def test_a_mirrored_image_has_mirrored_predictions(model: nn.Module, images: list[Tensor]) -> None:
    """Both are the same two views; of an image alone that is not so."""
    image, width = images[1], images[1].shape[2]
    predictor = Predictor(model, "exact", masks="soft", flip_test=True)
    found, mirrored = predictor([image, image.flip(2)])
    boxes = mirrored["boxes"]
    mirrored["boxes"] = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    mirrored["masks"] = mirrored["masks"].flip(3)
    assert assert_matched([mirrored], [found]) == 30


def test_fixed_sizes_grow_and_the_program_is_static(model: nn.Module, images: list[Tensor]) -> None:
    """Nothing in the program depends on what is in the images; padding beyond them changes nothing that is found."""
    predictor = Predictor(model, (128, 160), masks="rle", flip_test=True, test_sizes=(96, 128, 192), graphs=1)
    assert [resizer.padded_size for resizer in predictor.resizers] == [(96, 128), (128, 160), (192, 256)]
    predictor(images[2:])
    assert list(predictor._runners) == [((128, 96), (160, 128), (256, 192))]
    assert {key[:2] for key in predictor.anchors.cache} == {(128, 96), (160, 128), (256, 192)}
    program = predictor.program
    program.trim = False
    buffers = [Buffers(program, 1, size, torch.float64, torch.device("cpu")) for size in ((96, 128), (128, 160))]
    with NoDataDependence(), torch.no_grad():
        program([each.inputs for each in buffers])


def test_what_does_not_fit_is_refused_by_name(model: nn.Module) -> None:
    for options, message in (
        ({"test_sizes": ()}, r"test_sizes must be positive integers, got \(\)"),
        ({"test_sizes": 800}, "test_sizes must be positive integers, got 800"),
        ({"test_sizes": [0.5]}, r"test_sizes must be positive integers, got \[0.5\]"),
        ({"flip_test": True, "mask_buckets": True}, "mask_buckets must not be given with flip_test or test_sizes"),
        ({"test_sizes": [96], "compile": True}, "compile must not be given with flip_test or test_sizes, got True"),
    ):
        with pytest.raises(ValueError, match=message):
            Predictor(model, "exact", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not be given for a model with a keypoint branch"):
        Predictor(slim_model(fastmask, keypoints=2).eval(), flip_test=True)
    with pytest.raises(ValueError, match="test_sizes must not be given with a fixed_size"):
        Predictor(slim_model(fastmask, fixed_size=(160, 128)).eval(), test_sizes=[96])
