"""Training in one call: from annotated images to weights, on any number of ranks."""

import contextlib
import inspect
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch

from fastmask import models
from fastmask._version import __version__
from fastmask.data import Dataset, read_dataset
from fastmask.data.augment import Augmentation, Transform
from fastmask.data.formats import check_apart
from fastmask.data.keypoints import count_points
from fastmask.data.records import LazyRecords, count_left_out, crowds_to_objects
from fastmask.data.splits import UNUSED, Splits, describe_untrained, label_names, read_splits
from fastmask.distributed import Ranks, join_ranks
from fastmask.files import check_free, write_text
from fastmask.models._api import check_detector
from fastmask.models._hub import pin_weights
from fastmask.models._layout import lay_out
from fastmask.models._state import find_builder
from fastmask.models.checkpoint import Checkpoint
from fastmask.models.detection._weights import DEFAULT_MODEL, choose_model
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.training.callback import Callback
from fastmask.training.checkpoints import BEST, LAST
from fastmask.training.config import TrainConfig
from fastmask.training.history import EPOCHS, STEPS
from fastmask.training.result import TrainResult
from fastmask.training.trainer import Trainer
from fastmask.variants import CHOICES

SETTINGS = "settings.json"
PATHS = ("data_path", "val", "images", "weights", "weights_backbone", "out")  # of its values
DEFAULT_WEIGHTS = "COCO_V1"
BARE = ("imagenet", "none")  # what weights are called that no detector was trained to
Data = Dataset | str | os.PathLike[str]


def train(
    model: GeneralizedRCNN | str | None,
    data: Data,
    out: str | os.PathLike[str],
    config: TrainConfig,
    *,
    val: Data | None = None,
    format: str = "auto",
    images: str | os.PathLike[str] | None = None,
    class_attribute: str | None = None,
    weights: str | os.PathLike[str] = DEFAULT_WEIGHTS,
    weights_backbone: str | os.PathLike[str] | None = None,
    device: torch.device | str = "auto",
    resume: bool = False,
    transform: Transform | None = None,
    callbacks: Iterable[Callback] = (),
    tensorboard: bool = False,
    progress: bool = True,
    ranks: Ranks | None = None,
) -> TrainResult:
    """Train a model on annotated images, as ``fastmask train`` does.

    Under ``torchrun`` every rank calls this, with the same arguments. The folder gets last.pth and best.pth,
    settings.json, steps.csv, epochs.json and, where matplotlib is installed, curves.png.

    Args:
        model: a model of ``fastmask.models.detection``, on its device, with as many classes as the data has, the
            background included; or the name of a builder there; None: the one that ``weights`` name, or else
            "maskrcnn_resnet50_fpn".
        data: a data set, all of which is trained on; or a folder or file, see :func:`fastmask.data.splits.read_splits`.
        out: the folder for all that the run writes.
        config: the settings.
        val: the images that are evaluated after each epoch; None: the data's own, where it is a folder that has them.
        format, images, class_attribute: of ``data`` and ``val``, see :func:`fastmask.data.read_dataset`.
        weights: what a model that is built starts from: the name of published weights, a file, one on the hub
            ("hf://owner/name[/file][@revision]"), "imagenet" or "none". Of other classes than the data's, all are
            loaded but the predictors'.
        weights_backbone: of a model that is built with ``weights`` "none": the builder's argument of that name.
        device: of a model that is built; "auto": CUDA where there is any, else the CPU. Of several ranks, each takes
            its own GPU.
        resume: resume from the last checkpoint in the folder, if there is one. Epochs, workers, save_every, compile,
            the device and tensorboard may be others than before; the learning rate is that of the new number of epochs.
        transform: a function of yours on each augmented image and its target, in the workers, see
            :class:`fastmask.data.augment.Augmentation`; a run resumes with one of the same name alone.
        callbacks: objects that are told of each step and epoch, see :class:`fastmask.training.Callback`.
        tensorboard: write for TensorBoard, too, into a folder of that name.
        progress: print and show bars, on the first rank.
        ranks: the ranks, where they are known already.

    Returns:
        The best epoch's weights and metrics, and all epochs' losses and metrics; the same on all ranks.

    Raises:
        ValueError: an argument is wrong or a file cannot be read, before anything is trained; raised on all ranks.
        DivergedError, MemoryError, OSError, TransformError: see :meth:`Trainer.fit`.
    """
    folder = Path(out)
    arguments: dict[str, Any] = {"data_path": data, "val": val, "format": format, "images": images}
    arguments |= {"class_attribute": class_attribute, "model": model, "weights": weights, "out": folder}
    arguments |= {"weights_backbone": weights_backbone, "device": device, "tensorboard": tensorboard}
    arguments["transform"] = Augmentation(transform=transform).settings()["transform"]
    source = {"format": format, "images": None if images is None else Path(images), "attribute": class_attribute}
    with join_ranks(nccl=True, keep=True) if ranks is None else contextlib.nullcontext(ranks) as job:
        job.run_on_first(lambda: folder.mkdir(parents=True, exist_ok=True))
        splits = job.run_on_all(lambda: _read_data(data, val, source, folder, resume))
        if config.crowds_as_objects:
            splits = Splits(crowds_to_objects(splits.train), splits.val and crowds_to_objects(splits.val))
        for note in (note for split in splits if split is not None for note in split.notes if job.rank == 0):
            print(note)
        names = label_names(splits.train)

        weights, weights_backbone = job.run_on_first(lambda: (pin_weights(weights), pin_weights(weights_backbone)))
        arguments |= {"weights": weights, "weights_backbone": weights_backbone}  # with the commit that all ranks read

        def prepare_model() -> tuple[str | None, GeneralizedRCNN]:
            if isinstance(model, GeneralizedRCNN):
                if variants := config.variants():
                    raise ValueError(f"{', '.join(variants)} must be None with a model that is built already")
                return find_builder(model.state_dict(), model), _check_classes(model, names)
            with job.local_first():  # else all ranks of a machine download
                return _build_model(model, os.fspath(weights), weights_backbone, splits.train, config, device, job)

        builder, network = job.run_on_all(prepare_model)
        fewest = config.min_keypoints if network.roi_heads.has_keypoint() else 0
        for line in _describe_data(splits, config.keep_empty, fewest) if job.rank == 0 else ():
            print(f"fastmask train: {line}", file=sys.stderr)
        arguments["model"] = model if isinstance(model, GeneralizedRCNN) else builder
        data_and_job = (splits.train, splits.val, job)
        hooks: dict[str, Any] = {"transform": transform, "callbacks": callbacks}
        trainer = Trainer(network, config, folder, *data_and_job, resume, progress, tensorboard, builder, **hooks)
        if job.rank == 0:
            lr, number = config.peak_lr(job.world_size), config.batch_size * job.world_size
            steps = f"{trainer.steps} steps of {number} images on {job.world_size} x {trainer.device}"
            if progress:
                number_of_classes = len(splits.train.categories)
                what = f"{len(trainer.samples)} images, {number_of_classes} class{'es' * (number_of_classes != 1)}"
                print(f"{what}, {steps}, learning rate {lr:g}")
                if splits.val is None:
                    print(f"no validation images (--val): {BEST} will have the epoch of the lowest loss")
                if trainer.epoch >= config.epochs:
                    print(f"all {config.epochs} epochs are done: more --epochs go on")
            _write_settings(folder, arguments | vars(config), lr)
        return trainer.fit()


def _read_data(data: Data, val: Data | None, source: dict[str, Any], folder: Path, resume: bool) -> Splits:
    """The images to train on, and to evaluate on, of a run whose folder may be used."""
    if not resume and (folder / LAST).exists():
        raise ValueError(f"out must be a new folder, or resume (--resume) be set, got {folder} with {LAST} in it")
    if not (folder / LAST).exists() and not (resume and _is_run(folder)):  # of another origin, then
        check_free([folder / name for name in (BEST, SETTINGS, STEPS, EPOCHS)], force=False)
    splits = Splits(data, None) if isinstance(data, Dataset) else read_splits(Path(data), **source)
    if val is None:
        return splits
    if isinstance(val, Dataset):
        return Splits(splits.train, val)
    splits = Splits(splits.train, read_dataset(Path(val), split="val", **source))
    if source["images"] is not None and splits.val is not None and not isinstance(data, Dataset):
        check_apart(splits.train, splits.val)
    return splits


def _is_run(folder: Path) -> bool:
    """Whether a run wrote the folder, such as one that was interrupted before its first checkpoint."""
    try:
        content = json.loads((folder / SETTINGS).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "fastmask" in content


def _describe_data(splits: Splits, keep_empty: bool, min_keypoints: int) -> Iterator[str]:
    """What is broken, and what is left out."""
    for name, part in zip(Splits._fields, splits, strict=True):
        if part is None or isinstance(part.records, LazyRecords):
            continue
        for problem in part.problems:
            yield f"{problem.kind}: {problem.where}: {problem.text}"
        trained = name != "val"
        counts = count_left_out(part, keep_empty or not trained, min_keypoints if trained else 0)
        if counts:
            yield f"left out of {name}: {', '.join(f'{number} {what}' for what, number in counts.items())}"
    if splits.val is None or isinstance(splits.val.records, LazyRecords):
        return
    if unknown := describe_untrained(splits.train, splits.val):
        yield f"val has {unknown}"


def _build_model(
    name: str | None,
    weights: str,
    weights_backbone: str | os.PathLike[str] | None,
    data: Dataset,
    config: TrainConfig,
    device: torch.device | str,
    ranks: Ranks,
) -> tuple[str, GeneralizedRCNN]:
    """Build a model by name or the weights', with the weights to start from, on its device; return its name, too.

    Raises:
        ValueError: there is no such model, or no such weights of it.
    """
    if name is not None:
        check_detector("model", name)
    names = label_names(data)
    options: dict[str, Any] = {"num_classes": len(names)} | config.variants()
    if config.min_size:
        options["min_size"] = config.min_size[-1]
    if config.max_size:
        options["max_size"] = config.max_size
    if name is not None and weights in (DEFAULT_WEIGHTS, "imagenet"):  # which not every model has
        _check_weights(name, weights)
    bare = weights in BARE
    name, source = (name or DEFAULT_MODEL, None) if bare else choose_model(name, weights)
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    takes_backbone = "weights_backbone" in parameters
    if "num_keypoints" in parameters and (number := count_points(data)) is not None:
        options["num_keypoints"] = number
    if weights_backbone is not None and (weights != "none" or not takes_backbone):
        raise ValueError(
            f"weights must be none with weights_backbone, for a model that takes it, got {weights}, {name}"
        )
    if source is None:
        if "pretrained" in parameters:  # of families
            options["pretrained"] = weights == "imagenet"
            options["weights_backbone"] = weights_backbone
        elif takes_backbone:
            options["weights_backbone"] = "DEFAULT" if weights == "imagenet" else weights_backbone
    else:
        trained = source.meta.get("categories")
        same = source.meta.get("num_classes") == len(names)
        if same and trained is None and ranks.rank == 0:
            print(
                f"fastmask train: {source} names no classes: its predictors are kept, label by label", file=sys.stderr
            )
        if same and trained is not None:
            same = all(mine in (UNUSED, theirs) for mine, theirs in zip(names[1:], trained[1:], strict=True))
        points = source.meta.get("num_keypoints") or len(source.meta.get("keypoint_names", ()))
        other = "classes" if not same else "keypoints"
        same = same and options.get("num_keypoints", points) == points
        branch = source.meta.get("options", {})
        changed = [name for name in ("mask_head", "mask_classes") if name in options]
        changed = [name for name in changed if options[name] != branch.get(name, CHOICES[name][0])]
        start = f"the predictors{' and the mask head' * ('mask_head' in changed)} start anew"
        if changed and same:
            other, same = f"{' and '.join(changed)}", False
        if not same and ranks.rank == 0:
            print(f"fastmask train: {source} is of other {other}: {start}")
        if options.get("box_pooling") == "roi_pool":
            branch = {name: value for name, value in branch.items() if name != "sampling_ratio"}
        options = branch | options | {"weights": source, "new_predictors": not same}
        if takes_backbone and isinstance(source, Checkpoint):
            options["weights_backbone"] = None
    where = ranks.device(str(device))
    if where == "auto":
        where = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.seed)  # of what is not loaded
    network = cast(GeneralizedRCNN, models.get_model(name, **options).to(where))
    lay_out(network)  # nobody else has it, and no optimizer yet
    return name, network


def _check_weights(name: str, weights: str) -> None:
    """Raise ValueError if a model cannot start from weights of this name."""
    takes_backbone = "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters
    members = [member.name for member in models.get_model_weights(name)]
    known = ["none", *["imagenet"] * takes_backbone, *members]
    if weights not in known:
        raise ValueError(f"weights must be {', '.join(known)} or a file for {name}, got {weights}")


def _check_classes(model: GeneralizedRCNN, names: list[str]) -> GeneralizedRCNN:
    """Return the model; ValueError if it has another number of classes than the data."""
    classifier = getattr(getattr(model.roi_heads, "box_predictor", None), "cls_score", None)
    if isinstance(classifier, torch.nn.Linear) and classifier.out_features != len(names):
        classes = f"{len(names)} classes, the background's included"
        raise ValueError(f"model must have the data's {classes}, got {classifier.out_features}")
    return model


def _write_settings(folder: Path, settings: dict[str, Any], lr: float) -> None:
    """Write the settings beside the weights, by the names of the command's options, with what they made of it.

    Paths are absolute, so that they mean the same from any folder; objects of Python are named in angle brackets.
    """
    values = dict(settings)
    for name, value in settings.items():
        if name in PATHS and isinstance(value, str | os.PathLike):
            there = not name.startswith("weights") or (value not in BARE and os.path.exists(value))  # else a name
            values[name] = os.path.abspath(value) if there else str(value)
        elif isinstance(value, torch.device):
            values[name] = str(value)
        elif isinstance(value, Dataset | GeneralizedRCNN):
            values[name] = f"<{type(value).__name__}>"
    content = values | {"peak_lr": lr, "fastmask": __version__, "torch": torch.__version__}
    write_text(folder / SETTINGS, json.dumps(content, indent=1))
