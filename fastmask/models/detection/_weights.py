"""Loading of a builder's weights: downloadable ones, and those in a user's file."""

import os
from typing import Any

from torch import nn

from fastmask.models._api import Weights, WeightsEnum
from fastmask.models._meta import COCO_CATEGORIES
from fastmask.models._presets import ObjectDetection
from fastmask.models.checkpoint import Checkpoint, load_state, num_classes_error
from fastmask.models.detection._utils import overwrite_eps

Source = WeightsEnum | Checkpoint | None


def coco_weights(file: str, num_params: int, recipe: str, **metrics: float) -> Weights:
    """Weights of a detector trained on COCO, with the average precisions that torchvision publishes."""
    meta = {
        "categories": COCO_CATEGORIES,
        "num_classes": len(COCO_CATEGORIES),
        "min_size": (1, 1),
        "num_params": num_params,
        "recipe": f"https://github.com/pytorch/vision/{recipe}",
        "_metrics": {"COCO-val2017": metrics},
    }
    return Weights(f"https://download.pytorch.org/models/{file}", ObjectDetection, meta)


def find_weights(known: type[WeightsEnum], weights: Any) -> Source:
    """A member of ``known``, its name, a file's path, or None; ValueError if a name is neither of the two."""
    if isinstance(weights, Checkpoint):
        return weights
    if isinstance(weights, str | os.PathLike):
        name = os.fspath(weights)
        if name.removeprefix(f"{known.__name__}.") not in known.__members__:
            if not os.path.exists(name):
                names = " or ".join(filter(None, (", ".join(known.__members__), "a file")))
                raise ValueError(f"weights must be {names}, got {name!r}")
            checkpoint = Checkpoint(name)
            checkpoint.published = os.path.basename(name) in {member.url.rpartition("/")[2] for member in known}
            return checkpoint
    member: WeightsEnum | None = known.verify(weights)
    return member


def has_frozen_norms(weights: Source, weights_backbone: WeightsEnum | None) -> bool:
    """Whether norms of the first models are frozen: with trained weights, but for a file whose norms were trained."""
    if isinstance(weights, Checkpoint):
        return weights.has_frozen_norms
    return weights is not None or weights_backbone is not None


def choose_num_classes(num_classes: int | None, weights: Source, new_predictors: bool) -> int:
    """The given number, or else that of the weights, or else COCO's; ValueError if the first two differ."""
    trained = None if weights is None else weights.meta.get("num_classes")
    if num_classes is None:
        return len(COCO_CATEGORIES) if trained is None else int(trained)
    if trained not in (None, num_classes) and not new_predictors:
        raise num_classes_error(trained, repr(weights), num_classes)
    return num_classes


def load_weights(
    model: nn.Module, weights: Source, progress: bool, new_predictors: bool, eps: float | None = None
) -> None:
    """Load weights, if any; ``eps`` is that of frozen norms in the training of the published ones."""
    if weights is not None:
        load_state(model, weights.get_state_dict(progress=progress), repr(weights), new_predictors)
        if eps is not None and (not isinstance(weights, Checkpoint) or weights.published):
            overwrite_eps(model, eps)
