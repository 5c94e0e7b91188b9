"""The ranks of a ``torchrun`` job; a process that was started alone is the one rank of a job of one."""

import atexit
import contextlib
import datetime
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from fastmask.files import describe_error

Value = TypeVar("Value")


class Ranks(NamedTuple):
    """This process's place in the job, and its collectives: every rank must call the same ones, in the same order."""

    rank: int
    world_size: int
    local_rank: int  # the rank on its machine

    def all_gather(self, value: Value) -> list[Value]:
        """Return every rank's value, by rank; waits for all of them."""
        values: list[Any] = [value]
        if self.world_size > 1:
            values = [None] * self.world_size
            dist.all_gather_object(values, value)
        return values

    def gather_to_first(self, value: Value) -> list[Value]:
        """Return every rank's value, by rank, on the first rank, and nothing on the others."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def run_on_all(self, function: Callable[[], Value]) -> Value:
        """Call a function on every rank and return this rank's value, unless it fails on one of them.

        Raises:
            ValueError: the function raised an OSError or ValueError on some rank; raised on every rank.
            RuntimeError: it raised another error on another rank, which is named; that rank raises the error itself.
        """
        value, problem, other = None, None, None
        try:
            value = function()
        except (OSError, ValueError) as error:
            problem = describe_error(error)
        except Exception as error:
            other = error
        for text in self.all_gather(problem):
            if text is not None:
                raise ValueError(text) from other
        for rank, failure in enumerate(self.all_gather(other and f"{type(other).__name__}: {other}")):
            if failure:
                raise other or RuntimeError(f"rank {rank} failed: {failure}")
        return value  # type: ignore[return-value]

    def run_on_first(self, function: Callable[[], Value]) -> Value:
        """Call a function on the first rank and return its value on every rank; errors are :meth:`run_on_all`'s."""
        values: list[Any] = [self.run_on_all(lambda: function() if self.rank == 0 else None)]
        if self.world_size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def local_first(self) -> Iterator[None]:
        """Run a block on the first rank of each machine, then on the others: for what is downloaded once."""
        if self.local_rank > 0:
            self.all_gather(None)
        try:
            yield
        finally:
            if self.local_rank == 0:
                self.all_gather(None)

    def device(self, name: str) -> str:
        """Return this rank's own GPU for ``cuda`` and ``auto`` where there are several ranks, else the name itself."""
        several = self.world_size > 1 and torch.cuda.is_available()
        return f"cuda:{self.local_rank % torch.cuda.device_count()}" if several and name in ("auto", "cuda") else name


SINGLE_RANK = Ranks(0, 1, 0)


@contextlib.contextmanager
def join_ranks(nccl: bool = False, keep: bool = False) -> Iterator[Ranks]:
    """Join the other ranks, over the addresses that torchrun sets, and leave them afterwards.

    Where the process is in a process group already, that group is used, and stays. There is no timeout: torchrun ends
    all ranks when one fails.

    Args:
        nccl: communicate tensors on GPUs, too.
        keep: leave when the process ends, as joining once more, over the same addresses, would fail.
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
        return
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        yield SINGLE_RANK
        return
    ranks = Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    backend = "cpu:gloo,cuda:nccl" if nccl and torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(days=30))
    if keep:
        atexit.register(_leave_ranks)
        yield ranks
        return
    try:
        yield ranks
    finally:
        _leave_ranks()


def _leave_ranks() -> None:
    gc.collect()  # DistributedDataParallel refers to its group, which must not outlive the interpreter
    if dist.is_initialized():
        dist.destroy_process_group()
