"""Models for deployment, as ONNX of standard operators or compiled by AOTInductor, checked against the model.

``translations`` is for ``torch.onnx.export`` of a module that calls fastmask's ops.
"""

from fastmask.export.aot import AOTPackage, write_package
from fastmask.export.api import MismatchError, export_model
from fastmask.export.module import ExportableModel, Shape
from fastmask.export.onnx import OnnxSummary, count_operators, translations, write_onnx
from fastmask.export.openvino import OpenVINOSession
from fastmask.export.parity import Parity, compare_outputs
from fastmask.export.predictor import ExportedPredictor
from fastmask.export.runtime import OnnxSession
from fastmask.export.tensorrt.module import TensorRTExportableModel

__all__ = [
    "AOTPackage",
    "ExportableModel",
    "ExportedPredictor",
    "MismatchError",
    "OnnxSession",
    "OnnxSummary",
    "OpenVINOSession",
    "Parity",
    "Shape",
    "TensorRTExportableModel",
    "compare_outputs",
    "count_operators",
    "export_model",
    "translations",
    "write_onnx",
    "write_package",
]
