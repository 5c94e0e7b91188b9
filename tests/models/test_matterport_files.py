"""matterport's .h5 files: names and shapes, options, images of other channels, and files that are hostile or broken."""

import copy
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers import matterport
from helpers.matterport import SLIM, Widths, draw_weights, write_h5

from fastmask.models import Checkpoint
from fastmask.models.converters._matterport_file import _Layers, convert_layers, read_names
from fastmask.models.converters.matterport import build_matterport, is_matterport
from fastmask.models.detection.matterport import Layout, MatterportMaskRCNN, build_model, read_layout


@pytest.fixture(scope="module")
def weights(request: pytest.FixtureRequest) -> matterport.Weights:
    return draw_weights(request.config.fastmask_seed)


@pytest.fixture(scope="module")
def file(weights: matterport.Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matterport") / "slim.h5"
    write_h5(path, weights)
    return path


def test_names_and_shapes_of_the_published_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of mask_rcnn_coco.h5, ResNet-101 and 81 classes, nothing is read but names and shapes."""

    def read(self: _Layers, layer: str, kind: str, *shape: int) -> Any:
        assert self._find(layer, kind).shape == shape, (layer, kind)
        taken.add((layer, kind))
        return np.broadcast_to(np.float32(1), shape)

    taken: set[tuple[str, str]] = set()
    monkeypatch.setattr(_Layers, "read", read)
    layers = dict(matterport.list_shapes(Widths()))
    path = tmp_path / "coco.h5"
    with h5py.File(path, "w") as file:
        for name, shapes in layers.items():
            group = file.require_group("rpn_model" if name.startswith("rpn_") else name)
            for kind, shape in shapes.items():  # arrays that are not written take no place
                group.create_dataset(f"{name}/{kind}:0", shape, np.float32)
        arrays = convert_layers(_Layers(file, str(path)))
    assert taken == {(layer, kind) for layer, kinds in layers.items() for kind in kinds}
    with torch.device("meta"):
        tensors = {key: torch.empty(values.shape) for key, values in arrays.items()}
        model = build_model(tensors, str(path))
    assert read_layout(tensors) == Layout()
    names = read_names(tensors)
    assert (len(names), names[:2], names[-1]) == (81, ["__background__", "person"], "toothbrush")
    assert {key: value.shape for key, value in model.state_dict().items()} == {k: v.shape for k, v in tensors.items()}


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels(channels: int, weights: matterport.Weights, tmp_path: Path) -> None:
    changed = copy.copy(weights)
    changed["conv1"] = weights["conv1"] | {"kernel": np.ones((7, 7, channels, SLIM.stem), np.float32)}
    write_h5(tmp_path / "gray.h5", changed)
    with pytest.raises(ValueError, match=f"image_mean must be given for images of {channels} channels"):
        build_matterport(tmp_path / "gray.h5")
    means = {"image_mean": [0.5] * channels, "image_std": [1 / 255] * channels}
    model = build_matterport(tmp_path / "gray.h5", **means, **matterport.options())
    assert len(model.detect([torch.rand(channels, 60, 80)])) == 1


def test_options_that_do_not_fit(file: Path) -> None:
    for name, values, rule in (
        ("anchor_sizes", (32, 64), "one of each of 5 levels"),
        ("anchor_ratios", (1,), "3, as the weights have"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be {rule}"):
            build_matterport(file, **{name: values})
    with pytest.raises(ValueError, match=r"num_classes must be 4 with .*slim.h5, got 7"):
        build_matterport(file, num_classes=7)
    assert build_matterport(file, num_classes=7, new_predictors=True).roi_heads.num_classes() == 7
    model: MatterportMaskRCNN = build_matterport(file)
    assert (model.roi_heads.score_thresh, model.side, model.training) == (0.7, 1024, False)


def spoil(path: Path, layer: str, kind: str, change: Any) -> None:
    """Let a change put something else in the place of an array: change(group, name, values)."""
    with h5py.File(path, "r+") as file:
        group = file["rpn_model" if layer.startswith("rpn_") else layer][layer]
        values = group[f"{kind}:0"][()]
        del group[f"{kind}:0"]
        change(group, f"{kind}:0", values)


def link_outside(group: Any, name: str, values: Any) -> None:
    with h5py.File(Path(group.file.filename).with_name("other.h5"), "w") as other:
        other["values"] = values
    group[name] = h5py.ExternalLink("other.h5", "/values")


def store_outside(group: Any, name: str, values: Any) -> None:
    raw = Path(group.file.filename).with_name("raw.bin")
    raw.write_bytes(values.tobytes())
    group.create_dataset(name, values.shape, values.dtype, external=[(str(raw), 0, values.nbytes)])


def map_outside(group: Any, name: str, values: Any) -> None:
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[:] = h5py.VirtualSource("other.h5", "values", values.shape)
    group.create_virtual_dataset(name, layout)


def declare(*shape: int) -> Any:
    return lambda group, name, values: group.create_dataset(name, shape, np.float32)


CHANGES: dict[str, tuple[str, str, Any, str]] = {  # layer, kind, change, message
    "missing": ("bn4b_branch2b", "beta", lambda *_: None, "must hold beta of the layer bn4b_branch2b"),
    "missing in the rpn": ("rpn_bbox_pred", "bias", lambda *_: None, "must hold bias of the layer rpn_bbox_pred"),
    "another width": ("fpn_p3", "kernel", declare(3, 3, 12, 17), r"kernel of fpn_p3 must be \[3, 3, 16, 16\], got \["),
    "a width of its own": ("res3a_branch2a", "kernel", declare(1, 1, 16, 7), "of bn3a_branch2a|res3a_branch2a must be"),
    "too few dimensions": ("mrcnn_class_conv1", "kernel", declare(7), "of mrcnn_class_conv1 must have 4 dimensions"),
    "no elements": ("conv1", "kernel", declare(7, 7, 3, 0), "kernel of conv1 must have 4 dimensions and no zero"),
    "integers": ("conv1", "bias", lambda group, name, _: group.create_dataset(name, data=[1]), "must be floating, got"),
    "text": ("conv1", "bias", lambda group, name, _: group.create_dataset(name, data="code"), "must be floating, got"),
    "huge": ("conv1", "kernel", declare(7, 7, 3, 2**40), r"must be in the file, got .*larger|bias of conv1 must be"),
    "a link to a file": ("conv1", "kernel", link_outside, r"must be in the file itself, got a link \(ExternalLink"),
    "a link in the file": (
        "conv1", "bias", lambda group, name, _: group.__setitem__(name, h5py.SoftLink("/a")), r"a link \(SoftLink",
    ),
    "values in a file": ("conv1", "kernel", store_outside, "must be in the file itself, got one stored elsewhere"),
    "values of a file": ("conv1", "kernel", map_outside, "must be in the file itself, got one stored elsewhere"),
    "a group": ("conv1", "kernel", lambda group, name, _: group.create_group(name), "must hold kernel of the layer"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_hostile_files(case: str, file: Path, tmp_path: Path) -> None:
    """One ValueError that names the file; nothing outside of it is read, nothing large is allocated."""
    path = tmp_path / "spoilt.h5"
    path.write_bytes(file.read_bytes())
    layer, kind, change, message = CHANGES[case]
    spoil(path, layer, kind, change)
    with pytest.raises(ValueError, match=message) as caught:
        build_matterport(path)
    assert str(caught.value).startswith(str(path))


def test_files_that_are_no_weights(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "other.h5"
    for content, magic in ((b"PK no HDF5 at all", False), (file.read_bytes()[:5000], True), (b"", False)):
        path.write_bytes(content)
        assert is_matterport(path) == magic
        for read in (build_matterport, Checkpoint):
            with pytest.raises(ValueError, match=r"other.h5 (cannot be read as|must be a checkpoint)"):
                read(path)
    with h5py.File(path, "w") as other:
        other.create_dataset("dense_1/dense_1/kernel:0", data=np.ones((3, 4)))
    with pytest.raises(
        ValueError, match=r"other.h5 must hold kernel of the layer conv1, as matterport's models, got none"
    ):
        build_matterport(path)
    with h5py.File(path, "w") as other:  # the largest that could be: a bias as wide as the kernel
        group = other.create_group("conv1/conv1")
        for kind, shape in {"kernel": (7, 7, 3, 2**40), "bias": (2**40,)}.items():
            group.create_dataset(f"{kind}:0", shape, np.float32)
    with pytest.raises(ValueError, match="arrays must be in the file, got kernel of conv1, which is larger"):
        build_matterport(path)
    for name in ("nothing.h5", "."):
        for read in (build_matterport, Checkpoint):
            with pytest.raises(OSError, match=r"No such file|Is a directory"):
                read(tmp_path / name)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'fastmask-rcnn\[h5\]'"):
        build_matterport(file)
