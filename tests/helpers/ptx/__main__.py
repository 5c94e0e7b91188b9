"""What the compiled kernels execute: PYTHONPATH=tests python -m helpers.ptx [WORD] [--arch 90] [--seed 0] [--opcodes N]

For each case whose name has the word: each launch's instructions a thread, barriers, the most frequent instructions,
requests to memory with their sectors (of 32 bytes) or wavefronts. Exit status 1 if anything is wrong.
"""

import argparse
import importlib
import sys
import time
from pathlib import Path

import torch

CASES = Path(__file__).parents[2] / "kernels" / "ptx"


def main() -> None:
    from helpers.ptx import Options, execute

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--opcodes", type=int, default=12, help="how many of the most frequent ones to print")
    args = parser.parse_args()
    sys.path.insert(0, str(CASES))
    failed = False
    for path in sorted(CASES.glob("cases_*.py")):
        torch.manual_seed(args.seed)
        for name, case in importlib.import_module(path.stem).cases():
            if args.word not in name:
                continue
            start = time.time()
            errors, runs = execute(case, args.arch, Options(args.seed, statistics=True))
            print(f"{'FAILED' if errors else 'ok'} {name}, sm_{args.arch}, {time.time() - start:.1f} s", flush=True)
            for line in [*errors, *(line for run in runs for line in run.describe(args.opcodes))]:
                print(f"    {line}")
            failed |= bool(errors)
    sys.exit(failed)


if __name__ == "__main__":
    main()
