"""Checkpoints of detectron2: files of its published layouts, compared with a forward that is written from its pages."""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from helpers.detectron2 import Oracle, build_slim, draw_state, list_shapes
from torch import Tensor

from fastmask.inference import load_pretrained
from fastmask.models import Checkpoint, detection, from_checkpoint, load_checkpoint, save_weights
from fastmask.models._meta import COCO_CATEGORIES
from fastmask.models.converters.detectron2 import convert_detectron2
from fastmask.models.prepare import prepare_for_inference

X101_STD = (57.375, 57.120, 58.395)
SMALL = {"min_size": 64, "max_size": 128, "rpn_post_nms_top_n_test": 40, "box_detections_per_img": 6}
SMALL["box_score_thresh"] = 0.0  # random weights detect something then
MODELS = {  # body, on C4, branch, classes
    "maskrcnn_resnet50_fpn": ("R50", False, "mask", 4),
    "maskrcnn_resnet50_c4": ("R50", True, "mask", 80),
    "fasterrcnn_resnext101_32x8d_fpn": ("X101", False, "", 3),
    "keypointrcnn_resnet50_fpn": ("R50", False, "keypoint", 1),
}
PUBLISHED = {
    "fasterrcnn": {"resnet50_fpn", "resnet101_fpn", "resnet50_c4", "resnet101_c4", "resnext101_32x8d_fpn"},
    "maskrcnn": {"resnet50_fpn", "resnet101_fpn", "resnet50_c4", "resnet101_c4", "resnext101_32x8d_fpn"},
    "keypointrcnn": {"resnet50_fpn", "resnet101_fpn", "resnext101_32x8d_fpn"},
}
State = dict[str, Tensor]
BODIES = {"resnet50": "R50", "resnet101": "R101", "resnext101": "X101"}


@pytest.fixture(autouse=True)
def slim_builders(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.node.originalname != "test_published_layouts":
            build_slim(patch)
        yield


def draw(name: str, anchors: bool = False) -> State:
    body, c4, branch, classes = MODELS[name]
    return draw_state(list_shapes(body, c4, branch, classes, 8, anchors), 1.3 if body == "X101" else 70)


def write_pkl(path: Path, state: Mapping[str, Tensor], protocol: int = 4) -> Path:
    """As detectron2's model zoo has them."""
    content = {"model": {key: value.numpy() for key, value in state.items()}, "__author__": "Detectron2 Model Zoo"}
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def draw_images() -> list[Tensor]:
    return [torch.randint(256, (3, *size)).double() for size in ((64, 90), (100, 64))]


def detect(model: Any, images: list[Tensor]) -> list[dict[str, Tensor]]:
    with torch.no_grad():
        found: list[dict[str, Tensor]] = model.double().detect([image / 255 for image in images])
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_forward_is_detectron2s(name: str, tmp_path: Path) -> None:
    """In float64, from RGB images in [0, 1]; labels are COCO's category ids where there are its 80 classes."""
    state = draw(name, anchors=True)
    resnext, classes = "resnext" in name, MODELS[name][3]
    model = from_checkpoint(write_pkl(tmp_path / "model_final.pkl", state), **SMALL)
    assert not model.training
    ids = [label for label, text in enumerate(COCO_CATEGORIES) if label and text != "N/A"]
    labels = torch.tensor(ids if classes == 80 else range(1, classes + 1))
    images = draw_images()
    oracle = Oracle(state, X101_STD if resnext else (1.0,) * 3, not resnext, 32 if resnext else 1, 40, 6)
    with torch.no_grad():
        expected = oracle([image.flip(0) for image in images])
    for actual, wanted in zip(detect(model, images), expected, strict=True):
        assert len(wanted["boxes"]) == 6
        assert torch.equal(actual["labels"], labels[wanted["classes"]])
        torch.testing.assert_close(actual["boxes"], wanted["boxes"], rtol=0, atol=1e-6)
        torch.testing.assert_close(actual["scores"], wanted["scores"], rtol=0, atol=1e-6)
        assert ("masks" in actual) == ("masks" in wanted)
        if "masks" in wanted:
            torch.testing.assert_close(actual["masks"][:, 0], wanted["masks"], rtol=0, atol=1e-6)
        if "heatmaps" in wanted:
            points = torchvision.models.detection.roi_heads.heatmaps_to_keypoints(wanted["heatmaps"], wanted["boxes"])
            torch.testing.assert_close(actual["keypoints"].float(), points[0], rtol=0, atol=1e-3)


def test_each_convention_counts(tmp_path: Path) -> None:
    """Without one of them the detections are others: the oracle would see it."""
    path = write_pkl(tmp_path / "a.pkl", draw("maskrcnn_resnet50_c4"))
    images = draw_images()[:1]
    expected = detect(from_checkpoint(path, **SMALL), images)
    for name, value in {
        "stride_in_1x1": False,
        "aligned": False,
        "exact_anchors": False,
        "sampling_ratio": 2,
        "input_format": "RGB",
    }.items():
        actual = detect(from_checkpoint(path, **SMALL, **{name: value}), images)
        boxes = [torch.cat([each["boxes"] for each in found]) for found in (actual, expected)]
        assert (boxes[0] - boxes[1]).abs().max() > 1e-5, name  # ten times what the oracle allows


def test_prepared_models_detect_the_same(tmp_path: Path) -> None:
    """Fused layers know strides in 1x1 convolutions, and cached anchors those that are exact."""
    model: Any = from_checkpoint(write_pkl(tmp_path / "a.pkl", draw("maskrcnn_resnet50_c4")), **SMALL).double()
    batch, _ = model.transform([image / 255 for image in draw_images()])
    inputs = batch.tensors, torch.tensor(batch.image_sizes)
    with torch.no_grad():
        expected = model.infer(*inputs)
        actual = prepare_for_inference(model, torch.float64, "kernel").infer(*inputs)
    assert int(expected.count.min()) == 6
    for name in ("boxes", "scores", "masks"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=0, atol=1e-6)


def test_a_trainers_file_and_its_own_statistics(tmp_path: Path) -> None:
    """A .pth of the trainer, whose buffers tell the statistics; of RGB images, the same weights in the other order."""
    state = draw("maskrcnn_resnet50_c4")
    trainer = {"optimizer": {"state": {}, "param_groups": []}, "scheduler": {"last_epoch": 9}, "iteration": 9}
    torch.save({"model": state} | trainer, tmp_path / "model_final.pth")
    images = draw_images()
    expected = detect(from_checkpoint(tmp_path / "model_final.pth", **SMALL), images)
    statistics = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (2.0, 2.0, 2.0)}
    other = state | {name: torch.tensor(v, dtype=torch.float64)[:, None, None] for name, v in statistics.items()}
    stem = "backbone.stem.conv1.weight"
    other[stem] = 2 * state[stem].flip(1)
    torch.save({"model": other} | trainer, tmp_path / "rgb.pth")
    for actual, wanted in zip(
        detect(from_checkpoint(tmp_path / "rgb.pth", input_format="RGB", **SMALL), images), expected, strict=True
    ):
        for key, value in wanted.items():
            torch.testing.assert_close(actual[key], value, rtol=0, atol=1e-6)
    checkpoint = Checkpoint(tmp_path / "model_final.pth")
    assert checkpoint.meta["options"]["image_mean"] == [mean / 255 for mean in (123.675, 116.28, 103.53)]
    with pytest.raises(ValueError, match="input_format must be BGR or RGB, got 'GRB'"):
        Checkpoint(tmp_path / "model_final.pth", input_format="GRB")


def test_saved_again_it_is_a_file_of_ours(tmp_path: Path) -> None:
    """Commands take the file itself; as safetensors it builds the same model, whose predictions are bitwise equal."""
    path = write_pkl(tmp_path / "a.pkl", draw("keypointrcnn_resnet50_fpn"), protocol=2)
    checkpoint = Checkpoint(path)
    metadata = {name: checkpoint.meta[name] for name in ("builder", "categories", "options", "norm_eps", "skeletons")}
    save_weights(checkpoint.get_state_dict(), tmp_path / "a.safetensors", **metadata)
    assert Checkpoint(tmp_path / "a.safetensors").meta == checkpoint.meta
    images = [image.float() / 255 for image in draw_images()]
    models = [from_checkpoint(path, **SMALL), from_checkpoint(tmp_path / "a.safetensors", **SMALL)]
    model, categories = load_pretrained(None, path, "cpu", 0.0)
    model.transform.min_size, model.transform.max_size = (64,), 128
    model.rpn._post_nms_top_n["testing"], model.roi_heads.detections_per_img = 40, 6
    assert categories == ["no person", "person"]
    with torch.no_grad():
        first, *others = (each(images) for each in [*models, model])
    assert all(torch.equal(found[i][key], first[i][key]) for found in others for i in range(2) for key in first[i])


def test_models_of_other_conventions_do_not_take_it(tmp_path: Path) -> None:
    path = write_pkl(tmp_path / "a.pkl", draw("maskrcnn_resnet50_fpn"))
    plain = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5)
    message = r"aligned must be True with .*a.pkl, got False: fastmask.models.from_checkpoint builds the model"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(plain, path)
    with pytest.raises(ValueError, match=message):
        detection.maskrcnn_resnet50_fpn(weights=path)
    model = from_checkpoint(path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.roi_heads.box_predictor.cls_score.weight.data.zero_()
    load_checkpoint(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.transform.image_std = [0.2, 0.2, 0.2]
    with pytest.raises(ValueError, match=r"image_std must be .* got"):
        load_checkpoint(model, path)
    for options, text in (
        ({"aligned": True, "box_pooling": "roi_pool"}, "box_pooling must be roi_align to be aligned, got 'roi_pool'"),
        ({"aligned": True, "box_roi_pool": model.roi_heads.box_roi_pool}, "aligned must be False where box_roi_pool"),
        ({"stride_in_1x1": True}, "stride_in_1x1 must be False with a backbone without bottlenecks, got True"),
        (
            {"exact_anchors": True, "rpn_anchor_generator": model.rpn.anchor_generator},
            "anchors of another kind, got Ex",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            detection.fasterrcnn_resnet18_fpn(weights_backbone=None, **options)
    few = from_checkpoint(path, num_classes=3, new_predictors=True)
    assert few.roi_heads.num_classes() == 3
    assert torch.equal(few.backbone.body.conv1.weight, before["backbone.body.conv1.weight"])


def test_agnostic_rows_serve_all_classes() -> None:
    state = draw("maskrcnn_resnet50_c4")
    for key in ("box_predictor.bbox_pred", "mask_head.predictor"):
        for kind in ("weight", "bias"):
            state[f"roi_heads.{key}.{kind}"] = state[f"roi_heads.{key}.{kind}"][: 4 if "box" in key else 1]
    converted, _ = convert_detectron2(state, "a.pkl")
    deltas = converted["roi_heads.box_predictor.bbox_pred.weight"].unflatten(0, (-1, 4))
    assert all(torch.equal(deltas[i], state["roi_heads.box_predictor.bbox_pred.weight"]) for i in (1, 90))
    assert not deltas[12].any()  # which is no class


def without(part: str) -> Any:
    return lambda state: {key: value for key, value in state.items() if part not in key}


def replace(key: str, change: Any) -> Any:
    return lambda state: state | {key: change(state[key])}


def add(key: str) -> Any:
    return lambda state: state | {key: torch.zeros(1)}


BOX, RPN, FPN = "roi_heads.box_predictor.", "proposal_generator.rpn_head.", "backbone.fpn_lateral2"
STEM = "backbone.bottom_up.stem.conv1.weight"
WRONG = {
    r"on FPN or C4 to be converted from detectron2, got Cascade R-CNN \(roi_heads.box_head.0.fc1.weight\)": add(
        "roi_heads.box_head.0.fc1.weight"
    ),
    r"got Panoptic FPN or semantic segmentation \(sem": add("sem_seg_head.p2.0.weight"),
    r"got deformable convolutions": add("backbone.bottom_up.res3.0.conv2_offset.weight"),
    r"got dilated C5 \(DC5\) \(backbone.res5.0.conv1.weight\)": add("backbone.res5.0.conv1.weight"),
    r"got norms in the pyramid": add(f"{FPN}.norm.weight"),
    r"got a backbone alone": lambda state: {"stem.conv1.weight": state[STEM]},
    r"got Caffe2's names of keys": lambda state: {"conv1_w": state[STEM]},
    r"got no RPN: no key begins with": without("rpn_head"),
    r"got no box head": without("box_predictor"),
    r"got no roi_heads.box_predictor.cls_score.bias": without("cls_score.bias"),
    r"got no stem.conv1.weight": without("stem.conv1.weight"),
    r"must have the blocks of resnet18, .* to be converted, got 2-4-6-3 bottlenecks in 1 groups": without("res2.2."),
    r"no other keys than detectron2's of these models, got roi_heads.extra": add("roi_heads.extra"),
    r"must have all keys of maskrcnn_resnet50_fpn .*, got no backbone.fpn.inner_blocks.0.0.bias": without(
        f"{FPN}.bias"
    ),
    r"must have the shapes of .*, got \[256, 7\] for \[256\] of roi_heads.mask_head.0.0.bias": replace(
        "roi_heads.mask_head.mask_fcn1.bias", lambda value: value[:, None].expand(256, 7).contiguous()
    ),
    r"box_predictor.bbox_pred.weight must have 16 rows of 4 classes, got shape \[12, 1024\]": replace(
        f"{BOX}bbox_pred.weight", lambda value: value[:12]
    ),
    r"must hold all its elements, got a view of shape \[1000000, 1000000\]": replace(
        f"{BOX}cls_score.weight", lambda value: torch.zeros(1).expand(10**6, 10**6)
    ),
    r"must have the shapes of .*, got \[1000001, 1\] for": lambda state: (
        state
        | {f"{BOX}cls_score.weight": torch.zeros(10**6 + 1, 1), f"{BOX}cls_score.bias": torch.zeros(10**6 + 1)}
        | {f"{BOX}bbox_pred.weight": torch.zeros(4, 1), f"{BOX}bbox_pred.bias": torch.zeros(4)}
        | {f"roi_heads.mask_head.predictor.{kind}": torch.zeros(1, 1, 1, 1)[0] for kind in ("weight", "bias")}
    ),
    r"must be numbers of floating point, got torch.int64": replace(f"{BOX}cls_score.bias", Tensor.long),
    r"stem.conv1.weight must be \[C, 3, 7, 7\], got \[64\]": replace(STEM, lambda value: value[:, 0, 0, 0]),
    r"cls_score.weight must be 2D, got \[\]": replace(f"{BOX}cls_score.weight", lambda value: value[0, 0]),
    r"cell_anchors.1 must be anchors of sizes \(32, .*": replace(
        "proposal_generator.anchor_generator.cell_anchors.1", lambda value: 2 * value
    ),
    r"must have masks or keypoints to be converted, got both": add("roi_heads.keypoint_head.conv_fcn1.bias"),
}


def test_other_models_are_named() -> None:
    """In one line each, before anything large is built."""
    state = draw("maskrcnn_resnet50_fpn", anchors=True)
    for message, change in WRONG.items():
        with pytest.raises(ValueError, match=rf"^a.pkl\b.*{message}") as caught:
            convert_detectron2(change(state), "a.pkl")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_layouts(kind: str) -> None:
    """Every published model's keys and shapes, at full size, are those of a builder; without values."""
    branch = {"maskrcnn": "mask", "keypointrcnn": "keypoint"}.get(kind, "")
    for model in PUBLISHED[kind]:
        body = BODIES[model.partition("_")[0]]
        shapes = list_shapes(body, model.endswith("c4"), branch, 1 if branch == "keypoint" else 80)
        with torch.device("meta"):
            state = {key: torch.zeros(shape) for key, shape in shapes.items()}
            converted, described = convert_detectron2(state, model)
        assert described["builder"] == f"{kind}_{model}"
        assert len(converted) == len(state)
        assert described["options"]["stride_in_1x1"] == (body != "X101")
        assert described["options"].get("size_divisible") == (1 if model.endswith("c4") else None)
