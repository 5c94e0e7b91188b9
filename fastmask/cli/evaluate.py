"""``fastmask evaluate``: COCO's average precision of a model, or of detections made elsewhere."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmask.cli._model import add_model_arguments, add_predictor_arguments, make_predictor
from fastmask.cli.data import add_source_arguments

if TYPE_CHECKING:
    from fastmask.data import Dataset
    from fastmask.evaluation import Evaluation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is evaluated, on which images, and where the metrics go."""
    parser.add_argument("annotations", type=Path, help="a JSON file, or a folder with JSON files or mask images")
    add_source_arguments(parser)
    parser.add_argument("--results", type=Path, metavar="FILE", help="evaluate this COCO-results file, and no model")
    add_model_arguments(parser, score=0.05)
    add_predictor_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("evaluation"), metavar="DIR", help="[%(default)s]")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if an image could not be looked at; 2 if an argument is wrong, or something cannot be had.

    Under torchrun every rank looks at its share of the images.
    """
    from fastmask.data import read_dataset
    from fastmask.distributed import join_ranks

    annotations = (args.annotations, args.format, args.images, args.class_attribute)
    with join_ranks() as ranks:
        try:
            dataset = ranks.run_on_all(lambda: read_dataset(*annotations))
            ranks.run_on_first(lambda: args.out.mkdir(parents=True, exist_ok=True))
            evaluation, entries = evaluated(args, dataset, ranks)
            ranks.run_on_first(lambda: written(args.out, evaluation, entries))
        except ValueError as error:
            if ranks.rank == 0:
                print(f"fastmask evaluate: {error}", file=sys.stderr)
            return 2
        if ranks.rank == 0:
            said(args.out, dataset, evaluation)
        return 1 if evaluation.problems else 0


def evaluated(args: argparse.Namespace, dataset: "Dataset", ranks: Any) -> "tuple[Evaluation, list[Any] | None]":
    """The metrics on every rank, and a model's detections on the first one."""
    from fastmask.evaluation import evaluate, evaluate_results

    if args.results is not None:
        return ranks.run_on_first(lambda: evaluate_results(read_results(args.results), dataset)), None
    predictor, categories, _ = ranks.run_on_all(lambda: make_predictor(args, ranks))
    entries: list[Any] = []
    evaluation = evaluate(predictor, dataset, names=shared(categories, dataset), ranks=ranks, results=entries)
    return evaluation, [one for each in ranks.gather_to_first(entries) for one in each]


def shared(categories: Any, dataset: "Dataset") -> Any:
    """The names of a model's labels, where the dataset's are among them; else labels count."""
    return categories if categories is not None and set(categories) & set(dataset.categories) else None


def read_results(path: Path) -> list[Any]:
    from fastmask.data.formats import load_json

    entries = load_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path} must be a list of detections, got {type(entries).__name__}")
    return entries


def written(folder: Path, evaluation: "Evaluation", entries: list[Any] | None) -> None:
    from fastmask.evaluation.tables import to_dict, write_csv

    write_csv(evaluation, folder / "categories.csv")
    (folder / "evaluation.json").write_text(json.dumps(to_dict(evaluation), indent=1))
    if entries is not None:
        (folder / "detections.json").write_text(json.dumps(entries))


def said(folder: Path, dataset: "Dataset", evaluation: "Evaluation") -> None:
    from fastmask.evaluation.tables import format_evaluation

    for problem in dataset.problems:
        print(f"fastmask evaluate: {problem.kind}: {problem.where}: {problem.text}", file=sys.stderr)
    for text in evaluation.problems:
        print(f"fastmask evaluate: {text}; its objects count as missed", file=sys.stderr)
    print(format_evaluation(evaluation))
    seconds = ", ".join(f"{name} {number:.1f}" for name, number in evaluation.seconds.items())
    print(f"\n{evaluation.images} images, {evaluation.detections} detections: {folder} (seconds: {seconds})")
