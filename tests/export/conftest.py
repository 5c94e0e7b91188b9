"""An exported file that several tests read."""

from pathlib import Path

import pytest

from fastmask.cli import main
from fastmask.demo import Scenes


@pytest.fixture(scope="session")
def exportable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model.onnx, of raw images [1, 192, 224, 3], and photo.jpg, a drawn one."""
    folder = tmp_path_factory.mktemp("exported")
    model = ["--model", "maskrcnn_slim_fpn", "--weights", "SHAPES_V1", "--size", "192", "224"]
    assert main(["export", str(folder / "model.onnx"), *model, "--raw"]) == 0
    Scenes(5, 3)[4].load().resize((300, 300)).save(folder / "photo.jpg", quality=95)
    return folder
