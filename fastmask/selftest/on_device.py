"""Checks of any op that need a CUDA device: graphs, streams, a second device. Results are bitwise equal."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Call = Callable[..., list[Tensor]]


def check_graph(call: Call, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
    """Capture a graph on one set of inputs, and replay it on another of the same shapes, then on the first again."""
    buffers = [tensor.cuda() for tensor in first]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the first call compiles, which a capture may not
        call(*buffers)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(*buffers)
    for inputs in (second, first):
        for buffer, tensor in zip(buffers, inputs, strict=True):
            buffer.copy_(tensor)
        graph.replay()
        check_equal(captured, call(*[tensor.cuda() for tensor in inputs]))


def check_side_stream(call: Call, inputs: Sequence[Tensor]) -> None:
    """Run on a side stream: kernels must see what was written there just before, behind a long wait."""
    expected = call(*[tensor.cuda() for tensor in inputs])
    late = [torch.zeros_like(tensor, device="cuda") for tensor in inputs]
    sources = [tensor.cuda() for tensor in inputs]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)  # cycles
        for buffer, source in zip(late, sources, strict=True):
            buffer.copy_(source)
        actual = call(*late)
    side.synchronize()
    check_equal(actual, expected)


def check_second_device(call: Call, inputs: Sequence[Tensor]) -> None:
    """Run on tensors of another device than the current one, which must stay current."""
    current = torch.cuda.current_device()
    other = torch.device("cuda", (current + 1) % torch.cuda.device_count())
    expected = call(*[tensor.to("cuda") for tensor in inputs])
    actual = call(*[tensor.to(other) for tensor in inputs])
    assert torch.cuda.current_device() == current, f"cuda:{torch.cuda.current_device()} was made current"
    assert all(tensor.device == other for tensor in actual), f"results must be on {other}"
    check_equal(actual, expected)


def check_equal(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raise AssertionError where a bit differs."""
    for number, tensors in enumerate(zip(actual, expected, strict=True)):
        ours, theirs = (tensor.cpu().contiguous() for tensor in tensors)
        assert ours.shape == theirs.shape, f"output {number} is {tuple(ours.shape)}, not {tuple(theirs.shape)}"
        different = int((ours.flatten().view(torch.uint8) != theirs.flatten().view(torch.uint8)).sum())
        assert different == 0, f"output {number} differs in {different} of {ours.nbytes} bytes"
