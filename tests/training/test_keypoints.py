"""Training on keypoints: what is reported, what the best epoch is, and what fits neither."""

import json
from pathlib import Path

import numpy as np
import pytest

from fastmask import Predictor
from fastmask.cli import main
from fastmask.data import write_dataset
from fastmask.demo import save_synthetic, synthetic_dataset
from fastmask.evaluation import KeypointMetrics, Metrics
from fastmask.models import Checkpoint, detection
from fastmask.models._metadata import parse_skeletons, plain_skeletons
from fastmask.skeletons import PERSON, Skeleton
from fastmask.training import TrainConfig, train
from fastmask.training.history import read_metrics, score_epoch

pytest.importorskip("pycocotools.cocoeval", reason="it computes the metrics")
MODEL = ["--model", "keypointrcnn_slim_fpn", "--weights", "none", "--device", "cpu", "--workers", "0"]
SMALL = ["--epochs", "1", "--min-size", "96", "--batch-size", "2"]


def test_from_figures_to_skeletons(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Keypoint AP stands beside the box AP, and chooses; ``predict`` writes keypoints, whose AP is the same."""
    for part, number in (("train", 4), ("val", 3)):
        save_synthetic(synthetic_dataset(number, seed + number, (96, 96), "figures"), tmp_path / "set" / part)
    dataset = synthetic_dataset(4, seed + 4, (96, 96), "figures")
    bare = [each._replace(keypoints=None) for each in dataset.records[0].instances]
    records = [*list(dataset.records)[1:], dataset.records[0]._replace(instances=tuple(bare))]
    named = [
        record._replace(file=tmp_path / "set" / "train" / "images" / record.file, image=None) for record in records
    ]
    write_dataset(dataset._replace(records=named), tmp_path / "set" / "train" / "annotations.json", "coco", force=True)
    options = ["--data-path", str(tmp_path / "set"), "--out", str(tmp_path / "out"), *MODEL, *SMALL]
    assert main(["train", *options]) == 0
    printed = capsys.readouterr()
    assert f"{len(bare)} keypoints (of objects without any), 1 images of fewer than 1 keypoints" in printed.err
    assert "3 images, 1 class," in printed.out
    assert ", box AP 0." in printed.out
    assert ", keypoints AP 0." in printed.out
    (epoch,) = json.loads((tmp_path / "out" / "epochs.json").read_text())
    assert (len(epoch["box"]), len(epoch["keypoints"])) == (12, 10)
    assert (tmp_path / "out" / "kpt_results.txt").exists()
    weights = ["--weights", str(tmp_path / "out" / "best.pth"), "--device", "cpu"]
    where = tmp_path / "predictions"
    images = ["predict", str(tmp_path / "set" / "val" / "images"), "--score", "0", "--quiet"]
    assert main([*images, *weights, "--classes", "person", "--out", str(where)]) == 0
    assert Checkpoint(tmp_path / "out" / "best.pth").meta["skeletons"] == {"person": PERSON}
    predictor = Predictor.from_pretrained(tmp_path / "out" / "best.pth", device="cpu")
    assert predictor.skeletons == {"person": PERSON}
    results = json.loads((where / "predictions.json").read_text())
    assert results
    assert all(len(result["keypoints"]) == 51 for result in results)
    assert len(list(where.glob("*.predicted.png"))) == 3
    files = ["--results", str(where / "predictions.json"), "--out", str(tmp_path / "evaluation")]
    assert main(["evaluate", str(tmp_path / "set" / "val"), *files]) == 0
    metrics = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["metrics"]
    assert set(metrics) == {"box", "keypoints"}


def test_the_best_epoch_is_that_of_keypoints() -> None:
    entry = {"loss": 3.0, "box": [0.9] * 12, "mask": [0.8] * 12, "keypoints": [0.1] * 10}
    scores = []
    for kind in ("keypoints", "mask", "box", "loss"):
        scores.append(score_epoch(entry))
        entry.pop(kind)
        entry.setdefault("loss", 3.0)
    np.testing.assert_array_equal(scores, [0.1, 0.8, 0.9, -3.0])
    metrics = read_metrics({"box": [0.9] * 12, "keypoints": [0.1] * 10})
    assert metrics == {"box": Metrics(*[0.9] * 12), "keypoints": KeypointMetrics(*[0.1] * 10)}


def test_data_that_do_not_fit(tmp_path: Path, seed: int) -> None:
    """Another number of keypoints, or none: an error before anything is trained."""
    figures = synthetic_dataset(2, seed, (96, 96), "figures")
    config = TrainConfig(1, workers=0)
    model = detection.keypointrcnn_slim_fpn(num_classes=6, num_keypoints=3)
    with pytest.raises(ValueError, match="model must have the 17 keypoints of person, got 3"):
        train(model, figures, tmp_path / "a", config)
    with pytest.raises(ValueError, match="dataset must have keypoints to train a keypoint branch, got none in any"):
        train("keypointrcnn_slim_fpn", synthetic_dataset(2, seed), tmp_path / "b", config, weights="none")
    two = figures._replace(skeletons={"person": figures.skeletons["person"], "cat": Skeleton(4)})
    with pytest.raises(ValueError, match="one number of keypoints in all categories, got person 17, cat 4"):
        train("keypointrcnn_slim_fpn", two, tmp_path / "c", config, weights="none")
    with pytest.raises(ValueError, match="min_keypoints must be at least 0, got -1"):
        TrainConfig(1, min_keypoints=-1)


def test_skeletons_of_checkpoints() -> None:
    """They come back as they were; those of another form are left out."""
    three = Skeleton(3, ("a", "left_b", "right_b"), ((0, 1), (0, 2)))
    plain = json.loads(json.dumps(plain_skeletons({"cat": three, "dog": Skeleton(4)})))
    assert parse_skeletons(plain) == {"cat": three, "dog": Skeleton(4)}
    wrong = [None, [], {"number": 2}, plain["cat"] | {"limbs": [[0, 3]]}, plain["cat"] | {"names": ["a"]}]
    assert parse_skeletons({str(i): each for i, each in enumerate(wrong)}) == {}
    assert parse_skeletons(wrong) == {}
