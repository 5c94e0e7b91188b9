"""torch.library.opcheck of torchvision's ops under the patch, and of every op of ours."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.inputs import draw_boxes, with_images
from torch import Tensor

import fastmask
import fastmask.kernels
from fastmask.compat import torchvision_ops

KEYS = {"cpu": ("CPU",), "cuda": ("CUDA",)}
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
SETTINGS = (0.5, 2, 3)  # scale, pooled height and width
SIZES = (2, 3, 9, 8)  # batch, channels, height and width


def draw(device: torch.device, dtype: torch.dtype, layout: str) -> dict[str, tuple[Any, ...]]:
    """The arguments of each patched op; boxes are float32 where features are half, as autocast makes them."""

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=LAYOUTS[layout])

    boxes = draw_boxes(9, SIZES[2:], 6).to(device, torch.promote_types(dtype, torch.float32))
    rois, features, grad = with_images(boxes[:4], 2), values(*SIZES).requires_grad_(), values(4, 3, 2, 3)
    _, argmax = torchvision_ops.roi_pool(features.detach(), rois, *SETTINGS)
    return {
        "nms": (boxes, torch.rand(9, device=device, dtype=boxes.dtype), 0.5),
        "roi_align": (features, rois, *SETTINGS, 2, True),
        "_roi_align_backward": (grad, rois, *SETTINGS, *SIZES, 2, True),
        "roi_pool": (features, rois, *SETTINGS),
        "_roi_pool_backward": (grad, rois, argmax, *SETTINGS, *SIZES),
    }


@pytest.mark.filterwarnings("ignore:.*create_unbacked_symint:FutureWarning")  # in torchvision's shape of nms
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", torchvision_ops.KERNELS)
def test_patched_ops(
    name: str, dtype: torch.dtype, layout: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schema, fake tensors, autograd's registration and compiled programs fit what ours return."""
    called = []

    def note(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: called.append(1) or function(*args, **kwargs)

    for module, key in (
        (fastmask.ops, "nms"),
        (fastmask.ops, "roi_align"),
        (torchvision_ops, "multilevel_roi_align_backward_op"),
        (torchvision_ops, "roi_pool_op"),
        (torchvision_ops, "roi_pool_backward_op"),
    ):
        monkeypatch.setattr(module, key, note(getattr(module, key)))
    arguments = draw(device, dtype, layout)[name]
    called.clear()
    with fastmask.patch_torchvision(KEYS[device.type]):  # which imports torchvision
        torch.library.opcheck(getattr(torch.ops.torchvision, name).default, arguments)
    assert called


def test_shapes_are_torchvisions_after_the_patch() -> None:
    """Which refuse half features with float32 boxes."""
    drawn = draw(torch.device("cpu"), torch.bfloat16, "NCHW")["roi_pool"]
    arguments = [argument.to("meta") if isinstance(argument, Tensor) else argument for argument in drawn]
    with fastmask.patch_torchvision(("CPU",)):
        assert torch.ops.torchvision.roi_pool(*arguments)[1].dtype == torch.int32
    with pytest.raises(RuntimeError, match="same type as tensor for rois"):
        torch.ops.torchvision.roi_pool(*arguments)


def test_every_op_of_ours_is_checked() -> None:
    """Each custom op has a test in tests/kernels that calls opcheck on it, with a device that may be a GPU."""
    ops = set()
    for path in Path(fastmask.kernels.__file__).parent.glob("*.py"):
        if "torch.library.custom_op(" in path.read_text():
            module = importlib.import_module(f"fastmask.kernels.{path.stem}")
            ops |= {name for name, value in vars(module).items() if isinstance(value, torch.library.CustomOpDef)}
    tests = "".join(path.read_text() for path in (Path(__file__).parent.parent / "kernels").glob("test_*.py"))
    assert len(ops) > 20
    assert ops == set(re.findall(r"torch\.library\.opcheck\(\s*(\w+_op)\b", tests))
