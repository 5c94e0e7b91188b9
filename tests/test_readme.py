"""README's examples run as printed, and its commands are those that .ci/run calls."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.images import draw_image
from helpers.prefill import prefill
from PIL import Image

from fastmask.benchmarks.report import SLOT, filled
from fastmask.cocoapi import mask as coco_mask

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
HERE = [i for i, one in enumerate(EXAMPLES) if "model.onnx" not in one and "model.pt2" not in one]  # not tests/export
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
MAIN_JOB = "fastmask demo"
PREDICT = "fastmask predict photo.jpg --weights COCO_V1"


@pytest.mark.parametrize("number", HERE)
def test_example_runs_as_printed(number: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[number]], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_there_are_examples_and_commands() -> None:
    assert EXAMPLES
    assert COMMANDS[:2] == [f"pip install . && {MAIN_JOB}", "pip install -e '.[test]' && pytest"]


def run(command: str, folder: Path, **variables: str) -> str:
    """What a command prints, in a folder, by a shell that finds this environment's programs."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path} | variables
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_main_job_runs_as_printed(tmp_path: Path) -> None:
    """It reaches what README says that the weights do."""
    said = run(MAIN_JOB, tmp_path, CUDA_VISIBLE_DEVICES="")
    told = json.loads((tmp_path / "demo.json").read_text())
    mask = told["metrics"]["mask"]
    assert told["images"] == 200
    assert mask["ap"] >= 0.80
    assert mask["ap50"] >= 0.95
    assert f"{mask['ap']:.3f}  {mask['ap50']:.3f}" in said
    assert Image.open(tmp_path / "demo.png").width > 1500


def test_predict_runs_as_printed(tmp_path: Path) -> None:
    """With the weights in torch.hub's cache, as nothing can be downloaded here."""
    assert PREDICT in COMMANDS
    prefill(tmp_path, draw_image(480, 640)[0])
    said = run(PREDICT, tmp_path, TORCH_HOME=str(tmp_path))
    drawn, photo = (np.array(Image.open(tmp_path / name)) for name in ("predictions/photo.predicted.png", "photo.jpg"))
    assert drawn.shape == photo.shape
    assert not np.array_equal(drawn, photo)
    results = json.loads((tmp_path / "predictions" / "predictions.json").read_text())
    assert f"{len(results)} detections in 1 image" in said
    assert results
    assert coco_mask.decode([entry["segmentation"] for entry in results]).shape == (480, 640, len(results))


def test_training_runs_as_printed(tmp_path: Path) -> None:
    """On synthetic images, from nothing to weights."""
    commands = [command for command in COMMANDS if "shapes" in command]
    assert [command.split()[1] for command in commands] == ["data", "data", "train"]
    for command in commands:
        run(command, tmp_path)
    assert (tmp_path / "training" / "best.pth").exists()
    losses = [one["loss"] for one in json.loads((tmp_path / "training" / "epochs.json").read_text())]
    assert 0 < losses[0] < 4


def test_continuous_integration_calls_the_same_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    for command in (MAIN_JOB, COMMANDS[1]):
        assert command in script


def test_images_are_there() -> None:
    links = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert links
    for link in links:
        Image.open(ROOT / link).verify()


def test_tables_are_the_reports() -> None:
    """Numbers in README come from committed results, and from nowhere else."""
    assert SLOT.search(README)
    assert filled(ROOT / "README.md") == README
