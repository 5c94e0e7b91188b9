"""What a checkpoint tells about its model beside the weights: builder, options, categories, skeletons, eps of norms."""

import contextlib
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fastmask.models._api import is_detector
from fastmask.ops.misc import FrozenBatchNorm2d
from fastmask.skeletons import Skeleton
from fastmask.variants import CHOICES as VARIANTS

METADATA = ("builder", "categories", "options", "norm_eps", "skeletons", "metrics")  # keys of a file, beside "model"
CONVENTIONS = ("aligned", "exact_anchors", "stride_in_1x1")  # of weights, whatever their shapes; False or True
OPTIONS = {  # a builder's arguments that predictions depend on, but for the score, and where a model has them
    "min_size": "transform.min_size",
    "max_size": "transform.max_size",
    "image_mean": "transform.image_mean",
    "image_std": "transform.image_std",
    "size_divisible": "transform.size_divisible",
    "fixed_size": "transform.fixed_size",
    "rpn_nms_thresh": "rpn.nms_thresh",
    "rpn_score_thresh": "rpn.score_thresh",
    "rpn_pre_nms_top_n_test": "rpn._pre_nms_top_n",
    "rpn_post_nms_top_n_test": "rpn._post_nms_top_n",
    "aligned": "roi_heads.box_roi_pool.aligned",
    "exact_anchors": "rpn.anchor_generator.exact",
    "stride_in_1x1": "backbone.body.layer2.0.stride_in_1x1",
    "box_nms_thresh": "roi_heads.nms_thresh",
    "box_detections_per_img": "roi_heads.detections_per_img",
    "bbox_reg_weights": "roi_heads.box_coder.weights",
    "fpn_channels": "backbone.fpn_channels",
    "box_pooling": "roi_heads.box_roi_pool._pooling",
    "sampling_ratio": "roi_heads.box_roi_pool.sampling_ratio",
    "mask_head": "roi_heads.mask_head._kind",
    "mask_classes": "roi_heads.mask_predictor._classes",
    "rpn_loss": "rpn.rpn_loss",  # no prediction depends on the losses, but training that goes on
    "box_loss": "roi_heads.box_loss",
    "mask_loss": "roi_heads.mask_loss",
    "anchor_sizes": "rpn.anchor_generator.anchor_sizes",
    "anchor_ratios": "rpn.anchor_generator.anchor_ratios",
    "box_nms": "roi_heads.box_nms",
}
SEQUENCES = {"image_mean", "image_std", "fixed_size", "bbox_reg_weights", "sampling_ratio"}
SEQUENCES |= {"anchor_sizes", "anchor_ratios"}
INTEGERS = {"min_size", "max_size", "size_divisible", "fixed_size", "box_detections_per_img", "fpn_channels"}
INTEGERS |= {"rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_test", "sampling_ratio"}
CHOICES: dict[str, tuple[str, ...]] = VARIANTS | {"box_nms": ("hard", "soft_linear", "soft_gaussian")}


def describe_model(
    model: nn.Module,
    builder: str | None,
    categories: Sequence[str] | None,
    skeletons: Mapping[str, Skeleton] | None = None,
) -> dict[str, Any]:
    """Return a checkpoint's entries beside its weights, plain values by :data:`METADATA`'s names, where they are known.

    Args:
        model: an R-CNN of ``fastmask.models.detection``.
        builder: the name of its builder.
        categories: names by label, from 0, the background.
        skeletons: of keypoints, by category.
    """
    options = {}
    heads: Any = model.roi_heads
    masked = getattr(heads, "mask_predictor", None) is not None
    for name, path in OPTIONS.items():
        if name.startswith("mask_") and not masked:
            continue
        with contextlib.suppress(AttributeError):  # of a module of the user's own
            value: Any = operator.attrgetter(path)(model)
            value = value.get("testing") if isinstance(value, dict) else value
            value = _to_plain(value[-1] if name == "min_size" else value)
            options[name] = int(value) if name in INTEGERS and isinstance(value, float) else value
    if options.get("box_pooling") != "roi_align":
        options.pop("sampling_ratio", None)  # a pooler's own, if it takes any samples
    eps = {module.eps for module in model.modules() if isinstance(module, FrozenBatchNorm2d)}
    content = {
        "builder": builder,
        "categories": None if categories is None else list(categories),
        "options": parse_options(options),
        "norm_eps": eps.pop() if len(eps) == 1 else None,
        "skeletons": plain_skeletons(skeletons or {}) or None,
    }
    return {name: value for name, value in content.items() if value is not None}


def parse_metadata(content: Mapping[str, Any]) -> dict[str, Any]:
    """Read what is usable of these entries of a file; others', of the same names, are left out."""
    metadata: dict[str, Any] = {}
    if is_detector(content.get("builder")):
        metadata["builder"] = content["builder"]
    if isinstance(content.get("options"), dict):
        metadata["options"] = parse_options(content["options"])
    if isinstance(content.get("categories"), list):
        metadata["categories"] = content["categories"]
    if skeletons := parse_skeletons(content.get("skeletons")):
        metadata["skeletons"] = skeletons
    if _is_number(content.get("norm_eps"), float):
        metadata["norm_eps"] = float(content["norm_eps"])
    if metrics := parse_metrics(content.get("metrics")):
        metadata["metrics"] = metrics
    return metadata


def check_conventions(model: nn.Module, options: Mapping[str, Any], source: str) -> None:
    """Raise a ValueError if a file's :data:`CONVENTIONS` are not the model's, as far as both tell theirs.

    Weights of other conventions than torchvision's also need their mean and standard deviation of images.
    """
    foreign = any(options.get(name) for name in CONVENTIONS)
    own = describe_model(model, None, None)["options"]
    for name in (*CONVENTIONS, *(("image_mean", "image_std") if foreign else ())):
        if name in options and name in own and options[name] != own[name]:
            raise ValueError(
                f"{name} must be {options[name]} with {source}, got {own[name]}: "
                "fastmask.models.from_checkpoint builds the model that the file is of"
            )


def parse_metrics(content: Any) -> dict[str, list[float]]:
    """COCO's metrics by "box", "mask" and "keypoints"; those of another form are left out."""
    kinds = content if isinstance(content, Mapping) else {}
    return {
        kind: [float(value) for value in kinds[kind]]
        for kind in ("box", "mask", "keypoints")
        if isinstance(kinds.get(kind), list | tuple) and len(kinds[kind]) >= 3
        if all(_is_number(value, float) for value in kinds[kind])
    }


def plain_skeletons(skeletons: Mapping[str, Skeleton]) -> dict[str, Any]:
    """Number, names and limbs of keypoints as lists, by category."""
    return {
        category: {"number": each.number, "names": list(each.names), "limbs": [list(limb) for limb in each.limbs]}
        for category, each in skeletons.items()
    }


def parse_skeletons(content: Any) -> dict[str, Skeleton]:
    """The skeletons of :func:`plain_skeletons`; those of another form are left out."""
    skeletons = {}
    for category, each in content.items() if isinstance(content, dict) else ():
        with contextlib.suppress(KeyError, TypeError, ValueError):
            number, names = operator.index(each["number"]), tuple(each["names"])
            limbs = tuple((operator.index(a), operator.index(b)) for a, b in each["limbs"])
            named = not names or (len(names) == number and all(isinstance(name, str) for name in names))
            if named and all(0 <= end < number for limb in limbs for end in limb):
                skeletons[category] = Skeleton(number, names, limbs)
    return skeletons


def parse_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of :data:`OPTIONS` that have a value of their kind, sequences as lists."""
    parsed: dict[str, Any] = {}
    for name in OPTIONS:
        value, kind = options.get(name), int if name in INTEGERS else float
        if name in CHOICES:
            if value in CHOICES[name]:
                parsed[name] = value
            continue
        if name in CONVENTIONS:
            if isinstance(value, bool):
                parsed[name] = value
            continue
        values = value if name in SEQUENCES and isinstance(value, list | tuple) else [value]
        if values and all(_is_number(each, kind) for each in values):
            parsed[name] = list(values) if values is value else value
    return parsed


def _to_plain(value: Any) -> Any:
    """Numbers and lists of what may be tensors or NumPy's."""
    if isinstance(value, list | tuple):
        return [_to_plain(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _is_number(value: object, kind: type) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole or (kind is float and isinstance(value, float) and math.isfinite(value))
