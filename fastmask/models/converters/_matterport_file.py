"""Keras weight files (.h5) of matterport's Mask_RCNN: ``mask_rcnn_coco.h5``, ``mask_rcnn_balloon.h5`` and your own.

A file has a group for each layer, at its root or in ``model_weights``, with the layer's arrays. Only these are read, by
name, from the file itself: no configuration of Keras's, no link to another place, nothing that is stored outside.
Source: github.com/matterport/Mask_RCNN 2.1, mrcnn/model.py (names and shapes of layers).
"""

import os
import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmask.models._meta import COCO_CATEGORIES

Array = NDArray[Any]
SIGNATURE = b"\x89HDF\r\n\x1a\n"
STARTS = (0, 512, 1024, 2048)  # where HDF5 may begin, behind a user's block
WRAPPER, RPN = "model_weights", "rpn_model"  # of a whole model's file; a model in the model
NORM = ("gamma", "beta", "moving_mean", "moving_variance")
XYWH = [1, 0, 3, 2]  # of (y, x, height, width)
EPS = 1e-3  # Keras's, of all norms
WIDENING = 4  # of a bottleneck's last convolution
EXPANSION = 16  # bytes of arrays for each byte of the file: more than compressed weights ever have
MOST_ARRAYS = 16  # of a layer's group


def is_matterport(path: str | os.PathLike[str]) -> bool:
    """Whether a file is HDF5, by its first bytes; which model's it is, :func:`convert_matterport` tells.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        for start in STARTS:
            file.seek(start)
            if file.read(len(SIGNATURE)) == SIGNATURE:
                return True
    return False


def read_matterport(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint of ours has in it: the state dict as ``model``, the ``builder``, and ``categories`` if known.

    Errors: see :func:`convert_matterport`.
    """
    state = convert_matterport(path)
    return {"model": state, "builder": "maskrcnn_matterport", "categories": read_names(state)}


def read_names(state: Mapping[str, Tensor]) -> list[str] | None:
    """Names by label of a model of 81 classes, which are taken for COCO's: matterport numbers them without gaps."""
    names = [name for name in COCO_CATEGORIES if name != "N/A"]
    return names if len(state["roi_heads.box_predictor.cls_score.weight"]) == len(names) else None


def convert_matterport(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict of a ``maskrcnn_matterport`` from a .h5 file.

    Biases of the ResNet's convolutions become part of the norms behind them, and the heads' norms part of the layers
    before them, in float64. Tensors are float64 where the file's arrays are, else float32.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: h5py is missing.
        ValueError: it is no such file, or does not hold all of the model's layers.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("matterport's .h5 files need h5py: pip install 'fastmask-rcnn[h5]'") from error
    name = os.fspath(path)
    with open(path, "rb"):  # raises what fits: no such file, a folder
        pass
    try:
        with h5py.File(name, "r") as file:
            layers = _Layers(file, name)
            dtype = layers.dtype()
            arrays = convert_layers(layers)
            return {key: torch.from_numpy(np.ascontiguousarray(values)).to(dtype) for key, values in arrays.items()}
    except ValueError as error:  # ours, or h5py's
        raise error if str(error).startswith(name) else ValueError(f"{name} cannot be read as HDF5: {error}") from error
    except (OSError, RuntimeError, KeyError, TypeError, OverflowError, MemoryError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{name} cannot be read as HDF5: {reason}") from error


class _Layers:
    """Arrays of an open file by the name of their layer, each checked before it is read.

    Args:
        file: h5py's.
        path: of the file, for messages.
    """

    def __init__(self, file: Any, path: str) -> None:
        self.path = path
        self.budget = EXPANSION * os.path.getsize(path)
        inner = self._child(file, WRAPPER)
        self.root = file if inner is None else inner
        rpn = self._child(self.root, RPN)
        self.rpn = self.root if rpn is None else rpn

    def blocks(self, stage: int) -> str:
        """Letters of a ResNet's stage, from a to the last one that has a layer: one missing between them is named."""
        parts = "2a", "2b", "2c"
        last = max(
            (
                number
                for number, letter in enumerate(string.ascii_lowercase)
                if any(self._child(self.root, f"res{stage}{letter}_branch{part}") is not None for part in parts)
            ),
            default=0,
        )
        return string.ascii_lowercase[: last + 1]

    def shape(self, layer: str, ndim: int = 4) -> tuple[int, ...]:
        """Shape of a layer's kernel."""
        shape: tuple[int, ...] = self._find(layer, "kernel").shape
        if len(shape) != ndim or 0 in shape:
            rule = f"must have {ndim} dimensions and no zero"
            raise ValueError(f"{self.path}: kernel of {layer} {rule}, got {list(shape)}")
        return shape

    def read(self, layer: str, kind: str, *shape: int) -> Array:
        """An array of a layer, of that shape."""
        dataset = self._find(layer, kind)
        if dataset.shape != shape:
            raise ValueError(f"{self.path}: {kind} of {layer} must be {list(shape)}, got {list(dataset.shape)}")
        self.budget -= dataset.size * dataset.dtype.itemsize
        if self.budget < 0:
            raise ValueError(f"{self.path}: arrays must be in the file, got {kind} of {layer}, which is larger")
        values: Array = dataset[()]
        return values

    def dtype(self) -> torch.dtype:
        """The dtype of the state dict."""
        return torch.float64 if self._find("conv1", "kernel").dtype == np.float64 else torch.float32

    def _find(self, layer: str, kind: str) -> Any:
        nested = layer.startswith("rpn_")
        group = self._rpn_group(layer) if nested else self._child(self.root, layer)
        found = [] if group is None else [each for name, each in self._arrays(group) if name == kind]
        if len(found) != 1:
            what = "none" if not found else str(len(found))
            raise ValueError(f"{self.path} must hold {kind} of the layer {layer}, as matterport's models, got {what}")
        dataset = found[0]
        if dataset.dtype.kind != "f" or dataset.shape is None:
            raise ValueError(f"{self.path}: {kind} of {layer} must be floating, got {dataset.dtype}")
        if dataset.is_virtual or dataset.external:
            raise ValueError(f"{self.path}: {kind} of {layer} must be in the file itself, got one stored elsewhere")
        return dataset

    def _rpn_group(self, layer: str) -> Any:
        """Keras may have numbered the layers of the model in the model."""
        names = [name for name in self.rpn if re.fullmatch(rf"{layer}(_\d+)?", name)]
        return self._child(self.rpn, names[0]) if len(names) == 1 else None

    def _arrays(self, group: Any, depth: int = 3) -> Iterator[tuple[str, Any]]:
        """Arrays in a group and its groups, by their last name: ``kernel`` of ``conv1/kernel:0``."""
        import h5py

        if len(group) > MOST_ARRAYS:
            raise ValueError(f"{self.path}: {group.name} must hold one layer's arrays, got {len(group)}")
        for name in group:
            child = self._child(group, name)
            if isinstance(child, h5py.Dataset):
                yield name.partition(":")[0], child
            elif isinstance(child, h5py.Group) and depth:
                yield from self._arrays(child, depth - 1)

    def _child(self, group: Any, name: str) -> Any:
        """What a group has under a name, or None; links are not followed."""
        import h5py

        link = group.get(name, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            kind = type(link).__name__
            raise ValueError(f"{self.path}: {name} must be in the file itself, got a link ({kind})")
        return group[name]


def convert_layers(layers: _Layers) -> dict[str, Array]:
    """The state dict's arrays by our keys."""
    arrays: dict[str, Array] = {}
    width = layers.shape("conv1")[3]
    _put_folded_later(layers, arrays, "conv1", "bn_conv1", "backbone.body.", "conv1", "bn1", *layers.shape("conv1"))
    ends = []
    for stage in range(2, 6):
        for number, letter in enumerate(layers.blocks(stage)):
            name, ours = f"{stage}{letter}_branch", f"backbone.body.layer{stage - 1}.{number}."
            planes = layers.shape(f"res{name}2a")[3]
            wide = planes * WIDENING
            shapes = (1, width, planes), (3, planes, planes), (1, planes, wide)
            for part, (kernel, before, after) in enumerate(shapes):
                pair = f"res{name}2{'abc'[part]}", f"bn{name}2{'abc'[part]}"
                own = f"conv{part + 1}", f"bn{part + 1}"
                _put_folded_later(layers, arrays, *pair, ours, *own, kernel, kernel, before, after)
            if number == 0:
                pair = f"res{name}1", f"bn{name}1"
                _put_folded_later(layers, arrays, *pair, ours, "downsample.0", "downsample.1", 1, 1, width, wide)
            width = wide
        ends.append(width)
    pyramid = layers.shape("fpn_c5p5")[3]
    for level, channels in enumerate(ends):
        for kind, layer, side, before in (
            ("inner", f"fpn_c{level + 2}p{level + 2}", 1, channels),
            ("layer", f"fpn_p{level + 2}", 3, pyramid),
        ):
            _put(arrays, f"backbone.fpn.{kind}_blocks.{level}.0", *_conv(layers, layer, side, side, before, pyramid))
    _convert_rpn(layers, arrays, pyramid)
    _convert_heads(layers, arrays, pyramid)
    return arrays


def _convert_rpn(layers: _Layers, arrays: dict[str, Array], pyramid: int) -> None:
    """Two logits of an anchor, of a softmax, become their difference, of a sigmoid."""
    hidden = layers.shape("rpn_conv_shared")[3]
    anchors = layers.shape("rpn_class_raw")[3] // 2
    _put(arrays, "rpn.head.conv.0.0", *_conv(layers, "rpn_conv_shared", 3, 3, pyramid, hidden))
    both = _conv(layers, "rpn_class_raw", 1, 1, hidden, 2 * anchors)
    _put(arrays, "rpn.head.cls_logits", *(values[1::2] - values[::2] for values in both))
    deltas = _conv(layers, "rpn_bbox_pred", 1, 1, hidden, 4 * anchors)
    _put(arrays, "rpn.head.bbox_pred", *map(_swap_axes, deltas))


def _convert_heads(layers: _Layers, arrays: dict[str, Array], pyramid: int) -> None:
    """Norms are folded into the layers before them."""
    bins, _, _, hidden = layers.shape("mrcnn_class_conv1")
    classes = layers.shape("mrcnn_class_logits", 2)[1]
    box, mask = "roi_heads.box_", "roi_heads.mask_"
    for i, shape in enumerate(((bins, bins, pyramid, hidden), (1, 1, hidden, hidden)), 1):
        weight, bias = _folded(layers, f"mrcnn_class_conv{i}", f"mrcnn_class_bn{i}", *shape)
        _put(arrays, f"{box}head.fc{i + 5}", weight.reshape(hidden, -1), bias)
    _put(arrays, f"{box}predictor.cls_score", *_dense(layers, "mrcnn_class_logits", hidden, classes))
    deltas = _dense(layers, "mrcnn_bbox_fc", hidden, 4 * classes)
    _put(arrays, f"{box}predictor.bbox_pred", *map(_swap_axes, deltas))
    before = pyramid
    for i in range(1, 5):
        after = layers.shape(f"mrcnn_mask_conv{i}")[3]
        folded = _folded(layers, f"mrcnn_mask_conv{i}", f"mrcnn_mask_bn{i}", 3, 3, before, after)
        _put(arrays, f"{mask}head.{i - 1}.0", *folded)
        before = after
    up = layers.shape("mrcnn_mask_deconv")[2]
    kernel = layers.read("mrcnn_mask_deconv", "kernel", 2, 2, up, before)  # of (height, width, out, in)
    bias = layers.read("mrcnn_mask_deconv", "bias", up)
    _put(arrays, f"{mask}predictor.conv5_mask", kernel.transpose(3, 2, 0, 1), bias)
    _put(arrays, f"{mask}predictor.mask_fcn_logits", *_conv(layers, "mrcnn_mask", 1, 1, up, classes))


def _put(arrays: dict[str, Array], prefix: str, weight: Array, bias: Array) -> None:
    arrays[f"{prefix}.weight"], arrays[f"{prefix}.bias"] = weight, bias


def _conv(layers: _Layers, layer: str, *shape: int) -> tuple[Array, Array]:
    """Weight [O, I, h, w] and bias [O] of a kernel [h, w, I, O]."""
    return layers.read(layer, "kernel", *shape).transpose(3, 2, 0, 1), layers.read(layer, "bias", shape[-1])


def _dense(layers: _Layers, layer: str, *shape: int) -> tuple[Array, Array]:
    """Weight [O, I] and bias [O] of a kernel [I, O]."""
    return layers.read(layer, "kernel", *shape).T, layers.read(layer, "bias", shape[-1])


def _folded(layers: _Layers, layer: str, norm: str, *shape: int) -> tuple[Array, Array]:
    """Weight and bias of a convolution with the norm behind it."""
    weight, bias = _conv(layers, layer, *shape)
    gamma, beta, mean, variance = (layers.read(norm, kind, shape[-1]).astype(np.float64) for kind in NORM)
    scale = gamma / np.sqrt(variance + EPS)
    return weight * scale[:, None, None, None], (bias - mean) * scale + beta


def _put_folded_later(
    layers: _Layers, arrays: dict[str, Array], layer: str, norm: str, prefix: str, conv: str, bn: str, *shape: int
) -> None:
    """A convolution without bias, and a frozen norm whose mean is smaller by the bias."""
    arrays[f"{prefix}{conv}.weight"], bias = _conv(layers, layer, *shape)
    gamma, beta, mean, variance = (layers.read(norm, kind, shape[-1]).astype(np.float64) for kind in NORM)
    values = {"weight": gamma, "bias": beta, "running_mean": mean - bias, "running_var": variance}
    arrays |= {f"{prefix}{bn}.{name}": value for name, value in values.items()}


def _swap_axes(values: Array) -> Array:
    """Rows of (dy, dx, dh, dw), again and again -> of (dx, dy, dw, dh)."""
    return values.reshape(-1, 4, *values.shape[1:])[:, XYWH].reshape(values.shape)
