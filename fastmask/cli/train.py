"""``fastmask train``: from annotated images to weights, on any number of ranks."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastmask.cli._messages import print_error
from fastmask.cli._model import MODEL_HELP
from fastmask.cli._settings import add_negations, parse_with_files
from fastmask.cli.data import add_source_arguments
from fastmask.files import describe_error
from fastmask.variants import CHOICES

if TYPE_CHECKING:
    from fastmask.distributed import Ranks

CONFIG_HELP = "YAML or JSON with options by name, such as settings.json of a run; what is given here wins"
DATA_HELP = "with train and val, or annotations, in it; or an annotation file; required"
RESUME_HELP = "resume from the last checkpoint in --out, with that run's options where none are given"
WEIGHTS_HELP = (
    "COCO_V1, SHAPES_V1, BALLOON_V1, imagenet, none, a file or hf://owner/name[/file][@revision] [%(default)s]"
)
NONE = "the weights', or the first"
VARIANTS = {  # the builders' arguments
    "box_pooling": "how features of RoIs are pooled",
    "mask_head": "layers of the mask branch",
    "mask_classes": "a mask for each class, or one for all",
    "rpn_loss": "loss of objectness",
    "box_loss": "loss of the box head's boxes",
    "mask_loss": "loss of masks",
}
RATIO_HELP = "RoIAlign's samples a bin and axis, 0: adaptive; one, or one for each map [the weights', or 2]"
MIN_KEYPOINTS_HELP = "leave out images of fewer annotated keypoints, for models of keypoints [%(default)s]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: the data, the model, the settings by the names of TrainConfig, and where the results go."""
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help=CONFIG_HELP)
    add("--data-path", type=Path, metavar="DIR", help=DATA_HELP)
    add("--val", type=Path, metavar="PATH", help="annotations to evaluate on [the data's own]")
    add_source_arguments(parser)
    add("--model", metavar="NAME", help=MODEL_HELP)
    add("--weights", default="COCO_V1", help=WEIGHTS_HELP)
    add("--weights-backbone", metavar="NAME", help="with --weights none: the backbone's, such as a file of timm's")
    add("--out", type=Path, default=Path("training"), metavar="DIR", help="[%(default)s]")
    add("--resume", action="store_true", help=RESUME_HELP)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... [%(default)s]")
    add("--epochs", type=int, metavar="N", help="passes over the images; required")
    add("--batch-size", type=int, default=2, metavar="B", help="images of a step on each GPU [%(default)s]")
    add("--optimizer", default="sgd", choices=("sgd", "adamw"), help="[%(default)s]")
    add("--lr", type=float, help="learning rate [0.02 for 16 images with sgd, 0.0002 with adamw]")
    add("--schedule", default="step", choices=("step", "cosine"), help="learning-rate schedule [%(default)s]")
    add("--warmup", type=int, default=500, metavar="STEPS", help="[%(default)s, at most a tenth]")
    add("--weight-decay", type=float, default=1e-4, help="[%(default)s]")
    add("--max-grad-norm", type=float, default=0.0, metavar="NORM", help="clip gradients; 0: do not [%(default)s]")
    add("--ema-decay", type=float, default=0.0, metavar="DECAY", help="average the weights; 0: do not [%(default)s]")
    add("--bf16", action="store_true", help="bfloat16 where autocast allows it")
    add("--compile", action="store_true", help="torch.compile the losses")
    add("--on-nonfinite", default="stop", choices=("stop", "skip"), help="at a non-finite gradient [%(default)s]")
    add("--seed", type=int, default=0, help="[%(default)s]")
    add("--workers", type=int, default=2, metavar="N", help="processes that read images [%(default)s]")
    add("--save-every", type=int, default=0, metavar="STEPS", help="save within epochs, too [0: after each]")
    add("--tensorboard", action="store_true", help="write for TensorBoard, too")
    add(
        "--min-size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="shorter side; of several, each image draws one [model's]",
    )
    add("--max-size", type=int, metavar="PIXELS", help="the longer side's limit [the model's]")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="padded size of every batch [the smallest that fits]")
    add("--flip", type=float, default=0.5, help="probability of mirroring [%(default)s]")
    add("--zoom", type=float, nargs=2, metavar=("LEAST", "MOST"), help="large-scale jitter, cut to --size")
    add("--color", type=float, default=0.0, help="how much colors vary, up to 1 [%(default)s]")
    add("--keep-empty", action="store_true", help="also train on images without objects")
    add("--min-keypoints", type=int, default=1, metavar="N", help=MIN_KEYPOINTS_HELP)
    for name, choices in CHOICES.items():
        add(f"--{name.replace('_', '-')}", choices=choices, help=f"{VARIANTS[name]} [{NONE}]")
    add("--sampling-ratio", type=int, nargs="+", metavar="N", help=RATIO_HELP)
    add("--paste", type=float, default=0.0, help="probability of pasting objects of another image [%(default)s]")
    add_negations(parser)


parse = parse_with_files  # the command line, twice


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if training had to stop; 2 if an argument is wrong, or something is not available."""
    from fastmask.distributed import join_ranks

    with join_ranks(nccl=True) as ranks:
        return _run_on(ranks, args)  # which leaves nothing that refers to the process group


def _run_on(ranks: "Ranks", args: argparse.Namespace) -> int:
    from fastmask.cli._device import find_device
    from fastmask.training import DivergedError, TrainConfig, train
    from fastmask.training.checkpoints import LAST

    names = ("val", "format", "images", "class_attribute", "weights", "weights_backbone", "resume", "tensorboard")
    options = {name: getattr(args, name) for name in names}
    try:
        config = TrainConfig(**{field.name: getattr(args, field.name) for field in dataclasses.fields(TrainConfig)})
        ranks.run_on_all(lambda: find_device(ranks.device(args.device)))
        train(args.model, args.data_path, args.out, config, **options, device=args.device, ranks=ranks)
    except (ImportError, ValueError) as error:  # the first is of an extra
        if ranks.rank == 0:
            print_error(error, args)
        return 2
    except (DivergedError, MemoryError, OSError) as error:
        print_error(describe_error(error).strip() or type(error).__name__, args)
        return 1
    except KeyboardInterrupt:
        if ranks.rank == 0:
            last = args.out / LAST
            where = f"goes on from {last}" if last.exists() else "starts anew, as there is no checkpoint yet"
            print(f"fastmask train: interrupted; the same command with --resume {where}", file=sys.stderr)
        raise
    if ranks.rank == 0:
        print(f"weights, losses and metrics: {args.out}", flush=True)
    return 0
