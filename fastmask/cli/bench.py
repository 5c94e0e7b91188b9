"""``fastmask bench``: how fast the ops and a whole model are on this machine, beside their peers."""

import argparse
import sys
from pathlib import Path

from fastmask.cli._device import find_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured, where, and where the numbers go."""
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose names hold it")
    parser.add_argument("--quick", action="store_true", help="few rounds, on one set of inputs")
    parser.add_argument("--full", action="store_true", help="the whole matrix, not the usual selection")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... [%(default)s]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if a case disagrees with its peer, which then has no row; 2 if an argument is wrong."""
    from fastmask.benchmarks.cases import CASES
    from fastmask.benchmarks.runner import measured, plain, saved

    chosen = {
        name: entry
        for name, entry in CASES.items()
        if (entry.chosen or args.full) and args.only.lower() in name.lower()
    }
    try:
        if not chosen:
            raise ValueError(f"--only must be part of a case's name, got {args.only!r}; --full knows more")
        device = find_device(args.device)
        if args.json is not None:
            args.json.touch()  # fails here, not after the last case
        results, wrong = measured(chosen, device, args.quick)
        if results["benchmarks"]:
            print(plain(results))
        if args.json is not None:
            saved(results, args.json)
    except (OSError, ValueError) as error:
        print(f"fastmask bench: {error}", file=sys.stderr)
        return 2
    for message in wrong:
        print(f"fastmask bench: no row: {message}", file=sys.stderr)
    return 1 if wrong else 0
