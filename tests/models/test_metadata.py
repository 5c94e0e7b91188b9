"""What a checkpoint remembers of its model: builder, options, eps of frozen norms; and whose a foreign file is."""

import operator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers.images import draw_image
from helpers.slim import calibrate_on_images, slim_model
from torch import nn

import fastmask
from fastmask.inference import Predictor, load_pretrained
from fastmask.models import Checkpoint, detection
from fastmask.models._metadata import OPTIONS, describe_model
from fastmask.models._state import find_builder
from fastmask.models.detection._utils import overwrite_eps
from fastmask.models.detection._weights import choose_model

UNUSUAL = {
    "min_size": 96,
    "max_size": 160,
    "image_mean": [0.3, 0.4, 0.5],
    "image_std": [0.2, 0.3, 0.25],
    "size_divisible": 64,
    "fixed_size": [160, 128],
    "rpn_nms_thresh": 0.6,
    "rpn_score_thresh": 0.125,
    "rpn_pre_nms_top_n_test": 150,
    "rpn_post_nms_top_n_test": 60,
    "box_nms_thresh": 0.4,
    "box_detections_per_img": 13,
    "bbox_reg_weights": [8.0, 9.0, 4.0, 4.5],
    "aligned": False,  # RoIPool, here, has neither that nor samples
    "exact_anchors": True,
    "box_pooling": "roi_pool",
    "mask_head": "unet",
    "mask_classes": "agnostic",
    "rpn_loss": "focal",
    "box_loss": "ciou",
    "mask_loss": "bce_dice",
    "box_nms": "soft_linear",
}
CONVENTIONS = {"sampling_ratio": 0, "aligned": True, "exact_anchors": True, "stride_in_1x1": True}
OTHERS = {"fpn_channels", "stride_in_1x1", "sampling_ratio"}  # of timm's backbones, of bottlenecks, of RoIAlign
OTHERS |= {"anchor_sizes", "anchor_ratios"}  # of matterport's anchors
FOREIGN = (
    "fasterrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "maskrcnn_slim_fpn",
    "maskrcnn_resnet34_fpn",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "keypointrcnn_resnet50_fpn",
)
NAMES = ["-", "one", "two", "three", "four"]


def test_a_file_is_enough(slim_file: tuple[Path, nn.Module], tmp_path: Path) -> None:
    """Every option that predictions depend on comes back, and the eps of frozen norms: the predictions are the same."""
    model = slim_model(fastmask, **UNUSUAL | {"image_std": np.array(UNUSUAL["image_std"]), "max_size": 160.0}).eval()
    calibrate_on_images(model)
    overwrite_eps(model, 0.0)
    model.roi_heads.score_thresh = 0.06
    described = describe_model(model, "slim", NAMES)
    assert described == {"builder": "slim", "categories": NAMES, "options": UNUSUAL, "norm_eps": 0.0}
    assert UNUSUAL.keys() == OPTIONS.keys() - OTHERS
    torch.save({"model": model.state_dict(), **described}, tmp_path / "own.pth")
    loaded, categories = load_pretrained(tmp_path / "own.pth", device="cpu", score=0.06)
    assert list(categories) == NAMES
    for path in (OPTIONS[name] for name in UNUSUAL):
        mine, theirs = (operator.attrgetter(path)(each) for each in (loaded, model))
        assert mine == (theirs.tolist() if isinstance(theirs, np.ndarray) else theirs), path
    image = draw_image(120, 150)[0]
    with torch.no_grad():
        (mine,), (theirs,) = loaded([image]), model([image])
    assert len(theirs["scores"]) > 3
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    predictor = Predictor.from_pretrained(str(tmp_path / "own.pth"), device="cpu")
    assert (predictor.channels, predictor.categories) == (3, NAMES)
    with pytest.raises(ValueError, match=r"model must be slim with .*own.pth, got maskrcnn_slim_fpn"):
        load_pretrained("maskrcnn_slim_fpn", tmp_path / "own.pth")
    with pytest.raises(ValueError, match=r"name must be one of .* or a file, got '.*own.pth'"):
        load_pretrained(tmp_path / "own.pth", "COCO_V1")


def test_files_of_ours_before_and_of_others(slim_file: tuple[Path, nn.Module], tmp_path: Path) -> None:
    """Files without a builder keep the default model; entries of other meanings are left out."""
    old = {"model": slim_file[1].state_dict(), "categories": NAMES, "options": {"min_size": 64, "max_size": 96}}
    torch.save(old, tmp_path / "old.pth")
    assert Checkpoint(tmp_path / "old.pth").meta == {"num_classes": 5} | {n: old[n] for n in ("categories", "options")}
    assert choose_model(None, tmp_path / "old.pth")[0] == "maskrcnn_resnet50_fpn"
    model, _ = load_pretrained("slim", tmp_path / "old.pth", "cpu")
    assert (model.transform.min_size, model.transform.max_size) == ((64,), 96)
    odd = {
        "builder": ["slim"],
        "options": {"min_size": True, "box_pooling": "max", "image_mean": [], "image_std": [None]},
        "norm_eps": "no",
    }
    torch.save(old | odd, tmp_path / "odd.pth")
    assert Checkpoint(tmp_path / "odd.pth").meta == {"num_classes": 5, "categories": NAMES, "options": {}}


def test_published_names_choose_their_model() -> None:
    shapes = detection.MaskRCNN_Slim_FPN_Weights.SHAPES_V1
    coco = detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    balloon = detection.MaskRCNN_EfficientNet_Lite0_FPN_Weights.BALLOON_V1
    v2 = detection.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1
    assert choose_model(None, "COCO_V1") == choose_model(None, "DEFAULT") == ("maskrcnn_resnet50_fpn", coco)
    assert choose_model(None, "SHAPES_V1") == choose_model(None, shapes) == ("maskrcnn_slim_fpn", shapes)
    assert choose_model(None, "BALLOON_V1") == ("maskrcnn_efficientnet_lite0_fpn", balloon)
    assert choose_model(None, "FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1") == ("fasterrcnn_resnet50_fpn_v2", v2)
    with pytest.raises(
        ValueError,
        match=r"weights must be COCO_V1, DEFAULT, COCO_LEGACY, BALLOON_V1, SHAPES_V1 or a file, got 'best.pht'",
    ):
        choose_model(None, "best.pht")


@pytest.mark.parametrize("name", FOREIGN)
def test_whose_a_foreign_file_is(name: str) -> None:
    """Of any number of classes: those of torchvision's models are named; a builder is not, where its parts changed."""
    library = torchvision if hasattr(torchvision.models.detection, name) else fastmask
    options = {} if name == "maskrcnn_slim_fpn" else {"weights": None, "weights_backbone": None}
    with torch.device("meta"):
        model = library.models.get_model(name, num_classes=7, **options)
        assert find_builder(model.state_dict()) == name
        unusual = {key: value for key, value in UNUSUAL.items() if "mask" in name or not key.startswith("mask_")}
        unusual |= {"box_pooling": "roi_align", "sampling_ratio": [0, 3, 1, 2][: 2 if "mobilenet" in name else 4]}
        unusual |= {"stride_in_1x1": True} if "resnet50" in name else {}
        own = fastmask.models.get_model(name, **options, **unusual)
        assert describe_model(own, name, None)["options"] == unusual  # each builder takes them all
        if name == "keypointrcnn_resnet50_fpn":
            assert own.roi_heads.keypoint_roi_pool.sampling_ratio == unusual["sampling_ratio"]
        if name == "maskrcnn_slim_fpn":
            assert find_builder(own.state_dict(), own) == name  # also of another mask branch and samples
    assert find_builder({"a": torch.zeros(1)}) is None


def test_of_two_builders_of_one_state_dict_the_options_choose() -> None:
    for name, options in (
        ("fasterrcnn_mobilenet_v3_large_fpn", {"box_pooling": "roi_pool", "box_nms_thresh": 0.4}),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", {}),
        ("maskrcnn_resnet50_fpn", CONVENTIONS),
    ):
        with torch.device("meta"):
            model = fastmask.models.get_model(name, weights_backbone=None, num_classes=3, **options)
        assert find_builder(model.state_dict(), model) == name


def test_a_model_of_changed_parts_has_no_name() -> None:
    model = detection.maskrcnn_slim_fpn(num_classes=3)
    assert find_builder(model.state_dict(), model) == "maskrcnn_slim_fpn"
    model.rpn.anchor_generator = detection.anchor_utils.AnchorGenerator(
        ((8,), (16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 5
    )
    assert find_builder(model.state_dict()) == "maskrcnn_slim_fpn"
    assert find_builder(model.state_dict(), model) is None


def test_a_mismatch_names_the_model(tmp_path: Path) -> None:
    torch.save(detection.maskrcnn_slim_fpn(num_classes=2).state_dict(), tmp_path / "theirs.pth")
    message = (
        r"theirs.pth is not of this model: .*; it looks like maskrcnn_slim_fpn's: choose that model \(--model maskr"
    )
    with pytest.raises(ValueError, match=message):
        load_pretrained(None, tmp_path / "theirs.pth", "cpu")
