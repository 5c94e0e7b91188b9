"""Mask images in the layouts of CVAT's and labelme's exports: colors, names, lists of images and splits."""

from pathlib import Path

import numpy as np
import pytest
from helpers.images import draw_image_file
from PIL import Image

from fastmask import data
from fastmask.data.class_map import make_voc_colors, read_class_map

pytest.importorskip("pycocotools.mask", reason="it makes RLE")
LABELMAP = "# label:color_rgb:parts:actions\nbackground:10,20,30::\ncat:200,0,10::\n"
LABELMAP += "big dog:0,200,10:head,tail:\nignored:9,9,9::\n"
BACKGROUND, CAT, DOG, IGNORED = (10, 20, 30), (200, 0, 10), (0, 200, 10), (9, 9, 9)
SIZE = (20, 30)


def write_mask(
    folder: Path, name: str, classes: np.ndarray | None, objects: np.ndarray | None, palette: bool = False
) -> None:
    """Write an image of classes and one of objects: RGB, palette or gray."""
    for inner, pixels in (("SegmentationClass", classes), ("SegmentationObject", objects)):
        if pixels is None:
            continue
        file = folder / inner / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels.astype(np.uint8))
        if palette:
            colors, places = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
            image = Image.fromarray(places.reshape(SIZE).astype(np.uint8))
            image.putpalette(colors.astype(np.uint8).tobytes())
        image.save(file)


def paint(*spots: tuple[slice, slice, object], background: object = 0) -> np.ndarray:
    """An image of numbers or colors: each spot is rows, columns and value."""
    pixels = np.full((*SIZE, 3) if isinstance(spots[0][2], tuple) else SIZE, background)
    for rows, columns, value in spots:
        pixels[rows, columns] = value
    return pixels


A, B, C = (slice(2, 8), slice(2, 8)), (slice(10, 15), slice(10, 20)), (slice(0, 2), slice(20, 25))


def cvat(folder: Path, *lists: tuple[str, str], names: tuple[str, ...] = ("a", "b"), palette: bool = False) -> Path:
    """A folder of CVAT's export."""
    classes = paint((*A, DOG), (*B, CAT), (*C, IGNORED), background=BACKGROUND)
    objects = paint((*A, (128, 0, 0)), (*B, (0, 128, 0)), (*C, (1, 2, 3)))
    for name in names:
        write_mask(folder, name, classes, objects, palette)
    (folder / "labelmap.txt").write_text(LABELMAP)
    for name, listed in lists:
        (folder / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Segmentation" / name).write_text(listed)
    return folder


@pytest.mark.parametrize("palette", [False, True])
def test_cvat(tmp_path: Path, palette: bool) -> None:
    """Colors are of labelmap.txt, in RGB and palette images; void is no object; only listed images are read."""
    cvat(tmp_path, ("default.txt", 'a\n"x y/c d"\nz.jpg\n'), names=("a", "b", "x y/c d"), palette=palette)
    (tmp_path / "JPEGImages" / "x y").mkdir(parents=True)
    photo = draw_image_file(tmp_path / "JPEGImages" / "x y" / "c d.png", *SIZE)
    dataset = data.read_dataset(tmp_path)
    assert dataset.categories == {"cat": 1, "big dog": 2}
    assert [record.file for record in dataset.records] == [tmp_path / "JPEGImages" / "a.jpg", photo]
    for record in dataset.records:
        assert record.size == SIZE
        found = {instance.category: instance.bounds() for instance in record.instances}
        assert found == {"big dog": (2, 2, 8, 8), "cat": (10, 10, 20, 15)}
    (problem,) = dataset.problems
    assert (problem.kind, problem.where) == ("missing mask image", "z.jpg")
    assert dataset.notes == (
        f"{tmp_path}: 1 mask images are in no list of ImageSets/Segmentation, and not read: b",
        f"{tmp_path}: 2 objects of void pixels alone are no objects",
    )


def test_unknown_colors(tmp_path: Path) -> None:
    """They are named with their pixels, and make no class; so are objects of several classes, ties and of none."""
    objects = paint((*A, (128, 0, 0)), (*B, (0, 128, 0)), (*C, (0, 0, 128)))
    classes = paint(
        (*A, (7, 7, 7)), (*B, CAT), (*C, DOG), (slice(10, 15), slice(10, 12), (7, 8, 9)), background=BACKGROUND
    )
    classes[0, 20:25] = CAT
    write_mask(cvat(tmp_path, names=()), "a", classes, objects)
    dataset = data.read_dataset(tmp_path)
    assert [instance.category for instance in dataset.records[0].instances] == ["cat", "cat"]
    assert [(problem.kind, problem.where, problem.text) for problem in dataset.problems] == [
        (
            "unknown class",
            "SegmentationClass/a.png",
            "its colors must be of labelmap.txt, got (7, 7, 7) (36 pixels), (7, 8, 9) (10 pixels)",
        ),
        (
            "mixed classes",
            "SegmentationObject/a.png",
            "2 objects have pixels of several classes, and get that of most: "
            "object of color (0, 128, 0): cat 40, unknown 10 pixels; "
            "object of color (0, 0, 128): cat 5, big dog 5 pixels, a tie",
        ),
        (
            "no class",
            "SegmentationObject/a.png",
            "1 objects have no class, and are left out: object of color (128, 0, 0): unknown 36 pixels",
        ),
    ]
    write_mask(tmp_path, "b", None, objects)
    assert data.read_dataset(tmp_path).problems[-1].text == "there is no such file: the image is left out"
    transparent = np.dstack([classes, np.full(SIZE, 7)])
    write_mask(tmp_path, "b", transparent, objects)
    assert "no transparent pixels" in data.read_dataset(tmp_path).problems[-1].text


def test_numbers(tmp_path: Path) -> None:
    """Gray images have numbers of labelmap.txt's lines; a 255th object's color is no border where it has a class."""
    objects = paint((*A, (224, 224, 192)), (*B, (128, 0, 0)), (*C, (224, 224, 192)))
    write_mask(
        cvat(tmp_path, names=()), "a", paint((*A, 2), (*B, 1), (*C, 255), (slice(18, 19), slice(0, 4), 5)), objects
    )
    dataset = data.read_dataset(tmp_path)
    assert [instance.category for instance in dataset.records[0].instances] == ["cat", "big dog"]
    (problem,) = dataset.problems
    assert problem.text == "its numbers must be of labelmap.txt, got 5 (4 pixels)"


def test_voc_colors(tmp_path: Path) -> None:
    """RGB images in Pascal VOC's color map (devkit_doc, 2012) without a file of colors."""
    colors = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 20: (0, 64, 128), 255: (224, 224, 192)}
    for number, (red, green, blue) in colors.items():
        assert make_voc_colors()[number] == red << 16 | green << 8 | blue
    classes = paint((*A, colors[20]), (*B, colors[8]), (*C, colors[255]))
    objects = paint((*A, colors[1]), (*B, colors[2]), (*C, colors[255]))
    write_mask(tmp_path / "VOC2012", "a", classes, objects)
    dataset = data.read_dataset(tmp_path / "VOC2012")
    assert [instance.category for instance in dataset.records[0].instances] == ["tvmonitor", "cat"]
    assert (dataset.problems, dataset.notes) == ([], ())
    write_mask(tmp_path / "VOC2012", "a", paint((*A, (1, 2, 3)), (*B, colors[8])), objects)
    text = "its colors must be of the color map of Pascal VOC (there is no labelmap.txt), got (1, 2, 3) (36 pixels)"
    assert data.read_dataset(tmp_path / "VOC2012").problems[0].text == text


@pytest.mark.parametrize("suffix", ["", "PNG"])
@pytest.mark.parametrize("names", ["_background_\ncat\ndog", "__ignore__\n_background_\ncat\ndog\n"])
def test_labelme(tmp_path: Path, suffix: str, names: str) -> None:
    """labelme2voc: classes count from _background_, 0; __ignore__ is 255; .npy files and JPEG files are not read."""
    write_mask(tmp_path, "a", paint((*A, 2), (*B, 1), (*C, 255)), paint((*A, 2), (*B, 1)))
    for folder in ("SegmentationObject", "SegmentationClass"):
        (tmp_path / folder).rename(tmp_path / f"{folder}{suffix}")
        for more in ("", "Npy", "Visualization"):
            (tmp_path / f"{folder}{more}").mkdir(exist_ok=True)
            (tmp_path / f"{folder}{more}" / f"a.{'jpg' if more == 'Visualization' else 'npy'}").write_bytes(b"1")
    (tmp_path / "class_names.txt").write_text(names)
    dataset = data.read_dataset(tmp_path)
    assert dataset.categories == {"cat": 1, "dog": 2}
    assert [instance.category for instance in dataset.records[0].instances] == ["cat", "dog"]
    assert (dataset.problems, dataset.notes) == ([], ())
    (tmp_path / "class_names.txt").rename(tmp_path / "labels.txt")  # what labelme2voc was given
    assert data.read_dataset(tmp_path).records == dataset.records
    (tmp_path / "labels.txt").rename(tmp_path / "class_names.txt")
    (tmp_path / "class_names.txt").write_text("_background_\ncat\n")
    assert "must be of class_names.txt, got 2 (36 pixels)" in data.read_dataset(tmp_path).problems[0].text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labelmap.txt", "cat:1,2::", "labelmap.txt, line 1 must be name:r,g,b:parts:actions, got 'cat:1,2::'"),
        ("labelmap.txt", "#\n\ncat:1,2,300::", "line 3 must have a color of three numbers up to 255"),
        ("labelmap.txt", "# nothing", "must have a line name:r,g,b:parts:actions for each class, got none"),
        ("labelmap.txt", "cat:1,2,3::\ndog:::", "must have a color for each class, or for none, got none for dog"),
        ("labelmap.txt", "cat:1,2,3::\ncat:1,2,4::", "must have each name and color once, got cat twice"),
        ("labelmap.txt", "cat:1,2,3::\ndog:1,2,3::", r"must have each name and color once, got \(1, 2, 3\) twice"),
        ("class_names.txt", "cat\ndog", "must begin with _background_, .* got 'cat'"),
        ("class_names.txt", "_background_\ncat\ncat", "must have each name and color once, got cat twice"),
        ("labels.txt", "__ignore__\ncat", "must begin with _background_, .* got 'cat'"),
    ],
)
def test_broken_names(tmp_path: Path, name: str, text: str, message: str) -> None:
    cvat(tmp_path)
    (tmp_path / "labelmap.txt").unlink()
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        data.read_dataset(tmp_path)


def test_names_in_labelmap(tmp_path: Path) -> None:
    """Without colors they are Pascal VOC's; a name may have a colon; black is background where nothing else is."""
    (tmp_path / "labelmap.txt").write_text("background\ncat::\ndog:::run\n")
    assert read_class_map(tmp_path).colors[128 << 16] == 1
    (tmp_path / "labelmap.txt").write_text("size: big :1,2,3::\n")
    class_map = read_class_map(tmp_path)
    assert class_map.names == {0: "size: big"}
    assert class_map.colors[0] in class_map.background
    (tmp_path / "labels.txt").write_text("cat\n")
    with pytest.raises(ValueError, match=r"must have one file of class names, got labelmap.txt, labels.txt"):
        read_class_map(tmp_path)


def test_splits(tmp_path: Path) -> None:
    """train.txt and val.txt are splits; what is in another list alone is counted; a list can be named."""
    lists = (("Train.txt", "a\n"), ("Validation.txt", "b\n"), ("default.txt", "a\nc\n"))
    folder = cvat(tmp_path / "set", *lists, names=("a", "b", "c", "d"))
    splits = data.read_all(folder)
    assert {name: [record.file.stem for record in split.records] for name, split in splits.items()} == {
        "train": ["a"],
        "val": ["b"],
    }
    for split in splits.values():
        assert split.problems == []
        assert "1 images are in default.txt alone, which is no split, and are not read" in split.notes[0]
        assert "1 mask images are in no list of ImageSets/Segmentation, and not read: d" in split.notes[1]
    assert [record.file.stem for record in data.read_dataset(folder, split="val").records] == ["b"]
    one = folder / "ImageSets" / "Segmentation" / "default.txt"
    assert [record.file.stem for record in data.read_dataset(one).records] == ["a", "c"]
    with pytest.raises(ValueError, match=r"must be one data set, got the splits train \(.*Train.txt\), val"):
        data.read_dataset(folder)
    train, val = data.read_splits(folder)
    assert val is not None
    assert train.categories == val.categories
    for path in (folder, one):
        with pytest.raises(ValueError, match="must be another file than what is read"):
            data.write_dataset(train, folder / "labelmap.txt", "coco", force=True, source=path)
    with pytest.raises(ValueError, match="must be a folder of its own, got one with labelmap"):
        data.write_dataset(train, folder, "masks", force=True)
    named = train._replace(categories={"_background_": 1})
    with pytest.raises(ValueError, match="a first category must not be named as background, got _background_"):
        data.write_dataset(named, tmp_path / "new", "masks")
    one.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"default.txt must be text in UTF-8"):
        data.read_dataset(one)


def test_without_objects_or_classes(tmp_path: Path) -> None:
    """Images of classes alone are an error that says what is missing; those of objects alone are of one class."""
    write_mask(tmp_path / "classes", "a", paint((*A, 2)), None)
    with pytest.raises(ValueError, match="must have images of objects in SegmentationObject, got images of classes"):
        data.read_dataset(tmp_path / "classes")
    write_mask(tmp_path / "objects", "a", None, paint((*A, 2)))
    dataset = data.read_dataset(tmp_path / "objects")
    assert dataset.categories == {"object": 1}
    assert "all objects are of the class object" in dataset.notes[0]
    (tmp_path / "objects" / "SegmentationObject" / "a.png").rename(
        tmp_path / "objects" / "SegmentationObject" / "a.npy"
    )
    with pytest.raises(ValueError, match=r"must hold images of objects \(\*.png\), got none"):
        data.read_dataset(tmp_path / "objects")
