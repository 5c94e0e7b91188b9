"""Schedule of a launch: when all programs end, each begun in order on the multiprocessor with most free places.

Programs on a multiprocessor run as if alone until they want more of its busiest pipe than there is; then all of them
are slower by the same factor. A multiprocessor's clock counts the cycles of a program that is not slowed down.
"""

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmask.kernels.predict import machine

TOGETHER = 200  # cycles: places that become free within these are filled evenly


class _Multiprocessor:
    def __init__(self, number: int) -> None:
        self.number = number
        self.running: list[tuple[float, int]] = []  # (when it ends by the clock, program)
        self.load = 0.0  # share of the busiest pipe that its programs want
        self.clock = self.seen = 0.0  # what the clock showed when it was last seen, and when that was
        self.version = 0  # of what is expected

    def advance(self, now: float) -> None:
        self.clock += (now - self.seen) / self.slower
        self.seen = now

    @property
    def slower(self) -> float:
        return max(self.load / machine.EFFICIENCY, 1.0)


def makespan(alone: NDArray[Any], busy: NDArray[Any], fit: int) -> float:
    """Cycles until the last program ends.

    Args:
        alone: cycles of each program on an empty multiprocessor.
        busy: of these, those in which it keeps the busiest pipe.
        fit: programs on a multiprocessor at a time.
    """
    lasting, share = alone.tolist(), (busy / np.maximum(alone, 1)).tolist()
    multiprocessors = [_Multiprocessor(i) for i in range(machine.MULTIPROCESSORS)]
    free = [(0, processor.number) for processor in multiprocessors]  # (programs there, which), a heap
    events: list[tuple[float, int, int]] = []
    waiting, now = 0, 0.0
    while True:
        changed = set()
        while free and waiting < len(lasting):
            programs, number = heapq.heappop(free)
            processor = multiprocessors[number]
            if programs != len(processor.running):
                continue  # an old entry
            processor.advance(now)
            heapq.heappush(processor.running, (processor.clock + lasting[waiting], waiting))
            processor.load += share[waiting]
            waiting += 1
            changed.add(number)
            if len(processor.running) < fit:
                heapq.heappush(free, (len(processor.running), number))
        _expect(events, [multiprocessors[number] for number in changed])
        until = events[0][0] + TOGETHER if events else 0.0
        if not events:
            return now
        while events and events[0][0] <= until:
            end, number, version = heapq.heappop(events)
            processor = multiprocessors[number]
            if version != processor.version:
                continue
            now = end
            processor.advance(now)
            processor.load = max(processor.load - share[heapq.heappop(processor.running)[1]], 0.0)
            heapq.heappush(free, (len(processor.running), number))
            _expect(events, [processor])


def _expect(events: list[tuple[float, int, int]], changed: list[_Multiprocessor]) -> None:
    """Push the event of the next program's end on each multiprocessor."""
    for processor in changed:
        processor.version += 1
        if processor.running:
            end = processor.seen + max(processor.running[0][0] - processor.clock, 0.0) * processor.slower
            heapq.heappush(events, (end, processor.number, processor.version))
