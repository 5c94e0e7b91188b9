"""Evaluation of a model, or of COCO results from elsewhere, on annotated images."""

import collections
import contextlib
import io
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from PIL import Image

from fastmask.checks import check_choice
from fastmask.data.parse import join_few, to_number
from fastmask.data.records import Dataset, LazyRecords, Record, add_sizes
from fastmask.distributed import Ranks, join_ranks
from fastmask.evaluation.evaluator import Evaluation, Evaluator
from fastmask.evaluation.faster import FasterEvaluator, check_installed
from fastmask.evaluation.identity import find_images, map_labels
from fastmask.evaluation.matching import AREAS
from fastmask.evaluation.oks import check_number, check_sigmas
from fastmask.evaluation.parse_results import find_common, list_types, parse_result
from fastmask.inference.coco_results import to_coco_results
from fastmask.inference.predictor import Predictor
from fastmask.inference.prefetch import ImageLike
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.structures import CocoResult, Prediction

BACKENDS = ("own", "faster-coco-eval")  # of results that are there already
MAX_PENDING = 64  # images whose detections wait to be matched


def evaluate(
    model: GeneralizedRCNN | Predictor,
    dataset: Dataset,
    *,
    names: Sequence[str] | None = None,
    areas: str = "own",
    sigmas: Sequence[float] | None = None,
    progress: bool = True,
    ranks: Ranks | None = None,
    results: list[CocoResult] | None = None,
) -> Evaluation:
    """COCO's average precision and recall of a model's boxes, masks and keypoints.

    Images are matched in a thread while the model detects in the next ones. Under ``torchrun`` all ranks call this, and
    each evaluates its share of the images; all get the same result, but only the first rank gets the curves.

    Args:
        model: of ``fastmask.models.detection``, run in its own dtype; or a Predictor with masks as RLE. Detections that
            score below its ``box_score_thresh`` are missing.
        dataset: annotated images.
        names: of the model's labels, from 0, the background; labels are matched to categories by name. None: by id, see
            :func:`fastmask.data.assign_labels`.
        areas: by which detections are small, medium or large: "own", the boxes' for boxes and the masks' for masks, as
            torchvision, detectron2 and MMDetection evaluate, and of keypoints that of the box around them; or
            "loadRes", for all the area that pycocotools' loadRes gives results that have a bbox: the bbox's.
        sigmas: K standard deviations of keypoints, as fractions of the root of an object's area; None: COCO's for 17
            keypoints, as pycocotools takes them, and 1 / K each for others.
        progress: show a progress bar, on the first rank.
        ranks: the ranks, if joined already.
        results: a list to which this rank's detections are appended.

    Raises:
        ValueError: there are no images, no name is a category's, the Predictor's masks are not RLE, or areas is wrong.
    """
    predictor = _make_predictor(model)
    records, ids = number_records(dataset)
    heads = predictor.program.model.roi_heads
    masks, keypoints = heads.has_mask() and has_masks(records), heads.has_keypoint() and has_keypoints(records)
    check_sigmas(sigmas, dataset.skeletons)
    check_number(heads.num_keypoints(), dataset.skeletons)
    evaluator = Evaluator(dataset.categories, list_types(True, masks, keypoints), areas, sigmas)
    labels = map_labels(names, evaluator.categories)
    with join_ranks(keep=True) if ranks is None else contextlib.nullcontext(ranks) as ranks:
        share = range(ranks.rank, len(records), ranks.world_size)
        matching = _Matching(evaluator, labels, names, results)

        def detect() -> dict[str, float]:
            start = time.perf_counter()
            with matching:
                pending: collections.deque[tuple[int, Record, str | None]] = collections.deque()
                images = _read_images(records, ids, share, pending)
                bar = progress and ranks.rank == 0
                for prediction in predictor.stream(images, progress=bar, total=len(share), errors="yield"):
                    matching.add(*pending.popleft(), prediction)
                inference = time.perf_counter() - start
            wait = time.perf_counter() - start - inference
            return {"inference": inference, "match": evaluator.seconds, "wait": wait}

        seconds = ranks.all_gather(ranks.run_on_all(detect))
        slowest = {name: max(each[name] for each in seconds) for name in seconds[0]}
        problems = [problem for of_rank in ranks.all_gather(matching.problems) for problem in of_rank]
        left_out = sum(ranks.all_gather(matching.left_out), collections.Counter())
        states = ranks.gather_to_first(evaluator.state() if ranks.rank else None)
        merged: list[Evaluation] = []

        def merge() -> Evaluation:
            merged.append(evaluator.merge(states).evaluate(problems, slowest, left_out, set(labels.values())))
            return merged[0]._replace(curves={})  # too large to send to all ranks

        shared = ranks.run_on_first(merge)
        return merged[0] if merged else shared


def evaluate_results(
    results: Sequence[CocoResult],
    dataset: Dataset,
    *,
    areas: str = "own",
    sigmas: Sequence[float] | None = None,
    backend: str = "own",
    progress: bool = True,
) -> Evaluation:
    """COCO's average precision and recall of detections in COCO's results format.

    Args:
        results: with image_id, category_id, score, and at least one of bbox, segmentation (RLE) and keypoints (x, y and
            a number that is not read, K times); numbers are Python's, NumPy's or zero-dimensional tensors. Where they
            have a file_name, as ``fastmask predict`` writes it, that tells the image, and image_id is not read: only
            who has the annotations knows their ids. Keypoints are compared where the data has some, and boxes where
            results have a bbox or a segmentation.
        dataset: annotated images; if not all have an id, image ids count from 1.
        areas: see :func:`evaluate`; with "loadRes", the masks' for all where results have no bbox.
        sigmas: see :func:`evaluate`.
        backend: "own", or "faster-coco-eval": the same curves by that package (extra ``fast-eval``).
        progress: show a progress bar.

    Raises:
        ImportError: the backend's package is not installed.
        ValueError: there are no images, areas or backend is wrong, no result is of a category, or a result is broken,
            of an unknown image, or with a mask of another size.
    """
    from tqdm import tqdm

    records, ids = number_records(dataset)
    sizes = dict(zip(ids, (record.size for record in records), strict=True))
    named = find_images(results, records, ids)
    by_image: dict[int, list[CocoResult]] = {image_id: [] for image_id in ids}
    check_choice("areas", areas, AREAS)
    check_choice("backend", backend, BACKENDS)
    if backend != "own":
        check_installed()
    check_sigmas(sigmas, dataset.skeletons)
    names = {to_number(number): name for name, number in dataset.categories.items()}
    skeletons = {number: dataset.skeletons[name] for number, name in names.items() if name in dataset.skeletons}
    given = []
    for i, result in enumerate(results):
        try:
            given.append(parse_result(result, sizes, named, skeletons))
        except ValueError as error:
            raise ValueError(f"results[{i}] {error}") from error
        by_image[given[-1]["image_id"]].append(given[-1])
    boxes, masks, keypoints = find_common(given, skeletons, areas)
    masks, keypoints = masks and has_masks(records), keypoints and has_keypoints(records)
    if not (boxes or masks or keypoints):
        raise ValueError("results must have boxes or masks where the dataset has no keypoints, got keypoints alone")
    kind = Evaluator if backend == "own" else FasterEvaluator
    evaluator = kind(dataset.categories, list_types(boxes, masks, keypoints), areas, sigmas)
    known = set(evaluator.categories.values())
    left_out = collections.Counter(
        f"category {result['category_id']}"
        for each in by_image.values()
        for result in each
        if result["category_id"] not in known
    )
    if results and left_out.total() == len(results):
        raise ValueError(f"results must be of the dataset's categories {sorted(known)[:5]}, got {join_few(left_out)}")
    for image_id, record in zip(tqdm(ids, unit="img", disable=not progress), records, strict=True):
        evaluator.add(image_id, record, by_image[image_id])
    return evaluator.evaluate((), {"match": evaluator.seconds}, left_out)


class _Matching:
    """Matches images in a thread; leaving the block waits for it."""

    def __init__(
        self,
        evaluator: Evaluator,
        labels: Mapping[int, int],
        names: Sequence[str] | None,
        results: list[CocoResult] | None,
    ) -> None:
        self.evaluator, self.labels, self.names, self.results = evaluator, labels, names, results
        self.problems: list[str] = []
        self.left_out: collections.Counter[str] = collections.Counter()  # detections by class, see Evaluation
        self.thread = ThreadPoolExecutor(1)
        self.pending: collections.deque[Future[None]] = collections.deque()

    def add(self, image_id: int, record: Record, problem: str | None, prediction: Prediction | Exception) -> None:
        while len(self.pending) >= MAX_PENDING:
            self.pending.popleft().result()
        self.pending.append(self.thread.submit(self._add, image_id, record, problem, prediction))

    def _add(self, image_id: int, record: Record, problem: str | None, prediction: Prediction | Exception) -> None:
        if isinstance(prediction, Exception):
            text = str(prediction) or type(prediction).__name__
            problem = text if str(record.file) in text else f"{record.file}: {text}"
        results: list[CocoResult] = []
        if problem is not None:
            self.problems.append(problem)
        elif not isinstance(prediction, Exception):
            for result in to_coco_results(image_id, prediction):
                label = result["category_id"]
                if label in self.labels:
                    results.append(result | {"category_id": self.labels[label]})
                else:
                    names = self.names or ()  # which may be fewer than the predictor's classes
                    self.left_out[names[label] if label < len(names) else f"label {label}"] += 1
        if self.results is not None:
            self.results += results
        self.evaluator.add(image_id, record, results)

    def __enter__(self) -> "_Matching":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.thread.shutdown(cancel_futures=error is not None)
        if error is None:
            for future in self.pending:
                future.result()


def _read_images(
    records: Sequence[Record],
    ids: Sequence[int],
    share: Iterable[int],
    pending: collections.deque[tuple[int, Record, str | None]],
) -> Iterator[ImageLike]:
    """The images of a share; appends (image id, record, problem of its size) of each to ``pending``."""
    for i in share:
        record = records[i]
        problem = None
        image: ImageLike = record.file if record.image is None else record.image
        with contextlib.suppress(OSError, ValueError):  # reported by what reads the image
            content = record.read_content()
            size = record.read_size(content)
            if size != record.size:
                problem = f"{record.file} must be of {record.size} as annotated, got {size}"
            if content is not None:
                image = Image.open(io.BytesIO(content))
        pending.append((ids[i], record._replace(image=None), problem))
        yield image


def _make_predictor(model: GeneralizedRCNN | Predictor) -> Predictor:
    if isinstance(model, Predictor):
        if model.masks != "rle" and model.program.model.roi_heads.has_mask():
            raise ValueError(f"model must be a Predictor with masks='rle', got {model.masks!r}")
        return model
    return Predictor(model, "exact", dtype=next(model.parameters()).dtype)


def number_records(dataset: Dataset) -> tuple[Sequence[Record], list[int]]:
    """Records with their sizes, and their image ids, which count from 1 unless all records have one.

    Raises:
        ValueError: there are no records, or two have the same id.
    """
    records = dataset.records
    if not len(records):
        raise ValueError("dataset must have images, got none")
    if isinstance(records, LazyRecords):
        return records, list(range(1, len(records) + 1))
    records = add_sizes(dataset).records
    ids = [to_number(record.id) for record in records if record.id is not None]
    if len(ids) < len(records):
        return records, list(range(1, len(records) + 1))
    repeated = [image_id for image_id, times in collections.Counter(ids).items() if times > 1]
    if repeated:
        raise ValueError(f"dataset must have ids of one image each, got several of {repeated[:5]}")
    return records, ids


def has_masks(records: Iterable[Record]) -> bool:
    """Whether any instance has a mask."""
    return any(instance.has_mask() for record in records for instance in record.instances)


def has_keypoints(records: Iterable[Record]) -> bool:
    """Whether any instance has an annotated keypoint."""
    return any(instance.count_keypoints() for record in records for instance in record.instances)
