"""Checkpoints of detectron2: Faster, Mask and Keypoint R-CNN on a ResNet with a pyramid (FPN) or on its C4.

A converted checkpoint has our keys, the name of a builder, and its options, which are detectron2's conventions: strides
in the first 1x1 convolutions (MSRA's ResNets) or in the 3x3 ones (ResNeXt), RoIAlign that is aligned, with adaptive
numbers of samples, anchors that are not rounded, on exact strides, and the statistics of its images. Images stay RGB in
[0, 1], and background stays label 0: the stem's channels, the classes' rows and the anchors' are put in our order.

What remains, beside rounding, is in ``fastmask/models/README.md`` with its size: RoIs at a boundary between levels, the
least boxes, the rounding of resized sides and Pillow's resizing, pasted masks, scores of keypoints.

Source: detectron2's documentation and configurations (Base-RCNN-FPN.yaml, Base-RCNN-C4.yaml, COCO-*).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmask.models._api import get_model_builder, is_detector
from fastmask.models._meta import COCO_CATEGORIES, COCO_PERSON_CATEGORIES
from fastmask.models._metadata import plain_skeletons
from fastmask.models._state import count_keypoints
from fastmask.skeletons import PERSON

State = Mapping[str, Tensor]
MARKS = ("proposal_generator.", "backbone.bottom_up.", "backbone.stem.", "sem_seg_head.", "stem.conv1.", "head.cls_sub")
OTHERS = {  # what is not converted, by a part of a key
    "roi_heads.box_head.0.": "Cascade R-CNN",
    "sem_seg_head.": "Panoptic FPN or semantic segmentation",
    "head.cls_subnet.": "RetinaNet",
    ".conv2_offset.": "deformable convolutions",
    "roi_heads.box_head.conv": "convolutions in the box head",
    "mask_coarse_head": "PointRend",
    "mask_head.point_head": "PointRend",
    "densepose_head": "DensePose",
    "backbone.res5.": "dilated C5 (DC5)",
    "fpn_lateral2.norm": "norms in the pyramid",
    "mask_fcn1.norm": "norms in the mask head",
    "rpn_head.conv.conv": "several convolutions in the RPN",
}
RESNETS: dict[
    tuple[tuple[int, ...], bool], dict[int, str]
] = {  # blocks of each stage and whether they are bottlenecks -> name, by groups
    ((2, 2, 2, 2), False): {1: "resnet18"},
    ((3, 4, 6, 3), False): {1: "resnet34"},
    ((3, 4, 6, 3), True): {1: "resnet50"},
    ((3, 4, 23, 3), True): {1: "resnet101", 32: "resnext101_32x8d"},
    ((3, 8, 36, 3), True): {1: "resnet152"},
}
PIXEL_MEAN = (103.530, 116.280, 123.675)  # of BGR in [0, 255]
PIXEL_STD = {"resnext101_32x8d": (57.375, 57.120, 58.395)}  # (1, 1, 1) of the others, which MSRA trained
SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)  # of anchors
IMPOSSIBLE = -1e4  # the logit of a class that is none: its probability is 0 in any dtype
NAMES = (  # our key for each of detectron2's
    (r"backbone\.(?:bottom_up\.)?stem\.conv1\.weight", r"backbone.body.conv1.weight"),
    (r"backbone\.(?:bottom_up\.)?stem\.conv1\.norm\.(\w+)", r"backbone.body.bn1.\1"),
    (r"roi_heads\.mask_head\.deconv\.(\w+)", r"roi_heads.mask_predictor.conv5_mask.\1"),
    (r"roi_heads\.mask_head\.predictor\.(\w+)", r"roi_heads.mask_predictor.mask_fcn_logits.\1"),
    (r"roi_heads\.keypoint_head\.score_lowres\.(\w+)", r"roi_heads.keypoint_predictor.kps_score_lowres.\1"),
    (r"proposal_generator\.rpn_head\.conv\.(\w+)", r"rpn.head.conv.0.0.\1"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(\w+)", r"rpn.head.cls_logits.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(\w+)", r"rpn.head.bbox_pred.\1"),
    (r"(roi_heads\.box_predictor\.(?:cls_score|bbox_pred)\.\w+)", r"\1"),
    (r"roi_heads\.box_head\.fc1\.(\w+)", r"roi_heads.box_head.fc6.\1"),
    (r"roi_heads\.box_head\.fc2\.(\w+)", r"roi_heads.box_head.fc7.\1"),
)
LAYERS = (  # of blocks
    (r"conv(\d)\.weight", r"conv\1.weight"),
    (r"conv(\d)\.norm\.(\w+)", r"bn\1.\2"),
    (r"shortcut\.weight", r"downsample.0.weight"),
    (r"shortcut\.norm\.(\w+)", r"downsample.1.\1"),
)
BUFFERS = r"pixel_mean|pixel_std|proposal_generator\.anchor_generator\.cell_anchors\.\d+"  # of older versions


def is_detectron2(keys: Sequence[str]) -> bool:
    """Whether these are keys of detectron2's state dicts, or of the backbones and older files that it also reads."""
    return any(key.startswith(MARKS) or key == "conv1_w" for key in keys)


def convert_detectron2(
    state: State, source: str, input_format: str = "BGR"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Convert a state dict of detectron2.

    Args:
        state: its keys and values; all are converted, or the error names one.
        source: of messages.
        input_format: order of channels that the model was trained with (INPUT.FORMAT), BGR or RGB.

    Returns:
        the state dict in our keys, and what describes the model, by the names of :data:`METADATA`. Labels are
        detectron2's classes + 1; of 80 classes, COCO's, the category ids, as torchvision's models have them.

    Raises:
        ValueError: it is of an architecture that is not converted, or its shapes do not fit each other.
    """
    if input_format not in ("BGR", "RGB"):
        raise ValueError(f"input_format must be BGR or RGB, got {input_format!r}")
    _check_values(state, source)
    _check_kind(state, source)
    _check_ends(state, source)
    resnet, c4 = _name_resnet(state, source)
    masks, keypoints = (any(f"roi_heads.{name}_head." in key for key in state) for name in ("mask", "keypoint"))
    if masks and keypoints:
        raise ValueError(f"{source} must have masks or keypoints to be converted, got both")
    kind = "keypointrcnn" if keypoints else "maskrcnn" if masks else "fasterrcnn"
    builder = f"{kind}_{resnet}_{'c4' if c4 else 'fpn'}"
    if not is_detector(builder):
        raise ValueError(f"{source} must be of a model that fastmask builds, got {kind} on {resnet}")
    converted = {_rename(key, source): value for key, value in state.items() if not re.fullmatch(BUFFERS, key)}
    if input_format == "BGR":
        converted["backbone.body.conv1.weight"] = converted["backbone.body.conv1.weight"].flip(1)
    _reorder_anchors(converted, SIZES if c4 else SIZES[:1])
    labels, categories = _choose_labels(len(converted["roi_heads.box_predictor.cls_score.weight"]) - 1, keypoints)
    _reorder_classes(converted, labels, source)
    options = _describe_images(state, source, resnet, input_format)
    options |= {"sampling_ratio": 0, "aligned": True, "exact_anchors": True}
    if "backbone.body.layer2.0.conv3.weight" in converted:
        options["stride_in_1x1"] = not resnet.startswith("resnext")
    if c4:
        options["size_divisible"] = 1
    _check_anchors(state, source, c4)
    _check_shapes(builder, options, converted, source)
    described = {"builder": builder, "options": options, "norm_eps": 1e-5, "categories": categories}
    if keypoints and categories is not None:
        described["skeletons"] = plain_skeletons({"person": PERSON})
    return converted, {name: value for name, value in described.items() if value is not None}


def _check_kind(state: State, source: str) -> None:
    wanted = f"{source} must be of Faster, Mask or Keypoint R-CNN on FPN or C4 to be converted from detectron2"
    for part, what in OTHERS.items():
        key = next((key for key in state if part in key), None)
        if key is not None:
            raise ValueError(f"{wanted}, got {what} ({key})")
    if "conv1_w" in state:
        raise ValueError(f"{wanted}, got Caffe2's names of keys, such as conv1_w")
    if any(key.startswith("stem.conv1.") for key in state):
        raise ValueError(f"{wanted}, got a backbone alone")
    for part, what in (("proposal_generator.rpn_head.", "no RPN"), ("roi_heads.box_predictor.", "no box head")):
        if not any(key.startswith(part) for key in state):
            raise ValueError(f"{wanted}, got {what}: no key begins with {part}")
    for name in ("cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias"):
        if f"roi_heads.box_predictor.{name}" not in state:
            raise ValueError(f"{wanted}, got no roi_heads.box_predictor.{name}")
    if not any(re.fullmatch(NAMES[0][0], key) for key in state):
        raise ValueError(f"{wanted}, got no stem.conv1.weight of a ResNet")


def _check_values(state: State, source: str) -> None:
    """Tensors are of floating point, none larger than what the file holds of it, as one element repeated would be."""
    for key, value in state.items():
        if not key.isprintable():
            raise ValueError(f"{source} must have printable keys, got {key[:200]!r}")
        if not value.is_floating_point() and not key.endswith("num_batches_tracked"):
            raise ValueError(f"{source}: {key} must be numbers of floating point, got {value.dtype}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{source}: {key} must hold all its elements, got a view of shape {list(value.shape)}")


def _check_ends(state: State, source: str) -> None:
    """Dimensions of the first and last layers, whose channels and rows are put in our order."""
    stem = next(key for key in state if re.fullmatch(NAMES[0][0], key))
    if state[stem].shape[1:] != (3, 7, 7):
        raise ValueError(f"{source}: {stem} must be [C, 3, 7, 7], got {list(state[stem].shape)}")
    scores = state["roi_heads.box_predictor.cls_score.weight"]
    if scores.ndim != 2:
        raise ValueError(f"{source}: roi_heads.box_predictor.cls_score.weight must be 2D, got {list(scores.shape)}")


def _name_resnet(state: State, source: str) -> tuple[str, bool]:
    """The backbone's builder, and whether its last stage is a head (C4)."""
    blocks: dict[int, set[int]] = {}
    for key in state:
        if match := re.match(r"(?:backbone\.(?:bottom_up\.)?|roi_heads\.)res(\d)\.(\d+)\.", key):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    depth = tuple(len(blocks.get(stage, ())) for stage in (2, 3, 4, 5))
    bottlenecks = any(re.search(r"res2\.0\.conv3\.weight$", key) for key in state)
    conv = next((value for key, value in state.items() if re.search(r"\.res2\.0\.conv2\.weight$", key)), None)
    groups = 1 if conv is None or conv.ndim != 4 else conv.shape[0] // max(conv.shape[1], 1)
    name = RESNETS.get((depth, bottlenecks), {}).get(groups)
    if name is None:
        got = f"{'-'.join(map(str, depth))} {'bottlenecks' if bottlenecks else 'basic blocks'} in {groups} groups"
        known = ", ".join(name for names in RESNETS.values() for name in names.values())
        raise ValueError(f"{source} must have the blocks of {known} to be converted, got {got}")
    return name, not any("fpn_lateral" in key for key in state)


def _rename(key: str, source: str) -> str:
    """Our key for one of detectron2's."""
    for pattern, name in NAMES:
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    if match := re.fullmatch(r"backbone\.fpn_(lateral|output)([2-5])\.(\w+)", key):
        blocks = {"lateral": "inner_blocks", "output": "layer_blocks"}[match[1]]
        return f"backbone.fpn.{blocks}.{int(match[2]) - 2}.0.{match[3]}"
    if match := re.fullmatch(r"roi_heads\.(mask_head\.mask|keypoint_head\.conv)_fcn(\d+)\.(\w+)", key):
        head, number = match[1].partition(".")[0], int(match[2]) - 1
        return f"roi_heads.{head}.{f'{number}.0' if head == 'mask_head' else 2 * number}.{match[3]}"
    if match := re.fullmatch(r"(?:backbone\.(?:bottom_up\.)?|(roi_heads)\.)res([2-5])\.(\d+)\.(.+)", key):
        for pattern, name in LAYERS:
            if layer := re.fullmatch(pattern, match[4]):
                stage = "roi_heads.res5" if match[1] else f"backbone.body.layer{int(match[2]) - 1}"
                return f"{stage}.{int(match[3])}.{layer.expand(name)}"
    raise ValueError(f"{source} must have no other keys than detectron2's of these models, got {key}")


def _reorder_anchors(state: dict[str, Tensor], sizes: Sequence[int]) -> None:
    """From all ratios of the first size, then of the second, to all sizes of the first ratio, and so on."""
    rows = torch.arange(len(sizes) * len(RATIOS)).view(len(sizes), len(RATIOS)).t().flatten()
    for name, each in (("cls_logits", 1), ("bbox_pred", 4)):
        for kind in ("weight", "bias"):
            key = f"rpn.head.{name}.{kind}"
            if key in state and len(sizes) > 1 and state[key].shape[:1] == (each * len(rows),):
                state[key] = state[key].unflatten(0, (len(rows), each))[rows].flatten(0, 1)


def _choose_labels(number: int, keypoints: bool) -> tuple[list[int], list[str] | None]:
    """The label of each class, and names by label, if known: of COCO's 80 classes, by category id, and of persons."""
    if number == 80:
        labels = [label for label, name in enumerate(COCO_CATEGORIES) if label and name != "N/A"]
        return labels, list(COCO_CATEGORIES)
    return list(range(1, number + 1)), list(COCO_PERSON_CATEGORIES) if keypoints and number == 1 else None


def _reorder_classes(state: dict[str, Tensor], labels: Sequence[int], source: str) -> None:
    """From classes with background last, which boxes and masks have not, to labels with background first.

    Labels between that are no class get a logit that no score is left of, and zeros.
    """
    number, last = len(labels), max(labels, default=0) + 1
    prefix = "roi_heads.box_predictor."
    for name, each, fill in (
        (f"{prefix}cls_score", 1, IMPOSSIBLE),
        (f"{prefix}bbox_pred", 4, 0.0),
        ("roi_heads.mask_predictor.mask_fcn_logits", 1, 0.0),
    ):
        for kind in ("weight", "bias"):
            key = f"{name}.{kind}"
            if key not in state:
                continue
            value = state[key]
            has_background = name.endswith("cls_score")
            rows = each * (number + has_background)
            if not value.ndim or len(value) not in {rows, each} - ({each} if has_background else set()):
                expected = f"{rows} rows of {number} classes"
                raise ValueError(f"{source}: {key} must have {expected}, got shape {list(value.shape)}")
            parts = value.unflatten(0, (-1, each))
            shape = (last, *parts.shape[1:])
            placed = parts.new_full(shape, fill if kind == "bias" else 0.0)
            if has_background:
                placed[0] = parts[-1]
            placed[torch.tensor(labels, dtype=torch.int64)] = parts[:number]  # one row, of agnostic ones, for all
            state[key] = placed.flatten(0, 1)


def _describe_images(state: State, source: str, resnet: str, input_format: str) -> dict[str, Any]:
    """Mean and standard deviation of RGB in [0, 1]: the file's own, where it has them, or those of the published."""
    values = {"image_mean": PIXEL_MEAN, "image_std": PIXEL_STD.get(resnet, (1.0, 1.0, 1.0))}
    for name, key in (("image_mean", "pixel_mean"), ("image_std", "pixel_std")):
        if key in state:
            own = state[key].flatten().double().tolist()
            if len(own) != 3:
                raise ValueError(f"{source}: {key} must be of 3 channels, got shape {list(state[key].shape)}")
            values[name] = tuple(own)
        elif input_format == "RGB":
            values[name] = values[name][::-1]
    return {name: [x / 255 for x in (v[::-1] if input_format == "BGR" else v)] for name, v in values.items()}


def _check_anchors(state: State, source: str, c4: bool) -> None:
    """Anchors of a cell, which older files hold, are those of the published configurations."""
    found = {key: value for key, value in state.items() if ".cell_anchors." in key}
    levels = [SIZES] if c4 else [(size,) for size in SIZES]
    for key, value in found.items():
        level = int(key.rpartition(".")[2])
        expected = torch.tensor(list(_cell_anchors(levels[level] if level < len(levels) else ())))
        if value.shape != expected.shape or not torch.allclose(value.float(), expected, rtol=1e-4, atol=1e-2):
            raise ValueError(f"{source}: {key} must be anchors of sizes {SIZES} and ratios {RATIOS}, got others")


def _cell_anchors(sizes: Sequence[int]) -> Iterator[tuple[float, float, float, float]]:
    for size in sizes:
        for ratio in RATIOS:
            w, h = size / ratio**0.5, size * ratio**0.5
            yield -w / 2, -h / 2, w / 2, h / 2


def _check_shapes(builder: str, options: Mapping[str, Any], state: State, source: str) -> None:
    """Keys and shapes are the builder's, before a model is built, which may be larger than the file by far."""
    numbers = {"num_classes": len(state["roi_heads.box_predictor.cls_score.weight"])}
    if (keypoints := count_keypoints(state)) is not None:
        numbers["num_keypoints"] = keypoints
    with torch.device("meta"):  # allocates and draws nothing
        own = get_model_builder(builder)(weights=None, weights_backbone=None, **numbers, **options).state_dict()
    counted = {key for key in {*own, *state} if key.endswith("num_batches_tracked")}
    missing, unexpected = own.keys() - state.keys() - counted, state.keys() - own.keys() - counted
    others = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or unexpected:
        what = f"no {min(missing)}" if missing else f"{min(unexpected)} as well"
        raise ValueError(f"{source} must have all keys of {builder} to be converted, got {what} (by our name)")
    if others:
        key, *_ = others
        shapes = f"{list(state[key].shape)} for {list(own[key].shape)} of {key}"
        raise ValueError(f"{source} must have the shapes of {builder} to be converted, got {shapes} (by our name)")
