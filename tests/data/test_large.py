"""An 8K image with 500 instances, and one of a single pixel: validated, converted, drawn, loaded, evaluated."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.reference_cocoeval import run_cocoeval
from PIL import Image

from fastmask.cli import main
from fastmask.data import Dataset, Instance, Record, read_dataset, write_dataset
from fastmask.data.augment import Augmentation
from fastmask.data.loading import training_loader
from fastmask.data.records import ellipse_to_polygon
from fastmask.evaluation import evaluate_results

HEIGHT, WIDTH = 4320, 7680


@pytest.fixture
def large(tmp_path: Path) -> Dataset:
    noise = Image.fromarray(np.random.randint(0, 255, (90, 160, 3), dtype=np.uint8))
    noise.resize((WIDTH, HEIGHT)).save(tmp_path / "large.jpg", quality=60)
    Image.new("RGB", (1, 1)).save(tmp_path / "pixel.png")
    centers = np.random.uniform(0, 1, (500, 2)) * [WIDTH, HEIGHT]
    polygons = [ellipse_to_polygon(x, y, *np.random.uniform(3, 200, 2)).clip(0, [WIDTH, HEIGHT]) for x, y in centers]
    instances = [Instance(["one", "two"][i % 2], (polygon,)) for i, polygon in enumerate(polygons)]
    dot = Instance("one", (np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]),))
    records = [
        Record(tmp_path / "large.jpg", (HEIGHT, WIDTH), tuple(instances), 1),
        Record(tmp_path / "pixel.png", (1, 1), (dot,), 2),
    ]
    return Dataset(records, {"one": 1, "two": 2}, [])


def test_from_end_to_end(large: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(large, tmp_path / "coco.json", "coco")
    assert main(["data", "check", str(tmp_path / "coco.json"), "--contact-sheet", str(tmp_path / "sheet.png")]) == 0
    assert "2 images (0 without objects), 501 objects" in capsys.readouterr().out
    for name, to in (("via.json", "via"), ("labels", "labelme")):
        assert main(["data", "convert", str(tmp_path / "coco.json"), str(tmp_path / name), "--to", to]) == 0
        assert sum(len(record.instances) for record in read_dataset(tmp_path / name).records) == 501
    (batch,) = training_loader(large, 2, Augmentation(min_size=(200,), max_size=400, flip=0.0))
    assert sorted(batch.targets.count.tolist())[0] == 1
    assert batch.targets.count.max() > 300  # others are smaller than a pixel
    assert batch.problems == ()
    results = []
    for record in large.records[:2]:
        for i, instance in enumerate(record.instances[::20]):
            x1, y1, x2, y2 = instance.bounds()
            result = {"image_id": record.id, "category_id": large.categories[instance.category], "score": 1 - i / 1000}
            rle = instance.to_rle(*record.size)
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            results.append(result | {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": segmentation})
    evaluation = evaluate_results(results, read_dataset(tmp_path / "coco.json"), progress=False)
    annotations = json.loads((tmp_path / "coco.json").read_text())
    for kind, name in (("box", "bbox"), ("mask", "segm")):
        stats = run_cocoeval(annotations, results, name).stats
        np.testing.assert_allclose(evaluation.metrics[kind], stats, rtol=0, atol=1e-9)
