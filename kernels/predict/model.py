"""From a recorded launch and how often its loops run to microseconds.

A launch takes as long as the longest of these:
- its programs, handed out in order to the places that registers, shared memory and warps leave on the multiprocessors.
  A program takes its dependent instructions' latencies (each block of the machine code is run through a scoreboard, in
  order, for one warp), or, where that is longer, the cycles that its warps and those beside it need of the busiest pipe;
- its bytes, from HBM or from the L2 cache;
and each launch costs machine.LAUNCH beside that.
"""

import collections
import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmask.kernels.predict import machine, sass, source, torch_ops
from fastmask.kernels.predict.record import Launch, TorchOp

Counts = float | NDArray[Any]  # the same for each program, or [programs]
# where PTX and SASS name the same thing: if ptxas wrote a loop's body several times, SASS has more of them
ANCHORS = {
    "ld.global": "LDG", "st.global": "STG", "ld.shared": "LDS", "st.shared": "STS", "bar.sync": "BAR",
    "shfl.sync": "SHFL", "div.rn.f32": "FCHK", "mma.sync": "HMMA", "atom.global": "ATOM",
}  # fmt: skip
SLOW_PATH = 25  # instructions of a division's subroutine for a numerator of zero, which is what takes it here


class Work(NamedTuple):
    """How much one launch has to do, beyond what its code says.

    Args:
        kernel: its function's name.
        trips: how often the body of each run-time loop, and of a condition of interest, runs in each program, by the
            beginning of its first line ("for k in range(0, num_kept"), after "function: " where two begin alike.
        hbm_bytes: that must come from or go to HBM.
        l2_bytes: that come from the L2 cache.
        slow_paths: share of the guarded calls (a division's, a root's) that are taken.
        lines: cache lines a load's warp touches, over what its width asks for.
    """

    kernel: str
    trips: Mapping[str, Counts] = {}
    hbm_bytes: float = 0
    l2_bytes: float = 0
    slow_paths: float = 0
    lines: float = 1


class Phase(NamedTuple):
    """Part of a kernel that runs equally often."""

    name: str  # of the innermost loop or condition; "" outside of all
    instructions: int
    pipes: Mapping[str, float]  # cycles for one warp, by pipe
    cycles: float  # for one warp alone
    barriers: int
    calls: int  # of slow paths, guarded


class Cost(NamedTuple):
    """Of one launch; microseconds, but for what is named otherwise."""

    kernel: str
    programs: int
    warps: int
    registers: int
    shared_bytes: int
    resident: int  # programs on a multiprocessor at a time
    instructions: float  # of warps, in all
    issue: float  # at one instruction a cycle and scheduler, all of them busy
    busiest: str  # pipe
    pipe: float  # that it takes, all of them busy
    scheduled: float  # programs on their places
    longest: float  # program, alone
    hbm: float
    l2: float
    phases: Mapping[str, tuple[int, float]]  # instructions of one trip, and trips in all

    @property
    def expected(self) -> float:
        return max(self.scheduled, self.hbm / machine.HBM_EFFICIENCY, self.l2 / machine.L2_EFFICIENCY)


def cost(launch: Launch, work: Work) -> Cost:
    """What a launch takes."""
    if launch.name != work.kernel:
        raise ValueError(f"work: is for {work.kernel}, and the launch is of {launch.name}")
    code = sass.parse(launch.sass)
    counts: dict[str, Counts] = {}
    total: dict[str, NDArray[Any]] = collections.defaultdict(lambda: np.zeros(launch.programs))
    serial, issued = np.zeros(launch.programs), np.zeros(launch.programs)
    phases: dict[str, tuple[int, float]] = {}
    for phase, trips in _phases(code, launch.ptx, work.trips):
        each = np.broadcast_to(np.asarray(trips, float), launch.programs)
        slow = phase.calls * work.slow_paths
        instructions = phase.instructions + slow * SLOW_PATH
        issued += each * instructions
        serial += each * (phase.cycles + slow * SLOW_PATH * 4)
        for pipe, cycles in phase.pipes.items():
            total[pipe] += each * cycles * (work.lines if pipe == "memory" else 1)
        total["issue"] += each * instructions
        counts[phase.name] = trips
        old = phases.get(phase.name, (0, 0.0))
        phases[phase.name] = (old[0] + round(instructions), max(old[1], float(each.sum())))
    busiest = max(total, key=lambda pipe: total[pipe].sum())
    share = launch.warps / machine.SCHEDULERS  # warps of a program on a scheduler
    busy = np.max(list(total.values()), 0) * share
    fit = machine.resident(launch.registers, launch.shared_bytes, launch.warps)
    alone = np.maximum(serial, busy * max(1.0, 1 / share))
    per_second = machine.CLOCK * machine.MULTIPROCESSORS * machine.SCHEDULERS
    return Cost(
        launch.name, launch.programs, launch.warps, launch.registers, launch.shared_bytes, fit,
        float(issued.sum() * launch.warps),
        float(issued.sum() * launch.warps / per_second * 1e6),
        busiest,
        float(total[busiest].sum() * launch.warps / per_second * 1e6),
        _makespan(alone, busy, fit) / machine.CLOCK * 1e6,
        float(alone.max() / machine.CLOCK * 1e6),
        work.hbm_bytes / machine.HBM * 1e6,
        work.l2_bytes / machine.L2 * 1e6,
        phases,
    )  # fmt: skip


def _makespan(alone: NDArray[Any], busy: NDArray[Any], fit: int) -> float:
    """Cycles until all programs are done, each begun in order where a place is free.

    Programs on a multiprocessor run as if alone until they want more of its busiest pipe than there is; then all of
    them are slower by the same factor. Its clock counts the time of a program that is not slowed down.
    """
    number = len(alone)
    share = (busy / alone).tolist()
    lasting = alone.tolist()
    running: list[list[tuple[float, int]]] = [[] for _ in range(machine.MULTIPROCESSORS)]  # (end by its clock, program)
    load, clock, seen = ([0.0] * machine.MULTIPROCESSORS for _ in range(3))
    version = [0] * machine.MULTIPROCESSORS
    events: list[tuple[float, int, int]] = []

    def put(program: int, place: int) -> None:
        heapq.heappush(running[place], (clock[place] + lasting[program], program))
        load[place] += share[program]

    def expect(place: int) -> None:
        version[place] += 1
        if running[place]:
            slower = max(load[place] / machine.EFFICIENCY, 1.0)
            end = seen[place] + (running[place][0][0] - clock[place]) * slower
            heapq.heappush(events, (end, place, version[place]))

    waiting = min(number, fit * machine.MULTIPROCESSORS)
    for program in range(waiting):
        put(program, program % machine.MULTIPROCESSORS)
    for place in range(machine.MULTIPROCESSORS):
        expect(place)
    now = 0.0
    while events:
        now, place, current = heapq.heappop(events)
        if current != version[place]:
            continue
        clock[place], program = heapq.heappop(running[place])
        seen[place] = now
        load[place] -= share[program]
        if waiting < number:
            put(waiting, place)
            waiting += 1
        expect(place)
    return now


def _phases(code: sass.Code, ptx: str, trips: Mapping[str, Counts]) -> Iterator[tuple[Phase, Counts]]:
    """Each block as a phase of its own, and how often it runs in a program."""
    reached = sass.reachable(code)
    loops = _labels(code, reached)
    copies = _copies(code, loops, ptx)
    cycles = _scoreboard(code, reached)
    for number in reached:
        block = code.blocks[number]
        inside = [i for i in loops if number in code.loops[i]]  # outer first
        count: Counts = 1.0
        if inside:
            label, copy = loops[inside[-1]], copies[inside[-1]]
            count = _trips(label[0], trips) / copy if copy else 0.0
        paths = collections.Counter(source.around(one.stack) for one in block.instructions)
        path = paths.most_common(1)[0][0] if paths else ()
        known = path.index(loops[inside[-1]]) + 1 if inside and loops[inside[-1]] in path else 0
        name = loops[inside[-1]][0].header if inside else ""
        for region, _ in path[known:] if known or not inside else ():
            if region.loop:  # around a loop: once for each time that it is entered
                count = np.minimum(count, _trips(region, trips))
            elif _named(region, trips):
                count, name = np.minimum(count, _trips(region, trips)), region.header
        pipes: dict[str, float] = collections.defaultdict(float)
        for one in block.instructions:
            unit = machine.unit(one.opcode)
            pipes[unit.pipe] += unit.cycles
        guarded = any(one.opcode.startswith("CALL") for one in block.instructions)
        instructions = 0 if guarded else len(block.instructions)
        barriers = sum(one.opcode.startswith("BAR") for one in block.instructions)
        yield (
            Phase(name, instructions, {} if guarded else pipes, 0 if guarded else cycles[number], barriers, guarded),
            count,
        )


def _named(region: source.Region, trips: Mapping[str, Counts]) -> list[str]:
    return [key for key in trips if region.header.startswith(key) or f"{region.function}: {region.header}".startswith(key)]


def _trips(region: source.Region, trips: Mapping[str, Counts]) -> Counts:
    found = _named(region, trips)
    if not found:
        raise ValueError(f"trips: must say how often `{region.function}: {region.header}` runs, got {list(trips)}")
    return trips[max(found, key=len)]


def _labels(code: sass.Code, reached: Sequence[int]) -> dict[int, tuple[source.Region, sass.Stack]]:
    """The source loop of each loop of the machine code: that with which it shares most instructions."""
    under: dict[tuple[source.Region, sass.Stack], set[int]] = collections.defaultdict(set)
    of_block: dict[int, set[int]] = {}
    for number in reached:
        of_block[number] = set()
        for one in code.blocks[number].instructions:
            of_block[number].add(id(one))
            for place in source.around(one.stack):
                if place[0].loop:
                    under[place].add(id(one))
    labels: dict[int, tuple[source.Region, sass.Stack]] = {}
    for i, loop in enumerate(code.loops):
        mine = set().union(*(of_block[number] for number in loop))
        outer = [labels[j] for j in labels if loop < code.loops[j]]
        scores = {place: len(mine & ids) / len(mine | ids) for place, ids in under.items() if place not in outer}
        if not scores:
            raise ValueError("a loop of the machine code has no loop in the source")
        labels[i] = max(scores, key=lambda place: scores[place])
    return labels


def _copies(code: sass.Code, loops: Mapping[int, Any], ptx: str) -> dict[int, int]:
    """How many copies of its body each loop of the machine code holds; 0: it is for what the copies leave over."""
    written: dict[tuple[str, sass.Stack], int] = collections.Counter()
    for name, stack in sass.of_ptx(ptx):
        for anchor, kind in ANCHORS.items():
            if name.startswith(anchor):
                written[kind, stack] += 1
    copies: dict[int, int] = {}
    for i, loop in enumerate(code.loops):
        nested = set().union(*(other for other in code.loops if other < loop))
        found: dict[tuple[str, sass.Stack], int] = collections.Counter()
        for number in loop - nested:
            for one in code.blocks[number].instructions:
                kind = next((kind for kind in ANCHORS.values() if one.opcode.startswith(kind)), None)
                if kind is not None and (kind, one.stack) in written:
                    found[kind, one.stack] += 1
        ratios = [number / written[key] for key, number in found.items()]
        copies[i] = max(round(float(np.median(ratios))), 1) if ratios else 1
    for i in loops:
        twins = [j for j in loops if loops[j] == loops[i] and not (code.loops[i] < code.loops[j])]
        if copies[i] < max(copies[j] for j in twins):
            copies[i] = 0
    return copies


def _scoreboard(code: sass.Code, reached: Sequence[int]) -> dict[int, float]:
    """Cycles that one warp, alone, spends in each block, issuing in order what its operands allow."""
    ready: dict[str, float] = {}
    free: dict[str, float] = {}
    now, cycles = 0.0, {}
    for number in reached:
        begun = now
        block = code.blocks[number]
        if any(one.opcode.startswith("CALL") for one in block.instructions):
            cycles[number] = 0.0
            continue
        for one in block.instructions:
            unit = machine.unit(one.opcode)
            start = max([now + 1, free.get(unit.pipe, 0.0), *(ready.get(name, 0.0) for name in one.reads)])
            now = start
            free[unit.pipe] = start + unit.cycles
            for name in one.writes:
                ready[name] = start + unit.latency
            if one.opcode.startswith("BAR"):
                now += machine.BARRIER
        if block.instructions and block.instructions[-1].opcode.startswith("BRA"):
            now += machine.BRANCH
        cycles[number] = now - begun
    return cycles


class Prediction(NamedTuple):
    """Of one case, in microseconds."""

    launches: list[Cost]
    torch: list[tuple[str, int, float]]  # operation, kernels, microseconds beside their launch

    @property
    def kernels(self) -> int:
        return len(self.launches) + sum(number for _, number, _ in self.torch)

    @property
    def expected(self) -> float:
        own = sum(launch.expected for launch in self.launches)
        return own + self.kernels * machine.LAUNCH + sum(time for _, _, time in self.torch)


def predict(events: Sequence[Launch | TorchOp], works: Sequence[Work]) -> Prediction:
    """``works``: one for each launch, in their order."""
    launches = [event for event in events if isinstance(event, Launch)]
    names = [launch.name for launch in launches]
    if names != [work.kernel for work in works]:
        raise ValueError(f"works: must be of the launches {names}, got {[work.kernel for work in works]}")
    around = [(event.name, *torch_ops.cost(event)) for event in events if isinstance(event, TorchOp)]
    return Prediction([cost(*pair) for pair in zip(launches, works, strict=True)], [one for one in around if one[1]])
