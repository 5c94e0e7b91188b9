"""The runtimes of exported ONNX files that are installed: tests compare a file in each of them."""

import importlib.util
from pathlib import Path

from fastmask.export import OnnxSession, OpenVINOSession

HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
ONNX_RUNTIMES = ("onnxruntime", "openvino") if HAS_OPENVINO else ("onnxruntime",)


def least_share(session: OnnxSession | OpenVINOSession) -> float:
    """How much of a model with random weights must match, as these magnify rounding.

    In ten runs with RoIPool OpenVINO lost up to 2 of 90, ONNX Runtime 1; with trained weights both lose none.
    """
    return 0.95 if session.runtime == "OpenVINO" else 0.99


def open_onnx(path: Path) -> list[OnnxSession | OpenVINOSession]:
    """A file in ONNX Runtime and, where it is installed, in OpenVINO, both on the CPU."""
    return [OnnxSession(path, "cpu"), *([OpenVINOSession(path)] if HAS_OPENVINO else [])]
