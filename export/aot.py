"""A model as a package that PyTorch's AOTInductor compiled: no Python of the model is needed to run it.

The ``fastmask::`` ops stay what they are and are called by name: whoever loads a package imports ``fastmask.ops``
first, and on a GPU they are the Triton kernels. A package is for the kind of device and processor that it was compiled
on, and for the version of PyTorch. Source: https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastmask.export.deployed import Deployed, Shape
from fastmask.export.exported import Array, Exported
from fastmask.ops._utils import check_shape  # and, with fastmask.ops, the ops that packages call

KIND = "AOTI_DEVICE_KEY"  # of the device, in what PyTorch itself writes there


def write_package(deployed: Deployed, path: Path, shape: Shape, *, categories: Sequence[str] | None = None) -> None:
    """Compile and write a model, for the device that it is on; a file that is there is replaced.

    Args:
        deployed: the model.
        path: of the file, ending in .pt2.
        shape: of its inputs, or an example of it.
        categories: names of labels, for the file's metadata.

    Raises:
        ValueError: the shape does not fit.
        RuntimeError: it cannot be compiled; there is no C++ compiler, perhaps.
        OSError: the file cannot be written.
    """
    deployed.check(shape)
    with torch.no_grad():
        program = torch.export.export(
            deployed,
            deployed.example(shape),
            dynamic_shapes=deployed.dynamic_shapes() if shape.dynamic else None,
            strict=False,
        )
        options = {"aot_inductor.metadata": deployed.told(shape, categories)}
        torch._inductor.aoti_compile_and_package(program, package_path=os.fspath(path), inductor_configs=options)


class Package(Exported):
    """A .pt2 file that :func:`fastmask.export.write_package` made.

    Args:
        path: of the file.
        device: of the kind that it was compiled for, which "auto" is.

    Raises:
        ValueError: it is no such file, or of another kind of device.
    """

    def __init__(self, path: str | os.PathLike[str], device: str = "auto") -> None:
        name = os.fspath(path)
        if not os.path.isfile(name):
            raise ValueError(f"{name} cannot be run: there is no such file")
        index = int(device.partition(":")[2] or -1)
        try:
            self.loaded = torch._inductor.aoti_load_package(name, device_index=index)
        except Exception as error:  # of several kinds
            raise ValueError(f"{name} cannot be run: {str(error).strip().splitlines()[0]}") from error
        told = self.loaded.get_metadata()
        super().__init__(name, told)
        self.kind = told[KIND]
        if device.partition(":")[0] not in ("auto", self.kind):
            raise ValueError(f"device must be {self.kind}, as the package was compiled for, got {device!r}")
        self.device = torch.device(self.kind if device == "auto" else device)

    def run(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """As :meth:`fastmask.export.Deployed.forward`, by name, on the package's device.

        Raises:
            ValueError: the inputs are not as the package was compiled; it would read beyond them.
        """
        check_shape("images", images, *("B", "H", "W", 3) if self.raw else ("B", 3, "H", "W"))
        check_shape("sizes", sizes, images.shape[0], 2)
        wide = torch.promote_types(getattr(torch, self.told["dtype"]), torch.float32)
        for name, tensor, dtype in (
            ("images", images, torch.uint8 if self.raw else wide),
            ("sizes", sizes, torch.int64),
        ):
            if tensor.dtype != dtype:
                raise ValueError(f"{name} must be {dtype}, got {tensor.dtype}")
        sides = images.shape[1:3] if self.raw else images.shape[2:]
        wanted, step = (self.told["batch"], *self.told["size"]), self.told["size_divisible"]
        for name, actual, limit, unit in zip(
            ("batch", "height", "width"), (images.shape[0], *sides), wanted, (1, step, step), strict=True
        ):
            if self.size is not None and actual != limit:
                raise ValueError(f"{name} must be {limit}, as the package was compiled for, got {actual}")
            if not 0 < actual <= limit or actual % unit:
                raise ValueError(f"{name} must be a multiple of {unit} in [{unit}, {limit}], got {actual}")
        found = self.loaded(images.to(self.device).contiguous(), sizes.to(self.device).contiguous())
        return dict(zip(self.told["outputs"], found, strict=True))

    def __call__(self, images: Array, sizes: Array) -> dict[str, Array]:
        """See :meth:`Exported.__call__`."""
        found = self.run(torch.from_numpy(images), torch.from_numpy(sizes))
        return {name: values.cpu().numpy() for name, values in found.items()}
