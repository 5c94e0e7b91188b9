"""Evaluation by faster-coco-eval, which does in C++ what pycocotools does in Python: the same curves, sooner.

It needs all detections at once, so that they are in memory until the end; :class:`Evaluator` matches image by image.
"""

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastmask.data.parse import to_number
from fastmask.data.records import compress_rle
from fastmask.evaluation.evaluator import Evaluator
from fastmask.evaluation.matching import GroundTruth, load_area, read_box
from fastmask.evaluation.metrics import Curves, accumulate
from fastmask.evaluation.oks import choose_sigmas
from fastmask.structures import CocoResult

EXTRA = "backend faster-coco-eval needs faster-coco-eval: pip install 'fastmask-rcnn[fast-eval]'"
Annotation = dict[str, Any]


class FasterEvaluator(Evaluator):
    """An :class:`Evaluator` whose images are matched at the end; its arguments are those.

    Raises:
        ImportError: faster-coco-eval is not installed.
        ValueError: areas is neither "own" nor "loadRes".
    """

    def __init__(
        self,
        categories: Mapping[str, int],
        iou_types: Sequence[str] = ("bbox", "segm"),
        areas: str = "own",
        sigmas: Sequence[float] | None = None,
    ) -> None:
        check_installed()
        super().__init__(categories, iou_types, areas, sigmas)
        self.truths: dict[int, GroundTruth] = {}
        self.results: dict[int, Sequence[CocoResult]] = {}

    def _match(self, image_id: int, truth: GroundTruth, results: Sequence[CocoResult]) -> None:
        self.matches[image_id] = {}
        self.truths[image_id], self.results[image_id] = truth, results

    def _count(self) -> dict[int, int]:
        instances = {to_number(result["category_id"]): 0 for results in self.results.values() for result in results}
        for truth in self.truths.values():
            posed = self.iou_types[0] == "keypoints"
            for category, crowd, points in zip(truth.categories.tolist(), truth.crowds, truth.keypoints, strict=True):
                counts = not crowd and (count_points(points) > 0 or not posed)
                instances[category] = instances.get(category, 0) + counts
        return instances

    def curves(self, iou_type: str) -> Curves:
        """The curves of all categories, in their order.

        Raises:
            ValueError: categories have different numbers of keypoints.
        """
        from faster_coco_eval import COCO, COCOeval_faster

        if not self.categories:
            return accumulate([], iou_type)
        truth, found = COCO(), COCO()
        images = [{"id": number, "height": 0, "width": 0} for number in self.truths]  # RLE have their own sizes
        categories = [{"id": number, "name": name} for name, number in self.categories.items()]
        points = self._number_of_points() if iou_type == "keypoints" else 0
        lists = {id(truth): self._list_truths(iou_type, points), id(found): self._list_results(iou_type)}
        for each in (truth, found):
            each.dataset = {"images": images, "categories": categories, "annotations": lists[id(each)]}
            each.createIndex()
        sigmas = choose_sigmas(points, self.sigmas) if points else None
        evaluation = COCOeval_faster(truth, found, iouType=iou_type, kpt_oks_sigmas=sigmas)
        known = sorted(self.categories.values())
        evaluation.params.catIds, evaluation.params.imgIds = known, sorted(self.truths)
        evaluation.evaluate()
        evaluation.accumulate()
        order = [known.index(number) for number in self.categories.values()]
        precision, recall = (np.asarray(evaluation.eval[name]) for name in ("precision", "recall"))
        return Curves(precision[:, :, order], recall[:, order])

    def _list_truths(self, iou_type: str, points: int) -> list[Annotation]:
        numbers = itertools.count(1)  # 0 would stand for "no match"
        annotations = []
        for image_id, truth in self.truths.items():
            for i, category in enumerate(truth.categories.tolist()):
                if iou_type == "segm" and not (truth.has_mask[i] and truth.masks):
                    continue
                annotation: Annotation = {"id": next(numbers), "image_id": image_id, "category_id": category}
                annotation |= {"iscrowd": int(truth.crowds[i]), "area": float(truth.areas[i])}
                annotation["bbox"] = truth.boxes[i].tolist()
                if iou_type == "segm" and truth.masks:
                    annotation["segmentation"] = truth.masks[i]
                if iou_type == "keypoints":
                    known = truth.keypoints[i]
                    annotation["keypoints"] = [0.0] * (3 * points) if known is None else known.ravel().tolist()
                    annotation["num_keypoints"] = count_points(known)
                annotations.append(annotation)
        return annotations

    def _list_results(self, iou_type: str) -> list[Annotation]:
        numbers = itertools.count(1)
        annotations: list[Annotation] = []
        for image_id, results in self.results.items():
            for result in results:
                if iou_type == "keypoints" and "keypoints" not in result:
                    continue
                category, score = to_number(result["category_id"]), result["score"]
                compared = CocoResult(image_id=image_id, category_id=category, score=score)
                if iou_type == "segm":
                    compared["segmentation"] = compress_rle(result["segmentation"])
                elif iou_type == "keypoints":
                    compared["keypoints"] = result["keypoints"]
                else:
                    compared["bbox"] = [float(side) for side in read_box(result)]
                area = load_area(compared if self.areas == "own" else result)
                annotations.append({"id": next(numbers), "area": area, **compared})
        return annotations

    def _number_of_points(self) -> int:
        """The number of keypoints, which is one for all categories."""
        annotated = (points.shape[0] for t in self.truths.values() for points in t.keypoints if points is not None)
        detected = (len(r["keypoints"]) // 3 for rs in self.results.values() for r in rs if "keypoints" in r)
        numbers = sorted({*annotated, *detected})
        if len(numbers) > 1:
            raise ValueError(f"backend must be own where categories have different numbers of keypoints, got {numbers}")
        return numbers[0] if numbers else 1


def count_points(points: Any) -> int:
    """The annotated ones of keypoints [K, 3] or None."""
    return 0 if points is None else int((points[:, 2] > 0).sum())


def check_installed() -> None:
    """Raise an ImportError that names the extra, unless faster-coco-eval is installed."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise ImportError(EXTRA)
