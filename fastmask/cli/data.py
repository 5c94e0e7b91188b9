"""``fastmask data``: what is wrong with annotated pictures, and annotations from one format to another."""

import argparse
import collections
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastmask.data import Dataset, Problem

KNOWN = ("coco", "via", "labelme", "masks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is done with which annotations."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    convert = commands.add_parser("convert", help="annotations from one format to another")
    convert.add_argument("source", type=Path, help="a JSON file, or a folder with JSON files or mask images")
    convert.add_argument("target", type=Path, help="a JSON file, or, for labelme and masks, a folder")
    convert.add_argument("--to", required=True, choices=KNOWN, help="the target's format")
    check = commands.add_parser("check", help="what is wrong with annotated pictures, and how they look")
    check.add_argument("source", type=Path, help="a JSON file, or a folder with JSON files or mask images")
    check.add_argument("--sheet", type=Path, metavar="FILE", help="draw some of them there [not at all]")
    for parser in (convert, check):
        parser.add_argument("--format", default="auto", choices=("auto", *KNOWN), help="the source's [%(default)s]")
        parser.add_argument("--images", type=Path, metavar="DIR", help="where the pictures are [as the source says]")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if there are problems, each of which is named; 2 if nothing could be read or written."""
    from fastmask.data import read_dataset

    try:
        dataset = read_dataset(args.source, args.format, args.images)
        problems = converted(args, dataset) if args.what == "convert" else checked(args, dataset)
    except (OSError, ValueError) as error:
        print(f"fastmask data: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"fastmask data: {problem.kind}: {problem.where}: {problem.text}", file=sys.stderr)
    objects = collections.Counter(one.category for record in dataset.records for one in record.objects)
    empty = sum(not record.objects for record in dataset.records)
    print(f"{len(dataset.records)} pictures ({empty} without objects), {objects.total()} objects: {args.source}")
    print(f"classes: {', '.join(f'{name} {number}' for name, number in objects.most_common()) or 'none'}")
    kinds = collections.Counter(problem.kind for problem in problems)
    print(f"problems: {', '.join(f'{kind} {number}' for kind, number in kinds.most_common()) or 'none'}")
    return 1 if problems else 0


def converted(args: argparse.Namespace, dataset: "Dataset") -> "list[Problem]":
    from fastmask.data import with_sizes, write_dataset

    dataset = with_sizes(dataset)
    return [*dataset.problems, *write_dataset(dataset, args.target, args.to)]


def checked(args: argparse.Namespace, dataset: "Dataset") -> "list[Problem]":
    from fastmask.data.doctor import contact_sheet, examine

    problems = examine(dataset, progress=True)
    if args.sheet is not None:
        contact_sheet(dataset).save(args.sheet)
    return problems
