"""The models on photos, which are not part of the repository: FASTMASK_BALLOON names their folder."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers.exact import assert_exact, assert_matched
from helpers.prefill import prefill
from helpers.slim import slim_pair
from PIL import Image, ImageDraw
from torch import Tensor

import fastmask
from fastmask.benchmarks.calibrate import calibrate
from fastmask.evaluation.agreement import matched_share
from fastmask.image_io import read_image
from fastmask.models._presets import to_float

FOLDER = os.environ.get("FASTMASK_BALLOON", "")


def photos(number: int, part: str = "val") -> dict[str, Tensor]:
    """The first photos [3, H, W] in [0, 1], by name."""
    if not FOLDER:
        pytest.skip("NO PHOTOGRAPHS: set FASTMASK_BALLOON to the folder of the balloon data set to run this test")
    paths = sorted(Path(FOLDER, part).glob("*.jpg"))[:number]
    assert len(paths) == number, f"FASTMASK_BALLOON={FOLDER} must hold {part}/*.jpg, got {len(paths)}"
    return {path.name: to_float(read_image(path)) for path in paths}


def test_photos_in_both_precisions() -> None:
    images = list(photos(2).values())
    theirs, ours = slim_pair()
    with torch.no_grad():
        assert assert_matched(ours(images), theirs(images)) > 20
        theirs.double(), ours.double()
        exact = [image.double() for image in images]
        for actual, expected in zip(ours(exact), theirs(exact), strict=True):
            assert len(expected["boxes"])
            assert_exact(actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_all_photos_in_float32(name: str) -> None:
    images = photos(13)
    theirs, ours = (
        library.models.get_model(name, weights=None, weights_backbone=None).eval()
        for library in (torchvision, fastmask)
    )
    calibrate(theirs, list(images.values())[::4])
    ours.load_state_dict(theirs.state_dict())
    matched = total = 0.0
    with torch.no_grad():
        for photo, image in images.items():
            (actual,), (expected,) = ours([image]), theirs([image])
            number = len(actual["boxes"]) + len(expected["boxes"])
            assert number, photo
            share = matched_share(actual, expected)
            print(f"{photo}: {share:.4f} of {number // 2} detections")
            matched, total = matched + share * number, total + number
    assert matched / total >= 0.99


@pytest.mark.slow
def test_all_photos_in_float64() -> None:
    """On the slim model, whose float64 is affordable."""
    images = [image.double() for image in photos(13).values()]
    theirs, ours = (model.double() for model in slim_pair(min_size=400, max_size=600))
    with torch.no_grad():
        for image in images:
            (actual,), (expected,) = ours([image]), theirs([image])
            assert len(expected["boxes"])
            assert_exact(actual, expected)


@pytest.mark.slow
def test_the_fine_tuning_tutorial_on_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's, with only the import and the learning rate changed: the COCO weights in the cache are random."""
    from fastmask.models.detection import maskrcnn_resnet50_fpn
    from fastmask.models.detection.faster_rcnn import FastRCNNPredictor
    from fastmask.models.detection.mask_rcnn import MaskRCNNPredictor

    images = photos(4, "train")
    prefill(tmp_path, next(iter(images.values())))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    model = maskrcnn_resnet50_fpn(weights="DEFAULT", min_size=320)
    in_features = model.roi_heads.box_predictor.cls_score.in_features
    model.roi_heads.box_predictor = FastRCNNPredictor(in_features, 2)
    in_features_mask = model.roi_heads.mask_predictor.conv5_mask.in_channels
    model.roi_heads.mask_predictor = MaskRCNNPredictor(in_features_mask, 256, 2)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=0.0002, momentum=0.9, weight_decay=0.0005)  # random weights bear less
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.1)
    names = list(images)
    model.train()
    history = []
    for _ in range(6):
        epoch = 0.0
        for batch in (names[:2], names[2:]):
            losses = model([images[name] for name in batch], [balloons(name, images[name]) for name in batch])
            loss = sum(losses.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            epoch += loss.item()
        scheduler.step()
        history.append(epoch)
    print("losses by epoch:", [round(loss, 3) for loss in history])
    assert history[-1] < 0.8 * history[0]
    model.eval()
    with torch.no_grad():
        for image in photos(2).values():
            (prediction,) = model([image])
            assert sorted(prediction) == ["boxes", "labels", "masks", "scores"]
            assert prediction["masks"].shape == (len(prediction["boxes"]), 1, *image.shape[1:])
            assert set(prediction["labels"].tolist()) <= {1}


def balloons(name: str, image: Tensor) -> dict[str, Tensor]:
    """The target of a training photo: its polygons, as VIA wrote them."""
    entries = json.loads(Path(FOLDER, "train", "via_region_data.json").read_text()).values()
    (regions,) = (entry["regions"] for entry in entries if entry["filename"] == name)
    masks = []
    for region in regions.values() if isinstance(regions, dict) else regions:
        shape = region["shape_attributes"]
        canvas = Image.new("L", (image.shape[2], image.shape[1]))
        ImageDraw.Draw(canvas).polygon(list(zip(shape["all_points_x"], shape["all_points_y"], strict=True)), fill=1)
        masks.append(torch.from_numpy(np.array(canvas)))
    stacked = torch.stack(masks)
    labels = torch.ones(len(masks), dtype=torch.int64)
    return {"boxes": torchvision.ops.masks_to_boxes(stacked), "labels": labels, "masks": stacked}
