"""Models for deployment, as ONNX of standard operators or compiled by AOTInductor, checked against the model."""

from fastmask.export.aot import Package, write_package
from fastmask.export.module import Deployed, Shape
from fastmask.export.onnx import Written, count_operators, write_onnx
from fastmask.export.parity import Parity, parity
from fastmask.export.predictor import ExportedPredictor
from fastmask.export.runtime import Session
from fastmask.export.tensorrt.module import TensorRTModel

__all__ = [
    "Deployed",
    "ExportedPredictor",
    "Package",
    "Parity",
    "Session",
    "Shape",
    "TensorRTModel",
    "Written",
    "count_operators",
    "parity",
    "write_onnx",
    "write_package",
]
