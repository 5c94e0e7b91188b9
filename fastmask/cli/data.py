"""``fastmask data``: check annotated images, convert annotations between formats, and draw synthetic images."""

import argparse
import collections
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fastmask.cli._messages import print_error

if TYPE_CHECKING:
    from fastmask.data import Dataset, Problem

    Result = tuple[str, Dataset, list[Problem]]  # where it is, the data set, and what is wrong with it

SCENES = ("shapes", "grains", "mixed", "figures")
FORMATS = ("coco", "via", "labelme", "masks", "yolo")
CROWDS_HELP = "take each crowd (COCO's iscrowd) for one object [crowds are neither trained nor counted]"
SOURCE_HELP = "a JSON file, data.yaml, a folder with either or mask images, or with train and val or annotations in it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three commands."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    convert = commands.add_parser("convert", help="convert annotations from one format to another")
    check = commands.add_parser("check", help="list what is wrong with annotated images, and draw some of them")
    for command in (convert, check):
        command.add_argument("source", type=Path, help=SOURCE_HELP)
        add_source_arguments(command)
        add_split_argument(command)
    convert.add_argument("target", type=Path, help="a JSON file or, for labelme, masks and yolo, a folder")
    convert.add_argument("--to", required=True, choices=FORMATS, help="format of the target")
    polygons_help = "trace masks to polygons; crowds stay RLE [masks stay masks]"
    convert.add_argument("--polygons", action="store_true", help=polygons_help)
    tolerance_help = "how far polygons of masks may be from them, to have fewer corners [0: exact]"
    convert.add_argument("--tolerance", type=float, default=0.0, metavar="PIXELS", help=tolerance_help)
    convert.add_argument("--rename", nargs="+", default=[], metavar="OLD=NEW", help="other names of classes [none]")
    for command, what in ((convert, "files of the target that are"), (check, "a contact sheet that is")):
        command.add_argument("--force", action="store_true", help=f"replace {what} there")
    check.add_argument("--contact-sheet", type=Path, metavar="FILE", help="file to draw annotated images into [none]")
    add = commands.add_parser("draw", help="draw synthetic images, with COCO annotations").add_argument
    add("target", type=Path, metavar="DIR", help="folder of the output")
    add("--number", type=int, default=100, metavar="N", help="number of images [%(default)s]")
    add("--seed", type=int, default=0, help="seed of the images [%(default)s]")
    add("--size", nargs=2, type=int, default=(192, 192), metavar=("H", "W"), help="size in pixels [192 192]")
    add("--force", action="store_true", help="replace files that are there")
    add("--scene", default="shapes", choices=SCENES, help="what is drawn [%(default)s]")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add how annotations are read, for every command that reads them."""
    add = parser.add_argument
    add("--format", default="auto", choices=("auto", *FORMATS), help="format of the annotations [%(default)s]")
    add("--images", type=Path, metavar="DIR", help="folder of the images [as the annotations say]")
    add("--crowds-as-objects", action="store_true", help=CROWDS_HELP)
    add(
        "--class-attribute", metavar="NAME", help="VIA's attribute that is the class [the only one, or one named class]"
    )


def add_split_argument(parser: argparse.ArgumentParser, default: str = "all, or the only one") -> None:
    """Add which split is read, for commands that read one."""
    parser.add_argument("--split", choices=("train", "val", "test"), help=f"split of the annotations [{default}]")


def read_source(args: argparse.Namespace, path: Path, split: str | None = None) -> "Dataset":
    """The annotated images that a command line names, of several splits the named one, else the given one."""
    from fastmask.data import read_dataset
    from fastmask.data.records import crowds_to_objects

    if args.split is not None:
        return read_splits(args, path)[args.split]
    dataset = read_dataset(path, args.format, args.images, args.class_attribute, split)
    return crowds_to_objects(dataset) if args.crowds_as_objects else dataset


def read_splits(args: argparse.Namespace, path: Path) -> "dict[str, Dataset]":
    """All splits of the annotated images that a command line names, or the one that it names."""
    from fastmask.data import read_all
    from fastmask.data.records import crowds_to_objects

    only = None if args.split is None else [args.split]
    splits = read_all(path, args.format, args.images, args.class_attribute, only)
    if args.split is not None and args.split not in splits:
        raise ValueError(f"{path} must have the split {args.split} (--split), got none of this name")
    return {split: crowds_to_objects(each) for split, each in splits.items()} if args.crowds_as_objects else splits


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if there are problems, each of which is named; 2 if nothing could be read or written."""
    try:
        results = {"convert": convert, "check": check, "draw": draw}[args.what](args)
    except (ImportError, OSError, ValueError) as error:
        print_error(error, args)
        return 2
    return max(print_summary(*result, to_train=args.what != "draw") for result in results)


def print_summary(where: str, dataset: "Dataset", problems: "list[Problem]", to_train: bool) -> int:
    """Print problems, notes and numbers -> 1 if there are problems, else 0."""
    from fastmask.data.parse import join_few
    from fastmask.data.records import count_left_out

    for problem in problems:
        print(f"fastmask data: {problem.kind}: {problem.where}: {problem.text}", file=sys.stderr)
    for note in dataset.notes:
        print(note)
    objects = collections.Counter(item.category for record in dataset.records for item in record.instances)
    empty = sum(not record.instances for record in dataset.records)
    print(f"{len(dataset.records)} images ({empty} without objects), {objects.total()} objects: {where}")
    print(f"classes: {join_few(f'{name} {number}' for name, number in objects.most_common()) or 'none'}")
    if to_train and (left_out := count_left_out(dataset)):
        print(f"left out of training: {', '.join(f'{number} {what}' for what, number in left_out.items())}")
    kinds = collections.Counter(problem.kind for problem in problems)
    print(f"problems: {', '.join(f'{kind} {number}' for kind, number in kinds.most_common()) or 'none'}")
    return 1 if problems else 0


def convert(args: argparse.Namespace) -> "list[Result]":
    from fastmask.data import add_sizes, masks_to_polygons, write_dataset

    if args.polygons and args.to == "masks":
        raise ValueError("--polygons must be without --to masks, which holds no polygons")
    if args.tolerance and not args.polygons:
        raise ValueError(f"--tolerance needs --polygons, got {args.tolerance:g} without")
    if args.to == "yolo" or args.split is not None:  # YOLO's data sets have splits
        splits = {name or "train": add_sizes(each) for name, each in read_splits(args, args.source).items()}
    else:
        splits = {"": add_sizes(read_source(args, args.source))}
    splits = rename_all(splits, args.rename)
    if args.polygons:
        splits = {name: masks_to_polygons(each, args.tolerance) for name, each in splits.items()}
    lost = write_dataset(splits, args.target, args.to, force=args.force, source=args.source)
    results = [(name_split(args.source, split), each, each.problems) for split, each in splits.items()]
    return [*results[:-1], (*results[-1][:2], [*results[-1][2], *lost])]


def rename_all(splits: "dict[str, Dataset]", pairs: list[str]) -> "dict[str, Dataset]":
    """Rename classes as OLD=NEW says; a class need not be in each split."""
    from fastmask.data import rename_classes

    names = {}
    for pair in pairs:
        old, equals, new = pair.rpartition("=")
        names[old] = new
        if not equals:
            raise ValueError(f"--rename must be OLD=NEW, got {pair!r}")
    known = dict.fromkeys(name for each in splits.values() for name in each.categories)
    if unknown := [old for old in names if old not in known]:
        raise ValueError(f"--rename must be of classes ({', '.join(known)}), got {unknown[0]!r}")
    return {
        split: rename_classes(each, {old: new for old, new in names.items() if old in each.categories})
        for split, each in splits.items()
    }


def name_split(source: Path, split: str) -> str:
    return f"{source}, {split}" if split else str(source)


def check(args: argparse.Namespace) -> "list[Result]":
    from fastmask.data import Dataset
    from fastmask.data.contact_sheet import draw_contact_sheet
    from fastmask.data.records import Problem
    from fastmask.data.splits import describe_untrained
    from fastmask.data.validate import validate_dataset
    from fastmask.files import check_free, replace_file
    from fastmask.image_io import check_image_name

    if args.contact_sheet is not None:
        check_image_name("contact_sheet", args.contact_sheet)
    splits = read_splits(args, args.source)
    records = [record for dataset in splits.values() for record in dataset.records]
    if args.contact_sheet is not None:
        check_free([args.contact_sheet], args.force, [args.source, *(record.file for record in records)])
    results = [
        (name_split(args.source, split), each, validate_dataset(each, progress=sys.stderr.isatty()))
        for split, each in splits.items()
    ]
    for (where, each, problems), split in zip(results, splits, strict=True):
        if split != "train" and "train" in splits and (untrained := describe_untrained(splits["train"], each)):
            problems.append(Problem("untrained class", where, untrained))
    if args.contact_sheet is not None:
        categories = {name: number for dataset in splits.values() for name, number in dataset.categories.items()}
        skeletons = {name: skeleton for dataset in splits.values() for name, skeleton in dataset.skeletons.items()}
        with replace_file(args.contact_sheet) as draft:
            sheet = draw_contact_sheet(Dataset(records, categories, [], skeletons=skeletons))
            sheet.save(draft)
    return results


def draw(args: argparse.Namespace) -> "list[Result]":
    from fastmask.demo import save_synthetic, synthetic_dataset

    dataset = synthetic_dataset(args.number, args.seed, tuple(args.size), args.scene)
    return [
        (str(args.target), save_synthetic(dataset, args.target, progress=sys.stderr.isatty(), force=args.force), [])
    ]
