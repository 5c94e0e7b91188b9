"""Images the package draws itself, for tests, benchmarks and demonstrations that need no download."""

from fastmask.demo.drawing import SCENES, Scene, Scenes, draw_scene, drawn_dataset, save_drawn
from fastmask.demo.shapes import CLASSES

__all__ = ["CLASSES", "SCENES", "Scene", "Scenes", "draw_scene", "drawn_dataset", "save_drawn"]
