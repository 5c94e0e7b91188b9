"""Cost of torch's operations around a kernel: the kernels that they launch, and the bytes that these move.

Numbers of kernels are read from ATen's CUDA sources (Sort.cu, SortStable.cu, cub's DeviceRadixSort and DeviceScan);
torch 2.11 to 2.15. Each kernel costs machine.LAUNCH, which the model adds, and here its bytes at the L2 cache's speed,
or at HBM's where they do not fit.
"""

from fastmask.kernels.predict import machine
from fastmask.kernels.predict.record import Shape, TorchOp

CACHE = 50e6  # bytes of the L2 cache
SMALL_SORT = 4096  # elements a row that one program sorts (a bitonic or merge sort in shared memory)
RADIX_BITS = 8  # of cub's one-sweep sort, each pass a kernel
FREE = ("aten::set_", "aten::resize_", "aten::_local_scalar_dense", "prim::device")


def cost(op: TorchOp) -> tuple[int, float]:
    """Number of kernels, and the microseconds that they take beside their launches."""
    if op.name in FREE:
        return 0, 0.0
    speed = machine.L2 if op.moved_bytes < CACHE else machine.HBM * machine.HBM_EFFICIENCY
    once = op.moved_bytes / speed * 1e6
    shape = next((argument for argument in op.arguments if isinstance(argument, Shape)), None)
    if shape is None or op.name.startswith("aten::new_"):
        return (1 if op.moved_bytes else 0), once
    if op.name == "aten::sort":
        return _sort(shape, once)
    if op.name in ("aten::cumsum", "aten::cumprod"):
        return 2, once  # cub's scan and the initialization of its states
    if op.name == "aten::topk":
        return 3, 3 * once  # radix selection in passes, then a sort of what was selected
    return 1, once


def _sort(shape: Shape, once: float) -> tuple[int, float]:
    row = shape.shape[-1] if shape.shape else 1
    rows = 1
    for size in shape.shape[:-1]:
        rows *= size
    if row <= SMALL_SORT:
        return 3, 3 * once  # indices, a copy of the keys, the sort
    passes = shape.dtype.itemsize * 8 // RADIX_BITS
    # the indices are filled once; each row: a histogram, its sums, the passes; up to 128 rows one after the other
    kernels = passes + 2
    return 1 + kernels * (rows if rows < 128 else 2), (passes + 1) * once
