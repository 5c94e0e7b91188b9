"""Models for deployment, as ONNX of standard operators or compiled by AOTInductor, checked against the model."""

from fastmask.export.aot import Package, write_package
from fastmask.export.api import MismatchError, export_model
from fastmask.export.module import Deployed, Shape
from fastmask.export.onnx import Written, count_operators, write_onnx
from fastmask.export.parity import Parity, parity
from fastmask.export.predictor import ExportedPredictor
from fastmask.export.runtime import Session
from fastmask.export.tensorrt.module import ForTensorRT

__all__ = [
    "Deployed",
    "ExportedPredictor",
    "ForTensorRT",
    "MismatchError",
    "Package",
    "Parity",
    "Session",
    "Shape",
    "Written",
    "count_operators",
    "export_model",
    "parity",
    "write_onnx",
    "write_package",
]
