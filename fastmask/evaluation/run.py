"""A model's, or anybody's, detections against annotated images."""

import collections
import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from fastmask.data.records import Dataset, LazyRecords, Record, add_sizes, labels_of
from fastmask.distributed import Ranks, ranks
from fastmask.evaluation.coco_results import to_coco_results
from fastmask.evaluation.evaluator import Evaluation, Evaluator
from fastmask.evaluation.matching import KINDS, Entry
from fastmask.image_io import read_image_size
from fastmask.inference.predictor import Predictor
from fastmask.inference.prefetch import ImageLike
from fastmask.inference.unpack import Found
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN

WAITING = 64  # images that are still to be matched, at most


def evaluate(
    model: GeneralizedRCNN | Predictor,
    dataset: Dataset,
    *,
    names: Sequence[str] | None = None,
    progress: bool = True,
    own: Ranks | None = None,
    keep: list[Entry] | None = None,
) -> Evaluation:
    """COCO's average precision of a model's boxes and masks.

    Images are matched while the next ones are looked at. Under ``torchrun`` each rank looks at its share, all call
    this, and all get the same answer, but for the curves, which only the first rank has.

    Args:
        model: of ``fastmask.models.detection``, which is asked as it is, in its own dtype; or a Predictor with masks as
            RLE. What scores below its ``box_score_thresh`` is not found.
        dataset: annotated images.
        names: what the model's labels are called, from 0, the background; its labels are then matched by name. None:
            by number, see :func:`fastmask.data.labels_of`.
        progress: show a bar, on the first rank.
        own: the ranks, where they are known already.
        keep: a list that detections of this rank are put into, as COCO's results format has them.

    Raises:
        ValueError: there are no images, or none of the names is a category's, or masks are no RLE.
    """
    predictor = _predictor(model)
    labels = map_labels(names, dataset.categories)
    records, ids = number_records(dataset)
    masks = predictor.program.model.roi_heads.has_mask() and has_masks(records)
    evaluator = Evaluator(dataset.categories, KINDS if masks else KINDS[:1])
    with ranks(keep=True) if own is None else contextlib.nullcontext(own) as own:
        share = range(own.rank, len(records), own.world)
        matching = _Matching(evaluator, labels, keep)

        def look() -> dict[str, float]:
            start = time.perf_counter()
            with matching:
                waiting: collections.deque[tuple[int, Record, str | None]] = collections.deque()
                images = _images(records, ids, share, waiting)
                bar = progress and own.rank == 0
                for found in predictor.stream(images, progress=bar, total=len(share), errors="yield"):
                    matching.add(*waiting.popleft(), found)
                looked = time.perf_counter() - start
            return {"look": looked, "match": evaluator.seconds, "wait": time.perf_counter() - start - looked}

        seconds = own.gather(own.all_or_none(look))
        slowest = {name: max(each[name] for each in seconds) for name in seconds[0]}
        problems = [one for each in own.gather(matching.problems) for one in each]
        parts = own.to_first(evaluator.part() if own.rank else None)
        merged: list[Evaluation] = []

        def concluded() -> Evaluation:
            merged.append(evaluator.merged(parts).result(problems, slowest))
            return merged[0]._replace(curves={})  # large, where there are many categories

        shared = own.from_first(concluded)
        return merged[0] if merged else shared


class _Matching:
    """Matches images in a thread of its own; leaving the block waits for it."""

    def __init__(self, evaluator: Evaluator, labels: Mapping[int, int], keep: list[Entry] | None) -> None:
        self.evaluator, self.labels, self.keep = evaluator, labels, keep
        self.problems: list[str] = []
        self.thread = ThreadPoolExecutor(1)
        self.waiting: collections.deque[Future[None]] = collections.deque()

    def add(self, number: int, record: Record, problem: str | None, found: Found | Exception) -> None:
        while len(self.waiting) >= WAITING:
            self.waiting.popleft().result()
        self.waiting.append(self.thread.submit(self._add, number, record, problem, found))

    def _add(self, number: int, record: Record, problem: str | None, found: Found | Exception) -> None:
        if isinstance(found, Exception):
            text = str(found) or type(found).__name__
            problem = text if str(record.file) in text else f"{record.file}: {text}"
        entries: list[Entry] = []
        if problem is not None:
            self.problems.append(problem)
        elif not isinstance(found, Exception):
            entries = [
                {**entry, "category_id": self.labels[entry["category_id"]]}
                for entry in to_coco_results(number, found)
                if entry["category_id"] in self.labels
            ]
        if self.keep is not None:
            self.keep += entries
        self.evaluator.add(number, record, entries)

    def __enter__(self) -> "_Matching":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.thread.shutdown(cancel_futures=error is not None)
        if error is None:
            for one in self.waiting:
                one.result()


def _images(
    records: Sequence[Record],
    ids: Sequence[int],
    share: Iterable[int],
    waiting: collections.deque[tuple[int, Record, str | None]],
) -> Iterator[ImageLike]:
    """The share's images, each of whose records is put behind those that wait, with what is wrong with its size."""
    for i in share:
        record = records[i]
        problem = None
        with contextlib.suppress(OSError, ValueError):  # whoever looks at the image tells
            size = read_image_size(record.file) if record.image is None else record.image.size[::-1]
            if size != record.size:
                problem = f"{record.file} must be of {record.size} as annotated, got {size}"
        waiting.append((ids[i], record._replace(image=None), problem))
        yield record.file if record.image is None else record.image


def _predictor(model: GeneralizedRCNN | Predictor) -> Predictor:
    if isinstance(model, Predictor):
        if model.masks != "rle" and model.program.model.roi_heads.has_mask():
            raise ValueError(f"model must be a Predictor with masks='rle', got {model.masks!r}")
        return model
    return Predictor(model, "exact", dtype=next(model.parameters()).dtype)


def number_records(dataset: Dataset) -> tuple[Sequence[Record], list[int]]:
    """Records, with sizes where they can be had; their ids, or, unless all have one, numbers from 1.

    Raises:
        ValueError: there are none, or two have one id.
    """
    records = dataset.records
    if not len(records):
        raise ValueError("dataset must have images, got none")
    if isinstance(records, LazyRecords):
        return records, list(range(1, len(records) + 1))
    records = add_sizes(dataset).records
    ids = [record.id for record in records if record.id is not None]
    if len(ids) < len(records):
        return records, list(range(1, len(records) + 1))
    twice = [number for number, times in collections.Counter(ids).items() if times > 1]
    if twice:
        raise ValueError(f"dataset must have ids of one image each, got several of {twice[:5]}")
    return records, ids


def has_masks(records: Iterable[Record]) -> bool:
    """Whether there is an object with more than a box."""
    return any(one.polygons or one.rle is not None for record in records for one in record.objects)


def map_labels(names: Sequence[str] | None, categories: Mapping[str, int]) -> dict[int, int]:
    """The dataset's category id for each label of a model that has one; by name if labels have names.

    Raises:
        ValueError: there is none.
    """
    if names is None:
        return {label: categories[name] for name, label in labels_of(categories).items()}
    found = {label: categories[name] for label, name in enumerate(names) if label > 0 and name in categories}
    if not found:
        known, wanted = ", ".join(list(names)[1:6]), ", ".join(list(categories)[:5])
        raise ValueError(f"names must have one of the dataset's categories ({wanted}, ...), got {known}, ...")
    return found
