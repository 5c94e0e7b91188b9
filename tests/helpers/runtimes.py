"""The runtimes of exported ONNX files that are installed: tests compare a file in each of them."""

import importlib.util
from pathlib import Path

from fastmask.export import OnnxSession, OpenVINOSession

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
ONNX_RUNTIMES = ("onnxruntime", "openvino") if HAS_OPENVINO else ("onnxruntime",)


def open_onnx(path: Path) -> list[OnnxSession | OpenVINOSession]:
    """A file in ONNX Runtime and, where it is installed, in OpenVINO, both on the CPU."""
    return [OnnxSession(path, "cpu"), *([OpenVINOSession(path)] if HAS_OPENVINO else [])]
