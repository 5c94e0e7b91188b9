"""A case: what is launched, and how its result is compared; in which modes cases run; what is wrong with one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from helpers.ptx.launch import launched
from helpers.ptx.report import Options, Run


class Case(NamedTuple):
    run: Callable[[], Any]  # launches kernels, on CPU tensors
    check: Callable[[Any], list[str]]  # what is wrong with what `run` returned
    reached: Sequence[torch.Tensor] = ()  # whose addresses stand in other tensors


class Mode(NamedTuple):
    capability: int
    order: str
    perturb: bool
    contract: bool

    def options(self, seed: int, **other: Any) -> Options:
        return Options(seed=seed, order=self.order, perturb=self.perturb, contract=self.contract, **other)


MODES = {
    "sm_90": Mode(90, "random", False, False),
    "sm_80 contracted": Mode(80, "first", False, True),
    "sm_90 contracted perturbed": Mode(90, "last", True, True),
}


def execute(
    case: Case, capability: int, options: Options, rewrite: Callable[[str], str] | None = None
) -> tuple[list[str], list[Run]]:
    """What is wrong, and the launches. A launch that failed does not hide the ones before it."""
    with launched(capability, options, rewrite, case.reached) as runs:
        try:
            out = case.run()
        except Exception as error:
            errors = [f"{r.name}: {e}" for r in runs for e in r.errors]
            if not errors:
                raise
            return [*errors, f"then {error!r}"], runs
    errors = [f"{r.name}: {e}" for r in runs for e in r.errors]
    try:
        errors += case.check(out)
    except Exception as error:  # e.g. an index out of range that a broken kernel wrote
        errors.append(f"comparison failed: {error!r}")
    return errors, runs
