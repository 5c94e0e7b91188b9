"""A model as a file for deployment, which is kept only if it matches the model."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fastmask.checks import check_choice
from fastmask.export.aot import write_package
from fastmask.export.module import ExportableModel, Shape
from fastmask.export.onnx import OPSETS, OnnxSummary, write_onnx
from fastmask.export.openvino import find_device
from fastmask.export.parity import MIN_SHARE, Parity, compare_outputs, format_parity, synthetic_images
from fastmask.export.predictor import RUNTIMES, load_exported
from fastmask.export.runtime import choose_device
from fastmask.export.tensorrt.module import CANDIDATES, TensorRTExportableModel
from fastmask.inference.prefetch import ImageLike, to_planes
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN

DTYPES = (torch.float32, torch.float16)  # ONNX Runtime has no convolution of doubles
TARGETS = ("tensorrt",)


class MismatchError(RuntimeError):
    """The exported file does not match the model."""


def export_model(
    model: GeneralizedRCNN,
    path: str | os.PathLike[str],
    size: tuple[int, int] = (800, 1344),
    batch: int = 1,
    *,
    dynamic: bool = False,
    dtype: torch.dtype = torch.float32,
    masks: str = "soft",
    raw: bool = False,
    target: str | None = None,
    runtime: str | None = None,
    opset: int | None = None,
    trim: bool | None = None,
    categories: Sequence[str] | None = None,
    device: str = "auto",
    images: Sequence[ImageLike] | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> Parity:
    """Export a model as ONNX or, compiled by AOTInductor, as a package; keep the file only if it matches.

    Args:
        model: any of ``fastmask.models.detection``; stays as it is.
        path: of the file, ending in .onnx or, for a package, .pt2; a file that exists is replaced.
        size: (height, width) of the padded images in pixels, multiples of the model's padding.
        batch: images at once.
        dynamic: accept any batch up to 64 and any size up to the model's largest.
        dtype: of weights and feature maps: float32 or float16.
        masks, raw: see :class:`ExportableModel`.
        target: "tensorrt" checks the graph against what TensorRT parses, and bounds its NMS; None: any ONNX runtime.
        runtime: in which an ONNX file is compared, "onnxruntime" or "openvino"; None: onnxruntime.
        opset: of ONNX's operators, 18 to 20; None: 18.
        trim: run the heads on as many rows as there are detections, see :class:`ExportableModel`; None: where
            ``device`` is a CPU, unless for TensorRT, whose shapes are fixed.
        categories: names by label, for the file's metadata.
        device: "cpu", "cuda" or "cuda:1", where the file is compared and will run; "auto" is CUDA where it is available
            (to PyTorch for a package, to ONNX Runtime too for an ONNX file).
        images: to compare on, of any kind that :class:`fastmask.Predictor` takes; None: synthetic ones.
        report: called with a line of text after each step, such as ``print``.

    Returns:
        How far the file and the model match.

    Raises:
        MismatchError: too few detections match: 99 % must, of float16 97 %; or nothing was detected.
        ImportError: a package that the export needs is not installed.
        OSError: the file cannot be written.
        RuntimeError: it cannot be compiled.
        ValueError: an argument does not fit.
    """
    path = Path(path)
    package = path.suffix == ".pt2"
    if not package and path.suffix != ".onnx":
        raise ValueError(f"file must end in .onnx or .pt2, got {path}")
    if package and (opset is not None or target is not None):
        raise ValueError("opset and target must not be given for a .pt2 file")
    if package and runtime is not None:
        raise ValueError(f"runtime must not be given for a .pt2 file, got {runtime!r}")
    check_choice("runtime", runtime or RUNTIMES[0], RUNTIMES)
    if target is not None:
        check_choice("target", target, TARGETS)
        if trim:
            raise ValueError("trim must not be given for TensorRT, whose graphs have fixed shapes, got True")
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"file must be in a folder that is there, got {path}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    if package:
        where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    else:  # before minutes of work
        where = find_device(device) if runtime == "openvino" else ":".join(map(str, choose_device(device)))
    if trim is None:
        trim = target is None and where.lower().startswith("cpu")
    reference = ExportableModel(model, dtype, masks, raw)
    exportable = reference
    if target:
        exportable = TensorRTExportableModel(model, dtype, masks, raw)
    elif trim:
        exportable = ExportableModel(model, dtype, masks, raw, trim)
    shape = Shape(batch, *size, dynamic)
    channels = reference.channels
    if images is None:
        planes = synthetic_images(size, channels)
    else:
        planes = [to_planes(image, i, channels=channels) for i, image in enumerate(images)]
    with tempfile.TemporaryDirectory(prefix=".part.", dir=path.parent) as folder:
        part = Path(folder) / path.name
        if package:
            reference.to(where)
            exportable.to(where)
            report("compiling takes a minute or more")
            write_package(exportable, part, shape, categories=categories)
            report(f"a package for {where}, {part.stat().st_size / 1e6:.1f} MB{', trimmed' if trim else ''}")
        else:
            summary = write_onnx(exportable, part, shape, opset=opset or OPSETS[0], categories=categories)
            known = f"{', trimmed' if trim else ''}, checked by onnx{' and the table of TensorRT' if target else ''}"
            report(f"{format_summary(summary)}{known}")
        session = load_exported(part, where, runtime)
        found = compare_outputs(reference.predict_arrays, session, planes)
        report(format_parity(found, "The package" if package else f"{session.runtime} ({session.kind})"))
        if target:
            report(f"left out of NMS, which looks at {CANDIDATES} boxes: at most {found.num_dropped} of an image")
        if not found.detections:
            raise MismatchError("nothing was found to compare: give other images, or lower the score")
        if found.share < MIN_SHARE[dtype]:
            raise MismatchError(f"{found.share:.1%} match, {MIN_SHARE[dtype]:.0%} must: {path} is not kept")
        os.replace(part, path)
    return found


def format_summary(summary: OnnxSummary) -> str:
    common = ", ".join(f"{number} {name}" for name, number in list(summary.operators.items())[:6])
    return f"{summary.nodes} nodes ({common}, ...), opset {summary.opset}, {summary.bytes / 1e6:.1f} MB"
