"""Evaluation of detections: COCO's average precision and recall of boxes, masks and keypoints."""

from fastmask.evaluation.choose_dtype import DtypeChoice, choose_dtype
from fastmask.evaluation.evaluator import Category, Evaluation, Evaluator
from fastmask.evaluation.metrics import AnyMetrics, Curves, KeypointMetrics, Metrics
from fastmask.evaluation.run import evaluate, evaluate_results

__all__ = [
    "AnyMetrics",
    "Category",
    "Curves",
    "DtypeChoice",
    "Evaluation",
    "Evaluator",
    "KeypointMetrics",
    "Metrics",
    "choose_dtype",
    "evaluate",
    "evaluate_results",
]
