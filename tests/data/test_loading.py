"""The data loader: every image once, for any number of workers and ranks; contents of a batch; broken images."""

import collections
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.slim import slim_model
from torch.utils.data import DataLoader

import fastmask
from fastmask.data import Dataset, Record
from fastmask.data.augment import Augmentation
from fastmask.data.loading import GroupedBatchSampler, PackedRecords, training_loader
from fastmask.data.records import Instance, assign_labels
from fastmask.demo import synthetic_dataset
from fastmask.structures import Batch

AS_THEY_ARE = Augmentation(min_size=(96,), max_size=10**6, flip=0.0)


def equal(first: Batch, second: Batch) -> bool:
    pairs = [(first.pixels, second.pixels), (first.sizes, second.sizes), (first.indices, second.indices)]
    pairs += list(zip(first.targets[:4], second.targets[:4], strict=True))  # all have masks
    return all(one.shape == other.shape and bool((one == other).all()) for one, other in pairs)


def sampler_of(loader: DataLoader) -> GroupedBatchSampler:
    assert isinstance(loader.batch_sampler, GroupedBatchSampler)
    return loader.batch_sampler


@pytest.mark.parametrize(
    ("number", "batch_size", "world_size"), [(37, 4, 1), (37, 3, 4), (1, 4, 2), (24, 4, 3), (5, 1, 1)]
)
def test_every_image_once(number: int, batch_size: int, world_size: int, seed: int) -> None:
    sizes = np.random.randint(1, 5, (number, 2))
    shares = [GroupedBatchSampler(sizes, number, batch_size, seed, rank, world_size) for rank in range(world_size)]
    for epoch in (0, 1):
        rounds = []
        for share in shares:
            share.set_epoch(epoch)
            rounds.append(list(share))
            assert len(share) == len(rounds[-1]) == -(-number // (batch_size * world_size))
        keys = [key for share in rounds for keys in share for key in keys]
        assert {key.epoch for key in keys} == {epoch}
        counted = collections.Counter(key.record for key in keys)
        assert set(counted) == set(range(number))
        assert counted.total() == len(shares[0]) * batch_size * world_size
        together = [[key.record for share in rounds for key in share[i]] for i in range(len(shares[0]))]
        mixed = [batch for batch in together if len({bool(sizes[i, 0] > sizes[i, 1]) for i in batch}) > 1]
        assert len(mixed) <= 2  # the last ones
        shares[0].set_epoch(epoch, 1)
        assert list(shares[0]) == rounds[0][1:]
        assert len(shares[0]) == len(rounds[0]) - 1
        if epoch == 0:
            before = rounds
    if number > 20:
        assert [[k.record for k in b] for b in before[0]] != [[k.record for k in b] for b in rounds[0]]


def test_workers_make_no_difference(seed: int) -> None:
    """Nor do previous batches: each sample has its own seed."""
    augmentation = Augmentation(zoom=(0.5, 1.5), canvas=(96, 96), color=0.5, paste=0.5)
    dataset = synthetic_dataset(10, seed, (80, 96), "mixed")
    alone = training_loader(dataset, 3, augmentation, seed=seed)
    several = training_loader(dataset, 3, augmentation, seed=seed, workers=2)
    for epoch in (0, 1):
        for loader in (alone, several):
            sampler_of(loader).set_epoch(epoch)
        batches = list(alone)
        assert len(batches) == 4
        for one, other in zip(batches, several, strict=True):
            assert equal(one, other)
        if epoch == 0:
            before = batches
    assert not any(equal(one, other) for one, other in zip(before, batches, strict=True))
    sampler_of(alone).set_epoch(1, 2)
    for one, other in zip(batches[2:], alone, strict=True):
        assert equal(one, other)


def test_contents_of_a_batch(seed: int) -> None:
    dataset = synthetic_dataset(6, seed, (96, 130))
    for batch in training_loader(dataset, 4, AS_THEY_ARE, seed=seed):
        assert batch.pixels.dtype == torch.uint8
        assert batch.pixels.shape == (4, 3, 96, 160)
        assert batch.sizes.tolist() == [[96, 130]] * 4
        assert not batch.pixels[:, :, :, 130:].any()
        assert batch.problems == ()
        assert batch.targets.masks is not None
        masks = list(batch.targets.masks)
        for i, number in enumerate(batch.indices.tolist()):
            record = dataset.records[number]
            np.testing.assert_array_equal(batch.pixels[i, :, :, :130].permute(1, 2, 0), np.array(record.image))
            count = int(batch.targets.count[i])
            assert count == len(record.instances)
            for j, instance in enumerate(record.instances):
                assert batch.targets.boxes[i, j].tolist() == list(instance.bounds())
                assert batch.targets.labels[i, j] == dataset.categories[instance.category]
                np.testing.assert_array_equal(masks.pop(0)[:, :130], instance.to_mask(96, 130))
            assert not batch.targets.boxes[i, count:].any()
        assert not masks


def test_losses_are_those_of_lists(seed: int) -> None:
    """The losses of a padded batch are those that the model computes from lists of images and targets."""
    dataset = synthetic_dataset(3, seed, (96, 128))
    (batch,) = training_loader(dataset, 3, AS_THEY_ARE, seed=seed)
    model = slim_model(fastmask, min_size=96).eval().double()
    images, targets, counts = [], [], batch.targets.count.tolist()
    for i, (count, masks) in enumerate(zip(counts, batch.targets.masks.split(counts), strict=True)):
        images.append(batch.pixels[i].double() / 255)
        targets.append(
            {
                "boxes": batch.targets.boxes[i, :count].double(),
                "labels": batch.targets.labels[i, :count],
                "masks": masks,
            }
        )
    transform = model.transform
    pixels = torch.stack([transform.normalize(image) for image in images])
    torch.manual_seed(seed)
    expected = model.losses_of(images, targets)
    torch.manual_seed(seed)
    actual = model.losses(pixels, batch.sizes, batch.targets._replace(boxes=batch.targets.boxes.double()))
    for name, loss in expected.items():
        torch.testing.assert_close(actual[name], loss)


def save_images(folder: Path, sizes: list[tuple[int, int]], seed: int) -> Dataset:
    """Synthetic images of these sizes, saved as files."""
    records = []
    for i, size in enumerate(sizes):
        record = synthetic_dataset(1, seed + i, size).records[0]
        file = folder / f"{i}.png"
        record.load().save(file)
        records.append(record._replace(file=file, image=None, id=i))
    return Dataset(records, synthetic_dataset(0).categories, [])


def test_sizes_and_groups(tmp_path: Path, seed: int) -> None:
    dataset = save_images(tmp_path, [(64, 90)] * 4 + [(90, 64)] * 4, seed)
    augmentation = Augmentation(min_size=(64,), flip=0.0)
    for fixed, shapes in ((None, {(64, 96), (96, 64)}), ((64, 128), {(64, 128), (128, 64)})):
        loader = training_loader(dataset, 2, augmentation, size=fixed, seed=seed)
        assert {tuple(batch.pixels.shape[2:]) for batch in loader} == shapes
        assert all(len(set(map(tuple, batch.sizes.tolist()))) == 1 for batch in loader)
    smaller = training_loader(dataset, 8, Augmentation(min_size=(640,)), size=(32, 64), seed=seed)
    (batch,) = smaller  # the last one, which mixes portrait and landscape
    assert batch.pixels.shape == (8, 3, 64, 64)
    assert set(map(tuple, batch.sizes.tolist())) == {(32, 45), (45, 32)}


def test_broken_images_are_replaced_and_named(tmp_path: Path, seed: int) -> None:
    dataset = save_images(tmp_path, [(64, 90)] * 4, seed)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:300])
    dataset.records[3].load().rotate(90, expand=True).save(tmp_path / "3.png")
    (batch,) = training_loader(dataset, 4, AS_THEY_ARE, seed=seed)
    assert sorted(batch.indices.tolist()) == [0, 0, 2, 2]
    assert len(batch.problems) == 2
    assert any("1.png cannot be read as an image" in problem for problem in batch.problems)
    assert any("3.png must be of (64, 90) as annotated, got (90, 64)" in problem for problem in batch.problems)
    pasting = training_loader(dataset, 4, Augmentation(min_size=(64,), paste=1.0), seed=seed)
    sampler_of(pasting).set_epoch(99, 99)
    assert list(pasting) == []
    problems = set()
    for epoch in range(12):
        sampler_of(pasting).set_epoch(epoch)
        problems |= {problem for batch in pasting for problem in batch.problems}
    assert len(problems) == 2
    for i in (0, 2):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="10 images in a row cannot be read; the first one: "):
        list(training_loader(dataset, 4, AS_THEY_ARE, seed=seed))


def test_images_without_instances(tmp_path: Path, seed: int) -> None:
    dataset = save_images(tmp_path, [(64, 90)] * 3, seed)
    empty, crowds, usual = dataset.records
    crowd = tuple(instance._replace(crowd=True) for instance in crowds.instances)
    records = [empty._replace(instances=()), crowds._replace(instances=crowd), usual]
    dataset = dataset._replace(records=records)
    for given in (records, tuple(records)):
        (batch,) = training_loader(dataset._replace(records=given), 1, AS_THEY_ARE, seed=seed)
        assert batch.targets.count.tolist() == [len(records[2].instances)]
        assert batch.indices.tolist() == [2]
    batches = list(training_loader(dataset, 1, AS_THEY_ARE, seed=seed, keep_empty=True))
    assert sorted(int(batch.targets.count) for batch in batches) == [0, 0, len(records[2].instances)]
    with pytest.raises(ValueError, match="dataset must have images with objects, got none"):
        training_loader(dataset._replace(records=records[:2]), 1)


def test_packed_records_are_the_records() -> None:
    records = [
        Record(Path(f"{i}.png"), (3, i + 1), tuple(Instance(f"c{j}", box=(0, 0, j, i)) for j in range(i)))
        for i in range(5)
    ]
    packed = PackedRecords(records)
    assert list(packed) == records
    assert packed[1:3] == records[1:3]
    assert packed[-1] == records[-1]
    with pytest.raises(IndexError):
        packed[5]
    assert len(PackedRecords([])) == 0


def test_labels() -> None:
    assert assign_labels({"cat": 17, "dog": 18}) == {"cat": 17, "dog": 18}
    assert assign_labels({"none": 0, "dog": 3}) == {"none": 1, "dog": 2}
    assert assign_labels({"dog": 3, "cat": 10**6}) == {"dog": 1, "cat": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"rank": 2, "world_size": 2}, r"rank must be in \[0, 2\), got 2"),
        ({"rank": 0, "world_size": 0}, r"rank must be in \[0, 0\), got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"size": (100, 64)}, r"size must be \(height, width\), multiples of 32, got \(100, 64\)"),
        ({"masks": False, "augmentation": Augmentation(paste=1)}, "paste must be 0 for a model without masks, got 1"),
        ({"augmentation": Augmentation(zoom=(1, 1), canvas=(100, 100))}, r"augmentation.canvas must be \(height"),
        ({"augmentation": Augmentation(zoom=(1, 1)), "size": (64, 64)}, "size must be None where images are cropped"),
    ],
)
def test_bad_requests(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_loader(synthetic_dataset(2), **{"batch_size": 1, **options})
