"""A model as a package that PyTorch's AOTInductor compiled: no Python of the model is needed to run it.

The ``fastmask::`` ops stay what they are and are called by name: whoever loads a package imports ``fastmask.ops``
first, and on a GPU they are the Triton kernels. A package is for the kind of device and processor that it was compiled
on, and for the version of PyTorch; it holds native code, which loading it runs. Source: https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmask.checks import check_shape
from fastmask.export.exported import Array, ExportedModel, format_load_error
from fastmask.export.module import ExportableModel, Shape
from fastmask.kernels.keypoints import decode_keypoints_op
from fastmask.kernels.nms import nms_padded_op
from fastmask.kernels.paste import paste_masks_op
from fastmask.kernels.roi_align import multilevel_roi_align_op
from fastmask.kernels.roi_pool import roi_pool_op
from fastmask.kernels.soft_nms import soft_nms_padded_op

OPS = (  # that packages call
    nms_padded_op,
    soft_nms_padded_op,
    multilevel_roi_align_op,
    roi_pool_op,
    paste_masks_op,
    decode_keypoints_op,
)
KIND = "AOTI_DEVICE_KEY"  # of the device, in what PyTorch itself writes there


def write_package(
    exportable: ExportableModel, path: Path, shape: Shape, *, categories: Sequence[str] | None = None
) -> None:
    """Compile and write a model, for the device that it is on; a file that is there is replaced.

    Args:
        exportable: the model.
        path: of the file, ending in .pt2.
        shape: of its inputs, or an example of it.
        categories: names of labels, for the file's metadata.

    Raises:
        ValueError: the shape does not fit.
        RuntimeError: it cannot be compiled; there is no C++ compiler, perhaps.
        OSError: the file cannot be written.
    """
    exportable.check(shape)
    with torch.no_grad():
        program = torch.export.export(
            exportable,
            exportable.make_example(shape),
            dynamic_shapes=exportable.dynamic_shapes() if shape.dynamic else None,
            strict=False,
        )
        own = {"torch": torch.__version__, "ops": describe_ops()}
        options: dict[str, Any] = {"aot_inductor.metadata": exportable.format_metadata(shape, categories) | own}
        if exportable.trim:  # or convolutions of rows without a known number write channels-last, and PyTorch reads
            options["layout_optimization"] = False  # contiguous (torch/_subclasses/fake_impls.py, conv)
        torch._inductor.aoti_compile_and_package(program, package_path=os.fspath(path), inductor_configs=options)


class AOTPackage(ExportedModel):
    """A .pt2 file that :func:`fastmask.export.write_package` made.

    Args:
        path: of the file, which is trusted: it is native code.
        device: of the kind that it was compiled for, such as "cuda:1"; "auto" is that kind's current one.

    Raises:
        ValueError: it is no such file, or was compiled for another device, processor, PyTorch or fastmask.
    """

    runtime = "AOTInductor"

    def __init__(self, path: str | os.PathLike[str], device: str = "auto") -> None:
        name = os.fspath(path)
        metadata = read_metadata(name)
        super().__init__(name, metadata)
        check_machine(name, metadata)
        self.kind = metadata[KIND]
        try:
            self.device = torch.device(self.kind if device == "auto" else device)
        except RuntimeError as error:
            raise ValueError(f"device must be one of PyTorch's, got {device!r}") from error
        if self.device.type != self.kind:
            raise ValueError(f"device must be {self.kind}, as the package was compiled for, got {device!r}")
        index = -1
        if self.kind == "cuda":
            index = torch.cuda.current_device() if self.device.index is None else self.device.index
            self.device = torch.device("cuda", index)
        try:
            self.loaded = torch._inductor.aoti_load_package(name, device_index=index)
        except Exception as error:  # of several kinds
            raise ValueError(format_load_error(name, error)) from error

    def run(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Run the package on its device; outputs of :meth:`fastmask.export.ExportableModel.forward` by name.

        Raises:
            ValueError: the inputs are not as the package was compiled; it would read beyond them.
        """
        check_shape("images", images, *("B", "H", "W", self.channels) if self.raw else ("B", self.channels, "H", "W"))
        check_shape("sizes", sizes, images.shape[0], 2)
        wide = torch.promote_types(getattr(torch, self.metadata["dtype"]), torch.float32)
        for name, tensor, dtype in (
            ("images", images, torch.uint8 if self.raw else wide),
            ("sizes", sizes, torch.int64),
        ):
            if tensor.dtype != dtype:
                raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")
        sides = images.shape[1:3] if self.raw else images.shape[2:]
        wanted, step = (self.metadata["batch"], *self.metadata["size"]), self.metadata["size_divisible"]
        for name, actual, limit, unit in zip(
            ("batch", "height", "width"), (images.shape[0], *sides), wanted, (1, step, step), strict=True
        ):
            if self.size is not None and actual != limit:
                raise ValueError(f"{name} must be {limit}, as the package was compiled for, got {actual}")
            if not 0 < actual <= limit or actual % unit:
                raise ValueError(f"{name} must be a multiple of {unit} in [{unit}, {limit}], got {actual}")
        try:
            outputs = self.loaded(images.to(self.device).contiguous(), sizes.to(self.device).contiguous())
        except RuntimeError as error:
            raise ValueError(format_load_error(self.path, error)) from error
        return dict(zip(self.metadata["outputs"], outputs, strict=True))

    def __call__(self, images: Array, sizes: Array) -> dict[str, Array]:
        """See :meth:`ExportedModel.__call__`."""
        outputs = self.run(torch.from_numpy(images), torch.from_numpy(sizes))
        return {name: values.cpu().numpy() for name, values in outputs.items()}


def describe_ops() -> str:
    """Describe the ops that packages call, with their arguments."""
    return "; ".join(str(op._opoverload._schema) for op in OPS)


def read_metadata(name: str) -> dict[str, str]:
    """Read a package's metadata, before any of it is loaded."""
    if not os.path.isfile(name):
        raise ValueError(f"{name} cannot be run: there is no such file")
    try:
        loader: Any = torch._C._aoti.AOTIModelPackageLoader
        metadata: dict[str, str] = loader.load_metadata_from_package(name, "model")
    except Exception as error:  # of several kinds
        raise ValueError(format_load_error(name, error)) from error
    return metadata


def check_machine(name: str, metadata: dict[str, str]) -> None:
    """Raise a ValueError if this process cannot run the package, which could otherwise crash it."""
    from torch._inductor.codecache import get_device_information

    own = get_device_information(metadata[KIND])
    for what in ("torch", "ops"):
        here = {"torch": torch.__version__, "ops": describe_ops()}[what]
        if metadata.get(what) != here:
            raise ValueError(f"{name} must be exported again: it was with {what} {metadata.get(what)}, here is {here}")
    for what, here in own.items():
        there, able = metadata.get(what, ""), set(here.split())
        able |= {"AVX2"} if "AVX512" in able else set()
        if set(there.split()) - able:  # of a processor's extensions, more may be here
            raise ValueError(f"{name} must be exported on a machine like this: {what} is {here}, there it was {there}")
