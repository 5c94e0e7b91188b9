"""The ranks of a ``torchrun`` job; a process that was started alone is one rank of one."""

import atexit
import contextlib
import datetime
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


class Ranks(NamedTuple):
    """Who this process is among the others, and what they tell one another. All must call the same, in one order."""

    rank: int
    world: int
    local: int  # the rank on its machine

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, by rank; waits for all of them."""
        values: list[Any] = [value]
        if self.world > 1:
            values = [None] * self.world
            dist.all_gather_object(values, value)
        return values

    def to_first(self, value: Value) -> list[Value]:
        """Every rank's value, by rank, on the first one; nothing on the others."""
        if self.world == 1:
            return [value]
        values: list[Any] | None = [None] * self.world if self.rank == 0 else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def all_or_none(self, function: Callable[[], Value]) -> Value:
        """This rank's value of a function; on every rank, a ValueError if it raised an OSError or ValueError on one.

        Other errors are raised where they were; elsewhere, a RuntimeError says which rank failed.
        """
        value, problem, other = None, None, None
        try:
            value = function()
        except (OSError, ValueError) as error:
            problem = str(error)
        except Exception as error:
            other = error
        for said in self.gather(problem):
            if said is not None:
                raise ValueError(said) from other
        for rank, failed in enumerate(self.gather(other and f"{type(other).__name__}: {other}")):
            if failed:
                raise other or RuntimeError(f"rank {rank} failed: {failed}")
        return value  # type: ignore[return-value]

    def from_first(self, function: Callable[[], Value]) -> Value:
        """The first rank's value of a function, which is run there only; its errors as of :meth:`all_or_none`."""
        values: list[Any] = [self.all_or_none(lambda: function() if self.rank == 0 else None)]
        if self.world > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """Run a block on the first rank of each machine, then on the others: for what is downloaded once."""
        if self.local > 0:
            self.gather(None)
        try:
            yield
        finally:
            if self.local == 0:
                self.gather(None)

    def device(self, name: str) -> str:
        """``cuda`` or ``auto`` means this rank's own GPU."""
        own = self.world > 1 and torch.cuda.is_available()
        return f"cuda:{self.local % torch.cuda.device_count()}" if own and name in ("auto", "cuda") else name


ALONE = Ranks(0, 1, 0)


@contextlib.contextmanager
def ranks(nccl: bool = False, keep: bool = False) -> Iterator[Ranks]:
    """Join the other ranks, over the addresses that torchrun sets; leave them afterwards.

    Where the process is one of a group already, that is used, and stays.

    Args:
        nccl: for tensors on GPUs as well.
        keep: leave them when the process ends, as joining once more, over the same addresses, would fail.

    They wait for one another as long as it takes: torchrun ends all of them where one fails.
    """
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
        return
    if "RANK" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    known = Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    backend = "cpu:gloo,cuda:nccl" if nccl and torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(days=30))
    if keep:
        atexit.register(_leave)
        yield known
        return
    try:
        yield known
    finally:
        _leave()


def _leave() -> None:
    gc.collect()  # what is parallel holds on to its group, which must not outlive the interpreter
    if dist.is_initialized():
        dist.destroy_process_group()
