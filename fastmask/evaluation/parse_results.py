"""Detections in COCO's results format: read if they have one meaning, refused by name and rule otherwise."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from fastmask.data.parse import parse_box, parse_id, parse_numbers, parse_rle, shorten
from fastmask.evaluation.matching import IOU_TYPES
from fastmask.skeletons import Skeleton
from fastmask.structures import CocoResult


def parse_result(
    result: Any,
    sizes: Mapping[int, tuple[int, int] | None],
    named: Mapping[str, int],
    skeletons: Mapping[int, Skeleton],
) -> CocoResult:
    """A COCO result in Python's numbers; ValueError unless it is one of the images.

    Their sizes are given by id and, where results have a file_name, their ids by that name; skeletons by category id.
    Keypoints of other categories are left out.
    """
    if not isinstance(result, Mapping):
        raise ValueError(f"must be an object, got {type(result).__name__}")
    image_id = named[result["file_name"]] if named else parse_id(result.get("image_id"))
    category = parse_id(result.get("category_id"))
    if image_id is None or image_id not in sizes:
        raise ValueError(f"must have the image_id of one of the {len(sizes)} images, got {result.get('image_id')!r}")
    if category is None:
        raise ValueError(f"must have a category_id, got {result.get('category_id')!r}")
    parsed = CocoResult(image_id=image_id, category_id=category, score=parse_numbers(result, "score")[0])
    box, rle, points = (result.get(name) for name in ("bbox", "segmentation", "keypoints"))
    if box is None and rle is None and points is None:
        raise ValueError("must have a bbox, a segmentation or keypoints")
    if points is not None and category in skeletons:
        parsed["keypoints"] = parse_points(points, skeletons[category].number)
    if box is not None:
        parsed["bbox"] = parse_box(box)
    if rle is not None:
        if not isinstance(rle, Mapping):
            raise ValueError("must have an RLE as its segmentation")
        parsed["segmentation"] = rle = parse_rle(rle)
        size = sizes[image_id]
        if size not in (None, tuple(rle["size"])):
            raise ValueError(f"must have a mask of {size} as its image, got {tuple(rle['size'])}")
    return parsed


def parse_points(values: Any, number: int) -> list[float]:
    """The 3 K numbers of a list, tuple, array or tensor; ValueError unless they are finite, and so many."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple) or len(values) != 3 * number:
        got = f"{len(values)} numbers" if isinstance(values, list | tuple) else shorten(values)
        raise ValueError(f"must have {number} keypoints, x, y and a number each, got {got}")
    names = [f"keypoints[{i}]" for i in range(len(values))]
    return parse_numbers(dict(zip(names, values, strict=True)), *names)


def find_common(
    results: Sequence[CocoResult], skeletons: Mapping[int, Skeleton], areas: str
) -> tuple[bool, bool, bool]:
    """Whether results have boxes (or masks, around which they are), masks, and keypoints, for those to be compared.

    Args:
        results: as parsed.
        skeletons: by category id; results of other categories need no keypoints.
        areas: "loadRes" takes bboxes' areas for all results, or for none.

    Raises:
        ValueError: some results have one of these, and others lack it.
    """
    where = list(range(len(results)))
    posed = [i for i in where if results[i]["category_id"] in skeletons]
    lacking = {name: [i for i in where if name not in results[i]] for name in ("segmentation", "bbox")}
    rules = [("a segmentation", where, lacking["segmentation"])]
    rules += [("a bbox", where, lacking["bbox"])] if areas == "loadRes" else []
    rules += [("a bbox or a segmentation", where, sorted(set(lacking["bbox"]) & set(lacking["segmentation"])))]
    rules += [("keypoints", posed, [i for i in posed if "keypoints" not in results[i]])]
    for what, asked, without in rules:
        if 0 < len(without) < len(asked):
            raise ValueError(f"results must all have {what}, or none, got none in results[{without[0]}]")
    return not rules[-2][2], not lacking["segmentation"], not rules[-1][2]


def list_types(boxes: bool, masks: bool, keypoints: bool) -> tuple[str, ...]:
    """What is compared, by pycocotools' names."""
    return tuple(itertools.compress(IOU_TYPES, (boxes, masks, keypoints)))
