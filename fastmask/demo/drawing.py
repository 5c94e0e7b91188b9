"""Drawing synthetic images: overlapping shapes, mineral grains or stick figures, on textured noise."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmask.checks import check_at_least, check_choice, check_pair
from fastmask.cocoapi import mask as coco
from fastmask.data.coco import write_coco
from fastmask.data.records import Dataset, Instance, LazyRecords, Record
from fastmask.demo.figures import Figure, draw_figure
from fastmask.demo.shapes import CLASSES, REACH, SHAPES, Distance, Plane, draw_shape
from fastmask.files import check_free, replace_file
from fastmask.skeletons import PERSON

Pixels = NDArray[np.float32]  # [h, w, 3] in [0, 1]

SCENES = ("shapes", "grains", "mixed", "figures")
MIN_VISIBLE = 24  # pixels of an object


class Scene(NamedTuple):
    """A synthetic image and its n ground-truth instances."""

    image: NDArray[np.uint8]  # [h, w, 3]
    masks: NDArray[np.bool_]  # [n, h, w] exact visible parts, which do not overlap
    labels: NDArray[np.int64]  # [n] index in CLASSES plus 1
    keypoints: NDArray[np.float64] | None = None  # [n, 17, 3] (x, y, visibility) of COCO's, of figures


class _Style(NamedTuple):
    """The parameters of a kind of scene."""

    number: tuple[int, int]  # min and max number of objects
    radius: tuple[float, float]  # min and max, as fractions of the shorter side
    visible: float  # minimum visible fraction of an object
    classes: tuple[str, ...]


STYLES = {
    "shapes": _Style((2, 7), (0.09, 0.26), 0.5, SHAPES[:3]),
    "grains": _Style((10, 28), (0.05, 0.15), 0.75, SHAPES[3:]),
    "figures": _Style((1, 4), (0.22, 0.45), 0.6, CLASSES[4:]),
}
MINERALS = np.array(
    [[0.82, 0.80, 0.76], [0.78, 0.60, 0.52], [0.30, 0.36, 0.30], [0.42, 0.30, 0.22], [0.62, 0.62, 0.66]]
)


def draw_scene(generator: np.random.Generator, size: tuple[int, int], scene: str = "shapes") -> Scene:
    """Draw a random scene.

    Args:
        generator: the only source of randomness.
        size: (height, width) in pixels.
        scene: "shapes": 2 to 7 ellipses, triangles and quadrilaterals that partly occlude one another; "grains": up to
            28 mineral grains in a fine matrix; "mixed": one of both; "figures": up to 4 stick figures, seen from the
            front, with COCO's keypoints (2 where they are visible, 1 behind another figure). Small images get fewer
            objects.

    Raises:
        ValueError: scene is none of these, or a side is below 32.
    """
    check_choice("scene", scene, SCENES)
    height, width = check_pair("size", size, 32)
    if scene == "mixed":
        scene = ("shapes", "grains")[int(generator.integers(2))]
    style = STYLES[scene]
    pixels = _draw_background(generator, (height, width), scene)
    masks: list[NDArray[np.bool_]] = []
    whole: list[int] = []  # pixels of each object, occluded ones included
    visible: list[int] = []
    labels = []
    figures: list[NDArray[np.float64]] = []  # keypoints [17, 2]
    wanted = int(generator.integers(style.number[0], style.number[1] + 1))
    for _ in range(6 * wanted):  # an object that does not fit is replaced by another
        if len(masks) == wanted:
            break
        name = str(generator.choice(style.classes))
        radius = generator.uniform(*style.radius) * min(height, width)
        figure = draw_figure(generator, 2 * radius) if scene == "figures" else None
        shape = draw_shape(generator, name, radius) if figure is None else figure.distance
        place = generator.random(2) if figure is None else generator.uniform(0.2, 0.8, 2)
        reach = REACH * radius if figure is None else figure.reach()
        part, distance = _place_shape(shape, reach, place, (height, width))
        inside = distance < 0
        num = int(inside.sum())
        left = [now - int((mask[part] & inside).sum()) for mask, now in zip(masks, visible, strict=True)]
        fits = all(now >= max(MIN_VISIBLE, style.visible * full) for now, full in zip(left, whole, strict=True))
        if not fits or num < MIN_VISIBLE or min(inside.any(0).sum(), inside.any(1).sum()) < 4:
            continue
        for mask in masks:
            mask[part] &= ~inside
        masks.append(np.zeros((height, width), bool))
        masks[-1][part] = inside
        whole.append(num)
        visible = [*left, num]
        labels.append(CLASSES.index(name) + 1)
        _draw_object(pixels[part], distance, generator, scene)
        if figure is not None:
            _shade_parts(pixels[part], distance, figure, reach, place, (height, width))
            figures.append(figure.keypoints + place[::-1] * (width, height))
    pixels += generator.normal(0, 0.02, pixels.shape).astype(np.float32)
    stacked = np.stack(masks) if masks else np.zeros((0, height, width), bool)
    keypoints = _flag_keypoints(figures, stacked) if scene == "figures" else None
    return Scene((pixels.clip(0, 1) * 255).round().astype(np.uint8), stacked, np.array(labels, np.int64), keypoints)


def _flag_keypoints(figures: list[NDArray[np.float64]], masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Keypoints [n, 17, 3] with visibility, from positions n x [17, 2] and visible parts [n, h, w].

    1: a later figure covers its pixel; 0, and zeros: it is outside of the image; 2: all others.
    """
    points = np.array(figures).reshape(-1, PERSON.number, 2)
    x, y = np.moveaxis(points, -1, 0)
    height, width = masks.shape[1:]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    columns, rows = x.astype(int).clip(0, width - 1), y.astype(int).clip(0, height - 1)
    numbers = np.arange(len(masks))
    covered = (masks * (numbers + 1)[:, None, None]).sum(0)[rows, columns] > numbers[:, None] + 1
    keypoints = np.concatenate([points, np.where(covered, 1.0, 2.0)[:, :, None]], axis=2)
    return np.where(inside[:, :, None], keypoints, 0.0)


def _place_shape(
    shape: Distance, reach: float, place: NDArray[np.float64], size: tuple[int, int]
) -> tuple[tuple[slice, slice], NDArray[np.float32]]:
    """The slices of an image around a shape at ``place`` in [0, 1), and the signed distances of their pixel centers."""
    slices, x, y = _find_grid(reach, place, size)
    return slices, shape(x, y)


def _find_grid(
    reach: float, place: NDArray[np.float64], size: tuple[int, int]
) -> tuple[tuple[slice, slice], Plane, Plane]:
    """The slices of an image within reach of ``place``, and x [1, w] and y [h, 1] of their pixel centers from there."""
    axes, slices = [], []
    for center, side in zip(place * size, size, strict=True):
        first, last = max(0, int(center - reach) - 2), min(side, int(center + reach) + 3)
        axes.append(np.arange(first, last, dtype=np.float32) + np.float32(0.5 - center))
        slices.append(slice(first, last))
    y, x = axes
    return (slices[0], slices[1]), x[None, :], y[:, None]


def _shade_parts(
    pixels: Pixels,
    distance: NDArray[np.float32],
    figure: Figure,
    reach: float,
    place: NDArray[np.float64],
    size: tuple[int, int],
) -> None:
    """Give a figure's limbs, drawn in one color, their tones, in place."""
    _, x, y = _find_grid(reach, place, size)
    pixels += (0.5 - distance).clip(0, 1)[:, :, None] * figure.tone(x, y)[:, :, None]


def _draw_object(pixels: Pixels, distance: NDArray[np.float32], generator: np.random.Generator, scene: str) -> None:
    """Draw an object in place, antialiased; it covers more than half of each pixel whose center is inside."""
    cover = (0.5 - distance).clip(0, 1)[:, :, None]
    pixels[...] = (1 - cover) * pixels + cover * _draw_surface(generator, -distance, scene, pixels.mean((0, 1)))


def _draw_background(generator: np.random.Generator, size: tuple[int, int], scene: str) -> Pixels:
    """Two colors mixed by noise."""
    if scene == "grains":
        light, dark = np.array([[0.50, 0.44, 0.36], [0.24, 0.20, 0.17]]) * generator.uniform(0.8, 1.2)
        share = 0.4 * _draw_noise(generator, size, 24) + 0.6 * _draw_noise(generator, size, 2)
    else:
        light, dark = generator.uniform(0, 1, (2, 3))
        share = 0.6 * _draw_noise(generator, size, max(8, min(size) // 4)) + 0.4 * _draw_noise(generator, size, 5)
    pixels: Pixels = (dark + (light - dark) * share[:, :, None]).astype(np.float32)
    return pixels


def _draw_surface(
    generator: np.random.Generator, depth: NDArray[np.float32], scene: str, around: NDArray[np.float32]
) -> Pixels:
    """The surface of an object: a color with shading and noise; grains have dark rims, and some have lamellae.

    The color is the one of four random ones that differs most from the color around.
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
    shade = shade + generator.uniform(0.05, 0.25) * (_draw_noise(generator, size, int(generator.integers(2, 12))) - 0.5)
    if scene == "grains":
        if generator.random() < 0.4:
            shade = shade + 0.06 * np.sign(np.sin(across * generator.uniform(0.5, 1.4)))
        shade = shade - 0.25 * (1 - depth / 2.5).clip(0, 1)
    pixels: Pixels = (color + shade[:, :, None]).astype(np.float32)
    return pixels


def _draw_noise(generator: np.random.Generator, size: tuple[int, int], grain: int) -> NDArray[np.float32]:
    """Smooth noise [h, w] in [0, 1] with a feature size of about ``grain`` pixels."""
    coarse = generator.random((size[0] // grain + 2, size[1] // grain + 2), dtype=np.float32)
    smooth = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    noise: NDArray[np.float32] = np.asarray(smooth, np.float32).clip(0, 1)
    return noise


class Scenes(LazyRecords):
    """Records of synthetic images, each drawn on access; it depends on the seed and its index alone.

    Args:
        number: of images.
        seed: from 0.
        size, scene: see :func:`draw_scene`.
    """

    def __init__(self, number: int, seed: int = 0, size: tuple[int, int] = (192, 192), scene: str = "shapes") -> None:
        check_at_least("number", number, 0)
        check_at_least("seed", seed, 0)
        check_choice("scene", scene, SCENES)
        self.number, self.seed, self.size, self.scene = number, seed, check_pair("size", size, 32), scene

    def __len__(self) -> int:
        return self.number

    def make(self, index: int) -> Record:
        return make_record(draw_scene(np.random.default_rng([self.seed, index]), self.size, self.scene), index)


def make_record(scene: Scene, index: int) -> Record:
    """The record of a scene, with masks as RLE and boxes around their visible parts."""
    rles = coco.encode(np.asfortranarray(scene.masks.transpose(1, 2, 0).astype(np.uint8)))
    instances = []
    keypoints = [None] * len(rles) if scene.keypoints is None else list(scene.keypoints)
    for rle, label, points in zip(rles, scene.labels, keypoints, strict=True):
        x, y, width, height = (float(side) for side in coco.toBbox(rle))
        instances.append(Instance(CLASSES[label - 1], rle=rle, box=(x, y, x + width, y + height), keypoints=points))
    size = (scene.image.shape[0], scene.image.shape[1])
    return Record(Path(f"{index:06}.png"), size, tuple(instances), index + 1, Image.fromarray(scene.image))


def synthetic_dataset(number: int, seed: int = 0, size: tuple[int, int] = (192, 192), scene: str = "shapes") -> Dataset:
    """A data set of synthetic images, drawn on access, with the categories of the scene.

    Args:
        number: of images.
        seed: from 0; other seeds give other images.
        size, scene: see :func:`draw_scene`.

    Raises:
        ValueError: an argument is out of its range.
    """
    scenes = Scenes(number, seed, size, scene)
    kinds = ("shapes", "grains") if scene == "mixed" else (scene,)
    classes = {name for kind in kinds for name in STYLES[kind].classes}
    categories = {name: label for label, name in enumerate(CLASSES, 1) if name in classes}
    return Dataset(scenes, categories, [], skeletons={"person": PERSON} if scene == "figures" else {})


def save_synthetic(dataset: Dataset, folder: Path, progress: bool = False, force: bool = False) -> Dataset:
    """Save images as PNG in ``folder/images`` and a COCO ``annotations.json`` -> the same data set, with files.

    Args:
        dataset: of records with images.
        folder: created if it does not exist.
        progress: show a progress bar.
        force: replace files that are there.

    Raises:
        FileExistsError: the annotations are there already.
        OSError: a file cannot be written.
    """
    from tqdm import tqdm

    check_free([folder / "annotations.json"], force)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records = []
    for record in tqdm(dataset.records, unit="img", disable=not progress):
        file = folder / "images" / record.file.name
        with replace_file(file) as draft:
            record.load().save(draft, compress_level=1)
        records.append(record._replace(file=file, image=None))
    dataset = dataset._replace(records=records)
    write_coco(dataset, folder / "annotations.json")
    return dataset
