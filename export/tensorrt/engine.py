"""``python -m fastmask.export.tensorrt.engine model.onnx``: build a TensorRT engine, time and compare it.

Needs an NVIDIA GPU and ``pip install tensorrt`` (10 or 11). Not yet run: no machine of ours has had both.
Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/python-api-docs.html
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from fastmask.export.exported import Array, ExportedModel
from fastmask.export.parity import MIN_SHARE, compare_outputs, format_parity, synthetic_images
from fastmask.export.runtime import OnnxSession


class TensorRTEngine(ExportedModel):
    """An engine of a file that ``fastmask export --target tensorrt`` wrote.

    Args:
        path: of the ONNX file.
        plan: what :func:`build` gives.

    Raises:
        ImportError: onnx or TensorRT is not installed.
        ValueError: the plan is not for this TensorRT or this GPU.
    """

    kind = "cuda"

    def __init__(self, path: Path, plan: bytes) -> None:
        import onnx

        trt, logger = import_with_plugins()
        super().__init__(str(path), {prop.key: prop.value for prop in onnx.load(path).metadata_props})
        self.engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        if self.engine is None:
            raise ValueError(f"{path}: its engine must be built by this TensorRT ({trt.__version__}), for this GPU")
        self.context = self.engine.create_execution_context()
        self.stream = torch.cuda.Stream()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.tensors = {name: self._empty(name) for name in names}
        for name, tensor in self.tensors.items():
            self.context.set_tensor_address(name, tensor.data_ptr())

    def _empty(self, name: str) -> torch.Tensor:
        trt = import_tensorrt()
        dtypes = {
            trt.float32: torch.float32, trt.float16: torch.float16, trt.int64: torch.int64, trt.int32: torch.int32,
            trt.uint8: torch.uint8, trt.bool: torch.bool,
        }  # fmt: skip
        shape, dtype = self.engine.get_tensor_shape(name), self.engine.get_tensor_dtype(name)
        return torch.zeros(*shape, dtype=dtypes[dtype], device="cuda")

    def run(self) -> None:
        """Run the engine from its input tensors to its output tensors, on its stream."""
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise RuntimeError(f"{self.path}: TensorRT could not run its engine")

    def __call__(self, images: Array, sizes: Array) -> dict[str, Array]:
        """See :meth:`ExportedModel.__call__`."""
        for name, values in (("images", images), ("sizes", sizes)):
            self.tensors[name].copy_(torch.from_numpy(values))
        torch.cuda.synchronize()
        self.run()
        self.stream.synchronize()
        return {name: self.tensors[name].cpu().numpy() for name in self.metadata["outputs"]}

    def measure_milliseconds(self, runs: int = 50, warm_up: int = 10) -> float:
        """Measure the median milliseconds of so many runs by CUDA events, images on the device already."""
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
        for _ in range(warm_up):
            self.run()
        for begin, end in marks:
            begin.record(self.stream)
            self.run()
            end.record(self.stream)
        self.stream.synchronize()
        times: list[float] = sorted(begin.elapsed_time(end) for begin, end in marks)
        return times[runs // 2]


def build(path: Path, tf32: bool = False) -> bytes:
    """Parse an ONNX file and build its engine: minutes; ValueError with what the parser says.

    Args:
        path: of the file.
        tf32: whether float32 may be multiplied with 10 bits, which is faster and less like ONNX Runtime.
    """
    trt, logger = import_with_plugins()
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # 11 knows nothing else
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise ValueError(f"TensorRT {trt.__version__} cannot parse {path}: {errors}")
    config = builder.create_builder_config()
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError(f"TensorRT {trt.__version__} cannot build an engine of {path}: see what it has logged")
    return bytes(plan)


def import_tensorrt() -> Any:
    """Import the module."""
    try:
        import tensorrt
    except ImportError as error:
        raise ImportError("TensorRT is not installed: pip install tensorrt") from error
    return tensorrt


def import_with_plugins() -> tuple[Any, Any]:
    """Import the module and make a logger; RoiAlign is a plugin of TensorRT's own."""
    trt = import_tensorrt()
    logger = trt.Logger(trt.Logger.WARNING)
    trt.init_libnvinfer_plugins(logger, "")
    return trt, logger


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0; 1 if too few detections match those of ONNX Runtime; 2 if an argument is wrong."""
    parser = argparse.ArgumentParser(prog="python -m fastmask.export.tensorrt.engine", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.onnx", help="of fastmask export --target tensorrt")
    parser.add_argument("--save", type=Path, metavar="FILE.engine", help="where to keep the engine, if it is right")
    parser.add_argument("--tf32", action="store_true", help="let float32 be multiplied as TF32")
    args = parser.parse_args(arguments)
    try:
        if args.save and not args.save.parent.is_dir():
            raise ValueError(f"--save must be in a folder that is there, got {args.save}")
        session = OnnxSession(args.file, "cpu")
        trt = import_tensorrt()
        if not torch.cuda.is_available():
            raise ValueError("an NVIDIA GPU must be there, to build an engine for it")
        print(f"TensorRT {trt.__version__}, {torch.cuda.get_device_name()}: building takes minutes", flush=True)
        plan = build(args.file, args.tf32)
        engine = TensorRTEngine(args.file, plan)
        parity = compare_outputs(session, engine, synthetic_images(tuple(engine.metadata["size"])))
        print(format_parity(parity, "TensorRT"))
        min_share = MIN_SHARE[getattr(torch, engine.metadata["dtype"])]
        if not parity.detections or parity.share < min_share:
            print(
                f"fastmask.export.tensorrt.engine: {min_share:.0%} of them, and any at all, must match", file=sys.stderr
            )
            return 1
        precision = "TF32" if args.tf32 else engine.metadata["dtype"]
        print(f"{engine.measure_milliseconds():.2f} ms for {engine.batch} images of {engine.size}, {precision}")
        if args.save:
            args.save.write_bytes(plan)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        print(f"fastmask.export.tensorrt.engine: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
