"""``fastmask push``: upload weights to the Hugging Face Hub."""

import argparse

from fastmask.cli._messages import print_error
from fastmask.cli._model import MODEL_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the file, and where it goes."""
    add = parser.add_argument
    add("file", metavar="FILE", help="a checkpoint of any kind; uploaded as model.safetensors, with a model card")
    add("repo", metavar="OWNER/NAME", help="the repository, which is created if it does not exist")
    add("--model", metavar="NAME", help=MODEL_HELP.partition(" [")[0] + " [the one that the file is of]")
    add("--private", action="store_true", help="create the repository for those alone who have access [public]")
    add("--force", action="store_true", help="replace weights or a model card that are there; its history keeps them")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if the hub cannot be reached; 2 if an argument is wrong, or the repository has weights already."""
    from fastmask.models import push_weights

    try:
        options = {"builder": args.model, "private": args.private, "force": args.force}
        print(push_weights(args.file, args.repo, **options), flush=True)
    except ConnectionError as error:
        print_error(error, args)
        return 1
    except (ImportError, OSError, ValueError) as error:
        print_error(error, args)
        return 2
    return 0
