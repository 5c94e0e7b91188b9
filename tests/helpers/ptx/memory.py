"""Global and shared memory: loads, stores, atomics, asynchronous copies; bounds, races, what was never written."""

import ctypes
import random
from typing import Any

import numpy as np
import torch

from helpers.ptx.dtypes import UNSIGNED, WARP, i4, i8, u1
from helpers.ptx.report import Run, Trap
from helpers.ptx.shadow import Shadow

SHARED_POISON = 0xA5  # of shared memory at the beginning of a CTA
# what torch.empty gives inside launched(): NaN in every float type at every second place, large integers
POISON = np.array([0xA5, 0x5A, 0xC3, 0xFF] * 2, u1)
POISONED: dict[int, Any] = {}  # storages, kept alive
_PATTERNS = {n: POISON.view(t) for n, t in UNSIGNED.items()}
ATOMICS = {
    "add": lambda old, x: old + x, "and": lambda old, x: old & x, "or": lambda old, x: old | x,
    "xor": lambda old, x: old ^ x, "exch": lambda old, x: x, "min": min, "max": max,
    "cas": lambda old, x, y: y if old == x else old,
}  # fmt: skip


def view_bytes(address: int, size: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), u1)


def _differ(old, new):
    """Bitwise, but for two float32 that are NaN: numpy has several, a GPU's arithmetic gives one."""
    if new.dtype != np.uint32:
        return old != new
    return (old != new) & ~(((old & 0x7FFFFFFF) > 0x7F800000) & ((new & 0x7FFFFFFF) > 0x7F800000))


class Space:
    """What global and shared memory have in common. An access is of ``count`` neighboring values of ``size`` bytes."""

    name: str

    def __init__(self, run: Run, raw: np.ndarray, granule: int, num_units: int, threads: int):
        self.run, self.granule = run, granule  # bytes of a unit of the shadow: of the smallest access in the program
        self.views = {n: raw[: len(raw) // n * n].view(t) for n, t in UNSIGNED.items()}
        self.shadow = Shadow(num_units if run.options.races else 0, threads)

    def locate(self, threads, lanes, address, width):
        """-> the accesses' bytes in the views, their first units; Trap where one is out of bounds or misaligned."""
        raise NotImplementedError

    def check_read(self, start, size, index, units):
        """Report what was never written."""

    def _prepare(self, threads, address, offset, mask, width, line):
        threads.line = line
        lanes = threads.everyone if mask is None else np.flatnonzero(mask)
        if len(lanes) == 0:
            return lanes, None, None
        address = (address if mask is None else address[lanes]).astype(i8) + offset
        threads.failing = lanes, address
        misaligned = address % width != 0
        if misaligned.any():
            raise Trap(f"misaligned: {width} bytes at {int(address[misaligned][0]):#x} of {self.name} memory")
        start, units = self.locate(threads, lanes, address, width)
        return lanes, start, units[:, None] + np.arange(max(width // self.granule, 1))

    def load(self, threads, address, offset, mask, size, count, line):
        """-> ``count`` arrays; lanes that do not take part have 0."""
        lanes, start, units = self._prepare(threads, address, offset, mask, size * count, line)
        if start is None:
            return [np.zeros(threads.num, UNSIGNED[size]) for _ in range(count)]
        index = (start // size)[:, None] + np.arange(count)
        self.check_read(threads, size, index, units)
        if self.run.options.races:
            self.report(threads, self.shadow.touch_read(units, threads.identify(lanes)))
        if self.run.options.statistics:
            self.count_traffic(threads, f"ld.{self.name} {size * count}", lanes, start, size * count)
        values = self.views[size][index]
        if mask is None:
            return [np.ascontiguousarray(values[:, k]) for k in range(count)]
        out = [np.zeros(threads.num, values.dtype) for _ in range(count)]
        for k in range(count):
            out[k][lanes] = values[:, k]
        return out

    def store(self, threads, address, offset, mask, size, values, line):
        lanes, start, units = self._prepare(threads, address, offset, mask, size * len(values), line)
        if start is None:
            return
        new = np.stack([np.broadcast_to(v, threads.num) for v in values], 1)
        self.write(threads, lanes, start, units, size, new if mask is None else new[lanes])
        if self.run.options.statistics:
            self.count_traffic(threads, f"st.{self.name} {size * len(values)}", lanes, start, size * len(values))

    def write(self, threads, lanes, start, units, size, new):
        view, index = self.views[size], (start // size)[:, None] + np.arange(new.shape[1])
        if self.run.options.races:
            changed = _differ(view[index], new)  # a unit is not larger than a value
            changes = np.repeat(changed, max(size // self.granule, 1), 1)
            self.report(threads, self.shadow.touch_write(units, threads.identify(lanes), changes))
        view[index] = new
        if self.run.options.races and _differ(view[index], new).any():
            self.report(threads, "threads store different values to one address")

    def update(self, threads, address, offset, mask, op, dtype, values, meaning, line):
        """An atomic -> the old values. Threads come one after the other, in the order of the options."""
        size = np.dtype(dtype).itemsize
        lanes, start, units = self._prepare(threads, address, offset, mask, size, line)
        out = np.zeros(threads.num, UNSIGNED[size])
        if start is None:
            return out
        view, index, shadow = self.views[size].view(dtype), start // size, self.shadow
        who = threads.identify(lanes)
        values = [np.broadcast_to(v, threads.num)[lanes] for v in values]
        turns = order(self.run.options.order, len(lanes), threads.random)
        for i in turns if meaning & {"acquire", "acq_rel"} else []:
            shadow.acquire(int(start[i]), int(who.cta[i, 0]))
        if self.run.options.races:
            self.report(threads, shadow.touch_atomically(units, who))
        for i in turns:
            if meaning & {"acquire", "acq_rel"}:
                shadow.acquire(int(start[i]), int(who.cta[i, 0]))
            if meaning & {"release", "acq_rel"}:
                thread, _, cta, clock, since, _ = (int(part[i, 0]) for part in who)
                shadow.release(int(start[i]), thread, cta, since, clock)
            old = view[index[i]]
            out[lanes[i]] = old.view(UNSIGNED[size])
            view[index[i]] = ATOMICS[op](old, *(v[i] for v in values))
        return out

    def report(self, threads, wrong):
        if wrong:
            self.run.error(f"race in {self.name} memory: {wrong}: {threads.line}")


def order(kind: str, num: int, rng: random.Random) -> list[int]:
    """In which order ``num`` things happen that could happen in any."""
    positions = list(range(num))
    if kind == "random":
        rng.shuffle(positions)
    return positions[::-1] if kind == "last" else positions


class Global(Space):
    """The tensors of a launch, in their own memory."""

    name = "global"

    def __init__(self, run: Run, tensors: list[torch.Tensor], granule: int, threads: int):
        spans: list[list[int]] = []
        for t in sorted((t for t in tensors if t.numel()), key=lambda t: t.data_ptr()):
            size = (sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1) * t.element_size()
            poisoned = t.untyped_storage().data_ptr() in POISONED
            if spans and t.data_ptr() < spans[-1][1]:
                spans[-1][1] = max(t.data_ptr() + size, spans[-1][1])
            else:
                spans.append([t.data_ptr(), t.data_ptr() + size, poisoned])
        self.starts, self.ends, poisoned = (np.array([s[i] for s in spans], i8) for i in range(3))
        self.poisoned = poisoned.astype(bool)
        # one view from the first tensor's beginning to the last one's end: what lies between is never touched
        self.base = int(self.starts[0]) // 16 * 16 if spans else 0
        raw = view_bytes(self.base, int(self.ends[-1]) - self.base + 15) if spans else np.zeros(0, u1)
        units = -(-(self.ends - self.starts) // granule) + 1
        self.first_units = np.concatenate([[0], np.cumsum(units)]).astype(i8)
        super().__init__(run, raw, granule, int(units.sum()), threads)

    def locate(self, threads, lanes, address, width):
        which = np.searchsorted(self.starts, address, "right") - 1
        bad = (which < 0) | (address + width > self.ends[which]) if len(self.starts) else address == address
        if bad.any():
            where, a = "of no tensor", int(address[np.flatnonzero(bad)[0]])
            if len(self.starts):
                near = int(np.argmin(np.minimum(np.abs(self.starts - a), np.abs(self.ends - a))))
                start, end = int(self.starts[near]), int(self.ends[near])
                where = f"tensor {near} ({end - start} bytes) at {a - start:+d}"
            raise Trap(f"out of bounds: {width} bytes, {where}")
        self.which = which
        units = address // self.granule - self.starts[which] // self.granule + self.first_units[which]
        return address - self.base, units

    def check_read(self, threads, size, index, units):
        if not self.poisoned[self.which].any():
            return
        wide = max(size, 4)  # single bytes may well look like that
        at = index * size // wide
        unwritten = self.poisoned[self.which][:, None] & (self.views[wide][at] == _PATTERNS[wide][at % (8 // wide)])
        if unwritten.any() and self.run.options.races:
            unwritten = unwritten.any(1) & (self.shadow.writer[units] == 0).any(1)
        if unwritten.any():
            self.run.error(f"read of memory that nobody has written: {threads.line}")

    def count_traffic(self, threads, kind, lanes, start, width):
        """Requests, sectors of 32 bytes, sectors at best, lanes."""
        warp = threads.warp[lanes]
        sectors = np.unique(np.concatenate([warp << 40 | start >> 5, warp << 40 | (start + width - 1) >> 5]))
        distinct = len(np.unique(warp << 44 | start)) * width / 32
        self.run.count(kind, len(np.unique(warp)), len(sectors), distinct, len(lanes))


class Shared(Space):
    """That of a batch of CTAs, one behind the other."""

    name = "shared"

    def __init__(self, run: Run, size: int, granule: int, ctas: int, threads: int):
        self.size, self.stride = size, -(-size // 16) * 16
        super().__init__(
            run, np.full(ctas * self.stride, SHARED_POISON, u1), granule, ctas * self.stride // granule, threads
        )
        self.pending: list[tuple] = []  # asynchronous copies
        self.in_flight = np.zeros(ctas * self.stride // granule, i4)

    def locate(self, threads, lanes, address, width):
        if (address + width > self.size).any():
            raise Trap(f"out of bounds: shared memory has {self.size} bytes, {width} at {int(address.max())}")
        start = threads.cta[lanes] * self.stride + address
        return start, start // self.granule

    def check_read(self, threads, size, index, units):
        if self.run.options.races:
            self.run.uninitialized += int((self.shadow.writer[units] == 0).sum()) * self.granule
        if self.pending and self.in_flight[units].any():
            self.run.error(f"read of what cp.async still copies: {threads.line}")

    def count_traffic(self, threads, kind, lanes, start, width):
        """Requests, wavefronts, wavefronts at best: of 8-byte accesses a half warp at a time, of 16 bytes a quarter."""
        wide = max(width, 4)
        part = threads.warp[lanes] * 4 + (threads.lane[lanes] // (WARP * 4 // wide) if wide > 4 else 0)
        words = np.unique((part[:, None] << 40 | (start[:, None] + np.arange(0, wide, 4)) >> 2).ravel())
        banks = np.unique(words >> 40 << 8 | words % 32, return_counts=True)
        _, first = np.unique(banks[0] >> 8, return_index=True)
        self.run.count(
            kind, len(np.unique(part // 4)), np.maximum.reduceat(banks[1], first).sum(), len(first), len(lanes)
        )

    # asynchronous copies: read at once, written when they are waited for

    def copy_async(self, threads, address, offset, source, source_offset, source_size, mask, size, line):
        lanes, start, units = self._prepare(threads, address, offset, mask, size, line)
        if start is None:
            return
        source_size = np.broadcast_to(source_size, threads.num)[lanes]
        data = np.zeros((len(lanes), size), u1)
        for num in np.unique(source_size[source_size > 0]).tolist():
            part = lanes[source_size == num]
            taken = np.zeros(threads.num, bool)
            taken[part] = True
            loaded = threads.batch.memory.load(threads, source, source_offset, taken, 4, -(-num // 4), line)
            data[source_size == num, :num] = np.stack([v[part] for v in loaded], 1).view(u1)[:, :num]
        if self.run.options.races:  # it may be written at any time from now on
            self.report(threads, self.shadow.touch_write(units, threads.identify(lanes), np.ones(units.shape, bool)))
        np.add.at(self.in_flight, units, 1)
        group = threads.batch.groups[threads.lanes[lanes]]
        self.pending.append((threads.lanes[lanes], start, units, data, group, line))

    def finish_copies(self, threads, most):
        """Write what belongs to any but the ``most`` youngest groups of each of these threads."""
        batch, waiting = threads.batch, []
        limit = np.full(batch.num, -1, i8)  # groups below it are finished
        limit[threads.lanes] = batch.groups[threads.lanes] - most
        where = np.full(batch.num, -1, i8)
        where[threads.lanes] = np.arange(threads.num)
        for lanes, start, units, data, group, line in self.pending:
            done = group < limit[lanes]
            if done.any():
                threads.line = line
                np.subtract.at(self.in_flight, units[done], 1)
                self.write(threads, where[lanes[done]], start[done], units[done], 1 if data.shape[1] % 4 else 4,
                           data[done] if data.shape[1] % 4 else data[done].view("u4"))  # fmt: skip
            if not done.all():
                rest = ~done
                waiting.append((lanes[rest], start[rest], units[rest], data[rest], group[rest], line))
        self.pending = waiting
