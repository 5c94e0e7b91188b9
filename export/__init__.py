"""Models for deployment: ONNX of standard operators, run by ONNX Runtime, and checked against the model."""

from fastmask.export.deployed import Deployed, Shape
from fastmask.export.parity import Parity, parity
from fastmask.export.runtime import OnnxPredictor, Session
from fastmask.export.to_onnx import Written, count_operators, write_onnx

__all__ = [
    "Deployed",
    "OnnxPredictor",
    "Parity",
    "Session",
    "Shape",
    "Written",
    "count_operators",
    "parity",
    "write_onnx",
]
