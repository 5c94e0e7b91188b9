"""Running an exported ONNX file with ONNX Runtime."""

import os
from typing import Any

import torch

from fastmask.export.exported import Array, ExportedModel, format_load_error
from fastmask.export.module import INPUTS


class OnnxSession(ExportedModel):
    """An ONNX file that :func:`fastmask.export.write_onnx` made, on as many threads as PyTorch uses.

    Args:
        path: of the file.
        device: "cpu"; "cuda" (or "cuda:1"), which needs onnxruntime-gpu; "auto" for that where it is there.

    Raises:
        ImportError: ONNX Runtime is not installed.
        ValueError: it is no such file, or ONNX Runtime has no such device.
    """

    runtime = "ONNX Runtime"

    def __init__(self, path: str | os.PathLike[str], device: str = "auto") -> None:
        onnxruntime = import_runtime()
        kind, index = choose_device(device)
        own: list[Any] = [("CUDAExecutionProvider", {"device_id": index})] if kind == "cuda" else []
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()  # under torchrun, this rank's share
        self.kind, name = kind, os.fspath(path)
        try:
            self.session = onnxruntime.InferenceSession(name, options, providers=[*own, "CPUExecutionProvider"])
        except Exception as error:  # its own kinds, of which it exports none
            raise ValueError(format_load_error(name, error)) from error
        if len(self.session.get_providers()) <= len(own):
            raise ValueError(f"device must be one that ONNX Runtime can load, got {device!r}")
        super().__init__(name, self.session.get_modelmeta().custom_metadata_map)
        if [value.name for value in self.session.get_inputs()] != list(INPUTS):
            raise ValueError(f"{name} must take {' and '.join(INPUTS)}, got a file of other inputs")

    def __call__(self, images: Array, sizes: Array) -> dict[str, Array]:
        """See :meth:`ExportedModel.__call__`."""
        try:
            outputs = self.session.run(None, dict(zip(INPUTS, (images, sizes), strict=True)))
        except Exception as error:  # its own kinds
            raise ValueError(format_load_error(self.path, error)) from error
        return dict(zip(self.metadata["outputs"], outputs, strict=True))


def import_runtime() -> Any:
    """Import the module, which either of two packages has."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "ONNX Runtime is not installed: pip install 'fastmask-rcnn[onnxruntime]' (or onnxruntime-gpu)"
        ) from error
    return onnxruntime


def choose_device(device: str) -> tuple[str, int]:
    """Choose kind and index of the device; ValueError if this ONNX Runtime was built for no such kind."""
    providers = import_runtime().get_available_providers()
    gpu = "CUDAExecutionProvider" in providers
    if device == "auto":
        return ("cuda", torch.cuda.current_device()) if gpu and torch.cuda.is_available() else ("cpu", 0)
    kind, _, index = device.partition(":")
    if kind not in ("cpu", *(["cuda"] if gpu else [])) or not (index or "0").isdecimal():
        raise ValueError(f"device must be one that this ONNX Runtime has ({', '.join(providers)}), got {device!r}")
    return kind, int(index or 0)
