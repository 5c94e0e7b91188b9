"""``fastmask evaluate``: COCO's average precision of a model, or of detections made elsewhere."""

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmask.cli._messages import is_given, print_error
from fastmask.cli._model import add_model_arguments, add_predictor_arguments, make_predictor
from fastmask.cli.data import SOURCE_HELP, add_source_arguments, add_split_argument, read_source

if TYPE_CHECKING:
    from fastmask.data import Dataset
    from fastmask.distributed import Ranks
    from fastmask.evaluation import Evaluation

BACKEND_HELP = "what evaluates --results; both give the same metrics [%(default)s]"
AREAS_HELP = "areas by which detections are small, medium or large: own: the masks' for masks; loadRes: the boxes', as"
AREAS_HELP += " pycocotools takes them from results that have both [%(default)s]"
SIGMAS_HELP = "of each keypoint the deviation that counts as near, by the root of the area [COCO's for 17, else 1 / K]"
CLASSES_SHOWN = 20  # that only the model or the data has, one by one
ID_ZERO = "an annotation has the id 0: its detection is a true positive here, and a false positive for pycocotools"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the annotations, the model or its detections, and where the output goes."""
    add = parser.add_argument
    add("annotations", type=Path, help=SOURCE_HELP)
    add_source_arguments(parser)
    add_split_argument(parser, "val, or the only one")
    add("--results", type=Path, metavar="FILE", help="evaluate a file in COCO's results format instead of a model")
    add("--backend", choices=("own", "faster-coco-eval"), default="own", help=BACKEND_HELP)
    add("--areas", choices=("own", "loadRes"), default="own", help=AREAS_HELP)
    add("--sigmas", type=float, nargs="+", metavar="S", help=SIGMAS_HELP)
    add(
        "--classes",
        nargs="+",
        metavar="MODEL=DATA",
        help="classes of the model by their names in the data, where they differ",
    )
    add_model_arguments(parser, score=0.05)
    add_predictor_arguments(parser, dtypes=True)
    add("--out", type=Path, default=Path("evaluation"), metavar="DIR", help="folder of the output [%(default)s]")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if an image could not be read; 2 if an argument is wrong, or something is not available.

    Under torchrun every rank evaluates its share of the images.
    """
    from fastmask.data.splits import describe_first
    from fastmask.distributed import join_ranks
    from fastmask.evaluation.files import check_outputs, write_evaluation

    with join_ranks() as ranks:
        try:
            dataset = ranks.run_on_all(lambda: read_source(args, args.annotations, "val"))
            if not len(dataset.records):
                raise ValueError(f"{args.annotations} must have images, got none{describe_first(dataset)}")
            inputs = [path for path in (args.annotations, args.results) if path is not None]
            folders = name_folders(args)
            for folder in folders.values():
                ranks.run_on_first(functools.partial(check_outputs, folder, inputs))
                ranks.run_on_first(functools.partial(folder.mkdir, parents=True, exist_ok=True))
            evaluations = {}
            for args.dtype, folder in folders.items():
                evaluations[args.dtype], results, settings = evaluate(args, dataset, ranks)
                write = functools.partial(write_evaluation, evaluations[args.dtype], folder, results, settings)
                ranks.run_on_first(write)
        except (ImportError, ValueError) as error:
            if ranks.rank == 0:
                print_error(error, args)
            return 2
        if ranks.rank == 0:
            for dtype, evaluation in evaluations.items():
                print_evaluation(evaluation, dataset, folders[dtype])
            if len(evaluations) > 1:
                print(format_dtypes(evaluations))
            if settings and (line := format_views(settings)):
                print(line)
        return 1 if any(evaluation.problems for evaluation in evaluations.values()) else 0


def name_folders(args: argparse.Namespace) -> dict[str, Path]:
    """The folder of each dtype's evaluation: --out, or one for each in there."""
    dtypes = [args.dtype] if isinstance(args.dtype, str) else list(args.dtype)
    if len(set(dtypes)) < len(dtypes):
        raise ValueError(f"--dtype must name each dtype once, got {' '.join(dtypes)}")
    if len(dtypes) > 1 and args.results is not None:
        raise ValueError("--dtype must not be given with --results, which are a model's already")
    return {dtype: args.out / dtype if len(dtypes) > 1 else args.out for dtype in dtypes}


def format_dtypes(evaluations: "Mapping[str, Evaluation]") -> str:
    """A row of AP for each dtype."""
    from fastmask.evaluation.tables import format_value

    kinds = list(next(iter(evaluations.values())).metrics)
    rows = ["\n" + " " * 10 + "".join(f"{kind + ' AP':>14}" for kind in kinds) + "  detections"]
    for dtype, evaluation in evaluations.items():
        values = "".join(f"{format_value(evaluation.metrics[kind].ap):>14}" for kind in kinds)
        rows.append(f"{dtype:10}{values}{evaluation.detections:12}")
    return "\n".join(rows)


def evaluate(
    args: argparse.Namespace, dataset: "Dataset", ranks: "Ranks"
) -> "tuple[Evaluation, list[Any] | None, dict[str, Any] | None]":
    """The evaluation on every rank, a model's detections on the first one, and what these depend on."""
    from fastmask import evaluation
    from fastmask.data.parse import join_few
    from fastmask.evaluation.files import read_results
    from fastmask.evaluation.identity import rename_classes

    bar = sys.stderr.isatty()  # none in a log file
    how: dict[str, Any] = {"areas": args.areas, "sigmas": args.sigmas, "progress": bar}
    if args.results is not None:
        if args.classes:
            raise ValueError("--classes must not be given with --results, which have category ids")
        for name in ("weights", "model", "size", "check_images", "nms", "test_sizes", "flip"):
            if is_given(getattr(args, name) or None):
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must not be given with --results, which are a model's already")
        how["backend"] = args.backend
        evaluated = ranks.run_on_first(lambda: evaluation.evaluate_results(read_results(args.results), dataset, **how))
        return evaluated, None, None
    if args.backend != "own":
        raise ValueError(f"--backend must be own without --results, got {args.backend}")
    pairs = parse_classes(args.classes or ())
    predictor, names, settings = ranks.run_on_all(lambda: make_predictor(args, ranks))
    if names is not None:
        names = rename_classes(names, pairs, dataset.categories)
        if dataset.categories and not set(names[1:]) & set(dataset.categories):
            got = f"got {join_few(names[1:], 5)}: --classes MODEL=DATA maps names"
            raise ValueError(f"--weights must know a class of the data ({join_few(dataset.categories, 5)}), {got}")
    elif pairs:
        raise ValueError(f"--classes must not be given where the weights name no classes, got {' '.join(args.classes)}")
    elif ranks.rank == 0:
        print(f"fastmask evaluate: {args.weights} names no classes: labels are category numbers", file=sys.stderr)
    results: list[Any] = []
    evaluated = evaluation.evaluate(predictor, dataset, names=names, ranks=ranks, results=results, **how)
    return evaluated, [result for each in ranks.gather_to_first(results) for result in each], settings


def format_views(settings: "Mapping[str, Any]") -> str:
    """One line of a Predictor's NMS and test-time augmentation; empty where both are as usual."""
    sizes = " ".join(map(str, settings["test_sizes"] or ()))
    named = [f"nms {settings['nms']}"] if settings["nms"] != "hard" else []
    named += ["flip"] if settings["flip_test"] else []
    named += [f"test sizes {sizes}"] if sizes else []
    return f"with {', '.join(named)}" if named else ""


def parse_classes(texts: Sequence[str]) -> dict[str, str]:
    """Pairs ``model=data``, one or several with commas between, as a mapping; ValueError if one has another form."""
    pairs: dict[str, str] = {}
    for pair in (pair for text in texts for pair in text.split(",")):
        mine, equals, other = (part.strip() for part in pair.partition("="))
        if not (mine and equals and other) or mine in pairs:
            raise ValueError(f"--classes must be MODEL=DATA, one for each class, got {pair!r}")
        pairs[mine] = other
    return pairs


def print_evaluation(evaluation: "Evaluation", dataset: "Dataset", folder: Path) -> None:
    from fastmask.evaluation.tables import format_evaluation

    for note in dataset.notes:
        print(note)
    for problem in dataset.problems:
        print(f"fastmask evaluate: {problem.kind}: {problem.where}: {problem.text}", file=sys.stderr)
    if any(instance.id == 0 and not instance.crowd for record in dataset.records for instance in record.instances):
        print(f"fastmask evaluate: {ID_ZERO}", file=sys.stderr)
    for text in evaluation.problems:
        print(f"fastmask evaluate: {text}; its objects count as missed", file=sys.stderr)
    for counts, text in (
        (evaluation.left_out, "detections left out: the data has no"),
        (evaluation.unknown, "objects missed: the model has no"),
    ):
        for name, number in list(counts.items())[:CLASSES_SHOWN]:
            print(f"fastmask evaluate: {number} {text} {name}", file=sys.stderr)
        rest = list(counts.values())[CLASSES_SHOWN:]
        if rest:
            print(f"fastmask evaluate: {sum(rest)} {text} {len(rest)} more classes", file=sys.stderr)
    print(format_evaluation(evaluation))
    seconds = ", ".join(f"{name} {number:.1f}" for name, number in evaluation.seconds.items())
    print(f"\n{evaluation.images} images, {evaluation.detections} detections: {folder} (seconds: {seconds})")
