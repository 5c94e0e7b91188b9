"""``fastmask train``: from annotated pictures to weights, on any number of ranks."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastmask.cli._device import find_device

if TYPE_CHECKING:
    from fastmask.data.augment import Augmentation
    from fastmask.distributed import Ranks
    from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN
    from fastmask.training import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is trained, on which pictures, how, and where the weights go."""
    add = parser.add_argument
    add("--data-path", type=Path, required=True, metavar="DIR", help="with train and val, or COCO's, or annotations")
    add("--valid", type=Path, metavar="PATH", help="annotations to evaluate on [the data's own]")
    add("--class-attribute", metavar="NAME", help="VIA's that is the class [the usual ones are tried]")
    add("--model", default="maskrcnn_resnet50_fpn", metavar="NAME", help="[%(default)s]")
    add("--weights", default="COCO_V1", help="to start from: COCO_V1, imagenet, none or a file [%(default)s]")
    add("--out", type=Path, default=Path("training"), metavar="DIR", help="[%(default)s]")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... [%(default)s]")
    add("--epochs", type=int, required=True, metavar="N")
    add("--batch-size", type=int, default=2, metavar="B", help="pictures of a step on each GPU [%(default)s]")
    add("--optimizer", default="sgd", help="sgd or adamw [%(default)s]")
    add("--lr", type=float, help="learning rate [0.02 for 16 pictures with sgd, 0.0002 with adamw]")
    add("--schedule", default="step", help="step or cosine [%(default)s]")
    add("--warmup", type=int, default=500, metavar="STEPS", help="[%(default)s, at most a tenth]")
    add("--weight-decay", type=float, default=1e-4, help="[%(default)s]")
    add("--clip", type=float, default=0.0, metavar="NORM", help="of the gradient; 0: as it is [%(default)s]")
    add("--ema", type=float, default=0.0, metavar="DECAY", help="average the weights; 0: do not [%(default)s]")
    add("--bf16", action="store_true", help="bfloat16 where autocast allows it")
    add("--compile", action="store_true", help="torch.compile the losses")
    add("--nan", default="stop", help="stop or skip, where a gradient is not finite [%(default)s]")
    add("--seed", type=int, default=0, help="[%(default)s]")
    add("--workers", type=int, default=2, metavar="N", help="processes that read pictures [%(default)s]")
    add("--save-steps", type=int, default=0, metavar="N", help="save within epochs, too [0: after each]")
    add("--tensorboard", action="store_true", help="write for it, too")
    add("--min-size", type=int, nargs="+", metavar="PIXELS", help="shorter sides to draw from [the model's]")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="that all batches are padded to [as they need]")
    add("--flip", type=float, default=0.5, help="how likely left becomes right [%(default)s]")
    add("--zoom", type=float, nargs=2, metavar=("LEAST", "MOST"), help="large-scale jitter, cut to --size")
    add("--color", type=float, default=0.0, help="how much colours vary, up to 1 [%(default)s]")
    add("--paste", type=float, default=0.0, help="how likely objects of other pictures are pasted [%(default)s]")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if training had to stop; 2 if an argument is wrong, or something cannot be had."""
    from fastmask.distributed import ranks
    from fastmask.training import DivergedError

    with ranks(nccl=True) as own:
        try:
            own.from_first(lambda: args.out.mkdir(parents=True, exist_ok=True))
            training = own.all_or_none(lambda: prepared(args, own))
        except ValueError as error:
            if own.rank == 0:
                print(f"fastmask train: {error}", file=sys.stderr)
            return 2
        try:
            training.finish()
        except (DivergedError, MemoryError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]  # a worker's error has its traceback before it
            print(f"fastmask train: {reason}", file=sys.stderr)
            return 1
        if own.rank == 0:
            print(f"weights, losses and figures: {args.out}", flush=True)
        return 0


def prepared(args: argparse.Namespace, own: "Ranks") -> "Run":
    """The run, with the model on this rank's device."""
    import torch

    from fastmask.data import read_dataset
    from fastmask.data.loading import training_loader
    from fastmask.data.places import label_names, read_parts
    from fastmask.training import Run, Settings
    from fastmask.training.loop import write_settings

    given = {"epochs": args.epochs, "batch": args.batch_size, "rate": args.lr, "decay": args.weight_decay}
    given |= {"average": args.ema, "half": args.bf16, "save": args.save_steps}
    same = ("optimizer", "schedule", "warmup", "clip", "compile", "nan", "seed", "workers")
    settings = Settings(**given, **{name: getattr(args, name) for name in same})
    train, valid = read_parts(args.data_path, args.class_attribute)
    if args.valid is not None:
        valid = read_dataset(args.valid, attribute=args.class_attribute)
    for problem in train.problems if own.rank == 0 else ():
        print(f"fastmask train: {problem.kind}: {problem.where}: {problem.text}", file=sys.stderr)
    names = label_names(train)
    torch.manual_seed(settings.seed)  # what is not loaded is drawn
    with own.first_alone():
        model = built(args, names, own.device(args.device))
    has_mask = model.roi_heads.has_mask()
    loader = training_loader(
        train,
        settings.batch,
        augmentation(args, model),
        size=None if args.zoom or args.size is None else tuple(args.size),
        masks=has_mask,
        seed=settings.seed,
        workers=settings.workers,
        rank=own.rank,
        world=own.world,
    )
    training = Run(model, loader, settings, args.out, names, valid, own, args.resume, tensorboard=args.tensorboard)
    if own.rank == 0:
        rate, pictures = settings.top_rate(own.world), settings.batch * own.world
        steps = f"{training.steps} steps of {pictures} pictures on {own.world} x {training.device}"
        print(f"{len(training.sampler.stand)} pictures, {len(names) - 1} classes, {steps}, learning rate {rate:g}")
        write_settings(args.out, settings, {"arguments": {k: str(v) for k, v in vars(args).items()}, "rate": rate})
    return training


def built(args: argparse.Namespace, names: list[str], device: str) -> "GeneralizedRCNN":
    """The model with weights to start from, on its device."""
    from fastmask import models
    from fastmask.models.checkpoint import Checkpoint
    from fastmask.models.detection._weights import find_weights

    known = models.list_models(module=models.detection)
    if args.model not in known:
        raise ValueError(f"--model must be one of {', '.join(known)}, got {args.model!r}")
    where = find_device(device)
    options: dict[str, Any] = {"num_classes": len(names)}
    if args.min_size:
        options["min_size"] = args.min_size[-1]
    slim = args.model == "maskrcnn_slim_fpn"
    if args.weights in ("imagenet", "none"):
        if not slim:
            options["weights_backbone"] = "DEFAULT" if args.weights == "imagenet" else None
        elif args.weights == "imagenet":
            raise ValueError("--weights must be none or a file for maskrcnn_slim_fpn, got imagenet")
    else:
        source = find_weights(models.get_model_weights(args.model), args.weights)
        assert source is not None
        trained = source.meta.get("categories")
        same = source.meta.get("num_classes") == len(names) and (trained is None or list(trained) == names)
        options |= {"weights": source, "new_predictors": not same}
        if not slim and isinstance(source, Checkpoint):
            options["weights_backbone"] = None
    return cast("GeneralizedRCNN", models.get_model(args.model, **options).to(where))


def augmentation(args: argparse.Namespace, model: "GeneralizedRCNN") -> "Augmentation":
    from fastmask.data.augment import Augmentation

    sizes = tuple(args.min_size or model.transform.min_size)
    if args.zoom and args.size is None:
        raise ValueError("--size must be given with --zoom, which cuts pictures to it")
    canvas = tuple(args.size) if args.zoom else (1024, 1024)
    zoom = tuple(args.zoom) if args.zoom else None
    return Augmentation(sizes, int(model.transform.max_size), args.flip, zoom, canvas, args.color, args.paste)
