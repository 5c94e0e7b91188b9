"""Training, as Mask R-CNN's paper does it, in steps that never wait for the device."""

from fastmask.training.config import Settings
from fastmask.training.trainer import DivergedError, Run

__all__ = ["DivergedError", "Run", "Settings"]
