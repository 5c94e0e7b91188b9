"""Plant bugs in kernels: what the interpreter and the cases must find."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from triton.runtime.jit import JITFunction

from helpers.ptx.case import Case


class Bug(NamedTuple):
    """A kernel's text, and what it is replaced by; the case that must fail then."""

    module: str  # fastmask.kernels.<module>
    old: str
    new: str
    case: Case


@contextlib.contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """Inside, the module's kernels have the new text in the place of the old one."""
    modules = [module for name, module in sys.modules.items() if name.startswith("fastmask.kernels.")]
    kernels = {id(v): v for module in modules for v in vars(module).values() if isinstance(v, JITFunction)}.values()
    texts = {k: k.src for k in kernels if k.__module__ == f"fastmask.kernels.{bug.module}" and bug.old in k.src}
    if not texts:
        raise LookupError(
            f"text not found in {bug.module}: {bug.old!r}; the kernel was rewritten: adapt the planted bug"
        )
    try:
        for kernel, text in texts.items():
            kernel._unsafe_update_src(text.replace(bug.old, bug.new))
        _forget(kernels)
        yield
    finally:
        for kernel, text in texts.items():
            kernel._unsafe_update_src(text)
        _forget(kernels)


def _forget(kernels) -> None:
    """What Triton compiled: a kernel's hash contains those of the functions that it calls."""
    for kernel in kernels:
        kernel.hash = None
        kernel.device_caches.clear()


def count_barriers(ptx: str) -> int:
    return len(re.findall(r"\tbar\.sync\s+0;", ptx))


def without_barrier(kernel: str, which: int) -> Callable[[str], str]:
    """Take that bar.sync out of the PTX of that entry."""
    return _replace_barrier(kernel, which, "")


def endless_at_barrier(kernel: str, which: int) -> Callable[[str], str]:
    """Put an endless loop, which is an error, in the place of that bar.sync: tells whether a case reaches it."""
    return _replace_barrier(kernel, which, "\n$L__endless:\n\tbra.uni \t$L__endless;")


def _replace_barrier(kernel: str, which: int, new: str) -> Callable[[str], str]:
    def rewrite(ptx: str) -> str:
        if f".entry {kernel}(" not in ptx:
            return ptx
        numbers = iter(range(10**6))
        return re.sub(r"\tbar\.sync\s+0;", lambda m: new if next(numbers) == which else m[0], ptx)

    return rewrite
