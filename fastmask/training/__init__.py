"""Mask R-CNN training as in the paper, in steps without a host sync; :func:`train` does all of it in one call."""

from fastmask.training.api import train
from fastmask.training.callback import Callback
from fastmask.training.config import TrainConfig
from fastmask.training.ema import ModelEma
from fastmask.training.loss_module import LossModule
from fastmask.training.result import DivergedError, TrainResult
from fastmask.training.step import TrainStep
from fastmask.training.trainer import Trainer

__all__ = [
    "Callback",
    "DivergedError",
    "LossModule",
    "ModelEma",
    "TrainConfig",
    "TrainResult",
    "TrainStep",
    "Trainer",
    "train",
]
