"""``fastmask export``: write a model as a file for deployment, checked against the model itself."""

import argparse
import functools
from pathlib import Path

from fastmask.cli._device import find_device
from fastmask.cli._messages import print_error
from fastmask.cli._model import add_model_arguments, load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the form of the file, and the images that it is checked on."""
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="the output, ending in .onnx, or in .pt2 for an AOTInductor package")
    where = "auto, cpu or cuda: where the file is compared and, of a .pt2 file, where it will run [%(default)s]"
    add_model_arguments(parser, score=0.05, device_help=where)
    add("--size", type=int, nargs=2, default=(800, 1344), metavar=("H", "W"), help="padded size in pixels [800 1344]")
    add("--batch", type=int, default=1, metavar="N", help="images per batch [%(default)s]")
    add("--dynamic", action="store_true", help="accept any batch, and any size up to the model's, in multiples of 32")
    add("--masks", default="soft", choices=("soft", "paste"), help="28 x 28 probabilities, or pixels [%(default)s]")
    add("--raw", action="store_true", help="take uint8 images [B, H, W, 3], and normalize them inside")
    add("--dtype", default="float32", choices=("float32", "float16"), help="data type of weights [%(default)s]")
    add("--target", choices=("tensorrt",), help="check the graph against what TensorRT parses, and bound its NMS")
    where = "what an ONNX file is compared in [onnxruntime]"
    add("--runtime", choices=("onnxruntime", "openvino"), help=where)
    add("--opset", type=int, help="ONNX opset, 18 to 20 [18]")
    help = "run the heads on as many rows as there are detections, outputs keep their shapes [on a CPU]"
    add("--trim", action=argparse.BooleanOptionalAction, help=help)
    add("--check", type=Path, nargs="+", metavar="IMAGE", help="images or folders to compare on [synthetic images]")
    add("--force", action="store_true", help="replace the file if it exists")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 1 if the file does not match the model, and is not kept; 2 if something is wrong."""
    import torch  # seconds: only once the command line is known to be right

    from fastmask.export.api import MismatchError, export_model
    from fastmask.inference.image_files import find_images

    try:
        if args.file.exists() and not args.force:
            raise ValueError(f"{args.file} is there already: --force replaces it")
        same = ("size", "batch", "dynamic", "masks", "raw", "target", "runtime", "opset", "trim")
        options = {name: getattr(args, name) for name in same}
        options["device"] = str(find_device(args.device)) if args.file.suffix == ".pt2" else args.device
        options["images"] = None if args.check is None else find_images(args.check)
        model, options["categories"] = load_model(args.model, args.weights, "cpu", args.score)
        report = functools.partial(print, flush=True)
        export_model(model, args.file, dtype=getattr(torch, args.dtype), report=report, **options)
        print(args.file)
    except MismatchError as error:
        print_error(error, args)
        return 1
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        print_error(error, args)
        return 2
    return 0
