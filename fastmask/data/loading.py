"""From records to batches for training: in parallel, in an order that the seed fixes whatever the number of workers."""

import math
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset as TorchDataset, Sampler

from fastmask.data.augment import Augmentation, Sample, pasted, recolored, seen
from fastmask.data.crop import Size
from fastmask.data.records import Dataset, LazyRecords, Record, add_sizes, labels_of
from fastmask.structures import Batch, padded_targets

TRIES = 10  # images that may be broken one after the other


class Key(NamedTuple):
    """All that a sample is drawn from, beside the seed."""

    epoch: int
    record: int


class Packed(LazyRecords):
    """Records in one piece of memory, which forked workers share; a list of them each would copy as it is looked at."""

    def __init__(self, records: Sequence[Record]) -> None:
        pieces = [np.frombuffer(pickle.dumps(record), np.uint8) for record in records]
        self.ends = np.cumsum([0, *(len(piece) for piece in pieces)])
        self.data = np.concatenate([np.zeros(0, np.uint8), *pieces])

    def __len__(self) -> int:
        return len(self.ends) - 1

    def make(self, index: int) -> Record:
        found: Record = pickle.loads(self.data[self.ends[index] : self.ends[index + 1]].tobytes())
        return found


class Samples(TorchDataset[Sample]):
    """Records, looked at in a way that depends on the seed, the epoch and the record alone.

    An image that cannot be looked at is replaced by the next one that can, and named in ``problem``.

    Args:
        records: the images.
        places: where each of them is in the data set.
        labels: of their categories.
        augmentation: what is done to them.
        seed: not negative.
        masks: paint them.
        size: (height, width) that an image has to fit into, turned if it stands.
    """

    def __init__(
        self,
        records: Sequence[Record],
        places: NDArray[np.int64],
        labels: dict[str, int],
        augmentation: Augmentation,
        seed: int,
        masks: bool,
        size: Size | None,
    ) -> None:
        self.records, self.places, self.labels, self.augmentation = records, places, labels, augmentation
        self.seed, self.masks, self.size = seed, masks, size

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: Key) -> Sample:
        generator = np.random.default_rng([self.seed, *key])
        sample = self._looked_at(key.record, generator)
        if generator.random() < self.augmentation.paste:
            other = self._looked_at(int(generator.integers(len(self))), generator)
            problem = sample.problem or other.problem
            sample = pasted(sample, other, generator.random(len(other.labels)) < 0.5)._replace(problem=problem)
        if self.augmentation.color:
            sample = sample._replace(pixels=recolored(sample.pixels, self.augmentation.color, generator))
        return sample

    def _looked_at(self, first: int, generator: np.random.Generator) -> Sample:
        problem = None
        for step in range(TRIES):
            number = (first + step) % len(self)
            record = self.records[number]
            try:
                image = record.load()
                original = (image.height, image.width)
                if record.size not in (None, original):
                    raise ValueError(f"{record.file} must be of {record.size} as annotated, got {original}")
                view = self.augmentation.view(original, generator, self._room(original))
                sample = seen(record, image, view, self.labels, int(self.places[number]), self.masks)
                return sample._replace(problem=problem)
            except (OSError, ValueError) as error:
                problem = problem or str(error)
        raise ValueError(f"{TRIES} images in a row cannot be looked at; the first one: {problem}")

    def file(self, place: int) -> Path:
        """Of the image at a place in the data set."""
        return self.records[int(np.searchsorted(self.places, place))].file

    def _room(self, original: Size) -> tuple[float, float]:
        if self.size is None:
            return math.inf, math.inf
        return transpose_size(self.size) if original[0] > original[1] else self.size


def transpose_size(size: Size) -> Size:
    return size[1], size[0]


class GroupedBatchSampler(Sampler[list[Key]]):
    """Batches of images that all lie or all stand, in another order each epoch; this rank's share of them.

    Every image comes once in an epoch. Where the last batches lack some, a few come again, or, if images lie that
    should stand, the batch is mixed. All ranks have equally many batches.

    Args:
        sizes: (height, width) of each image; None: all alike.
        number: of images.
        batch: images of a batch of one rank.
        seed: of the order.
        rank, world: which share.
    """

    def __init__(
        self, sizes: NDArray[np.int64] | None, number: int, batch: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.stand = np.zeros(number, bool) if sizes is None else sizes[:, 0] > sizes[:, 1]
        self.batch, self.seed, self.rank, self.world = batch, seed, rank, world
        self.epoch, self.start = 0, 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """What the next iteration is; from batch ``start`` on, where training is taken up."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return max(0, math.ceil(len(self.stand) / (self.batch * self.world)) - self.start)

    def __iter__(self) -> Iterator[list[Key]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.stand))
        together = self.batch * self.world
        groups: list[list[int]] = []
        waiting: dict[bool, list[int]] = {False: [], True: []}
        for index in order.tolist():
            group = waiting[bool(self.stand[index])]
            group.append(index)
            if len(group) == together:
                groups.append(group.copy())
                group.clear()
        rest = waiting[False] + waiting[True]
        missing = -len(rest) % together
        rest += np.resize(order, missing).tolist()
        groups += [rest[i : i + together] for i in range(0, len(rest), together)]
        for i in range(self.start, len(groups)):
            own = groups[i][self.rank :: self.world]
            yield [Key(self.epoch, record) for record in own]


class Collate:
    """Samples -> a Batch.

    Args:
        size: (height, width) to pad to, turned where all images stand, and to a square of the longer side where some
            do; None: as little as there must be.
        divisible: what the padded sides are then multiples of.
    """

    def __init__(self, size: Size | None, divisible: int = 32) -> None:
        self.size, self.divisible = size, divisible

    def __call__(self, samples: list[Sample]) -> Batch:
        sizes = [sample.pixels.shape[:2] for sample in samples]
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        if self.size is None:
            height, width = (-(-side // self.divisible) * self.divisible for side in (height, width))
        else:
            fitting = [
                size for size in (self.size, transpose_size(self.size)) if height <= size[0] and width <= size[1]
            ]
            side = max(self.size)
            height, width = fitting[0] if fitting else (side, side)  # some lie, some stand
        pixels = torch.zeros(len(samples), 3, height, width, dtype=torch.uint8)
        targets: list[dict[str, Tensor]] = []
        for planes, sample in zip(pixels, samples, strict=True):
            planes[:, : sample.pixels.shape[0], : sample.pixels.shape[1]] = torch.tensor(sample.pixels).permute(2, 0, 1)
            targets.append({"boxes": torch.from_numpy(sample.boxes), "labels": torch.from_numpy(sample.labels)})
            if sample.masks is not None:
                targets[-1]["masks"] = torch.from_numpy(sample.masks)
        masks = samples[0].masks is not None
        indices = torch.tensor([sample.record for sample in samples])
        problems = tuple(sample.problem for sample in samples if sample.problem is not None)
        return Batch(pixels, torch.tensor(sizes), padded_targets(targets, pixels, masks), indices, problems)


def training_loader(
    dataset: Dataset,
    batch: int,
    augmentation: Augmentation | None = None,
    *,
    size: Size | None = None,
    masks: bool = True,
    empty: bool = False,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Any]:
    """A loader of :class:`fastmask.structures.Batch`; ``loader.batch_sampler.set_epoch`` says what comes next.

    Args:
        dataset: annotated images; objects that are crowds are left out.
        batch: images of a batch.
        augmentation: None: the paper's.
        size: (height, width), multiples of 32, that batches are padded to: turned where images stand, and a square of
            the longer side for the one or two batches of an epoch that are mixed. Images that would not fit are made
            smaller. None: each batch as it needs.
        masks: paint them.
        empty: keep images without objects.
        seed: of the order and of what is done to each image.
        workers: processes; 0: this one.
        rank, world: which share of each batch of ``batch * world`` images.

    Raises:
        ValueError: there are no images, or an argument does not fit.
    """
    augmentation = augmentation or Augmentation()
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    if not 0 <= rank < world:
        raise ValueError(f"rank must be in [0, {world}), got {rank}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if size is not None and augmentation.zoom is not None:
        raise ValueError(f"size must be None where images are cut to augmentation.canvas, got {size}")
    for name, sides in (("size", size), ("augmentation.canvas", augmentation.zoom and augmentation.canvas)):
        if sides is not None and (len(sides) != 2 or any(side < 32 or side % 32 for side in sides)):
            raise ValueError(f"{name} must be (height, width), multiples of 32, got {sides}")
    if augmentation.paste and not masks:
        raise ValueError("augmentation must not paste objects without masks")
    records, sizes = dataset.records, None
    places = np.arange(len(records))
    if not isinstance(records, LazyRecords):
        sized = add_sizes(dataset).records
        places = np.array([i for i, record in enumerate(sized) if empty or learnable(record)], np.int64)
        kept = [sized[i] for i in places.tolist()]
        records, sizes = Packed(kept), np.array([record.size or (0, 0) for record in kept]).reshape(-1, 2)
    if not len(records):
        raise ValueError("dataset must have images with objects, got none")
    if augmentation.zoom is not None:
        sizes, size = None, augmentation.canvas  # which all are cut to
    samples = Samples(records, places, labels_of(dataset.categories), augmentation, seed, masks, size)
    sampler = GroupedBatchSampler(sizes, len(records), batch, seed, rank, world)
    return DataLoader(
        samples,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=Collate(size),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


def learnable(record: Record) -> bool:
    """Whether there is an object in it that is no crowd."""
    return any(not one.crowd for one in record.objects)
