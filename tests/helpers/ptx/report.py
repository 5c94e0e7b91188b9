"""What can be asked of an execution, and what it tells: options, and one Run per launch."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np


@dataclasses.dataclass
class Options:
    seed: int = 0
    order: str = "random"  # of CTAs, and of threads at an atomic: "random", "first", "last"
    races: bool = True
    statistics: bool = False
    perturb: bool = (
        False  # approximate instructions up to 2 ulp off, a function of the operands; else correctly rounded
    )
    contract: bool = False  # mul.f32 + add.f32 without .rn -> fma, as ptxas does without --fmad=false
    most_errors: int = 20
    most_instructions: int = 1_000_000  # of a warp: more is an endless loop
    most_threads: int = 2048  # that are executed together, of several CTAs


@dataclasses.dataclass
class Run:
    """One launch. Counts are of warps: an instruction that a warp executes counts once."""

    name: str
    ptx: str
    grid: tuple[int, ...]
    warps: int  # of a CTA
    options: Options
    errors: list[str] = dataclasses.field(default_factory=list)
    instructions: int = 0
    longest: int = 0  # instructions of the longest warp
    barriers: int = 0
    divergent: int = 0  # times that a block was run with lanes of a warp missing
    uninitialized: int = 0  # bytes read from shared memory that this CTA has not written
    opcodes: Counter[str] = dataclasses.field(default_factory=Counter)
    traffic: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def executed_warps(self) -> int:
        return int(np.prod(self.grid)) * self.warps

    def count(self, kind: str, *values: float) -> None:
        self.traffic[kind] = self.traffic.get(kind, np.zeros(len(values))) + np.array(values, float)

    def error(self, text: str) -> None:
        if len(self.errors) < self.options.most_errors and text not in self.errors:
            self.errors.append(text)

    def describe(self, most_opcodes: int = 12) -> list[str]:
        """Statistics in lines."""
        warps = max(self.executed_warps, 1)
        lines = [
            f"{self.name}: {self.instructions / warps:.0f} instructions a thread ({self.longest} at most), "
            f"{self.barriers} barriers, grid {self.grid}, {self.warps} warps, {self.divergent} divergent blocks"
        ]
        lines.append("  " + ", ".join(f"{op} {n / warps:.1f}" for op, n in self.opcodes.most_common(most_opcodes)))
        for kind, (requests, parts, best, lanes) in sorted(self.traffic.items()):
            what = "sectors" if "global" in kind else "waves"
            lines.append(
                f"  {kind:14} {requests:8.0f} requests, {parts / requests:5.1f} {what} each "
                f"({best / requests:.1f} at best), {lanes / requests:.0f} lanes"
            )
        return lines


class Trap(Exception):  # noqa: N818
    """Execution cannot go on."""
