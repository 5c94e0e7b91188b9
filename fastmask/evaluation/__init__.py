"""How good detections are: COCO's average precision of boxes and masks."""

from fastmask.evaluation.accumulating import Curves, Metrics
from fastmask.evaluation.evaluator import Category, Evaluation, Evaluator
from fastmask.evaluation.results import evaluate_results
from fastmask.evaluation.run import evaluate

__all__ = ["Category", "Curves", "Evaluation", "Evaluator", "Metrics", "evaluate", "evaluate_results"]
