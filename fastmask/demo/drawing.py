"""Images that the package draws itself: overlapping shapes, or grains in a matrix, on textured noise."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmask.checks import check_at_least, check_choice, check_pair
from fastmask.cocoapi import mask as coco
from fastmask.data.coco import write_coco
from fastmask.data.records import Dataset, LazyRecords, Object, Record
from fastmask.demo.shapes import CLASSES, REACH, Distance, draw_shape

Pixels = NDArray[np.float32]  # [h, w, 3] in [0, 1]

SCENES = ("shapes", "grains", "mixed")
LEAST = 24  # visible pixels of an object


class Scene(NamedTuple):
    """An image and what is on it."""

    image: NDArray[np.uint8]  # [h, w, 3]
    masks: NDArray[np.bool_]  # [n, h, w] what is seen of each object, to the pixel; they do not overlap
    labels: NDArray[np.int64]  # [n] from 1, of CLASSES


class _Look(NamedTuple):
    """What differs between scenes."""

    number: tuple[int, int]  # of objects
    radius: tuple[float, float]  # of the shorter side
    seen: float  # share of each object that stays visible
    kinds: tuple[str, ...]


LOOKS = {
    "shapes": _Look((2, 7), (0.09, 0.26), 0.5, CLASSES[:3]),
    "grains": _Look((10, 28), (0.05, 0.15), 0.75, CLASSES[3:]),
}
MINERALS = np.array(
    [[0.82, 0.80, 0.76], [0.78, 0.60, 0.52], [0.30, 0.36, 0.30], [0.42, 0.30, 0.22], [0.62, 0.62, 0.66]]
)


def draw_scene(generator: np.random.Generator, size: tuple[int, int], scene: str = "shapes") -> Scene:
    """One image.

    Args:
        generator: all that is drawn comes from it.
        size: (height, width) in pixels.
        scene: "shapes": 2 to 7 ellipses, triangles and quadrilaterals, which hide parts of one another; "grains": up
            to 28 mineral grains in a fine matrix; "mixed": either. Small images have room for fewer.

    Raises:
        ValueError: the scene is none of these, or a side is below 32.
    """
    check_choice("scene", scene, SCENES)
    height, width = check_pair("size", size, 32)
    if scene == "mixed":
        scene = ("shapes", "grains")[int(generator.integers(2))]
    look = LOOKS[scene]
    pixels = _ground(generator, (height, width), scene)
    masks: list[NDArray[np.bool_]] = []
    whole: list[int] = []  # pixels of each object in the image, hidden or not
    seen: list[int] = []
    labels = []
    wanted = int(generator.integers(look.number[0], look.number[1] + 1))
    for _ in range(6 * wanted):  # what does not fit is drawn again, elsewhere
        if len(masks) == wanted:
            break
        kind = str(generator.choice(look.kinds))
        radius = generator.uniform(*look.radius) * min(height, width)
        shape = draw_shape(generator, kind, radius)
        part, distance = _placed(shape, REACH * radius, generator.random(2), (height, width))
        inside = distance < 0
        size_now = int(inside.sum())
        left = [now - int((mask[part] & inside).sum()) for mask, now in zip(masks, seen, strict=True)]
        enough = all(now >= max(LEAST, look.seen * full) for now, full in zip(left, whole, strict=True))
        if not enough or size_now < LEAST or min(inside.any(0).sum(), inside.any(1).sum()) < 4:
            continue
        for mask in masks:
            mask[part] &= ~inside
        masks.append(np.zeros((height, width), bool))
        masks[-1][part] = inside
        whole.append(size_now)
        seen = [*left, size_now]
        labels.append(CLASSES.index(kind) + 1)
        _paint(pixels[part], distance, generator, scene)
    pixels += generator.normal(0, 0.02, pixels.shape).astype(np.float32)
    stacked = np.stack(masks) if masks else np.zeros((0, height, width), bool)
    return Scene((pixels.clip(0, 1) * 255).round().astype(np.uint8), stacked, np.array(labels, np.int64))


def _placed(
    shape: Distance, reach: float, place: NDArray[np.float64], size: tuple[int, int]
) -> tuple[tuple[slice, slice], NDArray[np.float32]]:
    """The part of an image around a shape at a place in [0, 1), and the distances of its pixels' middles."""
    axes, slices = [], []
    for centre, side in zip(place * size, size, strict=True):
        first, last = max(0, int(centre - reach) - 2), min(side, int(centre + reach) + 3)
        axes.append(np.arange(first, last, dtype=np.float32) + np.float32(0.5 - centre))
        slices.append(slice(first, last))
    y, x = axes
    return (slices[0], slices[1]), shape(x[None, :], y[:, None])


def _paint(pixels: Pixels, distance: NDArray[np.float32], generator: np.random.Generator, scene: str) -> None:
    """An object in place, its rim smooth; pixels whose middle is inside are mostly its own."""
    cover = (0.5 - distance).clip(0, 1)[:, :, None]
    pixels[...] = (1 - cover) * pixels + cover * _surface(generator, -distance, scene, pixels.mean((0, 1)))


def _ground(generator: np.random.Generator, size: tuple[int, int], scene: str) -> Pixels:
    """What objects lie on: two colors mixed by noise."""
    if scene == "grains":
        light, dark = np.array([[0.50, 0.44, 0.36], [0.24, 0.20, 0.17]]) * generator.uniform(0.8, 1.2)
        share = 0.4 * _noise(generator, size, 24) + 0.6 * _noise(generator, size, 2)
    else:
        light, dark = generator.uniform(0, 1, (2, 3))
        share = 0.6 * _noise(generator, size, max(8, min(size) // 4)) + 0.4 * _noise(generator, size, 5)
    pixels: Pixels = (dark + (light - dark) * share[:, :, None]).astype(np.float32)
    return pixels


def _surface(
    generator: np.random.Generator, depth: NDArray[np.float32], scene: str, around: NDArray[np.float32]
) -> Pixels:
    """An object's own look: a color, shaded, with noise; grains have rims, and some of them lamellae.

    Of a few colors it has the one that is farthest from what is there, so that it can be seen.
    """
    size = (depth.shape[0], depth.shape[1])
    colors = generator.uniform(0.05, 0.95, (4, 3))
    color = colors[np.argmax(np.abs(colors - around).sum(1))]
    if scene == "grains":
        color = MINERALS[generator.integers(len(MINERALS))] * generator.uniform(0.8, 1.15)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    angle = generator.uniform(0, 2 * np.pi)
    across = x * np.cos(angle) + y * np.sin(angle)
    shade = 0.12 * (across - across.mean()) / max(float(np.ptp(across)), 1.0)
    shade = shade + generator.uniform(0.05, 0.25) * (_noise(generator, size, int(generator.integers(2, 12))) - 0.5)
    if scene == "grains":
        if generator.random() < 0.4:
            shade = shade + 0.06 * np.sign(np.sin(across * generator.uniform(0.5, 1.4)))
        shade = shade - 0.25 * (1 - depth / 2.5).clip(0, 1)
    pixels: Pixels = (color + shade[:, :, None]).astype(np.float32)
    return pixels


def _noise(generator: np.random.Generator, size: tuple[int, int], grain: int) -> NDArray[np.float32]:
    """Smooth noise [h, w] in [0, 1], of blobs of about ``grain`` pixels."""
    coarse = generator.random((size[0] // grain + 2, size[1] // grain + 2), dtype=np.float32)
    smooth = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    found: NDArray[np.float32] = np.asarray(smooth, np.float32).clip(0, 1)
    return found


class Scenes(LazyRecords):
    """Records of scenes that are drawn when asked for; a scene depends on the seed and its own number alone.

    Args:
        number: of scenes.
        seed, size, scene: see :func:`draw_scene`.
    """

    def __init__(self, number: int, seed: int = 0, size: tuple[int, int] = (192, 192), scene: str = "shapes") -> None:
        check_at_least("number", number, 0)
        check_at_least("seed", seed, 0)
        check_choice("scene", scene, SCENES)
        self.number, self.seed, self.size, self.scene = number, seed, check_pair("size", size, 32), scene

    def __len__(self) -> int:
        return self.number

    def make(self, index: int) -> Record:
        drawn = draw_scene(np.random.default_rng([self.seed, index]), self.size, self.scene)
        return record_of(drawn, index)


def record_of(drawn: Scene, index: int) -> Record:
    """A scene as the readers of annotations give images, with its masks as RLE, its boxes around what is seen."""
    encoded = coco.encode(np.asfortranarray(drawn.masks.transpose(1, 2, 0).astype(np.uint8)))
    objects = []
    for rle, label in zip(encoded, drawn.labels, strict=True):
        x, y, width, height = (float(side) for side in coco.toBbox(rle))
        objects.append(Object(CLASSES[label - 1], rle=rle, box=(x, y, x + width, y + height)))
    size = (drawn.image.shape[0], drawn.image.shape[1])
    return Record(Path(f"{index:06}.png"), size, tuple(objects), index + 1, Image.fromarray(drawn.image))


def synthetic_dataset(number: int, seed: int = 0, size: tuple[int, int] = (192, 192), scene: str = "shapes") -> Dataset:
    """Any number of synthetic images, as :func:`fastmask.data.read_dataset` gives photos; see :class:`Scenes`.

    Its categories are those that the scene can have.
    """
    scenes = Scenes(number, seed, size, scene)
    kinds = {kind for name, look in LOOKS.items() if scene in (name, "mixed") for kind in look.kinds}
    return Dataset(scenes, {name: label for label, name in enumerate(CLASSES, 1) if name in kinds}, [])


def save_synthetic(dataset: Dataset, folder: Path, progress: bool = False) -> Dataset:
    """Images as PNG into ``images``, and COCO's ``annotations.json`` beside it -> the same, with files.

    Raises:
        OSError: they cannot be written.
    """
    from tqdm import tqdm

    (folder / "images").mkdir(parents=True, exist_ok=True)
    saved = []
    for record in tqdm(dataset.records, unit="img", disable=not progress):
        file = folder / "images" / record.file.name
        record.load().save(file, compress_level=1)
        saved.append(record._replace(file=file, image=None))
    saved_dataset = dataset._replace(records=saved)
    write_coco(saved_dataset, folder / "annotations.json")
    return saved_dataset
