"""``fastmask data``: what is wrong with annotated images, annotations from format to format, and synthetic images."""

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
    check = commands.add_parser("check", help="what is wrong with annotated images, and how they look")
    check.add_argument("source", type=Path, help="a JSON file, or a folder with JSON files or mask images")
    check.add_argument("--contact-sheet", type=Path, metavar="FILE", help="draw some of them there [not at all]")
    draw = commands.add_parser("draw", help="images the package draws itself, with COCO annotations")
    draw.add_argument("target", type=Path, metavar="DIR", help="a folder that is made")
    draw.add_argument("--number", type=int, default=100, metavar="N", help="of images [%(default)s]")
    draw.add_argument("--seed", type=int, default=0, help="others give other images [%(default)s]")
    draw.add_argument("--size", nargs=2, type=int, default=(192, 192), metavar=("H", "W"), help="[192 192]")
    draw.add_argument("--scene", default="shapes", help="shapes, grains or mixed [%(default)s]")
    for parser in (convert, check):
        add_source_arguments(parser)


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """For every command that reads annotations."""
    parser.add_argument("--format", default="auto", choices=("auto", *KNOWN), help="the annotations' [%(default)s]")
    parser.add_argument("--images", type=Path, metavar="DIR", help="where the images are [as the annotations say]")
    parser.add_argument("--class-attribute", metavar="NAME", help="VIA's that is the class [the usual ones are tried]")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if there are problems, each of which is named; 2 if nothing could be read or written."""
    try:
        dataset, problems = {"convert": converted, "check": checked, "draw": drawn}[args.what](args)
    except (OSError, ValueError) as error:
        print(f"fastmask data: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(f"fastmask data: {problem.kind}: {problem.where}: {problem.text}", file=sys.stderr)
    objects = collections.Counter(one.category for record in dataset.records for one in record.instances)
    empty = sum(not record.instances for record in dataset.records)
    where = args.target if args.what == "draw" else args.source
    print(f"{len(dataset.records)} images ({empty} without objects), {objects.total()} objects: {where}")
    print(f"classes: {', '.join(f'{name} {number}' for name, number in objects.most_common()) or 'none'}")
    kinds = collections.Counter(problem.kind for problem in problems)
    print(f"problems: {', '.join(f'{kind} {number}' for kind, number in kinds.most_common()) or 'none'}")
    return 1 if problems else 0


def converted(args: argparse.Namespace) -> "tuple[Dataset, list[Problem]]":
    from fastmask.data import add_sizes, read_dataset, write_dataset

    dataset = add_sizes(read_dataset(args.source, args.format, args.images, args.class_attribute))
    return dataset, [*dataset.problems, *write_dataset(dataset, args.target, args.to)]


def checked(args: argparse.Namespace) -> "tuple[Dataset, list[Problem]]":
    from fastmask.data import read_dataset
    from fastmask.data.contact_sheet import draw_contact_sheet
    from fastmask.data.validate import validate_dataset

    dataset = read_dataset(args.source, args.format, args.images, args.class_attribute)
    problems = validate_dataset(dataset, progress=True)
    if args.contact_sheet is not None:
        draw_contact_sheet(dataset).save(args.contact_sheet)
    return dataset, problems


def drawn(args: argparse.Namespace) -> "tuple[Dataset, list[Problem]]":
    from fastmask.demo import save_synthetic, synthetic_dataset

    dataset = synthetic_dataset(args.number, args.seed, tuple(args.size), args.scene)
    return save_synthetic(dataset, args.target, progress=True), []
