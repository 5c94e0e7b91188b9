"""``fastmask train``: from annotated images to weights, on any number of ranks."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastmask.distributed import Ranks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is trained, on which images, how, and where the weights go."""
    add = parser.add_argument
    add("--data-path", type=Path, required=True, metavar="DIR", help="with train and val, or COCO's, or annotations")
    add("--valid", type=Path, metavar="PATH", help="annotations to evaluate on [the data's own]")
    add("--class-attribute", metavar="NAME", help="VIA's that is the class [the usual ones are tried]")
    add("--model", default="maskrcnn_resnet50_fpn", metavar="NAME", help="[%(default)s]")
    add(
        "--weights", default="COCO_V1", help="to start from: COCO_V1, SHAPES_V1, imagenet, none or a file [%(default)s]"
    )
    add("--out", type=Path, default=Path("training"), metavar="DIR", help="[%(default)s]")
    add("--resume", action="store_true", help="go on from the last checkpoint in --out")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... [%(default)s]")
    add("--epochs", type=int, required=True, metavar="N")
    add("--batch-size", type=int, default=2, metavar="B", help="images of a step on each GPU [%(default)s]")
    add("--optimizer", default="sgd", help="sgd or adamw [%(default)s]")
    add("--lr", type=float, help="learning rate [0.02 for 16 images with sgd, 0.0002 with adamw]")
    add("--schedule", default="step", help="step or cosine [%(default)s]")
    add("--warmup", type=int, default=500, metavar="STEPS", help="[%(default)s, at most a tenth]")
    add("--weight-decay", type=float, default=1e-4, help="[%(default)s]")
    add("--clip", type=float, default=0.0, metavar="NORM", help="of the gradient; 0: as it is [%(default)s]")
    add("--ema", type=float, default=0.0, metavar="DECAY", help="average the weights; 0: do not [%(default)s]")
    add("--bf16", action="store_true", help="bfloat16 where autocast allows it")
    add("--compile", action="store_true", help="torch.compile the losses")
    add("--nan", default="stop", help="stop or skip, where a gradient is not finite [%(default)s]")
    add("--seed", type=int, default=0, help="[%(default)s]")
    add("--workers", type=int, default=2, metavar="N", help="processes that read images [%(default)s]")
    add("--save-steps", type=int, default=0, metavar="N", help="save within epochs, too [0: after each]")
    add("--tensorboard", action="store_true", help="write for it, too")
    add("--min-size", type=int, nargs="+", metavar="PIXELS", help="shorter sides to draw from [the model's]")
    add("--max-size", type=int, metavar="PIXELS", help="the longer side's limit [the model's]")
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="that all batches are padded to [as they need]")
    add("--flip", type=float, default=0.5, help="how likely left becomes right [%(default)s]")
    add("--zoom", type=float, nargs=2, metavar=("LEAST", "MOST"), help="large-scale jitter, cut to --size")
    add("--color", type=float, default=0.0, help="how much colors vary, up to 1 [%(default)s]")
    add("--paste", type=float, default=0.0, help="how likely objects of other images are pasted [%(default)s]")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if training had to stop; 2 if an argument is wrong, or something cannot be had."""
    from fastmask.distributed import ranks

    with ranks(nccl=True) as own:
        return trained(args, own)


def trained(args: argparse.Namespace, own: "Ranks") -> int:
    """All that holds on to the ranks is gone when this returns."""
    from fastmask.cli._training import prepared
    from fastmask.training import DivergedError

    try:
        own.from_first(lambda: args.out.mkdir(parents=True, exist_ok=True))
        training = prepared(args, own)
    except ValueError as error:
        if own.rank == 0:
            print(f"fastmask train: {error}", file=sys.stderr)
        return 2
    try:
        training.finish()
    except (DivergedError, MemoryError, OSError, ValueError) as error:
        text = str(error).strip() or type(error).__name__
        reason = text.splitlines()[-1]  # a worker's error has its traceback before it
        print(f"fastmask train: {reason}", file=sys.stderr)
        return 1
    if own.rank == 0:
        print(f"weights, losses and metrics: {args.out}", flush=True)
    return 0
