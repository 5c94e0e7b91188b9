"""The data loader of training: augmented batches in an order that depends on the seed, not on the number of workers."""

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset as TorchDataset, Sampler

from fastmask.data.augment import Augmentation, Sample, copy_paste, jitter_color, make_sample
from fastmask.data.keypoints import count_points
from fastmask.data.records import Dataset, LazyRecords, Record, add_sizes, assign_labels
from fastmask.data.user_transform import apply_transform
from fastmask.preprocess import pad
from fastmask.sizes import Size, compute_padded_size
from fastmask.skeletons import Skeleton
from fastmask.structures import Batch, pad_targets

MAX_TRIES = 10  # consecutive images that may be unreadable

__all__ = ["GroupedBatchSampler", "training_loader"]


class Key(NamedTuple):
    """Inputs of a sample besides the seed."""

    epoch: int
    record: int  # index among the loader's records


class PackedRecords(LazyRecords):
    """Records pickled into one array, which forked workers share; a list would be copied by reference counting."""

    def __init__(self, records: Sequence[Record]) -> None:
        pieces = [np.frombuffer(pickle.dumps(record), np.uint8) for record in records]
        self.ends = np.cumsum([0, *(len(piece) for piece in pieces)])
        self.data = np.concatenate([np.zeros(0, np.uint8), *pieces])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def make(self, index: int) -> Record:
        record: Record = pickle.loads(self.data[self.ends[index] : self.ends[index + 1]].tobytes())
        return record


class SampleDataset(TorchDataset[Sample]):
    """Augmented samples, each a function of the seed, the epoch and the record alone.

    An unreadable image is replaced by the next readable one, and named in ``problem``.

    Args:
        records: the images.
        indices: [n] of the records in the data set, ascending.
        labels: by category.
        augmentation: of every image.
        seed: from 0.
        masks: rasterize the instances' masks.
        size: (height, width) that images are resized to fit into, transposed for portrait images; None: no limit.
        channels: of all images, see :func:`fastmask.image_io.read_image`.
        skeletons: of one number of keypoints, by category; None: without keypoints.
    """

    def __init__(
        self,
        records: Sequence[Record],
        indices: NDArray[np.int64],
        labels: dict[str, int],
        augmentation: Augmentation,
        seed: int,
        masks: bool,
        size: Size | None,
        channels: int = 3,
        skeletons: Mapping[str, Skeleton] | None = None,
    ) -> None:
        self.skeletons = skeletons
        self.records, self.indices, self.labels, self.augmentation = records, indices, labels, augmentation
        self.seed, self.masks, self.size, self.channels = seed, masks, size, channels

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Sample:
        generator = np.random.default_rng([self.seed, *key])
        sample = self._load_sample(key.record, generator)
        if generator.random() < self.augmentation.paste:
            other = self._load_sample(int(generator.integers(len(self))), generator)
            problem = sample.problem or other.problem
            sample = copy_paste(sample, other, generator.random(len(other.labels)) < 0.5)._replace(problem=problem)
        if self.augmentation.color:
            sample = sample._replace(pixels=jitter_color(sample.pixels, self.augmentation.color, generator))
        if self.augmentation.transform is not None:
            own_seed, classes = int(generator.integers(2**63)), max(self.labels.values())
            sample = apply_transform(sample, self.augmentation.transform, own_seed, classes)
        return sample

    def _load_sample(self, first: int, generator: np.random.Generator) -> Sample:
        problem = None
        for step in range(MAX_TRIES):
            index = (first + step) % len(self)
            record = self.records[index]
            try:
                image = record.load(self.channels)
                original = (image.height, image.width)
                if record.size not in (None, original):
                    raise ValueError(f"{record.file} must be of {record.size} as annotated, got {original}")
                crop = self.augmentation.draw_crop(original, generator, self._room(original))
                place = int(self.indices[index])
                sample = make_sample(record, image, crop, self.labels, place, self.masks, self.skeletons)
                return sample._replace(problem=problem)
            except (OSError, ValueError) as error:
                text = str(error)
                problem = problem or (text if str(record.file) in text else f"{record.file}: {text}")
        raise ValueError(f"{MAX_TRIES} images in a row cannot be read; the first one: {problem}")

    def find_file(self, index: int) -> Path:
        """The image file of a record, by its index in the data set."""
        return self.records[int(np.searchsorted(self.indices, index))].file

    def _room(self, original: Size) -> tuple[float, float]:
        if self.size is None:
            return math.inf, math.inf
        return transpose(self.size) if original[0] > original[1] else self.size


def transpose(size: Size) -> Size:
    """(width, height)."""
    return size[1], size[0]


class GroupedBatchSampler(Sampler[list[Key]]):
    """This rank's share of batches whose images are all portrait or all landscape, in a new order each epoch.

    Every image comes once in an epoch. The last batches may mix both and repeat a few images, so that all ranks have
    the same number of batches.

    Args:
        sizes: [n, 2] (height, width) of the images; None: all have the same.
        number: n.
        batch_size: images of a batch on each rank.
        seed: of the order.
        rank, world_size: of this process; how many there are.
    """

    def __init__(
        self,
        sizes: NDArray[np.int64] | None,
        number: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.portrait = np.zeros(number, bool) if sizes is None else sizes[:, 0] > sizes[:, 1]
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch of the next iteration, and the batch it starts at, for a resumed run."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return max(0, math.ceil(len(self.portrait) / (self.batch_size * self.world_size)) - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.portrait))
        total = self.batch_size * self.world_size
        groups: list[list[int]] = []
        pending: dict[bool, list[int]] = {False: [], True: []}
        for index in order.tolist():
            group = pending[bool(self.portrait[index])]
            group.append(index)
            if len(group) == total:
                groups.append(group.copy())
                group.clear()
        rest = pending[False] + pending[True]
        missing = -len(rest) % total
        rest += np.resize(order, missing).tolist()
        groups += [rest[i : i + total] for i in range(0, len(rest), total)]
        for i in range(self.start, len(groups)):
            yield [Key(self.epoch, record) for record in groups[i][self.rank :: self.world_size]]


class Collate:
    """Pad samples to one :class:`fastmask.structures.Batch`.

    Args:
        size: (height, width) to pad to: transposed where all images are portrait, a square of the longer side where
            some are; None: the smallest that holds all of them.
        divisible: without ``size``, the padded sides are multiples of it.
    """

    def __init__(self, size: Size | None, divisible: int = 32) -> None:
        self.size, self.divisible = size, divisible

    def __call__(self, samples: list[Sample]) -> Batch:
        sizes = [sample.pixels.shape[:2] for sample in samples]
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        if self.size is None:
            height, width = compute_padded_size([(height, width)], self.divisible)
        else:
            fitting = [size for size in (self.size, transpose(self.size)) if height <= size[0] and width <= size[1]]
            side = max(self.size)
            height, width = fitting[0] if fitting else (side, side)  # portrait and landscape mixed
        pixels = pad([torch.tensor(sample.pixels).permute(2, 0, 1) for sample in samples], (height, width))
        targets: list[dict[str, Tensor]] = []
        for sample in samples:
            targets.append({"boxes": torch.from_numpy(sample.boxes), "labels": torch.from_numpy(sample.labels)})
            if sample.masks is not None:
                targets[-1]["masks"] = torch.from_numpy(sample.masks)
            if sample.has_mask is not None:
                targets[-1]["has_mask"] = torch.from_numpy(sample.has_mask)
            if sample.keypoints is not None:
                targets[-1]["keypoints"] = torch.from_numpy(sample.keypoints)
        masks, keypoints = samples[0].masks is not None, samples[0].keypoints is not None
        indices = torch.tensor([sample.record for sample in samples])
        problems = tuple(sample.problem for sample in samples if sample.problem is not None)
        padded = pad_targets(targets, pixels, masks, keypoints)
        return Batch(pixels, torch.tensor(sizes), padded, indices, problems)


def training_loader(
    dataset: Dataset,
    batch_size: int,
    augmentation: Augmentation | None = None,
    *,
    size: Size | None = None,
    masks: bool = True,
    keep_empty: bool = False,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    channels: int = 3,
    keypoints: bool = False,
    min_keypoints: int = 1,
) -> DataLoader[Any]:
    """A loader of :class:`fastmask.structures.Batch`; call ``loader.batch_sampler.set_epoch`` before each epoch.

    Args:
        dataset: annotated images; crowds are left out. Objects with a box alone have no mask, see
            :class:`fastmask.structures.Targets`.
        batch_size: images of a batch on each rank.
        augmentation: None: Mask R-CNN's, see :class:`fastmask.data.augment.Augmentation`.
        size: (height, width) in pixels, multiples of 32, that batches are padded to: transposed for portrait images, a
            square of the longer side for the one or two batches of an epoch that are mixed. Images are resized to fit.
            None: each batch is padded as little as possible.
        masks: rasterize the instances' masks.
        keep_empty: keep images without instances.
        seed: of the order and of augmentation.
        workers: number of processes; 0: this one.
        rank, world_size: the share of each ``batch_size * world_size`` images that this process loads.
        channels: of all images: 3 is RGB and 1 is grayscale, to which files are converted; others must be the files'.
        keypoints: load keypoints, too; objects without any have zeros, and train all but the keypoints.
        min_keypoints: annotated keypoints that an image must have in all, where they are loaded. detectron2 asks for 1,
            torchvision's reference script for 10, which would leave out images of one object with fewer points. Images
            without objects are kept by ``keep_empty``.

    Raises:
        ValueError: there are no images, an argument is out of its range, or the data has no keypoints to load, or not
            one number of them.
    """
    augmentation = augmentation or Augmentation()
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if size is not None and augmentation.zoom is not None:
        raise ValueError(f"size must be None where images are cropped to augmentation.canvas, got {size}")
    for name, sides in (("size", size), ("augmentation.canvas", augmentation.zoom and augmentation.canvas)):
        if sides is not None and (len(sides) != 2 or any(side < 32 or side % 32 for side in sides)):
            raise ValueError(f"{name} must be (height, width), multiples of 32, got {sides}")
    if augmentation.paste and not masks:
        raise ValueError(f"paste must be 0 for a model without masks, got {augmentation.paste}")
    if min_keypoints < 0:
        raise ValueError(f"min_keypoints must be at least 0, got {min_keypoints}")
    if keypoints and count_points(dataset) is None:
        raise ValueError("dataset must have keypoints to train a keypoint branch, got none in any category")
    fewest = min_keypoints if keypoints else 0
    records, sizes = dataset.records, None
    indices = np.arange(len(records))
    if not isinstance(records, LazyRecords):
        sized = add_sizes(dataset).records
        trained = [i for i, record in enumerate(sized) if is_trained(record, keep_empty, fewest)]
        indices = np.array(trained, np.int64)
        kept = [sized[i] for i in indices.tolist()]
        records, sizes = PackedRecords(kept), np.array([record.size or (0, 0) for record in kept]).reshape(-1, 2)
    if not len(records):
        points = f" of {fewest} keypoints or more" if fewest else ""
        raise ValueError(f"dataset must have images with objects{points}, got none")
    if augmentation.zoom is not None:
        sizes, size = None, augmentation.canvas  # all images are cropped to it
    labels = assign_labels(dataset.categories)
    skeletons = dataset.skeletons if keypoints else None
    samples = SampleDataset(records, indices, labels, augmentation, seed, masks, size, channels, skeletons)
    sampler = GroupedBatchSampler(sizes, len(records), batch_size, seed, rank, world_size)
    return DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=Collate(size),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


def is_trained(record: Record, keep_empty: bool = False, min_keypoints: int = 0) -> bool:
    """Whether a record has an instance that is no crowd, and so many annotated keypoints; or is kept without one."""
    instances = [instance for instance in record.instances if not instance.crowd]
    if not instances:
        return keep_empty
    return sum(instance.count_keypoints() for instance in instances) >= min_keypoints
