"""``fastmask models``: every model and its published weights."""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the patterns."""
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help='names, such as "maskrcnn_*" [all]')


def run(args: argparse.Namespace) -> int:
    """Print a line for each of a model's weights; exit code 2 if a pattern matches no model."""
    from fastmask.models import list_models
    from fastmask.models._api import list_families
    from fastmask.models.summary import format_cells, summarize_models

    families = [f"{name}:NAME" for name in list_families()]
    for pattern in args.patterns:
        if not list_models(include=pattern):
            print(f"fastmask models: no model's name is {pattern}; without a name, all are listed", file=sys.stderr)
            return 2
    row = "{:38} {:14} {:>10} {:>8}  {:44} {}".format
    print(row("model", "weights", "parameters", "GMAC", "published, in percent", "in the cache"))
    for summary in summarize_models(args.patterns or None):
        here = "" if summary.weights is None else "yes" if summary.weights.is_cached() else "no"
        print(row(summary.name, *format_cells(summary), here).rstrip(), flush=True)
    if not args.patterns:
        print(f"and on any backbone of timm's with feature maps of strides 4 to 32: {', '.join(families)}")
    return 0
