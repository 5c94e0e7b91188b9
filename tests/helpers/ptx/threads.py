"""Threads in lockstep: several CTAs together, one element of every array a thread.

All threads stand at the same basic block as a rule. Where they part, those at the lowest block run, on copies of the
registers it needs, until all have come to the same one again.
"""

import random

import numpy as np

from helpers.ptx.arithmetic import nudge
from helpers.ptx.dtypes import WARP, i8, u4
from helpers.ptx.memory import Global, Shared
from helpers.ptx.report import Run, Trap
from helpers.ptx.shadow import Who


class Batch:
    """CTAs that run together: their registers, clocks and shared memory."""

    def __init__(
        self, program, run: Run, memory: Global, params, positions, first: int, shared: int, rng: random.Random
    ):
        self.program, self.run, self.memory, self.params, self.random = program, run, memory, params, rng
        self.positions = positions  # of the CTAs in the grid
        self.ctas, self.threads = len(positions), WARP * run.warps
        self.num = self.ctas * self.threads
        self.first = first  # CTAs before these
        self.shared = Shared(run, shared, program.granules["shared"], self.ctas, self.threads)
        thread = np.arange(self.num)
        self.cta, self.warp, self.lane = thread // self.threads, thread // WARP, thread % WARP
        self.special = {"tid.x": (thread % self.threads).astype(u4), "laneid": self.lane.astype(u4)}
        for i, axis in enumerate("xyz"):
            self.special[f"ctaid.{axis}"] = np.array([p[i] for p in positions], u4)[self.cta]
            self.special[f"nctaid.{axis}"] = np.full(self.num, run.grid[i], u4)
            self.special[f"ntid.{axis}"] = np.full(self.num, 1 if i else self.threads, u4)
            self.special.setdefault(f"tid.{axis}", np.zeros(self.num, u4))
        self.clock = np.ones(self.ctas, i8)
        self.cta_since = np.ones(self.ctas, i8)
        self.warp_since = np.ones(self.num // WARP, i8)
        self.groups = np.zeros(self.num, i8)  # of asynchronous copies, that a thread has begun
        self.executed = np.zeros(self.num // WARP, i8)
        self.visits = np.zeros(len(program.blocks), i8)  # warps, by block
        self.registers = [np.full(self.num, value) for value in program.undefined]

    def execute(self) -> None:
        """Block after block, to the end of all threads."""
        program, run, everyone = self.program, self.run, Threads(self, np.arange(self.num))
        end, blocks = len(program.blocks), program.functions
        together, at, threads = 0, np.zeros(self.num, i8), everyone
        while True:
            pc = together
            if at is not None:
                pc, lanes = self._choose(at)
                if len(lanes) == self.num:
                    at, threads = None, everyone
                elif not np.array_equal(lanes, threads.lanes):
                    threads = Threads(self, lanes)
            if pc == end:
                break
            run.divergent += not threads.whole
            self.executed[threads.warps] += program.sizes[pc]
            if self.executed[threads.warps[0]] > run.options.most_instructions:
                raise Trap(f"over {run.options.most_instructions} instructions")
            self.visits[pc] += len(threads.warps)
            try:
                result = blocks[pc](self.registers, threads) if at is None else self._execute_some(pc, threads)
            except Trap as trap:
                raise Trap(f"{trap}: {threads.line}, CTA {self.positions[self.cta[threads.lanes[0]]]}") from None
            if type(result) is not int:  # they part
                target, taken = result
                at = np.zeros(self.num, i8) if at is None else at
                at[threads.lanes] = np.where(taken, target, pc + 1)
            elif at is None:
                together = result
            else:
                at[threads.lanes] = result
        run.instructions += int(self.executed.sum())
        run.longest = max(run.longest, int(self.executed.max()))

    def _choose(self, at: np.ndarray) -> tuple[int, np.ndarray]:
        """The lowest block with threads that can run, and these. At a barrier those of a CTA wait for each other."""
        for pc in np.unique(at).tolist():
            here = at == pc
            if pc < len(self.program.waits) and self.program.waits[pc]:
                here &= (np.bincount(self.cta[here], minlength=self.ctas) == self.threads)[self.cta]
            if here.any() and (pc < len(self.program.blocks) or here.all()):
                return pc, np.flatnonzero(here)
        lines = {
            self.program.blocks[pc].instructions[0].text
            for pc in np.unique(at).tolist()
            if pc < len(self.program.blocks)
        }
        raise Trap(f"barrier not reached by all threads of a CTA: {sorted(lines)}")

    def _execute_some(self, pc, threads):
        reads, writes = self.program.uses[pc]
        local = dict.fromkeys(writes) | {i: self.registers[i][threads.lanes] for i in reads}
        result = self.program.functions[pc](local, threads)
        for i in writes:
            register = self.registers[i].copy()  # it may be shared by a mov
            register[threads.lanes] = local[i]
            self.registers[i] = register
        return result


class Threads:
    """Those that execute a block together; what generated code calls."""

    def __init__(self, batch: Batch, lanes: np.ndarray):
        self.batch, self.lanes, self.num = batch, lanes, len(lanes)
        self.everyone = np.arange(self.num)
        self.cta, self.warp, self.lane = batch.cta[lanes], batch.warp[lanes], batch.lane[lanes]
        self.warps, sizes = np.unique(self.warp, return_counts=True)
        self.whole = bool((sizes == WARP).all())
        self.random = batch.random
        self.line = ""

    def full(self, value):
        return np.full(self.num, value)

    def special(self, name):
        return self.batch.special[name][self.lanes]

    def identify(self, lanes) -> Who:
        batch = self.batch
        cta, warp = self.cta[lanes], self.warp[lanes]
        thread = self.lanes[lanes] + batch.first * batch.threads + 1
        since = batch.cta_since[cta]
        parts = (thread, (thread - 1) // WARP + 1, cta + batch.first, batch.clock[cta], since)
        return Who(*(p[:, None] for p in (*parts, np.maximum(since, batch.warp_since[warp]))))

    # control

    def check_whole(self, mask, line):
        """An instruction of whole warps."""
        if not self.whole or (
            mask is not None and (mask.reshape(-1, WARP).any(1) != mask.reshape(-1, WARP).all(1)).any()
        ):
            raise Trap(f"lanes of a warp are missing at {line}")

    def synchronize(self, mask, line):
        """bar.sync, of all threads of these CTAs."""
        self.line, batch, reached = line, self.batch, np.unique(self.cta)
        if mask is not None and not mask.all():
            raise Trap("barrier not reached by all threads of a CTA")
        batch.clock[reached] += 1
        batch.cta_since[reached] = batch.clock[reached]
        batch.run.barriers += len(reached)

    def synchronize_warps(self, mask, line):
        """bar.warp.sync."""
        self.check_whole(mask, line)
        batch = self.batch
        batch.clock[np.unique(self.cta)] += 1
        batch.warp_since[self.warps] = batch.clock[self.warps * WARP // batch.threads]

    def commit_copies(self, mask):
        self.batch.groups[self.lanes if mask is None else self.lanes[mask]] += 1

    # arithmetic that depends on the options

    def approximate(self, value, *operands):
        if not self.batch.run.options.perturb:
            return value
        return nudge(value, *(np.broadcast_to(o, value.shape) for o in operands))

    def approximate_quotient(self, a, b):
        """div.full.f32: 2 ulp; exact for powers of two."""
        power = (b.view(u4) & u4(0x7FFFFF)) == 0
        return np.where(power, a / b, self.approximate(a / b, a, b))

    # memory

    def load_parameter(self, address, dtype):
        """A parameter's address is 8 times its number."""
        numbers = np.unique(address)
        if (numbers % 8).any():
            raise Trap("address inside a parameter")
        out = np.zeros(self.num, dtype)
        for number in numbers.tolist():
            out = np.where(address == number, self.batch.params[number // 8].view(dtype), out)
        return out

    def matrices(self, address, offset, values, count, transposed, writes, line):
        """ldmatrix and stmatrix, 8 x 8 of 16 bits: lane l has elements 2 (l % 4) and the next of row l / 4; lanes
        8 m to 8 m + 7 give the addresses of matrix m's rows."""
        lane, shared = np.arange(WARP), self.batch.shared
        row, pair = lane // 4, lane % 4
        base = np.arange(0, self.num, WARP)[:, None]  # the warps' first lanes
        for m in range(count):
            if not writes:
                mask = (self.lane < 8 * (m + 1)) & (self.lane >= 8 * m)
                words = shared.load(self, address, offset, mask, 4, 4, line)
                tile = np.stack([w.reshape(-1, WARP)[:, 8 * m : 8 * m + 8] for w in words], 2).view(np.uint16)
                rows = [tile[:, 2 * pair + k, row] if transposed else tile[:, row, 2 * pair + k] for k in range(2)]
                values.append((rows[0].astype(u4) | (rows[1].astype(u4) << u4(16))).ravel())
                continue
            tile = np.zeros((self.num // WARP, 8, 8), np.uint16)
            held = values[m].reshape(-1, WARP)
            for k in range(2):
                half = (held >> u4(16 * k)).astype(np.uint16)
                if transposed:
                    tile[:, 2 * pair + k, row] = half
                else:
                    tile[:, row, 2 * pair + k] = half
            stored = np.zeros((4, self.num), u4)
            stored[:, base + np.arange(8 * m, 8 * m + 8)] = tile.view(u4).transpose(2, 0, 1)
            shared.store(self, address, offset, (self.lane >= 8 * m) & (self.lane < 8 * m + 8), 4, [*stored], line)
        return values
