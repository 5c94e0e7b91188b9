"""Synthetic images with exact masks, and four photos, for tests, benchmarks and demonstrations without a download."""

from fastmask.demo.drawing import SCENES, Scene, Scenes, draw_scene, save_synthetic, synthetic_dataset
from fastmask.demo.shapes import CLASSES

__all__ = ["CLASSES", "SCENES", "Scene", "Scenes", "draw_scene", "save_synthetic", "synthetic_dataset"]
