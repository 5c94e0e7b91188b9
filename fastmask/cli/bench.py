"""``fastmask bench``: how fast the ops and a whole model are on this machine, beside their baselines."""

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from fastmask.cli._device import find_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is measured, where, and where the numbers go."""
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases whose names it is found in")
    parser.add_argument("--without", metavar="PATTERN", help="no providers whose names it is found in")
    parser.add_argument("--quick", action="store_true", help="few rounds, on one set of inputs")
    parser.add_argument("--full", action="store_true", help="the whole matrix, not the usual selection")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... [%(default)s]")
    parser.add_argument("--limit", type=float, default=math.inf, metavar="S", help="begin no case after S seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--resume", action="store_true", help="keep the whole cases that --json's FILE has from here")


def run(args: argparse.Namespace) -> int:
    """Exit code 1 if a case has no row, as it does not match, fails or is late; 2 if an argument is wrong."""
    from fastmask.benchmarks.cases import CASES
    from fastmask.benchmarks.runner import measured, plain, without

    try:
        chosen = {
            name: entry
            for name, entry in CASES.items()
            if (entry.chosen or args.full) and re.search(args.only, name, re.IGNORECASE)
        }
        if not chosen:
            raise ValueError(f"--only must be found in a case's name, got {args.only!r}; --full knows more")
        if args.without is not None:
            chosen = {name: without(entry, args.without) for name, entry in chosen.items()}
        device = find_device(args.device)
        earlier: list[dict[str, Any]] = []
        if args.json is not None:
            args.json.touch()  # fails here, not after the last case
            text = args.json.read_text()
            earlier = json.loads(text).get("benchmarks", []) if args.resume and text else []
        results, wrong = measured(chosen, device, args.quick, args.json, args.limit, earlier)
        if results["benchmarks"]:
            print(plain(results))
    except (OSError, ValueError, re.error) as error:
        print(f"fastmask bench: {error}", file=sys.stderr)
        return 2
    for message in wrong:
        print(f"fastmask bench: no row: {message}", file=sys.stderr)
    return 1 if wrong else 0
