"""Checkpoint files: torchvision's, detectron2's and users' own, bare or wrapped, pickled or safetensors."""

import argparse
import contextlib
import json
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmask.files import replace_file
from fastmask.models._api import check_detector
from fastmask.models._hub import fetch_weights, is_hub_name
from fastmask.models._meta import COCO_CATEGORIES
from fastmask.models._metadata import (
    METADATA,
    check_conventions,
    parse_metadata,
    parse_metrics,
    parse_options,
    plain_skeletons,
)
from fastmask.models._state import CLASSIFIERS, count_keypoints, describe_mask_branch, load_state
from fastmask.models.converters._matterport_file import is_matterport, read_matterport
from fastmask.models.converters._pickle import is_pickle, read_pickle
from fastmask.models.converters.detectron2 import convert_detectron2, is_detectron2
from fastmask.skeletons import Skeleton
from fastmask.variants import CHOICES

WRAPPERS = ("model", "state_dict", "model_state_dict")  # torchvision's references, Lightning, PyTorch's tutorials
DEEPEST = 5  # wrappers inside each other
PREFIXES = ("module.", "_orig_mod.", "model.")  # DistributedDataParallel's, torch.compile's, Lightning modules'


class Checkpoint:
    """The state dict of a file, with those attributes of a :class:`WeightsEnum` member that detection builders use.

    Args:
        path: made with ``torch.save`` or as safetensors; the state dict itself, or a dict that holds it as ``model``,
            ``state_dict`` or ``model_state_dict``. Only tensors and plain values are ever unpickled. Or detectron2's,
            .pkl or .pth, which is converted: it has our keys, and ``meta`` the options of its conventions; see
            :func:`from_checkpoint`. Or a .h5 file of matterport's Mask_RCNN, which is converted as well. Or safetensors
            on the Hugging Face Hub, ``hf://owner/name[/file][@revision]``, which are downloaded once for each commit;
            ``path`` then is the name with the commit.
        input_format: order of channels of the images that a detectron2 model was trained on, "BGR" (None) or "RGB".

    Files of ours also say which model they are of, in that dict, or as JSON in safetensors' metadata: ``builder``, its
    name; ``categories``, names by label; ``options``, the builder's plain arguments (sizes, image_mean and image_std,
    thresholds and numbers of detections); ``norm_eps``, the eps of frozen norms; ``skeletons``, names and limbs of
    keypoints by category; ``metrics``, COCO's, by "box", "mask" and "keypoints". ``meta`` holds those that are known,
    ``num_classes`` and, of a keypoint model, ``num_keypoints``.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: it is on the hub, and neither there nor in the cache can it be had.
        ValueError: it is not a checkpoint.
    """

    def __init__(self, path: str | os.PathLike[str], *, input_format: str | None = None) -> None:
        file = self.path = os.fspath(path)
        if is_hub_name(self.path):
            fetched, self.path = fetch_weights(self.path)
            file = str(fetched)
        content = read_matterport(file) if is_matterport(file) else _read(file)
        self.published = False  # whether it is torchvision's own file; find_weights sets it
        self._state = _state_dict(self.path, content)
        if is_detectron2(list(self._state)):
            self._state, content = convert_detectron2(self._state, self.path, input_format or "BGR")
        elif input_format is not None:
            raise ValueError(f"input_format must be None with {self.path}, which is not of detectron2's keys")
        self.meta: dict[str, Any] = {}
        if CLASSIFIERS[0] in self._state and self._state[CLASSIFIERS[0]].ndim > 0:
            self.meta["num_classes"] = self._state[CLASSIFIERS[0]].shape[0]
        if (keypoints := count_keypoints(self._state)) is not None:
            self.meta["num_keypoints"] = keypoints
        self.meta |= parse_metadata(content)
        unusual = {n: v for n, v in describe_mask_branch(self._state).items() if v != CHOICES[n][0]}
        if unusual:  # also of files without our metadata
            self.meta["options"] = unusual | self.meta.get("options", {})
        if "categories" not in self.meta and self.meta.get("num_classes") == len(COCO_CATEGORIES):
            self.meta["categories"] = COCO_CATEGORIES

    @property
    def has_frozen_norms(self) -> bool:
        """Whether the backbone's norms were frozen in training: only trained ones count their batches."""
        return not any(key.startswith("backbone.body.") and key.endswith("num_batches_tracked") for key in self._state)

    def get_state_dict(self, progress: bool = True) -> dict[str, Tensor]:
        """The state dict; ``progress`` has no effect, as nothing is downloaded."""
        return dict(self._state)

    def __repr__(self) -> str:
        return self.path


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str], *, new_predictors: bool = False) -> None:
    """Load a model's weights from a file; see :class:`Checkpoint` for its kinds.

    Args:
        model: any R-CNN of fastmask with the file's number of classes.
        path: path of the file, or its name on the hub, ``hf://owner/name[/file][@revision]``.
        new_predictors: load all but the predictors, which stay as they are: to fine-tune on other classes or keypoints;
            and but a mask head of another kind.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, or of another model; wrong numbers of classes are both named. Or it was
            trained by other conventions than the model's, as detectron2's are.
    """
    checkpoint = Checkpoint(path)
    check_conventions(model, checkpoint.meta.get("options", {}), checkpoint.path)
    load_state(model, checkpoint.get_state_dict(), checkpoint.path, new_predictors)


def save_weights(
    state: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    builder: str | None = None,
    categories: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    norm_eps: float | None = None,
    skeletons: Mapping[str, Skeleton] | None = None,
    metrics: Mapping[str, Sequence[float]] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write weights as safetensors, a format without executable content that other tools read too.

    Args:
        state: a model's state dict.
        path: path of the file, which ends in ``.safetensors``.
        builder: the name of the model's builder, which all commands then choose: "maskrcnn_slim_fpn".
        categories: names by label, from 0, the background.
        options: the builder's plain arguments, such as ``min_size`` and ``image_mean``; see :class:`Checkpoint`.
        norm_eps: the eps of frozen norms.
        skeletons: names and limbs of keypoints, by category.
        metrics: COCO's metrics by "box", "mask" and "keypoints", in the order of :class:`fastmask.evaluation.Metrics`.
        dtype: dtype of floating weights of more than one dimension (norms and biases are few, and stay); None: as is.

    Raises:
        ValueError: the path ends otherwise, or a value does not fit, such as a weight into ``dtype``.
        OSError: it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {os.fspath(path)}")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be floating, got {dtype}")
    classes = len(state[CLASSIFIERS[0]]) if CLASSIFIERS[0] in state else None
    if categories is not None and classes not in (None, len(categories)):
        raise ValueError(f"categories must have a name for each of {classes} labels, got {len(categories)}")
    if builder is not None:
        check_detector("builder", builder)
    plain = parse_options(options or {})
    if plain.keys() != dict(options or {}).keys():
        raise ValueError(f"options must be a builder's arguments, whole pixels and numbers, got {options}")
    figures = parse_metrics(metrics)
    if figures.keys() != dict(metrics or {}).keys():
        raise ValueError(f"metrics must be lists of numbers by box, mask and keypoints, got {metrics}")
    tensors = {}
    for key, value in state.items():
        kind = dtype if value.is_floating_point() and value.ndim > 1 else None
        tensors[key] = value.detach().cpu().to(kind or value.dtype, copy=True).contiguous()  # none shares its memory
        if kind is not None and bool((value.isfinite() & ~tensors[key].isfinite().to(value.device)).any()):
            raise ValueError(f"dtype must hold all weights, got {dtype} and {key} up to {float(value.abs().max()):.3g}")
    described: dict[str, Any] = {"builder": builder, "options": plain or None, "norm_eps": norm_eps}
    described["skeletons"] = plain_skeletons(skeletons or {}) or None
    described["metrics"] = figures or None
    described["categories"] = None if categories is None else list(categories)
    metadata = {name: json.dumps(value) for name, value in described.items() if value is not None}
    try:
        with replace_file(path) as draft:
            save_file(tensors, draft, metadata)
    except SafetensorError as error:  # it is no OSError
        raise OSError(f"{os.fspath(path)} cannot be written: {error}") from error


def _read(path: str) -> dict[str, Any]:
    """The dict in a file."""
    content: Any = None
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                content = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- no dict
                metadata = file.metadata() or {}
            if metadata.keys() & set(METADATA):
                content = {"model": content} | {name: _parse_json(metadata.get(name)) for name in METADATA}
        elif not is_pickle(path):
            with torch.serialization.safe_globals([argparse.Namespace]):  # torchvision's references save their options
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message recommends to unpickle anything at all
        match = re.search(r"GLOBAL (\S+)", str(error))
        what = match[1] if match else "something else"
        raise ValueError(f"{path} must be a checkpoint of tensors and plain values, got {what}") from error
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except Exception as error:  # each format's reader raises its own kinds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if content is None:
        content = read_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a state dict, got {type(content).__name__}")
    return content


def _state_dict(path: str, content: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict inside, its keys without the prefixes of wrappers."""
    for _ in range(DEEPEST):
        content = next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), content)
    others = [key for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others or not content:
        raise ValueError(f"{path} must hold a state dict, alone or as {', '.join(WRAPPERS)}, got {others or 'nothing'}")
    content.pop("n_averaged", None)  # AveragedModel's own, beside its module
    while prefix := next((p for p in PREFIXES if content and all(key.startswith(p) for key in content)), None):
        content = {key.removeprefix(prefix): value for key, value in content.items()}
    return content


def _parse_json(text: str | None) -> Any:
    """The JSON value in safetensors' metadata; None for any other text."""
    with contextlib.suppress(ValueError, TypeError):
        return json.loads(text or "null")
    return None
