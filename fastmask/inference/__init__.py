"""Prediction with a model prepared once: from images in files, memory or streams to detections on the host."""

from fastmask.inference.coco_results import to_coco_results
from fastmask.inference.predict_files import PredictedFiles, predict_files
from fastmask.inference.predict_video import PredictedVideo, predict_video
from fastmask.inference.predictor import Predictor
from fastmask.inference.pretrained import load_pretrained

__all__ = [
    "PredictedFiles",
    "PredictedVideo",
    "Predictor",
    "load_pretrained",
    "predict_files",
    "predict_video",
    "to_coco_results",
]
