"""State dicts: loading with errors that name the problem, and the builder of ours that a state dict is of."""

import contextlib
import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastmask.models._api import get_model_builder, list_detectors
from fastmask.models._metadata import CONVENTIONS, describe_model
from fastmask.ops.misc import FrozenBatchNorm2d

PREDICTORS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.", "roi_heads.keypoint_predictor.")
CLASSIFIERS = (PREDICTORS[0] + "cls_score.weight", PREDICTORS[1] + "mask_fcn_logits.weight")  # [C, ...]
KEYPOINTS = PREDICTORS[2] + "kps_score_lowres.weight"  # [.., K, 4, 4]
MASK_HEAD = "roi_heads.mask_head."
MASK_HEADS = {  # the first key of each
    "unet": {MASK_HEAD + "encode.0.0.weight"},
    "fcn": {MASK_HEAD + "0.0.weight", MASK_HEAD + "mask_fcn1.weight"},  # torchvision's published files have the latter
}
Outline = dict[str, torch.Size]
FIXED = (
    *("sizes", "aspect_ratios", "strides", "featmap_names", "output_size", "sampling_ratio", "aligned"),
    *("stride", "dilation", "eps"),
)


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str, new_predictors: bool = False) -> None:
    """``model.load_state_dict`` with errors that name ``source``; ``new_predictors``: see :func:`load_checkpoint`."""
    try:
        _load(model, state, source, new_predictors)
    except MismatchError as error:
        name = find_builder(state)
        hint = f"; it looks like {name}'s: choose that model (--model {name})" if name else ""
        raise ValueError(f"{error}{hint}") from error


class MismatchError(ValueError):
    """A state dict is of another model."""


def _load(model: nn.Module, state: Mapping[str, Tensor], source: str, new_predictors: bool = False) -> None:
    own = model.state_dict()
    fresh: tuple[str, ...] = PREDICTORS if new_predictors else ()
    for name, (theirs, ours) in compare_mask_branches(state, own).items():
        if not new_predictors:
            hint = "new_predictors=True loads all but the predictors and a mask head of another kind"
            raise ValueError(f"{name} must be {theirs} with {source}, got {ours} ({hint})")
        fresh += (MASK_HEAD,) if name == "mask_head" else ()
    state = {key: value for key, value in state.items() if not key.startswith(fresh)} if fresh else state
    for key in CLASSIFIERS:
        if key in state and key in own and state[key].shape[:1] != own[key].shape[:1]:
            raise num_classes_error(state[key].shape[:1].numel(), source, own[key].shape[0])
    if KEYPOINTS in state and KEYPOINTS in own and count_keypoints(state) != count_keypoints(own):
        raise num_classes_error(count_keypoints(state), source, count_keypoints(own), "num_keypoints")
    others = [key for key, value in own.items() if key in state and state[key].shape != value.shape]
    if others:
        shapes = (f"{key} {list(state[key].shape)} for {list(own[key].shape)}" for key in others[:3])
        raise MismatchError(f"{source} is not of this model: {len(others)} shapes differ, such as {', '.join(shapes)}")
    try:
        missing, unexpected = model.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:  # shapes under old keys
        raise MismatchError(f"{source} is not of this model: {str(error).splitlines()[-1].strip()}") from error
    # a norm that was frozen never counted its batches
    missing = [key for key in missing if not key.endswith("num_batches_tracked") and not key.startswith(fresh)]
    if missing or unexpected:
        problems = (
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for keys, what in ((missing, "missing"), (unexpected, "unexpected"))
            if keys
        )
        raise MismatchError(
            f"{source} is not of this model: its keys must be the model's, got {' and '.join(problems)}"
        )


def describe_mask_branch(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The options ``mask_head`` and ``mask_classes`` of a state dict's model, as far as it tells them."""
    options = {}
    head = next((name for name, keys in MASK_HEADS.items() if not keys.isdisjoint(state)), None)
    if head is not None:
        options["mask_head"] = head
    boxes, masks = (state[key].shape[:1].numel() if key in state else 0 for key in CLASSIFIERS)
    if masks > 1 or (masks == 1 and boxes > 1):  # with one class, the background, it is both
        options["mask_classes"] = "agnostic" if masks == 1 else "per_class"
    return options


def compare_mask_branches(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, tuple[str, str]]:
    """Which of these options are others in two state dicts: both values by name."""
    theirs, ours = describe_mask_branch(state), describe_mask_branch(own)
    both = {name: (theirs[name], ours[name]) for name in theirs if name in ours}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1]}


def count_keypoints(state: Mapping[str, Tensor]) -> int | None:
    """The number of keypoints of a state dict's keypoint predictor; None without one."""
    weight = state.get(KEYPOINTS)
    return None if weight is None or weight.ndim != 4 else weight.shape[1]


def num_classes_error(trained: int | None, source: str, actual: int | None, what: str = "num_classes") -> ValueError:
    """The error for weights of another number of classes, or keypoints, than the model's."""
    hint = "new_predictors=True loads all but the predictors"
    return ValueError(f"{what} must be {trained} with {source}, got {actual} ({hint})")


def find_builder(state: Mapping[str, Tensor], model: nn.Module | None = None) -> str | None:
    """The first of :func:`find_builders`; None if there is none."""
    return next(iter(find_builders(state, model)), None)


def find_builders(state: Mapping[str, Tensor], model: nn.Module | None = None) -> list[str]:
    """The names of the builders whose models have these keys and shapes.

    First the one whose options are most like the model's, and then the one of the shortest name.

    Args:
        state: a state dict, of any number of classes, with norms frozen or not.
        model: the model that it is of, where there is one: its modules and anchors must then be the builder's as well.
    """
    if CLASSIFIERS[0] not in state or state[CLASSIFIERS[0]].ndim == 0:
        return []
    state = {key: value.to("meta") for key, value in state.items()}
    wanted: dict[str, Any] = {} if model is None else describe_model(model, None, None)["options"]
    parts = {name: value for name, value in wanted.items() if name in ("box_pooling", "sampling_ratio")}
    parts |= describe_mask_branch(state)
    unlike = {}
    body = _outline_body(state)
    for name in list_detectors():
        builder = get_model_builder(name)
        options = {"num_classes": state[CLASSIFIERS[0]].shape[0]} | parts | _without_backbone(builder)
        if "num_keypoints" in inspect.signature(builder).parameters:
            options["num_keypoints"] = count_keypoints(state)
        options |= {name: wanted[name] for name in ("sampling_ratio", *CONVENTIONS) if name in wanted}
        with contextlib.suppress(ValueError, AssertionError), torch.device("meta"):  # allocates and draws nothing
            if _outline_builder(builder) != body:
                continue
            candidate = builder(**options)  # a ValueError where there is no mask branch
            _load(candidate, state, name)
            if model is None or list(_describe_parts(model)) == list(_describe_parts(candidate)):
                own = describe_model(candidate, None, None)["options"]
                unlike[name] = sum(own.get(option) != value for option, value in wanted.items()), len(name)
    return sorted(unlike, key=unlike.__getitem__)


@functools.cache
def _outline_builder(builder: Callable[..., nn.Module]) -> Outline:
    """:func:`_outline_body` of a builder's models."""
    return _outline_body(builder(**_without_backbone(builder)).state_dict())


def _without_backbone(builder: Callable[..., nn.Module]) -> dict[str, Any]:
    """Options of a builder by which it loads no weights."""
    return {"weights_backbone": None} if "weights_backbone" in inspect.signature(builder).parameters else {}


def _outline_body(state: Mapping[str, Tensor]) -> Outline:
    """Keys and shapes of the backbone's body, which no rename touches and no number of classes changes."""
    keys = (key for key in state if key.startswith("backbone.body.") and not key.endswith("num_batches_tracked"))
    return {key: state[key].shape for key in keys}


def _describe_parts(model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """What a builder fixes beside keys and shapes: kinds of modules, anchors, and how RoIs are pooled."""
    for name, module in model.named_modules():
        frozen = isinstance(module, FrozenBatchNorm2d)
        yield name, nn.BatchNorm2d if frozen else type(module)
        for fixed in FIXED if not frozen else ():
            if hasattr(module, fixed):
                yield fixed, json.dumps(getattr(module, fixed))  # of lists and tuples alike
