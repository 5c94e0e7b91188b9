"""export/README.md's example as printed: on an exported file and an image, without PyTorch and fastmask."""

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.pages import find_example
from PIL import Image

from fastmask.cli import main
from fastmask.demo import CLASSES
from fastmask.export import OnnxSession

EXAMPLE = find_example("export/README.md", "onnxruntime")
IN_OPENVINO = find_example("export/README.md", "openvino")
MODEL = ["--model", "maskrcnn_slim_fpn", "--weights", "SHAPES_V1"]
SIZE = ["--size", "192", "224"]
HIDDEN = (
    "import sys\nfor name in ('torch', 'fastmask', 'onnx', 'onnxscript', 'pycocotools'): sys.modules[name] = None\n"
)


def check(folder: Path, done: "subprocess.CompletedProcess[str]") -> None:
    """What ``fastmask predict`` finds for certain, the example finds in the same place."""
    assert done.returncode == 0, done.stderr
    assert (
        main(["predict", str(folder / "photo.jpg"), *MODEL, *SIZE, "--device", "cpu", "--out", str(folder / "out")])
        == 0
    )
    certain = [
        result for result in json.loads((folder / "out" / "predictions.json").read_text()) if result["score"] > 0.9
    ]
    lines = [re.fullmatch(r"(\w+) ([0-9.]+) \((\d+), (\d+), (\d+), (\d+)\)", line) for line in done.stdout.splitlines()]
    found = [(line[1], float(line[2]), *(int(line[i]) for i in (3, 4, 5, 6))) for line in lines if line is not None]
    assert len(found) == len(lines) >= len(certain) >= 2
    for entry in certain:
        x, y, width, height = entry["bbox"]
        place = pytest.approx([x, y, x + width, y + height], abs=2)
        own = [score for name, score, *box in found if name == CLASSES[entry["category_id"] - 1] and box == place]
        assert any(score == pytest.approx(entry["score"], abs=0.05) for score in own)
    before, after = (np.array(Image.open(folder / name)).astype(int) for name in ("photo.jpg", "found.png"))
    painted = (after != before).any(2)
    assert 0.02 < painted.mean() < 0.6
    assert (after[painted][:, 0] == 255).all()


def test_example_runs_as_printed(exportable: Path) -> None:
    command = [sys.executable, "-c", HIDDEN + EXAMPLE]
    check(exportable, subprocess.run(command, cwd=exportable, capture_output=True, text=True, timeout=300, check=False))


def test_example_of_openvino_runs_as_printed(exportable: Path) -> None:
    """With the arrays of ONNX Runtime; in bfloat16, its default on some processors, they would not be those."""
    pytest.importorskip("openvino", reason="it runs the file")
    session = OnnxSession(exportable / "model.onnx", "cpu")
    image = torch.from_numpy(np.array(Image.open(exportable / "photo.jpg"))).permute(2, 0, 1)
    inputs = dict(zip(("images", "sizes"), session.preprocess([image]), strict=True))
    np.savez(exportable / "inputs.npz", **inputs)
    outputs = "\nnp.savez('outputs.npz', boxes=boxes, scores=scores, masks=masks, count=count)"
    outputs += "\nassert metadata['categories'][1] == 'ellipse'"
    command = [sys.executable, "-c", HIDDEN + IN_OPENVINO + outputs]
    subprocess.run(command, cwd=exportable, capture_output=True, timeout=300, check=True)
    found, expected = np.load(exportable / "outputs.npz"), session(**inputs)
    assert expected["count"][0] > 0
    for name in found.files:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=0.01)


@pytest.mark.slow
def test_in_an_environment_of_its_own(exportable: Path, tmp_path: Path) -> None:
    """With what the page says is enough, and nothing else."""
    venv.create(tmp_path / "new", with_pip=True)
    python = str(tmp_path / "new" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "onnxruntime", "numpy", "pillow"], check=True, timeout=600)
    command = [python, "-c", EXAMPLE]
    check(exportable, subprocess.run(command, cwd=exportable, capture_output=True, text=True, timeout=300, check=False))
