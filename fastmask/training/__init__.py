"""Training, as Mask R-CNN's paper does it, in steps that never wait for the device."""

from fastmask.training.loop import DivergedError, Run
from fastmask.training.settings import Settings

__all__ = ["DivergedError", "Run", "Settings"]
