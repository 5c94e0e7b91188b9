"""Kernels counted without a GPU: expansion of operations, saved rows match the code, tables."""

import collections
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.slim import slim_model

import fastmask
from fastmask.kernels.launch import HAS_TRITON, INTERPRET

if INTERPRET or not HAS_TRITON:
    pytest.skip("traces Triton's compiled launches", allow_module_level=True)

from fastmask import ops
from fastmask.benchmarks import launches, predicted
from fastmask.benchmarks.expansions import CONVOLUTION, OTHER, PRODUCT, TRITON, Kernel, uses_several_blocks
from fastmask.benchmarks.predicted import predict
from fastmask.benchmarks.trace import Call, Trace, fake_cuda
from fastmask.models.detection._utils import BoxCoder

BF16 = torch.bfloat16
Op = Callable[..., object]


def trace_calls(run: Op, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Call]:
    with fake_cuda():
        tensors = [torch.empty(shape, dtype=dtype, device="cuda") for shape in shapes]
        mode = Trace()
        with mode.tracing():
            run(*tensors)
    return mode.calls


def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.conv2d(x, weight, bias, padding=1)


@pytest.mark.parametrize(
    ("run", "shapes", "expected"),
    [
        (torch.add, [(4, 5), (5,)], [OTHER]),
        (lambda x: x.view(-1)[3:].t(), [(4, 5)], []),
        (lambda x: x.new_empty(3), [(4,)], []),
        (lambda x: x.masked_fill(x > 0, 1), [(4,)], [OTHER] * 3),
        (lambda x: x.sort(dim=1), [(3, 19)], [OTHER] * 4),
        (lambda x: x.topk(7, dim=1, sorted=False), [(3, 91)], [OTHER]),
        (lambda x: x.topk(7, dim=1), [(3, 91)], [OTHER] * 2),
        (convolve, [(1, 3, 9, 9), (8, 3, 3, 3), (8,)], [CONVOLUTION, OTHER]),
        (lambda x, w: torch.conv2d(x, w), [(1, 3, 9, 9), (8, 3, 3, 3)], [CONVOLUTION]),
        (torch.nn.functional.linear, [(9, 4), (5, 4), (5,)], [PRODUCT]),
        (torch.bmm, [(2, 9, 4), (2, 4, 5)], [PRODUCT]),
    ],
    ids=["add", "views", "empty", "masked_fill", "sort", "unsorted topk", "topk", "bias", "no bias", "linear", "bmm"],
)
def test_kernels_of_an_operation(run: Op, shapes: list[tuple[int, ...]], expected: list[str]) -> None:
    assert [kernel.kind for call in trace_calls(run, *shapes) for kernel in call.kernels] == expected


def test_bytes_and_flops_worked_out() -> None:
    (call,) = trace_calls(convolve, (2, 3, 9, 9), (8, 3, 3, 3), (8,))
    convolution, bias = call.kernels
    assert convolution.flops == 2 * (2 * 8 * 9 * 9) * (3 * 3 * 3)
    assert convolution.moved_bytes == 4 * (2 * 3 * 81 + 8 * 27 + 8 + 2 * 8 * 81)
    assert bias.moved_bytes == 2 * 4 * 2 * 8 * 81
    (call,) = trace_calls(lambda x, w: torch.conv_transpose2d(x, w, stride=2), (1, 4, 5, 5), (4, 6, 2, 2))
    assert call.kernels[0].flops == 2 * 25 * 4 * 6 * 4
    (call,) = trace_calls(torch.nn.functional.linear, (9, 4), (5, 4), (5,), dtype=BF16)
    assert call.kernels[0][2:4] == (2 * (9 * 4 + 5 * 4 + 5 + 9 * 5), 2 * 9 * 5 * 4)
    (call,) = trace_calls(lambda x: x[:, :1].expand(-1, 5) + 1, (4, 5))
    assert call.kernels[0].moved_bytes == 4 * (4 + 4 * 5)  # an expanded axis is read once


def test_cudnns_fused_convolutions() -> None:
    """One kernel each, in the layout of their inputs; the added tensor is read."""

    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
        x = x.contiguous(memory_format=torch.channels_last)
        rest = bias, (1, 1), (1, 1), (1, 1), 1
        out = torch.cudnn_convolution_relu(x, weight, *rest)
        assert out.is_contiguous(memory_format=torch.channels_last)
        torch.cudnn_convolution_add_relu(x, weight, out, 1.0, *rest)

    _, *fused = trace_calls(run, (1, 4, 9, 9), (8, 4, 3, 3), (8,))
    assert [[kernel.kind for kernel in call.kernels] for call in fused] == [[CONVOLUTION]] * 2
    (first,), (second,) = (call.kernels for call in fused)
    assert first.flops == second.flops == 2 * 8 * 81 * 36
    assert second.moved_bytes - first.moved_bytes == 4 * 8 * 81


def test_rows_that_topk_gives_several_blocks() -> None:
    """TensorTopK.cu: one row of P2, not one of P4; two radix passes for bfloat16, four for float32."""
    assert uses_several_blocks(1, 201_600)
    assert not uses_several_blocks(8, 12_600)
    assert uses_several_blocks(40, 12_600)
    assert not uses_several_blocks(1000, 91)
    for dtype, number in ((BF16, 16), (torch.float32, 22)):
        (call,) = trace_calls(lambda x: x.topk(1000, dim=1), (1, 201_600), dtype=dtype)
        assert len(call.kernels) == number


def test_launchers_are_trace_calls() -> None:
    def run(boxes: torch.Tensor, scores: torch.Tensor) -> None:
        ops.nms_padded(boxes, scores, iou_threshold=0.5, presorted=[500, 400])
        ops.nms_padded(boxes, scores, iou_threshold=0.5)

    presorted, counted = trace_calls(run, (2, 900, 4), (2, 900))
    assert presorted.operation == "fastmask::nms_padded, presorted"
    assert [kernel.operation for kernel in presorted.kernels] == [
        "_run_keys_kernel", "_merge_kernel", "_pairs_kernel", "_resolve_kernel", "_list_kernel",
    ]  # fmt: skip
    assert {kernel.kind for kernel in counted.kernels} == {TRITON}
    assert presorted.amount == 2


class Decoding(torch.nn.Module):
    def forward(self, deltas: torch.Tensor, boxes: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes = torch.zeros(deltas.shape[0], 2, dtype=torch.int64, device=deltas.device)
        limits = {"min_size": 1e-3, "min_score": 0.0, "above": False}
        return BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_candidates(deltas, boxes, sizes, scores, **limits)


def test_decoding_is_one_launch_except_under_autograd_and_export() -> None:
    """On CUDA tensors one kernel; PyTorch's operations for gradients, in an export and in a compiled program."""
    shapes = (2, 9, 4), (2, 9, 4), (2, 9)
    _, decode = trace_calls(Decoding(), *shapes)
    assert [kernel.operation for kernel in decode.kernels] == ["_decode_kernel"]

    def with_gradient(deltas: torch.Tensor, *rest: torch.Tensor) -> None:
        with torch.enable_grad():
            boxes, _ = Decoding()(deltas.requires_grad_(), *rest)
        assert boxes.requires_grad

    assert all(call.operation.startswith("aten::") for call in trace_calls(with_gradient, *shapes))
    with fake_cuda():
        inputs = tuple(torch.empty(shape, device="cuda") for shape in shapes)
        for strict in (False, True):
            graph = torch.export.export(Decoding(), inputs, strict=strict).graph
            targets = {str(node.target) for node in graph.nodes}
            assert "aten.exp.default" in targets
            assert not [target for target in targets if "fastmask" in target]


def test_a_host_sync_is_an_error() -> None:
    with pytest.raises(ValueError, match="must not synchronize with the host, got aten::_local_scalar_dense"):
        trace_calls(lambda x: x.sum().item(), (3,))


def test_any_model_can_be_counted() -> None:
    frame = launches.count(2, "float32", "off", (128, 160), slim_model(fastmask).eval())
    numbers = launches.count_kinds(launches.sum_stages(frame))
    assert len(frame["stages"]) == 10
    layers = sum(isinstance(module, torch.nn.Conv2d) for module in slim_model(fastmask).modules())
    # the RPN's three run five times; the mask head's last one is a dot product, in a kernel of ours
    assert numbers[CONVOLUTION] == layers + 12 - 1
    assert numbers[TRITON] > 15
    assert launches.predict_milliseconds(frame) > 0.25


@pytest.mark.parametrize("batch", launches.BATCHES, ids="batch {}".format)
@pytest.mark.parametrize("version", launches.load_versions()[1:], ids=lambda version: version["version"])
def test_saved_rows_match_the_code(version: dict[str, Any], batch: int) -> None:
    """If not: ``python -m fastmask.benchmarks.launches --save after --write-readme``, and with ``cudnn`` twice."""
    (frame,) = (frame for frame in version["frames"] if frame["batch"] == batch)
    if version["torch"] != torch.__version__:
        pytest.skip(f"the rows were made with torch {version['torch']}")
    now = launches.count(frame["batch"], frame["dtype"], frame["fuse"])
    for name, calls in frame["stages"].items():
        assert now["stages"][name] == calls, name


def test_readme_has_the_saved_tables() -> None:
    between = launches.README.read_text().split(launches.MARKERS[0])[1].split(launches.MARKERS[1])[0]
    assert between.strip() == launches.format_versions(launches.load_versions())
    assert "*predicted*" in launches.README.read_text().lower() or "**predicted**" in launches.README.read_text()


def test_predicted_times() -> None:
    kernels = (Kernel("a", CONVOLUTION, 1e6, 989e12 * 0.55 * 1e-5), Kernel("b", OTHER, 5.5e7 * 0.9))
    time = predict({Call("c", kernels): 2}, "bfloat16")
    assert time == pytest.approx((10, 20, 0, 18))
    assert predict({Call("c", (Kernel("d", OTHER, 3.35e9 * 0.9),)): 1}, "bfloat16").other == pytest.approx(1000)
    few, one, two, three = (
        predict({Call("fastmask::encode_masks", (), number): 1}, "bfloat16").own for number in (50, 100, 200, 300)
    )
    assert few == pytest.approx(one / 2)
    assert one < two < 2 * one
    assert three - two == pytest.approx(two - one)


def test_extrapolation_meets_a_larger_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extrapolated from the smaller row alone, within 15 % of the larger one."""
    for name in ("fastmask::multilevel_roi_align", "fastmask::nms_padded, presorted"):
        small, large = predicted.ROWS[name]
        expected = predict({Call(name, (), large.amount): 1}, "bfloat16").own
        monkeypatch.setitem(predicted.ROWS, name, (small,))
        assert predict({Call(name, (), large.amount): 1}, "bfloat16").own == pytest.approx(expected, rel=0.15)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = [
        Call("aten::add", (Kernel("aten::add", OTHER, 4.0),)),
        *trace_calls(convolve, (1, 3, 9, 9), (8, 3, 3, 3), (8,)),
    ]
    monkeypatch.setattr(launches, "trace", lambda *_: {"one": calls, "two": calls[:1] * 3})
    monkeypatch.setattr(launches, "RESULTS", tmp_path / "rows.json")
    monkeypatch.setattr(launches, "README", tmp_path / "README.md")
    launches.README.write_text("top\n" + "\nold\n".join(launches.MARKERS) + "\nbottom\n")
    assert launches.main(["--save", "before", "--commit", "abc"]) == 0
    assert launches.main(["--save", "after", "--commit", "def", "--write-readme", "--dtype", "float16"]) == 0
    assert "| **all** | 1 | 0 | 0 | 5 |" in capsys.readouterr().out
    first, second = launches.load_versions()
    assert [first["version"], second["version"]] == ["before", "after"]
    assert first["frames"][0]["stages"]["two"] == collections.Counter({calls[0]: 3})
    text = launches.README.read_text()
    assert text.startswith("top\n")
    assert text.endswith("bottom\n")
    assert "old" not in text
    assert launches.main(["--write-readme"]) == 0
    assert launches.README.read_text() == text
    with pytest.raises(SystemExit):
        launches.main(["--save", "after", "--batch", "3"])
    assert "--batch must be 1 8 to be saved, got 3" in capsys.readouterr().err
    assert launches.main(["--json", "--batch", "3"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["batch"] == 3
