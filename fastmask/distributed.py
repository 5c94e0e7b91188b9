"""The ranks of a ``torchrun`` job; a process that was started alone is one rank of one."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


class Ranks(NamedTuple):
    """Who this process is among the others, and what they tell one another."""

    rank: int
    world: int
    local: int  # the rank on its machine

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank; waits for all of them."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """Run a block on the first rank of each machine, then on the others: for what is downloaded once."""
        if self.local > 0:
            self.gather(None)
        yield
        if self.local == 0:
            self.gather(None)

    def device(self, name: str) -> str:
        """``cuda`` or ``auto`` means this rank's own GPU."""
        own = self.world > 1 and torch.cuda.is_available()
        return f"cuda:{self.local % torch.cuda.device_count()}" if own and name in ("auto", "cuda") else name


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """Join the other ranks, over the addresses that torchrun sets; leave them afterwards.

    They wait for one another as long as it takes: torchrun ends all of them where one fails.
    """
    rank, world, local = (int(os.environ.get(name, alone)) for name, alone in ALONE.items())
    known = Ranks(rank, world, local)
    if known.world == 1:
        yield known
        return
    dist.init_process_group("gloo", timeout=datetime.timedelta(days=30))
    try:
        yield known
    finally:
        dist.destroy_process_group()
