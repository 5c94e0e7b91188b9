"""``fastmask bench``: how fast the ops and a whole model are on this machine, beside their baselines."""

import argparse
import math
import re
import sys
from pathlib import Path

from fastmask.cli._device import find_device
from fastmask.cli._messages import print_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which cases to time, where, and the results file."""
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases whose names match")
    parser.add_argument("--without", metavar="PATTERN", help="leave out providers whose names match")
    parser.add_argument("--quick", action="store_true", help="few rounds, on one set of inputs")
    parser.add_argument("--full", action="store_true", help="all cases, not only the default ones")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... [%(default)s]")
    parser.add_argument("--limit", type=float, default=math.inf, metavar="S", help="begin no case after S seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--resume", action="store_true", help="keep complete cases that --json's FILE has from here")


def run(args: argparse.Namespace) -> int:
    """Exit code 1 if a row is missing, as its provider does not match, fails or is late; 2 on a wrong argument."""
    from fastmask.benchmarks.cases import CASES
    from fastmask.benchmarks.report import format_summary
    from fastmask.benchmarks.results_io import Row, load_rows
    from fastmask.benchmarks.runner import drop_providers, run_cases

    try:
        specs = {
            name: spec
            for name, spec in CASES.items()
            if (spec.default or args.full) and re.search(args.only, name, re.IGNORECASE)
        }
        if not specs:
            raise ValueError(f"--only must match a case's name, got {args.only!r}; --full has more cases")
        if args.without is not None:
            specs = {name: drop_providers(spec, args.without) for name, spec in specs.items()}
        device = find_device(args.device)
        earlier: list[Row] = []
        if args.json is not None:
            args.json.touch()  # fails here, not after the last case
            earlier = load_rows(args.json) if args.json.stat().st_size else []  # fails if it is another file
            earlier = earlier if args.resume else []
        results, failures = run_cases(specs, device, args.quick, args.json, args.limit, earlier)
        if results["benchmarks"]:
            print(format_summary(results))
    except (OSError, ValueError, re.error) as error:
        print_error(error, args)
        return 2
    for message in failures:
        print(f"fastmask bench: no row: {message}", file=sys.stderr)
    return 1 if failures else 0
