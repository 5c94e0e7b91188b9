"""How far a Predictor's settings match the model itself."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastmask.evaluation.agreement import count_kept, mask_ious, matched_share
from fastmask.image_io import read_image
from fastmask.inference.predictor import Predictor
from fastmask.models._presets import to_float
from fastmask.models.detection._channels import count_channels
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.ops import paste_masks
from fastmask.sizes import check_pixels_left, compute_resized_size
from fastmask.visualize import draw_detections


class SettingMatch(NamedTuple):
    """How far a setting's detections match those of the model."""

    setting: str
    detections: int
    share: float  # of both sides' detections that match one on the other side, see matched_share
    mask_iou: float  # mean over the model's detections
    kept: int = 0  # of a bfloat16 setting: detections of the same size in float32 that it keeps, see count_kept
    expected: int = 0  # those detections


def compare_settings(
    model: GeneralizedRCNN, paths: Sequence[Path], size: tuple[int, int], categories: Sequence[str] | None = None
) -> tuple[list[SettingMatch], Image.Image]:
    """Compare Predictors of exact and fixed size, in float32 and bfloat16, with the model in float32.

    Args:
        model: any of ``fastmask.models.detection`` with a mask branch.
        paths: of the images to compare on.
        size: (height, width) that the fixed size pads to, in pixels.
        categories: names by label.

    Returns:
        A match for each setting, and the image that changes most, once for each setting.

    Raises:
        ValueError: the model has no masks, or an image is broken.
    """
    if not model.roi_heads.has_mask():
        raise ValueError(f"model must have masks, got a {type(model).__name__}")
    device, bar = next(model.parameters()).device, sys.stderr.isatty()
    originals = []
    for path in paths:
        image = read_image(path, count_channels(model))
        check_image(path, (image.height, image.width), model)
        (detections,) = model.detect([to_float(image).to(device)])
        detections["masks"] = paste_masks(detections["masks"], detections["boxes"], (image.height, image.width))
        originals.append({name: cast(Tensor, value).cpu() for name, value in detections.items()})

    sizes: tuple[Any, ...] = ("exact", (size[0], size[1]))
    matches, by_setting = [], {"the model, float32": originals}
    worst = (1.0, 0)  # (share, which image)
    for where, dtype in ((w, d) for d in (torch.float32, torch.bfloat16) for w in sizes):
        name = f"{where if where == 'exact' else f'{where[0]} x {where[1]}'}, {str(dtype).removeprefix('torch.')}"
        predictions = [
            {key: cast(Tensor, value).cpu() for key, value in prediction.items()}
            for prediction in Predictor(model, where, dtype=dtype, masks="bool").stream(paths, progress=bar)
        ]
        pairs = list(zip(predictions, originals, strict=True))
        shares = [matched_share(*pair) for pair in pairs]
        ious = torch.cat([mask_ious(*pair) for pair in pairs])
        weights = [len(a["boxes"]) + len(b["boxes"]) for a, b in pairs]
        share = sum(w * s for w, s in zip(weights, shares, strict=True)) / sum(weights) if sum(weights) else 1.0
        iou = float(ious.mean()) if len(ious) else 1.0
        match = SettingMatch(name, sum(len(each["boxes"]) for each in predictions), share, iou)
        if dtype == torch.bfloat16:
            full = by_setting[name.replace("bfloat16", "float32")]
            kept = sum(count_kept(*pair) for pair in zip(predictions, full, strict=True))
            match = match._replace(kept=kept, expected=sum(len(each["boxes"]) for each in full))
        matches.append(match)
        worst = min(worst, *((s, i) for i, s in enumerate(shares)))
        by_setting[name] = predictions
    shown = {name: predictions[worst[1]] for name, predictions in by_setting.items()}
    return matches, draw_side_by_side(read_image(paths[worst[1]]), shown, categories)


def check_image(path: Path, size: tuple[int, int], model: GeneralizedRCNN) -> None:
    """Raise a ValueError that names the image if the model leaves not a pixel of a side of it."""
    transform = model.transform
    if transform.fixed_size is not None:
        return
    try:
        limits = transform.min_size[-1], transform.max_size
        check_pixels_left(size, compute_resized_size(size, *limits, enlarge_only=transform._enlarge_only))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def draw_side_by_side(
    image: Image.Image, predictions: Mapping[str, Mapping[str, Any]], categories: Sequence[str] | None
) -> Image.Image:
    """The image once for each prediction, with the prediction's name above."""
    height = max(12.0, image.width / 25)
    font, bar = ImageFont.load_default(height), round(height * 1.6)
    sheet = Image.new("RGB", (len(predictions) * image.width, bar + image.height), "white")
    for i, (name, detections) in enumerate(predictions.items()):
        sheet.paste(draw_detections(image, detections, categories), (i * image.width, bar))
        ImageDraw.Draw(sheet).text((i * image.width + bar // 4, bar // 6), name, "black", font)
    return sheet
