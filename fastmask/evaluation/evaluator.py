"""Collecting the matches of images, in any order and on any number of ranks, and computing the metrics at the end."""

import time
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from fastmask.checks import check_choice
from fastmask.data.parse import to_number
from fastmask.data.records import Record
from fastmask.evaluation.matching import AREAS, IOU_TYPES, GroundTruth, Matches, match_image, read_ground_truth
from fastmask.evaluation.metrics import AnyMetrics, Curves, accumulate, summarize, summarize_category
from fastmask.structures import CocoResult

State = tuple[dict[int, dict[str, dict[int, Matches]]], int]
NAMES = {"bbox": "box", "segm": "mask", "keypoints": "keypoints"}


class Category(NamedTuple):
    """The metrics of one category."""

    name: str
    instances: int  # of the ground truth, without crowds; of keypoints alone, those that have any
    metrics: dict[str, AnyMetrics]  # by "box", "mask" and "keypoints", as those over all categories


class Evaluation(NamedTuple):
    """The result of an evaluation."""

    metrics: dict[str, AnyMetrics]  # over all categories: by "box", and by "mask" and "keypoints" where there are any
    categories: list[Category]  # those with ground truth or detections
    curves: dict[str, Curves]  # precision and recall, for plots
    images: int
    detections: int
    problems: tuple[str, ...]  # unreadable images, whose ground truth counts as missed
    seconds: dict[str, float]  # by stage, of the slowest rank
    areas: str  # "own" or "loadRes": by which areas detections are small, medium or large
    left_out: dict[str, int]  # detections that do not count, by their class, which the data set lacks
    unknown: dict[str, int]  # objects that are all missed, by their class, which the model does not know


class Evaluator:
    """Matches of images and the metrics computed from them; images are added in any order.

    Args:
        categories: ids by name.
        iou_types: what is compared, of "bbox", "segm" and "keypoints".
        areas: "own" or "loadRes", see :func:`fastmask.evaluation.evaluate`.
        sigmas: of keypoints, see :func:`fastmask.evaluation.evaluate`.

    Raises:
        ValueError: areas is neither.
    """

    def __init__(
        self,
        categories: Mapping[str, int],
        iou_types: Sequence[str] = IOU_TYPES[:2],
        areas: str = "own",
        sigmas: Sequence[float] | None = None,
    ) -> None:
        check_choice("areas", areas, AREAS)
        self.categories = {name: to_number(category) for name, category in categories.items()}
        self.iou_types, self.areas, self.sigmas = tuple(iou_types), areas, sigmas
        self.matches: dict[int, dict[str, dict[int, Matches]]] = {}  # by image id, IoU type and category id
        self.detections = 0
        self.seconds = 0.0  # spent on matching

    def add(self, image_id: int, record: Record, results: Sequence[CocoResult]) -> None:
        """Match the detections of an image.

        Args:
            image_id: of the image; ties of scores are accumulated in the order of ids, as pycocotools does.
            record: the image's ground truth.
            results: its detections; those of categories that the data set lacks are ignored.

        Raises:
            ValueError: the image was added before.
        """
        image_id = to_number(image_id)
        if image_id in self.matches:
            raise ValueError(f"images must be added once, got number {image_id} again")
        start = time.perf_counter()
        sizes = [result["segmentation"]["size"] for result in results[:1] if result.get("segmentation") is not None]
        if record.size is None and sizes:
            record = record._replace(size=(sizes[0][0], sizes[0][1]))
        truth = read_ground_truth(record, self.categories, "segm" in self.iou_types)
        self._match(image_id, truth, results)
        self.detections += len(results)
        self.seconds += time.perf_counter() - start

    def _match(self, image_id: int, truth: GroundTruth, results: Sequence[CocoResult]) -> None:
        self.matches[image_id] = {
            name: match_image(truth, results, name, self.areas, self.sigmas) for name in self.iou_types
        }

    def state(self) -> State:
        """What :meth:`merge` takes on another rank."""
        return self.matches, self.detections

    def merge(self, states: Sequence[State | None]) -> "Evaluator":
        """Add what other ranks matched -> this evaluator.

        Raises:
            ValueError: an image was added on two ranks.
        """
        for state in states:
            if state is None:
                continue
            repeated = sorted(self.matches.keys() & state[0].keys())
            if repeated:
                raise ValueError(f"images must be added once, got numbers {repeated[:5]} on two ranks")
            self.matches |= state[0]
            self.detections += state[1]
        return self

    def curves(self, iou_type: str) -> Curves:
        """The curves of all categories, in their order."""
        by_category: dict[int, list[Matches]] = {category: [] for category in self.categories.values()}
        for image_id in sorted(self.matches):
            for category, matches in self.matches[image_id][iou_type].items():
                if category in by_category:
                    by_category[category].append(matches)
        return accumulate(list(by_category.values()), iou_type)

    def _count(self) -> dict[int, int]:
        """The ground-truth instances that count, by category id; 0 for categories that have detections alone."""
        instances: dict[int, int] = {}
        for by_type in self.matches.values():
            for category, matches in by_type[self.iou_types[0]].items():
                instances[category] = instances.get(category, 0) + int((~matches.gt_ignored[0]).sum())
        return instances

    def evaluate(
        self,
        problems: Sequence[str] = (),
        seconds: Mapping[str, float] | None = None,
        left_out: Mapping[str, int] | None = None,
        known: Collection[int] | None = None,
    ) -> Evaluation:
        """The metrics of all images added so far.

        Args:
            problems, seconds, left_out: see :class:`Evaluation`.
            known: ids of the categories that the model knows; None: all.
        """
        start = time.perf_counter()
        curves = {iou_type: self.curves(iou_type) for iou_type in self.iou_types}
        instances = self._count()
        categories = [
            Category(
                name, instances[category], {NAMES[kind]: summarize_category(c, i, kind) for kind, c in curves.items()}
            )
            for i, (name, category) in enumerate(self.categories.items())
            if category in instances
        ]
        metrics = {NAMES[kind]: summarize(c, kind) for kind, c in curves.items()}
        spent = {**(seconds or {}), "accumulate": time.perf_counter() - start}
        lacking = {
            name: number for name, number in self.categories.items() if known is not None and number not in known
        }
        unknown = {name: instances[number] for name, number in lacking.items() if instances.get(number)}
        noted = (tuple(problems), spent, self.areas, dict(left_out or {}), unknown)
        named = {NAMES[kind]: c for kind, c in curves.items()}
        return Evaluation(metrics, categories, named, len(self.matches), self.detections, *noted)
