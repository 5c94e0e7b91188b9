"""``fastmask selftest``: check that every op and a model give the right values on this machine."""

import argparse
import json
import sys
import time
from pathlib import Path

from fastmask.cli._device import DEVICE_HELP, find_device
from fastmask.cli._messages import print_error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the device, the seed, and where the results go."""
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)
    parser.add_argument("--seed", type=int, default=None, help="seed of the inputs, to repeat a run [random]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    parser.add_argument("--force", action="store_true", help="replace that file if it exists")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if a value is wrong or an op fails; 2 if an argument is wrong."""
    import torch  # seconds: only once the command line is known to be right

    from fastmask.files import check_free, write_text
    from fastmask.kernels.launch import describe
    from fastmask.selftest.report import describe_results, format_failures, format_table
    from fastmask.selftest.run import list_checks, run_checks

    try:
        device = find_device(args.device)
        if args.json is not None:
            check_free([args.json], args.force)
            write_text(args.json.with_name(f".try.{args.json.name}"), "")  # fails here, not after the last check
            args.json.with_name(f".try.{args.json.name}").unlink()
    except (OSError, ValueError) as error:
        print_error(error, args)
        return 2
    seed = torch.seed() % 2**31 if args.seed is None else args.seed
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    print(f"{name}, torch {torch.__version__}, --seed {seed}; {describe()}")
    start = time.monotonic()
    results = run_checks(list_checks(device, seed), seed, progress=sys.stderr.isatty())
    print(f"\n{format_table(results)}\n")
    seconds = time.monotonic() - start
    print(f"{len(results)} checks in {seconds:.0f} seconds")
    if args.json is not None:
        facts = {"device": name, "torch": torch.__version__, "kernels": describe(), "seed": seed, "seconds": seconds}
        write_text(args.json, json.dumps(facts | describe_results(results), indent=1))
    if failures := format_failures(results, seed):
        print(f"\n{failures}")
        return 1
    return 0
