"""Models learn synthetic images from scratch, and overfit a few photos."""

import json
import os
import time
from pathlib import Path

import pytest

from fastmask.cli import main
from fastmask.data import read_dataset, write_dataset
from fastmask.demo import save_synthetic, synthetic_dataset

SHAPES = ["--model", "maskrcnn_slim_fpn", "--weights", "none", "--device", "cpu", "--batch-size", "8"]
SHAPES += ["--optimizer", "adamw", "--lr", "1e-3", "--schedule", "cosine", "--warmup", "50", "--max-grad-norm", "5"]
IMAGES_A_MINUTE = 1350  # on two cores, nothing else running


def metrics_of(folder: Path) -> dict[str, list[float]]:
    return json.loads((folder / "epochs.json").read_text())[-1]


def learn_shapes(folder: Path, minutes: float, seed: int, validation: int) -> tuple[list[float], float]:
    """Synthetic images of 192 pixels, each seen once -> COCO's metrics of masks, and minutes without evaluation."""
    save_synthetic(synthetic_dataset(round(minutes * IMAGES_A_MINUTE), seed), folder / "set" / "train")
    save_synthetic(synthetic_dataset(validation, seed + 1), folder / "set" / "val")
    start = time.perf_counter()
    options = ["--data-path", str(folder / "set"), "--out", str(folder / "out"), "--epochs", "1", "--seed", str(seed)]
    assert main(["train", *options, *SHAPES, "--ema-decay", "0.99"]) == 0
    return metrics_of(folder / "out")["mask"], (time.perf_counter() - start) / 60


@pytest.mark.slow
@pytest.mark.parametrize(("minutes", "least"), [(1.0, 0.12), (6.0, 0.6)], ids=["a minute", "six minutes"])
def test_shapes_from_scratch(minutes: float, least: float, tmp_path: Path, seed: int) -> None:
    metrics, took = learn_shapes(tmp_path, minutes, seed, 100)
    print(f"\nmask AP {metrics[0]:.3f}, AP50 {metrics[1]:.3f} after {took:.1f} minutes, evaluation included")
    assert metrics[0] >= least


@pytest.mark.slow
def test_keypoints_of_stick_figures_from_scratch(tmp_path: Path, seed: int) -> None:
    """5,000 images, each seen once; then ``predict`` draws skeletons, and its results have the same precision."""
    for part, number, own in (("train", 5000, seed), ("val", 60, seed + 1)):
        save_synthetic(synthetic_dataset(number, own, scene="figures"), tmp_path / "set" / part)
    options = ["--data-path", str(tmp_path / "set"), "--out", str(tmp_path / "out"), "--epochs", "1"]
    options += ["--seed", str(seed), *SHAPES, "--model", "keypointrcnn_slim_fpn", "--ema-decay", "0.99"]
    assert main(["train", *options]) == 0
    metrics = metrics_of(tmp_path / "out")
    print(f"\nkeypoint AP {metrics['keypoints'][0]:.3f}, box AP {metrics['box'][0]:.3f}")
    assert metrics["keypoints"][0] >= 0.5
    weights = ["--weights", str(tmp_path / "out" / "best.pth"), "--device", "cpu"]
    folder = tmp_path / "predictions"
    images = ["predict", str(tmp_path / "set" / "val" / "images"), *weights, "--score", "0.05"]
    assert main([*images, "--out", str(folder)]) == 0
    results = ["--results", str(folder / "predictions.json"), "--out", str(tmp_path / "evaluation")]
    assert main(["evaluate", str(tmp_path / "set" / "val"), *results]) == 0
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["metrics"]["keypoints"]["ap"]
    assert found == pytest.approx(metrics["keypoints"][0], abs=0.02)  # a category's id, and a batch's padding


@pytest.mark.slow
@pytest.mark.skipif("FASTMASK_BALLOON" not in os.environ, reason="the photos are not part of the repository")
def test_four_photos_are_overfit(tmp_path: Path, seed: int) -> None:
    balloons = read_dataset(Path(os.environ["FASTMASK_BALLOON"]) / "train")
    four = balloons._replace(records=list(balloons.records)[:4])
    write_dataset(four, tmp_path / "four.json", "coco")
    options = ["--data-path", str(tmp_path / "four.json"), "--val", str(tmp_path / "four.json"), "--epochs", "150"]
    options += ["--model", "maskrcnn_slim_fpn", "--weights", "none", "--device", "cpu", "--batch-size", "4"]
    options += [
        "--optimizer",
        "adamw",
        "--lr",
        "1e-3",
        "--schedule",
        "cosine",
        "--max-grad-norm",
        "5",
        "--min-size",
        "256",
    ]
    assert main(["train", *options, "--flip", "0", "--seed", str(seed), "--out", str(tmp_path / "out")]) == 0
    metrics = metrics_of(tmp_path / "out")
    print(f"\nfour photos: box AP50 {metrics['box'][1]:.3f}, mask AP50 {metrics['mask'][1]:.3f}")
    assert metrics["mask"][1] >= 0.9
