"""Cost model: microseconds of a recorded launch, from how often its loops run.

A launch takes as long as the longest of these:
- its programs, handed out in order to the places that registers, shared memory and warps leave on the multiprocessors:
  a program takes what its instructions' latencies add up to (scoreboard.py), or, where that is longer, the cycles that
  its warps and those beside it need of the busiest pipe;
- its bytes, from HBM or from the L2 cache.
Each kernel, torch's own too, costs machine.LAUNCH beside that.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmask.kernels.predict import assembly, machine, torch_ops
from fastmask.kernels.predict.attribution import Counts, executions
from fastmask.kernels.predict.record import Launch, TorchOp
from fastmask.kernels.predict.schedule import makespan
from fastmask.kernels.predict.scoreboard import cycles_of_blocks

SLOW_PATH = 25  # instructions of a division's subroutine for a numerator of zero, which is what takes it here
SLOW_CYCLES = 4  # each of them, one after the other


class Work(NamedTuple):
    """Work of one launch, beyond what its code says.

    Args:
        kernel: its function's name.
        trips: how often the body of each run-time loop, and of a condition of interest, runs in each program, by the
            beginning of its first line, or all of it with the colon: "for k in range(0, num_kept"; after "function: "
            where two begin alike; after those around it and " -> " where it is in a function that is called twice.
            A condition that is not named counts as true; constant ones are not counted. "else of if ..." is the else
            branch; behind a condition whose body returns, that is the rest of the function.
        hbm_bytes: read from or written to HBM.
        l2_bytes: read from the L2 cache.
        slow_paths: share of the guarded calls (a division's, a root's) that are taken.
        lines: cache lines a load's warp touches, over what its width asks for.
    """

    kernel: str
    trips: Mapping[str, Counts] = {}
    hbm_bytes: float = 0
    l2_bytes: float = 0
    slow_paths: float = 0
    lines: float = 1


class Cost(NamedTuple):
    """Cost of one launch, in microseconds where no unit is named."""

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
    """Compute the cost of a launch."""
    code, ptx = assembly.parse_sass(launch.sass), assembly.parse_ptx(launch.ptx)
    cycles = cycles_of_blocks(code, launch.warps)
    pipes: dict[str, NDArray[Any]] = collections.defaultdict(lambda: np.zeros(launch.programs))  # of one warp
    serial, issued = np.zeros(launch.programs), np.zeros(launch.programs)
    phases: dict[str, tuple[int, float]] = {}
    for number, name, trips in executions(code, work.trips, ptx):
        each = np.broadcast_to(np.asarray(trips, float), launch.programs)
        block = code.blocks[number].instructions
        if any(instruction.opcode.startswith("CALL") for instruction in block):
            instructions = work.slow_paths * (len(block) + SLOW_PATH)
            serial += each * instructions * SLOW_CYCLES
        else:
            instructions = len(block)
            serial += each * cycles[number]
            for instruction in block:
                unit = machine.unit(instruction.opcode)
                pipes[unit.pipe] += each * unit.cycles * (work.lines if instruction.opcode.startswith("LDG") else 1)
        issued += each * instructions
        written, times = phases.get(name, (0, 0.0))  # a loop's test runs once more than its body: on average
        both = written + round(instructions)
        phases[name] = (both, (written * times + round(instructions) * float(each.sum())) / max(both, 1))
    pipes["issue"] = issued
    busiest = max(pipes, key=lambda pipe: float(pipes[pipe].sum()))
    share = launch.warps / machine.SCHEDULERS  # warps of a program on a scheduler
    busy = np.max(list(pipes.values()), 0) * share
    fit = machine.resident(launch.registers, launch.shared_bytes, launch.warps)
    alone = np.maximum(serial, busy * max(1.0, 1 / share))
    per_second = machine.CLOCK * machine.MULTIPROCESSORS * machine.SCHEDULERS
    return Cost(
        launch.name, launch.programs, launch.warps, launch.registers, launch.shared_bytes, fit,
        float(issued.sum() * launch.warps),
        float(issued.sum() * launch.warps / per_second * 1e6),
        busiest,
        float(pipes[busiest].sum() * launch.warps / per_second * 1e6),
        makespan(alone, busy, fit) / machine.CLOCK * 1e6,
        float(alone.max() / machine.CLOCK * 1e6),
        work.hbm_bytes / machine.HBM * 1e6,
        work.l2_bytes / machine.L2 * 1e6,
        phases,
    )  # fmt: skip


class Prediction(NamedTuple):
    """Predicted time of one case, in microseconds."""

    launches: list[Cost]
    torch: list[tuple[str, int, float]]  # operation, kernels, microseconds beside their launch

    @property
    def kernels(self) -> int:
        return len(self.launches) + sum(number for _, number, _ in self.torch)

    @property
    def ideal(self) -> float:
        """Time with every multiprocessor busy to the end and every ceiling reached."""
        own = sum(max(launch.pipe, launch.hbm, launch.l2, launch.longest) for launch in self.launches)
        return own + self.kernels * machine.LAUNCH + sum(time for _, _, time in self.torch)

    @property
    def expected(self) -> float:
        own = sum(launch.expected for launch in self.launches)
        return own + self.kernels * machine.LAUNCH + sum(time for _, _, time in self.torch)


def predict(events: Sequence[Launch | TorchOp], works: Sequence[Work]) -> Prediction:
    """Predict the time of recorded events.

    ``works`` has each kernel's launches in their order, and the last one counts for all that follow; a kernel without
    loops that moves few bytes needs none.
    """
    launches = [event for event in events if isinstance(event, Launch)]
    unknown = {work.kernel for work in works} - {launch.name for launch in launches}
    if unknown:
        raise ValueError(f"works: must be of kernels that are launched, got {sorted(unknown)}")
    left = {launch.name: [work for work in works if work.kernel == launch.name] for launch in launches}
    costs = []
    for launch in launches:
        mine = left[launch.name]
        work = mine[0] if mine else Work(launch.name)
        costs.append(cost(launch, work))
        left[launch.name] = mine[1:] or mine
    around = [(event.name, *torch_ops.cost(event)) for event in events if isinstance(event, TorchOp)]
    return Prediction(costs, [op for op in around if op[1]])
