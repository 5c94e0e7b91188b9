"""Evaluation of detections: COCO's average precision and recall of boxes and masks."""

from fastmask.evaluation.evaluator import Category, Evaluation, Evaluator
from fastmask.evaluation.metrics import Curves, Metrics
from fastmask.evaluation.run import evaluate, evaluate_results

__all__ = ["Category", "Curves", "Evaluation", "Evaluator", "Metrics", "evaluate", "evaluate_results"]
