"""The classes that a caller wants: their labels, and the detections of these."""

from collections.abc import Collection, Sequence

import torch

from fastmask.checks import ArgumentError
from fastmask.structures import Prediction

NO_CLASSES = ("__background__", "N/A")  # names of COCO's unused labels


def find_labels(classes: Sequence[str], categories: Sequence[str] | None) -> set[int]:
    """The labels of classes.

    Args:
        classes: names, each of which is looked up as it is written; labels ("1") where the model has no names.
        categories: names by label, from 0, the background, if they are known.

    Raises:
        ValueError: a class is none of the model's, which are named.
    """
    if isinstance(classes, str) or not classes:
        raise ArgumentError(f"classes must be a list of names, got {classes!r}")
    if categories is None:
        wrong = [name for name in classes if not name.isdecimal()]
        if wrong:
            raise ArgumentError(f"classes must be labels, as the weights have no names of classes, got {wrong[0]!r}")
        return set(map(int, classes))
    known = dict.fromkeys(name for name in categories[1:] if name not in NO_CLASSES)
    wrong = [name for name in classes if name not in known]
    if wrong:
        given = ", ".join(map(repr, wrong))
        raise ArgumentError(f"classes must be among the model's ({', '.join(known)}), got {given}")
    return {label for label, name in enumerate(categories) if label and name in classes}


def keep_labels(prediction: Prediction, labels: Collection[int]) -> Prediction:
    """The detections of a prediction that have one of the labels, in order; masks must be RLEs."""
    kept = [i for i, label in enumerate(prediction["labels"].tolist()) if label in labels]
    rows = torch.tensor(kept, dtype=torch.int64)
    boxes, found, scores = (prediction[name][rows] for name in ("boxes", "labels", "scores"))
    chosen = Prediction(boxes=boxes, labels=found, scores=scores)
    if "masks" in prediction:
        chosen["masks"] = [prediction["masks"][i] for i in kept]
    if "keypoints" in prediction:
        chosen["keypoints"] = prediction["keypoints"][rows]
        chosen["keypoints_scores"] = prediction["keypoints_scores"][rows]
    return chosen
