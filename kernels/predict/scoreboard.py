"""Scoreboard of one warp: the cycles that it takes for each block of a kernel's SASS when it is alone."""

from fastmask.kernels.predict import machine
from fastmask.kernels.predict.assembly import Code


def cycles_of_blocks(code: Code, warps: int) -> dict[int, float]:
    """Cycles that one warp, alone, spends in each block, issuing in order what its operands allow."""
    shared = min(warps / machine.SCHEDULERS, 1)  # of the pipe to memory, which the schedulers have in common
    ready: dict[str, float] = {}
    free: dict[str, float] = {}
    now, cycles = 0.0, {}
    for number in code.reached:
        begun = now
        block = code.blocks[number]
        if any(instruction.opcode.startswith("CALL") for instruction in block.instructions):
            cycles[number] = 0.0
            continue
        for instruction in block.instructions:
            unit = machine.unit(instruction.opcode)
            start = max([now + 1, free.get(unit.pipe, 0.0), *(ready.get(name, 0.0) for name in instruction.reads)])
            now = start
            free[unit.pipe] = start + unit.cycles * (shared if unit.pipe == "memory" else 1)
            for name in instruction.writes:
                ready[name] = start + unit.latency
            if instruction.opcode.startswith("BAR"):
                now += machine.BARRIER
        if block.instructions and block.instructions[-1].opcode.startswith("BRA"):
            now += machine.BRANCH
        cycles[number] = now - begun
    return cycles
