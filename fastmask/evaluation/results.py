"""Detections made elsewhere, in COCO's results format, against annotated images."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastmask.data.coco import is_id
from fastmask.data.records import Dataset, check_rle, numbers
from fastmask.evaluation.evaluator import Evaluation, Evaluator
from fastmask.evaluation.matching import KINDS, Entry
from fastmask.evaluation.run import has_masks, number_records


def evaluate_results(entries: Sequence[Entry], dataset: Dataset, *, progress: bool = True) -> Evaluation:
    """COCO's average precision of detections from anywhere, in its results format.

    Args:
        entries: with image_id, category_id, score, and bbox or segmentation (RLE) or both.
        dataset: with those images and categories; where its annotations have no ids, images count from 1.
        progress: show a bar.

    Raises:
        ValueError: there are no images, or an entry is broken, of an unknown image, or with a mask of another size.
    """
    from tqdm import tqdm

    records, ids = number_records(dataset)
    known = dict(zip(ids, (record.size for record in records), strict=True))
    by_image: dict[int, list[Entry]] = {number: [] for number in ids}
    for i, entry in enumerate(entries):
        try:
            check_entry(entry, known)
        except ValueError as error:
            raise ValueError(f"entries[{i}] {error}") from error
        by_image[entry["image_id"]].append(entry)
    without = [i for i, entry in enumerate(entries) if entry.get("segmentation") is None]
    if 0 < len(without) < len(entries):
        raise ValueError(f"entries must all have a segmentation, or none, got none in entries[{without[0]}]")
    masks = has_masks(records) and not without
    evaluator = Evaluator(dataset.categories, KINDS if masks else KINDS[:1])
    for number, record in zip(tqdm(ids, unit="img", disable=not progress), records, strict=True):
        evaluator.add(number, record, by_image[number])
    return evaluator.result((), {"match": evaluator.seconds})


def check_entry(entry: Any, known: Mapping[int, tuple[int, int] | None]) -> None:
    """Raise a ValueError unless it is a detection in COCO's results format, of one of the images."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"must be an object, got {type(entry).__name__}")
    if not isinstance(entry.get("image_id"), int) or entry["image_id"] not in known:
        raise ValueError(f"must have the image_id of one of the {len(known)} images, got {entry.get('image_id')!r}")
    if not is_id(entry.get("category_id")):
        raise ValueError(f"must have a category_id, got {entry.get('category_id')!r}")
    numbers(entry, "score")
    box, rle = entry.get("bbox"), entry.get("segmentation")
    if box is None and rle is None:
        raise ValueError("must have a bbox or a segmentation")
    if box is not None:
        if not isinstance(box, list | tuple) or len(box) != 4:
            raise ValueError(f"must have x, y, width, height as its bbox, got {box!r}")
        numbers(dict(zip("xywh", box, strict=True)), *"xywh")
    if rle is not None:
        if not isinstance(rle, Mapping):
            raise ValueError("must have an RLE as its segmentation")
        check_rle(rle)
        if known[entry["image_id"]] not in (None, tuple(rle["size"])):
            raise ValueError(f"must have a mask of {known[entry['image_id']]} as its image, got {tuple(rle['size'])}")
