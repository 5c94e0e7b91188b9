"""Images' matches, collected in any order and by any number of ranks, and the metrics at the end."""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fastmask.data.records import Record
from fastmask.evaluation.accumulating import Curves, Metrics, accumulated, metrics, of_category
from fastmask.evaluation.matching import KINDS, Entry, Matches, match_image, truth_of

Part = tuple[dict[int, dict[str, dict[int, Matches]]], int]
NAMES = {"bbox": "box", "segm": "mask"}


class Category(NamedTuple):
    """One category's part."""

    name: str
    objects: int  # that count: no crowds
    metrics: dict[str, Metrics]  # by "box" and "mask"


class Evaluation(NamedTuple):
    """How good detections are."""

    metrics: dict[str, Metrics]  # by "box" and, where there are masks, "mask"
    categories: list[Category]  # of which there are objects or detections
    curves: dict[str, Curves]  # all precisions and recalls, for plots
    images: int
    detections: int
    problems: tuple[str, ...]  # images that could not be looked at; their objects count as missed
    seconds: dict[str, float]  # on the slowest rank


class Evaluator:
    """Matches of images, which are added in any order, each once.

    Args:
        categories: ids by name.
        kinds: of what is compared: "bbox", "segm".
    """

    def __init__(self, categories: Mapping[str, int], kinds: Sequence[str] = KINDS) -> None:
        self.categories, self.kinds = categories, tuple(kinds)
        self.matches: dict[int, dict[str, dict[int, Matches]]] = {}  # by image, kind and category id
        self.detections = 0
        self.seconds = 0.0  # spent on matching

    def add(self, number: int, record: Record, entries: Sequence[Entry]) -> None:
        """An image's detections as COCO's results format has them.

        Args:
            number: of the image, which says where among others it stands; pycocotools goes by their ids.
            record: its objects.
            entries: with category ids of the dataset; of others, they are nobody's.

        Raises:
            ValueError: the image is there already.
        """
        if number in self.matches:
            raise ValueError(f"images must be added once, got number {number} again")
        start = time.perf_counter()
        known = [entry["segmentation"]["size"] for entry in entries[:1] if entry.get("segmentation") is not None]
        if record.size is None and known:
            record = record._replace(size=(known[0][0], known[0][1]))
        truth = truth_of(record, self.categories, "segm" in self.kinds)
        self.matches[number] = {kind: match_image(truth, entries, kind) for kind in self.kinds}
        self.detections += len(entries)
        self.seconds += time.perf_counter() - start

    def part(self) -> Part:
        """What :meth:`merged` takes, for the way from one rank to another."""
        return self.matches, self.detections

    def merged(self, parts: Sequence[Part | None]) -> "Evaluator":
        """With what other ranks have added.

        Raises:
            ValueError: an image is in two parts.
        """
        for part in parts:
            if part is None:
                continue
            twice = sorted(self.matches.keys() & part[0].keys())
            if twice:
                raise ValueError(f"images must be added once, got numbers {twice[:5]} on two ranks")
            self.matches |= part[0]
            self.detections += part[1]
        return self

    def curves(self, kind: str) -> Curves:
        """Of all categories, in their order."""
        by_category: dict[int, list[Matches]] = {number: [] for number in self.categories.values()}
        for number in sorted(self.matches):
            for category, matches in self.matches[number][kind].items():
                if category in by_category:
                    by_category[category].append(matches)
        return accumulated(list(by_category.values()))

    def result(self, problems: Sequence[str] = (), seconds: Mapping[str, float] | None = None) -> Evaluation:
        """All metrics, of what is there by now."""
        start = time.perf_counter()
        curves = {NAMES[kind]: self.curves(kind) for kind in self.kinds}
        objects = dict.fromkeys(self.categories.values(), 0)
        seen: set[int] = set()
        for one in self.matches.values():
            for category, matches in one[self.kinds[0]].items():
                seen.add(category)
                if category in objects:
                    objects[category] += int((~matches.absent[0]).sum())
        categories = [
            Category(name, objects[number], {kind: of_category(one, i) for kind, one in curves.items()})
            for i, (name, number) in enumerate(self.categories.items())
            if number in seen
        ]
        found = {kind: metrics(one) for kind, one in curves.items()}
        spent = {**(seconds or {}), "accumulate": time.perf_counter() - start}
        return Evaluation(found, categories, curves, len(self.matches), self.detections, tuple(problems), spent)
