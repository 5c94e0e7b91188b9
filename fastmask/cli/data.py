"""``fastmask data convert``: annotations from one format to another."""

import argparse
import sys
from pathlib import Path

KNOWN = ("coco", "via", "labelme", "masks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is done with which annotations."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    convert = commands.add_parser("convert", help="annotations from one format to another")
    convert.add_argument("source", type=Path, help="a JSON file, or a folder with JSON files or mask images")
    convert.add_argument("target", type=Path, help="a JSON file, or, for labelme and masks, a folder")
    convert.add_argument("--to", required=True, choices=KNOWN, help="the target's format")
    convert.add_argument("--format", default="auto", choices=("auto", *KNOWN), help="the source's [%(default)s]")
    convert.add_argument("--images", type=Path, metavar="DIR", help="where the pictures are [as the source says]")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if something was left out, each of which is named; 2 if nothing could be read or written."""
    from fastmask.data import read_dataset, with_sizes, write_dataset

    try:
        dataset = with_sizes(read_dataset(args.source, args.format, args.images))
        problems = [*dataset.problems, *write_dataset(dataset, args.target, args.to)]
    except (OSError, ValueError) as error:
        print(f"fastmask data: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"fastmask data: {problem.kind}: {problem.where}: {problem.text}", file=sys.stderr)
    objects = sum(len(record.objects) for record in dataset.records)
    print(f"{len(dataset.records)} pictures, {objects} objects, {len(problems)} problems: {args.target}")
    return 1 if problems else 0
