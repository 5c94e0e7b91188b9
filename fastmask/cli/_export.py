"""From weights to a file that has been asked the same questions as the model."""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastmask.cli._device import find_device
from fastmask.cli._images import find_images
from fastmask.cli._model import load_model
from fastmask.export.aot import write_package
from fastmask.export.module import ExportableModel, Shape
from fastmask.export.onnx import OPSETS, OnnxSummary, write_onnx
from fastmask.export.parity import MIN_SHARE, compare_outputs, format_parity, synthetic_images
from fastmask.export.predictor import load_exported
from fastmask.export.runtime import choose_device
from fastmask.export.tensorrt.module import CANDIDATES, TensorRTExportableModel
from fastmask.inference.prefetch import to_planes

DTYPES = {"float32": torch.float32, "float16": torch.float16}  # ONNX Runtime has no convolution of doubles


class DisagreesError(RuntimeError):
    """The file does not answer as the model does."""


def exported(args: argparse.Namespace) -> None:
    """Export, say what is in the file, compare, and keep it only then.

    Raises:
        DisagreesError: too few of its answers are the model's.
        ImportError: something that is needed is not installed.
        OSError: it cannot be written.
        ValueError: an argument is wrong.
    """
    package = args.file.suffix == ".pt2"
    if not package and args.file.suffix != ".onnx":
        raise ValueError(f"file must end in .onnx or .pt2, got {args.file}")
    if package and (args.opset is not None or args.target):
        raise ValueError("--opset and --target must not be given for a .pt2 file")
    if args.target not in (None, "tensorrt"):
        raise ValueError(f"--target must be tensorrt, or not given, got {args.target!r}")
    if not args.file.parent.is_dir() or args.file.is_dir():
        raise ValueError(f"file must be in a folder that is there, got {args.file}")
    if args.file.exists() and not args.force:
        raise ValueError(f"{args.file} is there already: --force replaces it")
    if args.dtype not in DTYPES:
        raise ValueError(f"--dtype must be one of {', '.join(DTYPES)}, got {args.dtype!r}")
    device = (
        str(find_device(args.device)) if package else ":".join(map(str, choose_device(args.device)))
    )  # before minutes
    model, categories = load_model(args.model, args.weights, "cpu", args.score)
    every = ExportableModel(model, DTYPES[args.dtype], args.masks, args.raw)
    exportable = TensorRTExportableModel(model, DTYPES[args.dtype], args.masks, args.raw) if args.target else every
    height, width = args.size
    shape = Shape(args.batch, height, width, args.dynamic)
    images = images_of(args.check, shape)
    with tempfile.TemporaryDirectory(prefix=".part.", dir=args.file.parent) as folder:
        part = Path(folder) / args.file.name
        if package:
            every.to(device)
            print("compiling takes a minute or more", flush=True)
            write_package(exportable, part, shape, categories=categories)
            print(f"a package for {device}, {part.stat().st_size / 1e6:.1f} MB")
        else:
            written = write_onnx(exportable, part, shape, opset=args.opset or OPSETS[0], categories=categories)
            print(f"{said_of(written)}, checked by onnx{' and the table of TensorRT' if args.target else ''}")
        session = load_exported(part, device)
        found = compare_outputs(every.predict_arrays, session, images)
        print(format_parity(found, "The package" if package else f"ONNX Runtime ({session.kind})"))
        if args.target:
            print(f"left out of NMS, which looks at {CANDIDATES} boxes: at most {found.num_dropped} of an image")
        if not found.detections:
            raise DisagreesError("nothing was found to compare: name other images with --check, or lower --score")
        least = MIN_SHARE[exportable.dtype]
        if found.share < least:
            raise DisagreesError(f"{found.share:.1%} match, {least:.0%} must: {args.file} is not kept")
        os.replace(part, args.file)
    print(args.file)


def images_of(paths: Sequence[Path] | None, shape: Shape) -> list[Tensor]:
    """Those that are named, or drawn ones of a few sizes."""
    if paths is not None:
        return [to_planes(path, number) for number, path in enumerate(find_images(paths))]
    return synthetic_images((shape.height, shape.width))


def said_of(written: OnnxSummary) -> str:
    common = ", ".join(f"{number} {name}" for name, number in list(written.operators.items())[:6])
    return f"{written.nodes} nodes ({common}, ...), opset {written.opset}, {written.bytes / 1e6:.1f} MB"
