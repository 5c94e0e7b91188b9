"""The stem of a fused model: which convolutions and poolings are fused, and the memory layout of its pixels."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.fusing import FORMS, close, kinds, unsettle
from helpers.slim import slim_model
from torch import Tensor, nn

import fastmask
from fastmask import Predictor
from fastmask.inference.program import Inputs, Program
from fastmask.kernels.fallback.stem import has_gaps
from fastmask.kernels.stem_conv import stem_conv_op
from fastmask.models import fused
from fastmask.models.prepare import prepare_for_inference
from fastmask.ops.feature_pyramid_network import LastLevelMaxPool

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def stems(model: nn.Module) -> list[fused.StemConv2d]:
    return [module for module in model.modules() if type(module) is fused.StemConv2d]


def sequence(conv: nn.Conv2d, pool: nn.MaxPool2d | None = None) -> nn.Module:
    """A slim model whose mask head, as all sequences, is fused."""
    model = slim_model(fastmask).eval()
    model.roi_heads.mask_head = nn.Sequential(conv, nn.ReLU(), pool or nn.MaxPool2d(3, 2, 1))
    return model


@FORMS
@HALVES
def test_in_half_types(dtype: torch.dtype, form: Any) -> None:
    ready = prepare_for_inference(slim_model(fastmask), dtype, form)
    assert len(stems(ready)) == 1
    assert type(ready.backbone.body["conv1"]) is fused.StemConv2d
    assert fused.FusedLastLevelMaxPool in kinds(ready)
    assert LastLevelMaxPool not in kinds(ready)


@pytest.mark.parametrize(
    ("dtype", "form"), [(torch.bfloat16, "off"), (torch.float32, "kernel")], ids=["off", "float32"]
)
def test_not_otherwise(dtype: torch.dtype, form: Any) -> None:
    """Pixels are then dense in memory."""
    ready = prepare_for_inference(slim_model(fastmask), dtype, form)
    assert not stems(ready)
    pixels = Program(ready, "rle", 0.5, 2048).empty_pixels(2, (32, 64), dtype, "cpu")
    assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("conv", "own"),
    [
        (nn.Conv2d(3, 32, 7, 2, 3), True),
        (nn.Conv2d(3, 32, 3, 2, 1), True),
        (nn.Conv2d(3, 32, 8, 2, 2), True),
        (nn.Conv2d(3, 32, 8, 2, 3), False),
        (nn.Conv2d(3, 32, 3, 1, 1), False),
        (nn.Conv2d(4, 32, 7, 2, 3), False),
        (nn.Conv2d(3, 32, 7, 2, 3, dilation=2), False),
        (nn.Conv2d(3, 33, 7, 2, 3, groups=3), False),
        (nn.Conv2d(3, 32, (7, 5), 2, 3), False),
        (nn.Conv2d(3, 32, 7, 2, (3, 2)), False),
        (nn.Conv2d(3, 32, 7, 2, "valid"), False),
    ],
    ids=str,
)
def test_which_convolutions(conv: nn.Conv2d, own: bool) -> None:
    """The feature maps are the same in any case."""
    head = prepare_for_inference(sequence(conv), torch.bfloat16, "kernel").roi_heads.mask_head
    assert (type(head[0]) is fused.StemConv2d) == own
    x = torch.randn(2, conv.in_channels, 34, 40).bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = F.max_pool2d(conv(x.float()).relu(), 3, 2, 1)
        close(head(x).float(), expected, 2e-2)


@pytest.mark.parametrize(
    ("pool", "own"),
    [
        (nn.MaxPool2d(3, 2, 1), True),
        (nn.MaxPool2d((2, 2)), True),
        (nn.MaxPool2d((3, 2), 2), False),
        (nn.MaxPool2d(3, 2, 1, dilation=2), False),
        (nn.MaxPool2d(3, 2, ceil_mode=True), False),
    ],
    ids=str,
)
def test_which_poolings(pool: nn.MaxPool2d, own: bool) -> None:
    conv = nn.Conv2d(3, 32, 3, 2, 1)
    head = prepare_for_inference(sequence(conv, pool).double(), torch.float64, "kernel").roi_heads.mask_head
    assert (head[2].geometry is not None) == own
    x = torch.randn(2, 3, 34, 41, dtype=torch.float64)
    with torch.no_grad():
        close(head(x), pool(conv.double()(x).relu()))


def test_pixels_lie_four_apart_as_far_as_the_stem(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not copied on the way to the stem, and the elements between pixels are ignored."""
    model = slim_model(fastmask).eval()
    unsettle(model)
    program = Program(prepare_for_inference(model, torch.bfloat16, "kernel"), "rle", 0.5, 2048)
    seen: list[Tensor] = []

    def record(x: Tensor, weight: Tensor, padding: int) -> Tensor:
        seen.extend([x, stem_conv_op(x, weight, padding)])
        return seen[-1]

    monkeypatch.setattr(fused, "stem_conv_op", record)
    pixels = program.empty_pixels(2, (64, 96), torch.bfloat16, "cpu")
    assert has_gaps(pixels)
    pixels.as_strided((2, 4, 64, 96), pixels.stride())[:, 3] = float("nan")
    pixels.normal_()
    sizes = torch.tensor([[64, 96], [60, 90]])
    with torch.no_grad():
        outputs = [program(Inputs(images, sizes, sizes)).data for images in (pixels, pixels.contiguous())]
    assert seen[0].data_ptr() == pixels.data_ptr()
    assert torch.equal(seen[1], seen[3])
    assert torch.equal(*outputs)


def test_predictor_writes_its_pixels_there() -> None:
    predictor = Predictor(slim_model(fastmask).eval(), (64, 96), dtype=torch.bfloat16, fuse="kernel")
    predictor([torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)])
    (runner,) = predictor._runners.values()
    pixels = runner.inputs.pixels
    assert has_gaps(pixels)
    assert pixels.float().std() > 0.1
    assert not pixels.as_strided((1, 4, 64, 96), pixels.stride())[:, 3].any()


@pytest.mark.gpu
@FORMS
@HALVES
def test_program_on_a_gpu(dtype: torch.dtype, form: Any) -> None:
    """Our kernel and cuDNN give the same feature maps; elements between the pixels are NaN."""
    model = slim_model(fastmask).eval().cuda()
    program = Program(prepare_for_inference(model, dtype, form), "rle", 0.5, 2048)
    pixels = program.empty_pixels(2, (128, 160), dtype, "cuda")
    pixels.as_strided((2, 4, 128, 160), pixels.stride())[:, 3] = float("nan")
    pixels.normal_()
    with torch.no_grad():
        ours = program.model.extract_features(pixels).maps
        theirs = program.model.extract_features(pixels.contiguous(memory_format=torch.channels_last)).maps
    for name, level in ours.items():
        assert level.isfinite().all()
        close(level.float(), theirs[name].float(), 5e-2)
