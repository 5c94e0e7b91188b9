"""What users replace of torchvision's methods and functions, which the static program would never call."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from fastmask.checks import ArgumentError
from fastmask.models._layout import takes_channels_last
from fastmask.models._plain import has_hooks
from fastmask.models.detection import roi_heads, rpn
from fastmask.models.detection._utils import BoxCoder
from fastmask.models.detection.anchor_utils import AnchorGenerator
from fastmask.models.detection.sampling import BalancedPositiveNegativeSampler, Matcher
from fastmask.models.detection.transform import GeneralizedRCNNTransform
from fastmask.ops import boxes
from fastmask.ops.boxes import box_iou
from fastmask.ops.poolers import MultiScaleRoIAlign

GRID = ("forward", "grid_anchors", "set_cell_anchors")
POOLER = (MultiScaleRoIAlign, ("forward",), ("forward",))
DECODE, ENCODE = ("decode", "decode_single"), ("encode", "encode_single")
MATCHER = (Matcher, (), ("__call__", "set_low_quality_matches_"))
SAMPLER = (BalancedPositiveNegativeSampler, (), ("__call__",))
PROPOSE = ("forward", "filter_proposals", "_get_top_n_idx")
SAMPLE = ("check_targets", "select_training_samples", "add_gt_proposals", "assign_targets_to_proposals", "subsample")
PARTS: dict[str, tuple[type, tuple[str, ...], tuple[str, ...]]] = {  # class, methods in eval mode and in training
    "rpn": (rpn.RegionProposalNetwork, PROPOSE, (*PROPOSE, "assign_targets_to_anchors", "compute_loss")),
    "rpn.anchor_generator": (AnchorGenerator, GRID, GRID),
    "rpn.box_coder": (BoxCoder, DECODE, DECODE + ENCODE),
    "rpn.proposal_matcher": MATCHER,
    "rpn.fg_bg_sampler": SAMPLER,
    "roi_heads": (roi_heads.RoIHeads, ("forward", "postprocess_detections"), ("forward", *SAMPLE)),
    "roi_heads.box_roi_pool": POOLER,
    "roi_heads.mask_roi_pool": POOLER,
    "roi_heads.keypoint_roi_pool": POOLER,
    "roi_heads.box_coder": (BoxCoder, DECODE, ENCODE),
    "roi_heads.proposal_matcher": MATCHER,
    "roi_heads.fg_bg_sampler": SAMPLER,
}
HEADS = ("res5", "box_head", "box_predictor", "mask_head", "mask_predictor", "keypoint_head", "keypoint_predictor")
TRANSFORM = ("forward", "normalize", "resize", "max_by_axis", "batch_images", "torch_choice", "postprocess")
LOSSES = ("fastrcnn_loss", "maskrcnn_loss", "keypointrcnn_loss")
INFERENCE = ("maskrcnn_inference", "keypointrcnn_inference", "heatmaps_to_keypoints")
CONCATENATE = ("concat_box_prediction_layers", "permute_and_flatten")
FUNCTIONS: dict[str, tuple[ModuleType, tuple[str, ...], tuple[str, ...]]] = {  # likewise, of modules
    "rpn": (rpn, CONCATENATE, CONCATENATE),
    "roi_heads": (roi_heads, INFERENCE, (*LOSSES, "project_masks_on_boxes", "keypoints_to_heatmap")),
    "boxes": (boxes, ("batched_nms",), ("batched_nms",)),
}
TARGET_READERS = {"roi_heads", *(f"roi_heads.{name}" for name in ("forward", *SAMPLE, *LOSSES))}


def _originals(owners: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]]) -> dict[str, Any]:
    """What stands under these names before users replace it; PyTorch 2.11 compiles no lookup of anything but text."""
    return {
        f"{owner}.{name}": getattr(kind, name)
        for owner, (kind, *names) in owners.items()
        for name in names[0] + names[1]
    }


METHODS = _originals(PARTS | {"transform": (GeneralizedRCNNTransform, TRANSFORM, ())})
ORIGINALS = _originals(FUNCTIONS)  # type: ignore[arg-type] # a dict of modules is no dict of anything


def find_overrides(model: nn.Module, training: bool) -> Iterator[str]:
    """Names of what the user has replaced and the static program would not call: methods, functions, parts with hooks.

    Args:
        model: a GeneralizedRCNN.
        training: for the losses instead of inference.
    """
    for name, (base, *methods) in PARTS.items():
        part: Any = model
        for step in name.split("."):
            part = getattr(part, step, None)
        if part is None:  # no such branch, or another class's part has none
            continue
        yield from _find_methods(name, part, base, methods[int(training)])
        if isinstance(part, nn.Module) and has_hooks(part):
            yield f"{name} with hooks"
    for module, (holder, *names) in FUNCTIONS.items():
        for name in names[int(training)]:
            if getattr(holder, name) is not ORIGINALS[f"{module}.{name}"]:
                yield f"{module}.{name}"
    if training:
        for name in ("rpn", "roi_heads"):
            if getattr(getattr(model, name), "box_similarity", box_iou) is not box_iou:
                yield f"{name}.box_similarity"


def is_static(model: nn.Module, training: bool) -> bool:
    """Whether the model called on images may run its static program; args: see :func:`find_overrides`.

    Not if it would leave out what the user has replaced; if a part is in another mode, as the losses of a frozen RPN
    are none; or if the user's code sees what a head computes, which has rows of padding here. Hooks of all modules
    (``torch.nn.modules.module.register_module_forward_hook``) expect calls of the parts.
    """
    parts: Any = model
    heads = parts.roi_heads
    if _has_any_global_hook() or not parts.rpn.training == heads.training == training:
        return False
    if not training and not torch.compiler.is_compiling():
        layers = [getattr(heads, name) for name in HEADS if getattr(heads, name, None) is not None]
        if not takes_channels_last(*layers):
            return False
    return next(find_overrides(model, training), None) is None


def reads_targets(model: nn.Module) -> bool:
    """Whether the user's own code reads targets after their boxes: it may want other labels or no masks."""
    return not TARGET_READERS.isdisjoint(find_overrides(model, training=True))


def _find_methods(name: str, part: Any, base: type, methods: tuple[str, ...]) -> Iterator[str]:
    if methods and not isinstance(part, base):
        methods = ()
        yield name
    for method in methods:
        if getattr(type(part), method, None) is not METHODS[f"{name}.{method}"] or method in vars(part):
            yield f"{name}.{method}"


def check_static(model: nn.Module, training: bool, transform: bool = False) -> None:
    """Raise an ArgumentError if the static program would leave out something that the user has replaced.

    Args:
        model, training: see :func:`find_overrides`.
        transform: the program replaces the whole forward, the transform included.
    """
    overrides = list(find_overrides(model, training))
    if transform:
        whole: Any = model
        overrides += _find_methods("transform", whole.transform, GeneralizedRCNNTransform, TRANSFORM)
        for name, original in whole._replaceable.items():
            if getattr(type(model), name) is not original or name in vars(model):
                overrides.append(f"model.{name}")
        modules = (("model", model), ("transform", whole.transform))
        overrides += [f"{name} with hooks" for name, module in modules if has_hooks(module)]
    if overrides:
        raise ArgumentError(
            f"model must have fastmask's own {', '.join(overrides)} in a static program, which would not call another; "
            "got one that is replaced: call the model on images"
        )
