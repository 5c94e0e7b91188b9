"""Models: torchvision.models' names, as far as R-CNNs need them."""

from fastmask.models import detection, mobilenetv3, resnet
from fastmask.models._api import (
    Weights,
    WeightsEnum,
    get_model,
    get_model_builder,
    get_model_weights,
    get_weight,
    list_models,
    list_weights,
)
from fastmask.models.checkpoint import Checkpoint, load_checkpoint, save_weights
from fastmask.models.from_checkpoint import from_checkpoint
from fastmask.models.mobilenetv3 import *  # noqa: F403 -- the builders and weights that its __all__ names
from fastmask.models.push import push_weights
from fastmask.models.resnet import *  # noqa: F403

__all__ = [
    "Checkpoint",
    "Weights",
    "WeightsEnum",
    "detection",
    "from_checkpoint",
    "get_model",
    "get_model_builder",
    "get_model_weights",
    "get_weight",
    "list_models",
    "list_weights",
    "load_checkpoint",
    "push_weights",
    "save_weights",
    *mobilenetv3.__all__,
    *resnet.__all__,
]
