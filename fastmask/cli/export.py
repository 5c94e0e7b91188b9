"""``fastmask export``: a model as a file for deployment, checked against the model itself."""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, in which form, and on which images it is checked."""
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="to write: .onnx, or .pt2 for a package by AOTInductor")
    add("--weights", default="COCO_V1", help="COCO_V1 (downloaded once), SHAPES_V1 or a file [%(default)s]")
    add("--model", default="maskrcnn_resnet50_fpn", metavar="NAME", help="[%(default)s]")
    add("--score", type=float, default=0.05, help="what is kept scores above it [%(default)s]")
    add("--size", type=int, nargs=2, default=(800, 1344), metavar=("H", "W"), help="padded images' [800 1344]")
    add("--batch", type=int, default=1, metavar="N", help="images at once [%(default)s]")
    add("--device", default="auto", help="cpu or cuda: where it is compared and, .pt2, where it will run [%(default)s]")
    add("--dynamic", action="store_true", help="any batch and size up to the model's largest, in multiples of 32")
    add("--masks", default="soft", help="soft: probabilities over the boxes; paste: pixels [%(default)s]")
    add("--raw", action="store_true", help="take uint8 [B, H, W, 3] and normalize inside")
    add("--dtype", default="float32", help="of weights: float32 or float16 [%(default)s]")
    add("--target", metavar="tensorrt", help="hold the graph against what TensorRT parses, and bound its NMS")
    add("--opset", type=int, help="of ONNX [18]")
    add("--check", type=Path, nargs="+", metavar="IMAGE", help="images, or folders, to compare on [drawn ones]")
    add("--force", action="store_true", help="replace the file")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if the file does not answer as the model does, and is not kept; 2 if something is wrong."""
    try:
        from fastmask.cli._export import DisagreesError, exported
    except ImportError as error:
        print(f"fastmask export: needs {error.name}: pip install 'fastmask-rcnn[onnxruntime]'", file=sys.stderr)
        return 2
    try:
        exported(args)
    except DisagreesError as error:
        print(f"fastmask export: {error}", file=sys.stderr)
        return 1
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        print(f"fastmask export: {error}", file=sys.stderr)
        return 2
    return 0
