"""Checkpoint files of every kind, and error messages that name the problem."""

import argparse
from pathlib import Path

import pytest
import torch
import torchvision
from helpers.slim import NUM_CLASSES, slim_model
from safetensors.torch import save_file
from torch import Tensor, nn

import fastmask
from fastmask.models import Checkpoint, detection, load_checkpoint, save_weights
from fastmask.ops import FrozenBatchNorm2d

State = dict[str, Tensor]


def add_prefix(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


KINDS = {
    "bare.pth": lambda state: state,
    "reference.pth": lambda state: {"model": state, "epoch": 3, "optimizer": {}, "args": argparse.Namespace(lr=0.02)},
    "lightning.ckpt": lambda state: {"state_dict": add_prefix(state, "model."), "hyper_parameters": {"lr": 0.1}},
    "tutorial.pt": lambda state: {"model_state_dict": state, "loss": 0.5},
    "parallel.pth": lambda state: {"model": add_prefix(state, "module.")},
    "compiled.pth": lambda state: add_prefix(state, "module._orig_mod."),
    "parallel_compiled.pth": lambda state: {"state_dict": {"model": add_prefix(state, "_orig_mod.module.")}},
    "averaged.pth": lambda state: {"n_averaged": torch.tensor(3), **add_prefix(state, "module.")},
    "plain.safetensors": lambda state: state,
}


def write(path: Path, content: object) -> Path:
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_files(kind: str, tmp_path: Path) -> None:
    state = slim_model(torchvision, "BatchNorm2d").state_dict()
    path = write(tmp_path / kind, KINDS[kind](state))
    model = slim_model(fastmask, "BatchNorm2d")
    load_checkpoint(model, path)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    checkpoint = Checkpoint(str(path))
    assert checkpoint.meta == {"num_classes": NUM_CLASSES}
    assert repr(checkpoint) == str(path)


def test_categories_come_along(tmp_path: Path) -> None:
    state = slim_model(torchvision).state_dict()
    names = ["background", "a", "b", "c", "d"]
    assert Checkpoint(write(tmp_path / "a.pth", {"model": state, "categories": names})).meta["categories"] == names


def test_saved_weights_come_back(tmp_path: Path) -> None:
    """Saved as they are, or in half types where they have several dimensions; with metadata or without."""
    state = slim_model(fastmask, "BatchNorm2d").state_dict()
    save_weights(state, tmp_path / "whole.safetensors")
    whole = Checkpoint(tmp_path / "whole.safetensors")
    assert whole.meta == {"num_classes": NUM_CLASSES}
    assert all(torch.equal(value, state[key]) for key, value in whole.get_state_dict().items())
    options = {"min_size": 64, "max_size": 96, "image_mean": [0.1, 0.2, 0.3], "box_nms_thresh": 0.4}
    metadata = {"builder": "maskrcnn_slim_fpn", "categories": ["", "a", "b", "c", "d"], "options": options}
    metadata |= {"norm_eps": 0.0, "metrics": {"box": [0.5, 0.75, -1.0]}}
    save_weights(state, tmp_path / "half.safetensors", dtype=torch.float16, **metadata)
    half = Checkpoint(tmp_path / "half.safetensors")
    assert half.meta == metadata | {"num_classes": NUM_CLASSES}
    assert half.get_state_dict().keys() == state.keys()
    for key, value in half.get_state_dict().items():
        assert torch.equal(value, state[key].half() if state[key].ndim > 1 else state[key])
    load_checkpoint(slim_model(fastmask, "BatchNorm2d"), tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match=r"path must end in .safetensors, got .*whole.pth"):
        save_weights(state, tmp_path / "whole.pth")
    weight = torch.full((2, 2), 1e6)
    save_weights({"a.weight": weight, "b.weight": weight}, tmp_path / "tied.safetensors")
    assert torch.equal(Checkpoint(tmp_path / "tied.safetensors").get_state_dict()["b.weight"], weight)
    for options, message in (
        ({"dtype": torch.float16}, "dtype must hold all weights, got torch.float16 and a.weight up to 1e.06"),
        ({"metrics": {"box": [0.5, "a", 0.1]}}, "metrics must be lists of numbers by box, mask and keypoints, got"),
        ({"dtype": torch.int8}, "dtype must be floating, got torch.int8"),
        ({"options": {"min_size": (1, 2)}}, "options must be a builder's arguments, whole pixels and numbers, got"),
        ({"options": {"backbone": 1}}, "options must be a builder's arguments"),
        ({"builder": "yolo"}, "builder must be one of .*fasterrcnn_resnet50_fpn, .*, got 'yolo'"),
    ):
        with pytest.raises(ValueError, match=message):
            save_weights({"a.weight": weight}, tmp_path / "no.safetensors", **options)
    with pytest.raises(ValueError, match="categories must have a name for each of 5 labels, got 1"):
        save_weights(state, tmp_path / "no.safetensors", categories=["a"])
    with pytest.raises(OSError, match="cannot be written"):
        save_weights(state, tmp_path / "nowhere" / "no.safetensors")
    metadata = {"categories": "no JSON", "options": '["neither"]', "builder": '"theirs"', "norm_eps": "NaN"}
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "odd.safetensors", metadata)
    assert Checkpoint(tmp_path / "odd.safetensors").meta == {"num_classes": NUM_CLASSES}


def test_norms_frozen_or_not_load_into_each_other(tmp_path: Path) -> None:
    kinds = ("FrozenBatchNorm2d", "BatchNorm2d")
    for source, target in (kinds, kinds[::-1]):
        state = slim_model(torchvision, source).state_dict()
        model = slim_model(fastmask, target)
        load_checkpoint(model, write(tmp_path / f"{source}.pth", state))
        shared = state.keys() & model.state_dict().keys()
        assert {key for key in state if not key.endswith("num_batches_tracked")} <= shared
        assert all(torch.equal(model.state_dict()[key], state[key]) for key in shared if "tracked" not in key)


def test_another_number_of_classes_names_both_and_can_be_left_out(tmp_path: Path) -> None:
    state = slim_model(torchvision).state_dict()
    path = write(tmp_path / "five.pth", {"model": state})
    model = slim_model(fastmask)
    model.roi_heads.box_predictor = detection.faster_rcnn.FastRCNNPredictor(64, 3)
    model.roi_heads.mask_predictor = detection.mask_rcnn.MaskRCNNPredictor(32, 32, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"num_classes must be 5 with .*five.pth, got 3 \(new_predictors=True loads all"
    ):
        load_checkpoint(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    load_checkpoint(model, path, new_predictors=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if "_predictor." in key else state[key])
    model.roi_heads.box_predictor = detection.faster_rcnn.FastRCNNPredictor(64, 5)  # one of the two forgotten
    with pytest.raises(ValueError, match=r"num_classes must be 5 with .*five.pth, got 3"):
        load_checkpoint(model, path)


def test_of_another_model(tmp_path: Path) -> None:
    model = slim_model(fastmask)
    state = model.state_dict()
    less = {key: value for key, value in state.items() if "mask" not in key}
    with pytest.raises(
        ValueError, match=r"less.pth is not of this model: .* got 8 missing \(roi_heads.mask_head.0.0.w"
    ):
        load_checkpoint(model, write(tmp_path / "less.pth", less))
    with pytest.raises(ValueError, match=r"its keys must be the model's, got 1 unexpected \(more\)"):
        load_checkpoint(model, write(tmp_path / "more.pth", state | {"more": torch.zeros(1)}))
    other = state | {"rpn.head.cls_logits.weight": torch.zeros(3, 8, 1, 1)}
    with pytest.raises(ValueError, match=r"model: 1 shapes differ, such as rpn.head.cls_logits.weight \[3, 8, 1, 1\]"):
        load_checkpoint(model, write(tmp_path / "other.pth", other))


class Anything:
    """A class that must not be unpickled."""


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    state = {"a": torch.zeros(1000)}
    for suffix in ("pth", "safetensors"):
        whole = write(tmp_path / f"whole.{suffix}", state).read_bytes()
        for name, content in {"torn": whole[: len(whole) // 2], "text": b"text", "empty": b""}.items():
            (tmp_path / f"{name}.{suffix}").write_bytes(content)
            with pytest.raises(ValueError, match=f"{name}.{suffix} (cannot be read as|must be) a checkpoint"):
                Checkpoint(tmp_path / f"{name}.{suffix}")
        with pytest.raises(FileNotFoundError, match="none"):
            Checkpoint(tmp_path / f"none.{suffix}")
    for content, message in {
        "must be a checkpoint of tensors and plain values, got torch.nn.modules.linear.Linear": nn.Linear(1, 1),
        "got .*Anything": {"model": state, "more": Anything()},
        r"must hold a state dict, .* got \[1\]": {1: torch.zeros(1)},
        "must hold a state dict, got list": [state],
        "got nothing": {},
        r"must hold a state dict, alone or as model, .* got \['weights'\]": {"weights": state},
    }.items():
        with pytest.raises(ValueError, match=rf"a.pth .*{content}"):
            Checkpoint(write(tmp_path / "a.pth", message))


@pytest.fixture(scope="module")
def frozen_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned model of three classes whose norms were frozen, as the tutorial leaves it."""
    backbone = torchvision.models.resnet50(weights=None, norm_layer=torchvision.ops.FrozenBatchNorm2d)
    backbone = torchvision.models.detection.backbone_utils._resnet_fpn_extractor(backbone, 3)
    model = torchvision.models.detection.MaskRCNN(backbone, num_classes=3)
    return write(tmp_path_factory.mktemp("weights") / "three.pth", {"model": model.state_dict()})


def test_builders_take_files(frozen_file: Path) -> None:
    model = detection.maskrcnn_resnet50_fpn(weights=frozen_file)
    state = Checkpoint(frozen_file).get_state_dict()
    assert len(state) == 307
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(norms) == 53
    assert {norm.eps for norm in norms} == {1e-5}
    official = frozen_file.parent / detection.MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url.rpartition("/")[2]
    frozen_file.rename(official)
    model = detection.maskrcnn_resnet50_fpn(weights=official)
    assert {norm.eps for norm in model.modules() if isinstance(norm, FrozenBatchNorm2d)} == {0.0}
    official.rename(frozen_file)
    with pytest.raises(ValueError, match=r"num_classes must be 3 with .*three.pth, got 7 \(new_predictors=True"):
        detection.maskrcnn_resnet50_fpn(weights=str(frozen_file), num_classes=7)
    model = detection.maskrcnn_resnet50_fpn(weights=str(frozen_file), num_classes=7, new_predictors=True)
    assert model.roi_heads.mask_predictor.mask_fcn_logits.out_channels == 7
    for key, value in model.state_dict().items():
        assert "_predictor." in key or torch.equal(value, state[key])
    with pytest.raises(ValueError, match=r"three.pth is not of this model: its keys .* 12 unexpected"):
        detection.fasterrcnn_resnet50_fpn(weights=frozen_file)
    with pytest.raises(ValueError, match=r"weights must be COCO_V1, DEFAULT or a file, got 'COCO_V9'"):
        detection.maskrcnn_resnet50_fpn(weights="COCO_V9")


def test_a_file_of_trained_norms_keeps_them_trained(tmp_path: Path) -> None:
    state = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    path = write(tmp_path / "trained.safetensors", state)
    model = fastmask.models.get_model("fasterrcnn_resnet50_fpn", weights=path)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 53
    assert len(model.state_dict()) == len(state)
    assert Checkpoint(path).meta["categories"][1] == "person"  # 91 classes are COCO's
