"""Mutate good files of a format and read them, in a process of its own: ``fuzz_readers.py FORMAT NUMBER SEED FOLDER``.

Any exception but ValueError and OSError, more than two seconds of CPU, or more than 1 GB of memory ends it with a
traceback.
"""

import base64
import copy
import io
import json
import random
import re
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastmask import data
from fastmask.cocoapi import mask as coco_mask
from fastmask.data.coco import compute_area
from fastmask.data.validate import validate_dataset

SECONDS, GIGABYTE = 2.0, 2**30
HEIGHT, WIDTH = 40, 50


DEEP = ("deep", "deeper", "deepest")  # stand for lists in lists, of so many levels:
LEVELS = (30, 900, 10**5)
STRANGE: list[Any] = [
    None,
    True,
    False,
    "",
    " ",
    "abc",
    "7",
    "\ud800",
    "\0",
    "../../etc/passwd",
    "C:\\x\\a.png",
    "/a.png",
]
STRANGE += [0, -1, 1, 2, 0.5, -0.0, 255, 65536, 10**5, 2**18, 2**31, 2**32, 2**63, 10**30, -(10**30), 1e300, -1e300]
STRANGE += [float("nan"), float("inf"), [], {}, [[]], [None], [{}], {"a": None}, "9" * 9999, *DEEP, [10**6, 10**6]]
STRANGE += [list(range(2000)), [0, 1e5] * 3000, [[0, 0], [1e5, 1e5], [0, 1e5]] * 500, {"size": [9, 9]}]


LIST = "ImageSets/Segmentation/train.txt"
TEXTS = {  # good files of class names
    "labels.txt": ["cat\ndog\n", "__ignore__\n_background_\ncat\ndog\n"],
    "class_names.txt": ["_background_\ncat\ndog\nbird\n"],
    "labelmap.txt": [
        "#\nbackground:0,0,0::\ncat:1,1,1::\ndog:2,2,2:a,b:c\nbird:3,3,3::\n",
        "background\ncat\ndog\nbird\n",
    ],
}


def mutate(content: Any, random_: random.Random) -> Any:
    """One value of the content is replaced, swapped, wrapped, unwrapped, repeated or removed."""
    parent, key = None, None
    value = content
    while isinstance(value, dict | list) and value and (parent is None or random_.random() < 0.8):
        parent, key = value, random_.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value = value[key]
    if parent is None:
        return random_.choice(STRANGE)
    kind = random_.randrange(7)
    if kind == 0:
        del parent[key]
    elif kind == 1:
        parent[key] = [value]
    elif kind == 2:
        parent[key] = {"a": value} if not isinstance(value, list) else {str(i): item for i, item in enumerate(value)}
    elif kind == 3 and isinstance(parent, list):
        parent += [copy.deepcopy(value)] * random_.choice([1, 50])
    elif kind == 4:
        parent[key] = value[0] if isinstance(value, list) and value else str(value)
    elif kind == 5 and isinstance(value, int | float):
        parent[key] = value * random_.choice([-1, 1e3, 1e6, 10**20])
    else:
        parent[key] = copy.deepcopy(random_.choice(STRANGE))
    return content


def make_dataset(folder: Path) -> data.Dataset:
    """Two images; objects of polygons, RLE, a box and a crowd."""
    generator = np.random.default_rng(0)
    records = []
    for name in ("a", "b"):
        pixels = generator.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        mask[3:20, 30:40] = 1
        square = np.array([[2, 2], [12, 2], [12, 12], [2, 12]], float)
        objects = [data.Instance("cat", (square, square + 13)), data.Instance("dog", rle=coco_mask.encode(mask))]
        records.append(data.Record(folder / f"{name}.png", (HEIGHT, WIDTH), tuple(objects), len(records) + 1))
    more = (data.Instance("cat", box=(1, 30, 9, 38)), data.Instance("dog", (square,), crowd=True))
    records[1] = records[1]._replace(instances=records[1].instances + more)
    return data.Dataset(records, {"cat": 1, "dog": 2}, [])


def make_contents(format: str, folder: Path) -> list[Any]:
    """Good contents of a JSON format's files."""
    dataset = make_dataset(folder)
    path = folder / ("good" if format == "labelme" else "good.json")
    data.write_dataset(dataset, path, format)
    contents = [json.loads(file.read_text()) for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    if format == "coco":
        runs = {"size": [HEIGHT, WIDTH], "counts": [41, 8, 1951]}
        points = [9, 9, 2, 4.5, 30, 1, 0, 0, 0]
        contents[0]["annotations"] += [
            {"id": 99, "image_id": 1, "category_id": 1, "segmentation": runs, "iscrowd": 0},
            {"id": 98, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9], "keypoints": points, "num_keypoints": 2},
        ]
        contents[0]["categories"][0] |= {"keypoints": ["tail", "left_ear", "right_ear"], "skeleton": [[1, 2], [1, 3]]}
    if format == "via":
        shapes: list[Any] = [{"name": "rect", "x": 3, "y": 4, "width": 10, "height": 5}]
        shapes += [{"name": "circle", "cx": 30, "cy": 20, "r": 9.5}]
        shapes += [{"name": "ellipse", "cx": 30, "cy": 20, "rx": 12, "ry": 4, "theta": 1}]
        for entry in contents[0].values():
            entry["regions"] += [
                {"shape_attributes": shape, "region_attributes": {"class": {"cat": 1}}} for shape in shapes
            ]
        contents.append({"_via_img_metadata": copy.deepcopy(contents[0])})
    if format == "labelme":
        shapes = [{"label": "cat", "shape_type": "circle", "points": [[9, 9], [12, 9]], "group_id": 1}]
        shapes += [{"label": "cat", "shape_type": "rectangle", "points": [[9, 9], [12, 19]], "group_id": 1}]
        file = io.BytesIO()
        Image.fromarray(np.ones((9, 5), bool)).save(file, format="PNG")
        mask_image = base64.b64encode(file.getvalue()).decode()
        shapes += [
            {"label": "cat", "shape_type": "mask", "points": [[9, 9], [12, 9]], "mask": mask_image, "group_id": 1}
        ]
        contents[1]["shapes"] += shapes
        embedded = base64.b64encode((folder / "a.png").read_bytes()).decode()
        contents[0] |= {"imageData": embedded, "imagePath": "../gone/a.jpg"}
        contents.append(contents[1] | {"imageData": embedded})
    return contents


def write_json(contents: list[Any], folder: Path, random_: random.Random) -> Path:
    """A mutated file of JSON, sometimes cut or with a byte changed."""
    content = copy.deepcopy(random_.choice(contents))
    for _ in range(random_.randint(1, 3)):
        content = mutate(content, random_) if isinstance(content, dict | list) else content
    text = json.dumps(content)
    for word, levels in zip(DEEP, LEVELS, strict=True):
        text = text.replace(f'"{word}"', "[" * levels + "]" * levels)
    path = folder / "mutated.json"
    path.write_bytes(change_bytes(text.encode(), random_))
    return path


def make_numbers(random_: random.Random, generator: np.random.Generator, strange: bool) -> bytearray:
    """A file of an image of small numbers in blocks, or of numbers, types, modes and sizes that are strange."""
    highest, blocks, (height, width), kind, mode = 4, (4, 5), (HEIGHT, WIDTH), "uint8", ""
    if strange:
        highest = random_.choice([1, 2, 256, 60000, 2**31 - 1])
        height, width = random_.choice([(HEIGHT, WIDTH)] * 3 + [(1, 1), (120, 200), (WIDTH, HEIGHT), (3, 4000)])
        blocks = random_.choice([(1, 1), (4, 5), (height, width)])
        kind = random_.choice(["uint8", "uint8", "uint16", "int32", "float32", "bool"])
        mode = random_.choice(["", "", "", "RGB", "RGB", "RGBA", "P", "LA"])
    numbers = generator.integers(0, highest, blocks)
    numbers = np.kron(numbers, np.ones((-(-height // blocks[0]), -(-width // blocks[1])), np.int64))
    image = Image.fromarray(numbers[:height, :width].astype(kind))
    file = io.BytesIO()
    (image.convert(mode) if mode and kind in ("uint8", "bool") else image).save(
        file, "PNG" if kind == "uint8" else "TIFF"
    )
    return bytearray(file.getvalue())


def write_masks(folder: Path, random_: random.Random) -> Path:
    """A folder of mask images and their photo, each of which may be strange, cut or have other bytes."""
    generator = np.random.default_rng(random_.randrange(2**32))
    path = folder / "mutated"
    for name in ("SegmentationObject", "SegmentationClass", "JPEGImages"):
        (path / name).mkdir(parents=True, exist_ok=True)
        written = make_numbers(random_, generator, strange=random_.random() < 0.2)
        if random_.random() < 0.05:
            del written[random_.randrange(len(written)) :]
        elif random_.random() < 0.1:
            for _ in range(random_.randint(1, 8)):
                written[random_.randrange(len(written))] = random_.randrange(256)
        (path / name / "a.png").write_bytes(written)
    for name in (*TEXTS, LIST):
        (path / name).unlink(missing_ok=True)
    for name in random_.sample(list(TEXTS), 1 + (random_.random() < 0.05)):
        (path / name).write_bytes(mutate_text(random_.choice(TEXTS[name]), random_))
    if random_.random() < 0.2:
        (path / LIST).parent.mkdir(parents=True, exist_ok=True)
        (path / LIST).write_bytes(mutate_text('a\n"b"\n', random_))
    return path


def mutate_text(text: str, random_: random.Random) -> bytes:
    """A file of lines, sometimes with a line exchanged, repeated or removed, or cut or with bytes."""
    lines = text.splitlines()
    if random_.random() < 0.3:
        i = random_.randrange(len(lines))
        words = re.split("([:,])", lines[i])
        words[random_.randrange(len(words))] = str(random_.choice(STRANGE))[:1000]
        lines[i : i + 1] = random_.choice([["".join(words)], [lines[i]] * random_.choice([2, 300]), []])
    written = bytearray("\n".join(lines).encode("utf-8", "replace"))
    if random_.random() < 0.1:
        written = written[: random_.randrange(len(written) + 1)] + random_.randbytes(random_.randint(0, 4))
    return bytes(written)


LINES = ["0 0.1 0.1 0.5 0.1 0.5 0.5", "1 0.5 0.5 0.2 0.2", "0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9", "", "1 0 0 1 0 1 1 0 1"]
WORDS = ["nan", "inf", "-1", "1e9", "1.009", "2", "x", "0_1", "9" * 400, "\0", "\xff", "", "\n", "0.5 0.1 " * 3000]
NAMES = ["./train/a.png", "images/train/b.png", "C:\\x\\a.png", "/a.png", "../../../etc/passwd", "\0", "", "x" * 300]


def write_yolo(folder: Path, random_: random.Random) -> Path:
    """A data.yaml, a list of images, and labels, each of which may have values or bytes that are strange."""
    path = folder / "mutated"
    for name in ("images/train", "labels/train"):
        (path / name).mkdir(parents=True, exist_ok=True)
    for name in ("a", "b"):
        if not (path / "images" / "train" / f"{name}.png").exists():
            Image.new("RGB", (WIDTH, HEIGHT)).save(path / "images" / "train" / f"{name}.png")
        words = [line.split(" ") for line in random_.choices(LINES, k=random_.randint(0, 6))]
        for line in random_.sample(words, min(len(words), random_.randint(0, 2))):
            line[random_.randrange(len(line))] = random_.choice(WORDS)
        text = "\n".join(" ".join(line) for line in words)
        (path / "labels" / "train" / f"{name}.txt").write_bytes(change_bytes(text.encode("latin-1"), random_))
    listed = "\n".join(random_.choices(NAMES, k=random_.randint(0, 4)))
    (path / "images" / "val.txt").write_bytes(change_bytes(listed.encode(), random_))
    content: Any = {"path": ".", "train": "images/train", "val": ["images/val.txt", "../images/train"]}
    content |= {"nc": 2, "names": random_.choice([["cat", "dog"], {0: "cat", 1: "dog"}]), "kpt_shape": None}
    text = json.dumps(content)
    if random_.random() < 0.25:
        mutated = json.dumps(mutate(content, random_))
        text = mutated if len(mutated) < 10_000 or random_.random() < 0.1 else text  # PyYAML is slow
    for word, levels in zip(DEEP, LEVELS, strict=True):
        text = text.replace(f'"{word}"', "[" * levels + "]" * levels)
    text = re.sub('"([01])":', r"\1:", text)
    (path / "data.yaml").write_bytes(change_bytes(text.encode("utf-8", "surrogatepass"), random_))
    return path


def change_bytes(text: bytes, random_: random.Random) -> bytes:
    """The text, sometimes cut or with bytes changed."""
    written = bytearray(text)
    if written and random_.random() < 0.05:
        del written[random_.randrange(len(written)) :]
    elif written and random_.random() < 0.1:
        written[random_.randrange(len(written))] = random_.randrange(256)
    return bytes(written)


def use(dataset: data.Dataset, folder: Path, number: int) -> None:
    """What commands do with a data set."""
    " ".join([*dataset.notes, *dataset.categories]).encode()  # as standard output does
    for record in data.add_sizes(dataset).records:
        for instance in record.instances:
            instance.bounds()
            compute_area(instance)
            instance.to_rle(HEIGHT, WIDTH)
            instance.count_keypoints()
    if number % 4 == 0:
        data.masks_to_polygons(dataset, random.Random(number).choice([0.0, 2.0]))
    if number % 8 == 0:
        validate_dataset(dataset)
        format = data.FORMATS[number // 8 % 5]
        data.write_dataset(
            dataset, folder / f"out-{format}{'.json' if format in ('coco', 'via') else ''}", format, force=True
        )


def main(format: str, number: int, seed: int, folder: Path) -> None:
    def stop(*_: Any) -> None:
        raise RuntimeError(f"more than {SECONDS} seconds of CPU")

    contents = [] if format in ("masks", "yolo") else make_contents(format, folder)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTE, used + GIGABYTE))
    signal.signal(signal.SIGPROF, stop)
    read = 0
    for i in range(number):
        random_ = random.Random(f"{seed} {i}")
        writer = {"masks": write_masks, "yolo": write_yolo}.get(format)
        path = writer(folder, random_) if writer is not None else write_json(contents, folder, random_)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            dataset = data.read_dataset(path, split=random_.choice(["train", "val"]))
            read += any(record.instances for record in dataset.records)
            use(dataset, folder, i)
        except (ValueError, OSError):
            pass
        except BaseException:
            print(f"mutation {i} of seed {seed}: {path}", file=sys.stderr)
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    assert "torch" not in sys.modules
    assert read > number // 4, f"{read} of {number} have objects"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
