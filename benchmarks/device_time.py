"""Time of an op on a GPU, without the host: captured ten times in a CUDA graph, which is replayed.

The targets of the kernels are device times: around a call from Python, dispatch and launch alone take longer than many
of them. The L2 cache is warm, as it is after the layer that wrote the inputs, or flushed before each call.
"""

import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CALLS = 10  # per graph
REPLAYS = 11  # timed ones


def measure_device_time(run: Callable[[], Any], flush: Tensor) -> dict[str, float]:
    """Seconds of one call on the device, "warm" and "flushed", medians of the replays.

    Args:
        run: the call to capture, without host syncs.
        flush: tensor larger than the device's L2 cache, overwritten before each "flushed" call.

    Raises:
        RuntimeError: the call cannot be captured in a CUDA graph.
    """

    def overwrite() -> None:
        flush.zero_()

    def call_flushed() -> None:
        overwrite()
        run()

    with torch.cuda.device(flush.device):
        flushing = time_graph(overwrite)
        return {"warm": time_graph(run), "flushed": max(time_graph(call_flushed) - flushing, 0.0)}


def time_graph(run: Callable[[], Any]) -> float:
    """Seconds of one call, in a graph of CALLS of them on the current device."""
    return statistics.median(time_replays(capture_calls(run), REPLAYS))


def capture_calls(run: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    """Capture CALLS calls on the current device as one graph, and replay it once."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # the first calls compile and tune, which a capture may not
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            run()
    graph.replay()  # the first one uploads the graph
    return graph


def time_replays(graph: torch.cuda.CUDAGraph, number: int) -> list[float]:
    """Seconds of one call of the graph, in each of ``number`` replays in a row on the current device."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(number + 1)]
    for event in events[:-1]:
        event.record()
        graph.replay()
    events[-1].record()
    events[-1].synchronize()
    milliseconds: list[float] = [start.elapsed_time(end) for start, end in itertools.pairwise(events)]
    return [replay / 1e3 / CALLS for replay in milliseconds]
