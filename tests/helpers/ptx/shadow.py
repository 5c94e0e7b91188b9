"""Who touched each unit of memory last: what two threads do to one place without an order between them is a race.

Each CTA has a clock, which goes on at every barrier. A thread's access is ordered after another's of its CTA if a
bar.sync lies between (for threads of one warp bar.warp.sync is enough), after one of another CTA only if it acquired,
by an atomic, what that one had released. Several threads may write the same value, as Triton does where a layout has
copies, and a store that changes nothing is no race.
"""

from typing import NamedTuple

import numpy as np

from helpers.ptx.dtypes import WARP, i4


class Who(NamedTuple):
    """The threads of an access, [n, 1] each. Threads and warps count through all CTAs, from 1."""

    thread: np.ndarray
    warp: np.ndarray
    cta: np.ndarray
    clock: np.ndarray
    cta_since: np.ndarray  # the clock at the CTA's last bar.sync
    warp_since: np.ndarray  # and at the warp's last bar.warp.sync


class Shadow:
    def __init__(self, size: int, threads: int):
        self.threads = threads  # of a CTA
        self.writer = np.zeros(size, i4)  # a thread
        self.written = np.zeros(size, i4)  # its clock
        self.atomic = np.zeros(size, bool)  # whether that was an atomic
        self.reader = np.zeros(size, i4)  # a warp; -1: of several CTAs; -2 - CTA: several of it since its barrier
        self.read = np.zeros(size, i4)
        self.released: dict[int, dict[int, tuple[int, int, int]]] = {}  # address -> CTA -> since, thread, clock
        self.acquired: dict[int, dict[int, tuple[int, int, int]]] = {}  # CTA -> CTA -> the same

    def _find_conflicts(self, at, who):
        """Units that another thread wrote, with no order between."""
        writer = self.writer[at]
        other = (writer != 0) & (writer != who.thread)
        if not other.any():
            return other, writer
        since = np.where((writer - 1) // WARP + 1 == who.warp, who.warp_since, who.cta_since)
        foreign = (writer - 1) // self.threads != who.cta
        bad = other & (foreign | (self.written[at] >= since))
        if self.acquired and (bad & foreign).any():
            for i, k in np.argwhere(bad & foreign).tolist():
                seen = self.acquired.get(int(who.cta[i, 0]), {}).get((int(writer[i, k]) - 1) // self.threads)
                when = int(self.written[at[i, k]])
                bad[i, k] = not seen or not (when < seen[0] or (int(writer[i, k]) == seen[1] and when <= seen[2]))
        return bad, writer

    def touch_read(self, at: np.ndarray, who: Who) -> str | None:
        """``at``: unit numbers [n, units]. -> what is wrong."""
        bad, writer = self._find_conflicts(at, who)
        before = self.reader[at]
        several = (before != 0) & (before != who.warp) & (self.read[at] >= who.cta_since)
        self.reader[at] = who.warp
        self.read[at] = who.clock
        winner = self.reader[at]  # of the threads of this very instruction
        several |= winner != who.warp
        if several.any():
            self.reader[at[several]] = np.broadcast_to(-2 - who.cta, at.shape)[several]
        self.reader[at[(before != 0) & self._is_foreign(before, who) | self._is_foreign(winner, who)]] = -1
        return self._describe("read by", "after write of", bad, who, (writer - 1) // WARP) if bad.any() else None

    def touch_write(self, at: np.ndarray, who: Who, changes: np.ndarray) -> str | None:
        """``changes``: where the write changes the unit's value."""
        bad, writer = self._find_conflicts(at, who)
        bad = bad & changes
        reader = self.reader[at]
        after = (reader != 0) & (reader != who.warp)
        if after.any():
            after &= self._is_foreign(reader, who) | (self.read[at] >= who.cta_since)
        self.writer[at], self.written[at], self.atomic[at] = who.thread, who.clock, False
        if bad.any():
            return self._describe("write by", "after write of", bad, who, (writer - 1) // WARP)
        return self._describe("write by", "after read of", after, who, reader - 1) if after.any() else None

    def touch_atomically(self, at: np.ndarray, who: Who) -> str | None:
        """Atomics are no race among themselves."""
        bad, writer = self._find_conflicts(at, who)
        bad = bad & ~self.atomic[at]
        self.writer[at], self.written[at], self.atomic[at] = who.thread, who.clock, True
        return self._describe("atomic by", "after write of", bad, who, (writer - 1) // WARP) if bad.any() else None

    def _is_foreign(self, reader, who):
        return np.where(reader > 0, (reader * WARP - 1) // self.threads, -2 - reader) != who.cta

    def _describe(self, what, when, bad, who, other):
        i, k = np.argwhere(bad)[0]
        return f"{what} warp {int(who.warp[i, 0]) - 1} {when} warp {int(other[i, k])}"

    def release(self, address: int, thread: int, cta: int, since: int, clock: int) -> None:
        """What the CTA wrote before its last barrier, and this thread since, goes with the atomic at ``address``."""
        self.released.setdefault(address, {})[cta] = since, thread, clock

    def acquire(self, address: int, cta: int) -> None:
        self.acquired.setdefault(cta, {}).update(self.released.get(address, {}))
