"""The printed worker of Ray Data: the batches that it is given, and Ray itself on two cores."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.images import draw_image_file
from helpers.pages import find_example
from PIL import Image

from fastmask import Predictor
from fastmask.inference import to_coco_results

PAGE = "fastmask/inference/README.md"
HEAD = "import ray\n\nray.init(num_cpus=2, include_dashboard=False)\n"
FROM_PATHS = 'ray.data.from_items([{"image": path, "path": path} for path in paths])'
FROM_ARRAYS = 'ray.data.read_images("photos", mode="RGB", include_paths=True)'
DYING = """

import os
import signal
from pathlib import Path

HERE = Path(__file__).parent


class Worker(Worker):  # the first one is killed at its second batch
    batches = 0

    def __call__(self, batch):
        self.batches += 1
        if self.batches == 2 and not (HERE / "died.txt").exists():
            (HERE / "died.txt").write_text("\\n".join(batch["path"]))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)
"""


def find_photos() -> list[Path]:
    """The balloon photos, of both splits."""
    folder = os.environ.get("FASTMASK_BALLOON")
    if folder is None:
        pytest.skip("FASTMASK_BALLOON must be the folder of the balloon photos")
    return sorted(Path(folder).glob("*/*.jpg"), key=lambda photo: photo.name)


@pytest.fixture(scope="module")
def worker() -> Any:
    names: dict[str, Any] = {"__name__": "worker"}
    exec(compile(find_example(PAGE, "class Worker"), PAGE, "exec"), names)
    return names["Worker"]()


def predict(predictor: Predictor, paths: list[str], images: list[Any]) -> dict[str, list[dict[str, Any]]]:
    """COCO's results by file, of images in one process."""
    found = dict(zip(paths, predictor(images), strict=True))
    return {
        path: [{**result, "file_name": path} for result in to_coco_results(0, prediction)]
        for path, prediction in found.items()
    }


def test_worker_takes_batches_of_every_form(worker: Any, tmp_path: Path) -> None:
    """As Ray Data hands them: one array, an array of arrays, an array of paths; broken images have errors."""
    worker.predictor = Predictor.from_pretrained("maskrcnn_slim_fpn", "SHAPES_V1", score=0.0)
    sizes = [(96, 128), (96, 128), (120, 90)]
    files = [draw_image_file(tmp_path / f"{i}.png", *size) for i, size in enumerate(sizes)]
    images = [np.array(Image.open(file).convert("RGB")) for file in files]
    mixed, paths = np.empty(3, object), np.array([*map(str, files), str(tmp_path / "none.png")], object)
    mixed[:] = images
    expected = [*predict(worker.predictor, [*map(str, files)], images).values()]
    assert all(expected)
    for batch in (np.stack(images[:2]), mixed, np.stack(images[:1]), paths[:3]):
        found = worker({"image": batch, "path": paths[: len(batch)]})
        assert [json.loads(results) for results in found["results"]] == expected[: len(batch)]
        assert [*found["path"]] == [*paths[: len(batch)]]
        assert found["error"] == [""] * len(batch)
    broken = worker({"image": paths, "path": paths})
    assert [json.loads(results) for results in broken["results"]] == [*expected, []]
    assert broken["error"][:3] == ["", "", ""]
    assert "none.png" in broken["error"][3]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["as printed", "killed", "arrays"])
def test_ray_gives_the_detections_of_one_process(variant: str, tmp_path: Path) -> None:
    """All photos once, whatever happens to a worker; a broken one is named, where the worker reads it."""
    pytest.importorskip("ray.data", reason="pip install 'ray[data]'")
    photos = find_photos()
    (tmp_path / "photos").mkdir()
    for photo in photos:
        (tmp_path / "photos" / photo.name).symlink_to(photo)
    torn = tmp_path / "photos" / "torn.jpg"
    script = HEAD + find_example(PAGE, "import ray")
    if variant == "arrays":
        assert FROM_PATHS in script
        script = script.replace(FROM_PATHS, FROM_ARRAYS)
    else:
        torn.write_bytes(photos[0].read_bytes()[:2000])
    script += '\nPath("rows.json").write_text(json.dumps(rows))\n'
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "worker.py").write_text(find_example(PAGE, "class Worker") + DYING * (variant == "killed"))
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums in the same order, hence equal
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    rows = {str(tmp_path / row["path"]): row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert sorted(rows) == sorted(map(str, (tmp_path / "photos").iterdir()))
    if variant == "killed":
        assert set((tmp_path / "died.txt").read_text().split("\n")) < rows.keys()
    if variant != "arrays":
        assert torn.name in rows.pop(str(torn))["error"]
    assert {row["error"] for row in rows.values()} == {""}
    images = [np.array(Image.open(photo).convert("RGB")) if variant == "arrays" else photo for photo in photos]
    rows = dict(sorted(rows.items()))  # as photos are
    predictor = Predictor.from_pretrained("maskrcnn_slim_fpn", "SHAPES_V1")
    expected = predict(predictor, [row["path"] for row in rows.values()], images)
    assert {row["path"]: json.loads(row["results"]) for row in rows.values()} == expected
    number = sum(map(len, expected.values()))
    assert number > len(photos)
    assert f"{number} detections, {variant != 'arrays':d} broken images" in done.stdout
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == number
