"""The run that a command line describes."""

import argparse
import sys
from typing import Any, cast

import torch

from fastmask import models
from fastmask.cli._device import find_device
from fastmask.data import read_dataset
from fastmask.data.augment import Augmentation
from fastmask.data.loading import training_loader
from fastmask.data.splits import UNUSED, Splits, label_names, read_splits
from fastmask.distributed import Ranks
from fastmask.models.checkpoint import Checkpoint
from fastmask.models.detection._weights import find_weights
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
from fastmask.training import Run, Settings
from fastmask.training.checkpoints import LAST
from fastmask.training.trainer import write_settings


def prepared(args: argparse.Namespace, own: Ranks) -> Run:
    """The run, with the model on this rank's device; a ValueError on all ranks if something is wrong on one."""
    settings, splits = own.all_or_none(lambda: read(args))
    for problem in splits.train.problems if own.rank == 0 else ():
        print(f"fastmask train: {problem.kind}: {problem.where}: {problem.text}", file=sys.stderr)
    names = label_names(splits.train)

    def in_turn() -> GeneralizedRCNN:
        torch.manual_seed(settings.seed)  # what is not loaded is drawn
        with own.first_alone():
            return built(args, names, own)

    model = own.all_or_none(in_turn)
    loader = own.all_or_none(
        lambda: training_loader(
            splits.train,
            settings.batch,
            augmentation(args, model),
            size=None if args.zoom or args.size is None else tuple(args.size),
            masks=model.roi_heads.has_mask(),
            seed=settings.seed,
            workers=settings.workers,
            rank=own.rank,
            world=own.world,
        )
    )
    board = args.tensorboard
    training = Run(model, loader, settings, args.out, names, splits.val, own, args.resume, tensorboard=board)
    if own.rank == 0:
        rate, images = settings.top_rate(own.world), settings.batch * own.world
        steps = f"{training.steps} steps of {images} images on {own.world} x {training.device}"
        print(f"{len(training.sampler.portrait)} images, {len(names) - 1} classes, {steps}, learning rate {rate:g}")
        write_settings(args.out, settings, {"arguments": {k: str(v) for k, v in vars(args).items()}, "rate": rate})
    return training


def read(args: argparse.Namespace) -> tuple[Settings, Splits]:
    """What was asked for, and the images."""
    if not args.resume and (args.out / LAST).exists():
        raise ValueError(f"--out must be a new folder, or --resume given, got {args.out} with {LAST} in it")
    given = {"epochs": args.epochs, "batch": args.batch_size, "rate": args.lr, "decay": args.weight_decay}
    given |= {"average": args.ema, "half": args.bf16, "save": args.save_steps}
    same = ("optimizer", "schedule", "warmup", "clip", "compile", "nan", "seed", "workers")
    settings = Settings(**given, **{name: getattr(args, name) for name in same})
    splits = read_splits(args.data_path, args.class_attribute)
    if args.valid is not None:
        splits = Splits(splits.train, read_dataset(args.valid, attribute=args.class_attribute))
    return settings, splits


def built(args: argparse.Namespace, names: list[str], own: Ranks) -> GeneralizedRCNN:
    """The model with weights to start from, on its device."""
    known = models.list_models(module=models.detection)
    if args.model not in known:
        raise ValueError(f"--model must be one of {', '.join(known)}, got {args.model!r}")
    where = find_device(own.device(args.device))
    options: dict[str, Any] = {"num_classes": len(names)}
    if args.min_size:
        options["min_size"] = args.min_size[-1]
    if args.max_size:
        options["max_size"] = args.max_size
    slim = args.model == "maskrcnn_slim_fpn"
    if args.weights in ("imagenet", "none"):
        if not slim:
            options["weights_backbone"] = "DEFAULT" if args.weights == "imagenet" else None
        elif args.weights == "imagenet":
            raise ValueError("--weights must be none, SHAPES_V1 or a file for maskrcnn_slim_fpn, got imagenet")
    else:
        source = find_weights(models.get_model_weights(args.model), args.weights)
        assert source is not None
        trained = source.meta.get("categories")
        same = source.meta.get("num_classes") == len(names)
        if same and trained is not None:
            same = all(mine in (UNUSED, theirs) for mine, theirs in zip(names[1:], trained[1:], strict=True))
        if not same and own.rank == 0:
            print(f"fastmask train: {source} is of other classes: the predictors start anew")
        options = source.meta.get("options", {}) | options | {"weights": source, "new_predictors": not same}
        if not slim and isinstance(source, Checkpoint):
            options["weights_backbone"] = None
    model = cast(GeneralizedRCNN, models.get_model(args.model, **options).to(where))
    if max(args.min_size or [1]) > model.transform.max_size:
        raise ValueError(f"--min-size must be at most --max-size, {model.transform.max_size}, got {max(args.min_size)}")
    return model


def augmentation(args: argparse.Namespace, model: GeneralizedRCNN) -> Augmentation:
    sizes = tuple(args.min_size or model.transform.min_size)
    if args.zoom and args.size is None:
        raise ValueError("--size must be given with --zoom, which cuts images to it")
    canvas = tuple(args.size) if args.zoom else (1024, 1024)
    zoom = tuple(args.zoom) if args.zoom else None
    return Augmentation(sizes, int(model.transform.max_size), args.flip, zoom, canvas, args.color, args.paste)
