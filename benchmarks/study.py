"""``python -m fastmask.benchmarks.study FOLDER``: train the slim model with one argument changed, and compare.

The questions of papers and tutorials: sampling points of RoIAlign, RoIPool, losses by name, one mask for all classes,
a U-Net as the mask head. Each variant is trained from nothing on the same synthetic images, with several seeds, one
thread a run, and evaluated once, on other images. Runs that are finished in the folder are not repeated, and an
interrupted one resumes; then all variants are timed in turns. study_report.py makes the table and the plot.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from fastmask.benchmarks.measure import name_of, versions
from fastmask.benchmarks.study_report import RESULTS, save_plot, write_readme
from fastmask.data import read_dataset
from fastmask.demo import save_synthetic, synthetic_dataset
from fastmask.files import write_text
from fastmask.inference.predictor import Predictor
from fastmask.models import Checkpoint, detection
from fastmask.training import TrainConfig, train

SIZE = (128, 128)  # pixels of an image
SEEDS = (1, 2, 3)
ROUNDS = 15  # of timing, each of all variants
TIMED = 16  # images of a round
BASELINE = "as torchvision's"


Options = dict[str, Any]  # of the model

VARIANTS: dict[str, Options] = {
    BASELINE: {},
    "1 x 1 sampling points a bin": {"sampling_ratio": 1},
    "4 x 4 sampling points a bin": {"sampling_ratio": 4},
    "adaptive sampling": {"sampling_ratio": 0},
    "RoIPool": {"box_pooling": "roi_pool"},
    "RPN: focal loss": {"rpn_loss": "focal"},
    "boxes: L1": {"box_loss": "l1"},
    "boxes: weighted smooth L1": {"box_loss": "weighted_smooth_l1"},
    "boxes: GIoU": {"box_loss": "giou"},
    "boxes: DIoU": {"box_loss": "diou"},
    "boxes: CIoU": {"box_loss": "ciou"},
    "masks: dice": {"mask_loss": "dice"},
    "masks: BCE and dice": {"mask_loss": "bce_dice"},
    "one mask for all classes": {"mask_classes": "agnostic"},
    "U-Net mask head": {"mask_head": "unet"},
}


class Settings(NamedTuple):
    """What all runs share."""

    images: int = 6000
    val_images: int = 500
    batch_size: int = 8
    lr: float = 1e-3

    def config(self, seed: int) -> TrainConfig:
        """One pass over the images, none of which is seen twice; otherwise the recipe of SHAPES_V1."""
        return TrainConfig(
            epochs=1,
            batch_size=self.batch_size,
            optimizer="adamw",
            lr=self.lr,
            schedule="cosine",
            warmup=100,
            max_grad_norm=5.0,
            ema_decay=0.99,
            seed=seed,
            workers=0,
            save_every=200,
        )


def draw_data(folder: Path, settings: Settings) -> None:
    """Draw the images of all runs, once."""
    numbers = (settings.images, settings.val_images)
    for out, number, seed in zip(find_data(folder, settings), numbers, (1, 2), strict=True):
        if not (out / "annotations.json").exists():
            save_synthetic(synthetic_dataset(number, seed, SIZE), out, progress=True, force=True)


def find_data(folder: Path, settings: Settings) -> tuple[Path, Path]:
    """The folders to train on and to evaluate on."""
    return folder / f"train-{settings.images}", folder / f"val-{settings.val_images}"


def build_model(name: str, seed: int) -> detection.MaskRCNN:
    """The slim model with a variant's options and random weights, those of the baseline where they have its names."""
    torch.manual_seed(seed)
    baseline = detection.maskrcnn_slim_fpn(num_classes=4, min_size=SIZE[0], max_size=SIZE[0])
    state = baseline.state_dict()
    model = detection.maskrcnn_slim_fpn(num_classes=4, min_size=SIZE[0], max_size=SIZE[0], **VARIANTS[name])
    own = model.state_dict()
    same = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    model.load_state_dict({**own, **same})
    return model


def name_run(name: str, seed: int) -> str:
    """Name a run's files."""
    return f"{''.join(c if c.isalnum() else '-' for c in name.lower())}-{seed}"


def run(folder: Path, name: str, seed: int, settings: Settings) -> dict[str, Any]:
    """Train and evaluate a variant, or read what is there."""
    file = folder / "runs" / f"{name_run(name, seed)}.json"
    if file.exists():
        result: dict[str, Any] = json.loads(file.read_text())
        if result["settings"] != settings._asdict():
            raise ValueError(f"FOLDER must have runs of the same settings, got {result['settings']} in {file}")
        return result
    torch.set_num_threads(1)
    start = time.monotonic()
    model, out = build_model(name, seed), folder / "runs" / name_run(name, seed)
    train_data, val_data = map(read_dataset, find_data(folder, settings))
    trained = train(model, train_data, out, settings.config(seed), val=val_data, resume=True, progress=False)
    metrics = {kind: {"ap": each.ap, "ap50": each.ap50, "ap75": each.ap75} for kind, each in trained.metrics.items()}
    result = {
        "variant": name,
        "seed": seed,
        "settings": settings._asdict(),
        **metrics,
        "loss": trained.epochs[-1]["loss"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "minutes": (time.monotonic() - start) / 60,  # since it was last resumed
        **versions(),
    }
    write_text(file, json.dumps(result, indent=1))
    return result


def run_all(folder: Path, names: Iterable[str], seeds: Sequence[int], processes: int, settings: Settings) -> None:
    """All runs that are missing, several at once."""
    wanted = [(name, seed) for seed in seeds for name in names]
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
        futures = [pool.submit(run, folder, name, seed, settings) for name, seed in wanted]
        with tqdm(as_completed(futures), total=len(futures), unit="run") as bar:
            for future in bar:
                done = future.result()
                bar.set_postfix_str(f"{done['variant']}, seed {done['seed']}: mask AP {done['mask']['ap']:.3f}")


def time_variants(folder: Path, names: Sequence[str], seed: int, settings: Settings) -> dict[str, float]:
    """Milliseconds of an image in a Predictor: medians over rounds in which each variant runs in turn."""
    images = [record.load() for record in read_dataset(find_data(folder, settings)[1]).records[:TIMED]]
    predictors = {}
    for name in names:
        weights = Checkpoint(folder / "runs" / name_run(name, seed) / "best.pth")
        model = build_model(name, seed)
        model.load_state_dict(weights.get_state_dict())
        predictors[name] = Predictor(model.eval(), SIZE, dtype=torch.float32)
        predictors[name](images)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in tqdm(range(ROUNDS), unit="round"):
        for name, predictor in predictors.items():
            start = time.perf_counter()
            predictor(images)
            times[name].append(1e3 * (time.perf_counter() - start) / TIMED)
    return {name: statistics.median(values) for name, values in times.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fastmask.benchmarks.study", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("study"), help="of images and runs [%(default)s]")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="[1 2 3]")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="runs at once [one a core]")
    parser.add_argument("--images", type=int, default=Settings().images, help="to train on [%(default)s]")
    parser.add_argument("--val-images", type=int, default=Settings().val_images, help="[%(default)s]")
    parser.add_argument("--save", action="store_true", help=f"time, and write {RESULTS.name}, the plot and README.md")
    args = parser.parse_args(argv)
    settings = Settings(args.images, args.val_images)
    if args.save and len(set(args.seeds)) < 2:
        parser.error(f"--seeds must be two or more to be saved, got {args.seeds[0]}")
    try:
        draw_data(args.folder, settings)
        run_all(args.folder, args.only, args.seeds, args.processes, settings)
    except (OSError, ValueError) as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    if args.save:
        runs = [run(args.folder, name, seed, settings) for name in args.only for seed in args.seeds]
        milliseconds = time_variants(args.folder, args.only, args.seeds[0], settings)
        results: dict[str, Any] = {"machine": name_of(torch.device("cpu")), "settings": settings._asdict()}
        results |= {"milliseconds": milliseconds, "timed_at": versions(), "runs": runs}
        write_text(RESULTS, json.dumps(results, indent=1) + "\n")
        save_plot(results, RESULTS.with_suffix(".png"))
        write_readme(results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
