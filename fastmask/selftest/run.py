"""Run every check of the self-test on a device."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from tqdm import tqdm

from fastmask.kernels.launch import is_capturable
from fastmask.selftest.model_case import ModelCase
from fastmask.selftest.on_device import check_graph, check_second_device, check_side_stream
from fastmask.selftest.op_case import DRAWS, OpCase
from fastmask.selftest.op_cases import list_op_cases

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
COLUMNS = (*(str(dtype).removeprefix("torch.") for dtype in DTYPES), *DRAWS[1:], "graph", "stream", "2nd GPU")
MODEL = "Mask R-CNN"


class Check(NamedTuple):
    """One cell of the table."""

    row: str
    column: str
    op: str | None  # as FASTMASK_KERNELS names it; None for the model
    run: Callable[[], None]  # AssertionError if a value is wrong


class Result(NamedTuple):
    """Result of a check."""

    check: Check
    word: str  # "ok", "differs" or "fails"
    detail: str  # why, in one line; empty if it is ok


def run_checks(checks: Sequence[Check], seed: int, progress: bool = True) -> list[Result]:
    """Run checks -> their results, in order.

    Args:
        checks: see :func:`list_checks`.
        seed: of the inputs that they draw.
        progress: show a progress bar.
    """
    results = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for check in tqdm(checks, unit="check", disable=not progress):
            torch.manual_seed(seed)  # the same draw, whichever checks run before it
            results.append(_run(check))
    return results


def list_checks(device: torch.device, seed: int) -> list[Check]:
    """List the checks: every op, forward and backward, in each dtype, on adversarial, single and no inputs; a model.

    On CUDA also in a graph, if no kernel is switched off, on a side stream, and on a second device, if there is one.

    Args:
        device: of the tensors.
        seed: of the model's images.
    """
    checks = []
    names = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}
    on_cuda: dict[str, Callable[[OpCase, torch.device], None]] = {}
    if device.type == "cuda":
        on_cuda |= {"graph": _graph} if is_capturable() else {}
        on_cuda |= {"stream": _stream}
        on_cuda |= {"2nd GPU": _second_device} if torch.cuda.device_count() > 1 else {}
    for case in list_op_cases():
        runs = {name: functools.partial(_check, case, device, dtype, DRAWS[0]) for dtype, name in names.items()}
        runs |= {kind: functools.partial(_check, case, device, torch.float32, kind) for kind in DRAWS[1:]}
        runs |= {column: functools.partial(function, case, device) for column, function in on_cuda.items()}
        checks += [Check(case.name, column, case.op, run) for column, run in runs.items()]
    model = functools.cache(lambda: ModelCase(seed))
    for dtype in DTYPES[1:]:
        checks.append(Check(MODEL, names[dtype], None, functools.partial(_check_model, model, device, dtype)))
    return checks


def _check_model(model: Callable[[], ModelCase], device: torch.device, dtype: torch.dtype) -> None:
    model().check(device, dtype)


def _check(case: OpCase, device: torch.device, dtype: torch.dtype, kind: str) -> None:
    inputs = case.draw(dtype, kind)
    outputs = case.call(*[tensor.to(device) for tensor in inputs])
    case.check(inputs, [output.cpu() for output in outputs])


def _graph(case: OpCase, device: torch.device) -> None:
    with torch.cuda.device(device):
        check_graph(case.call, *(case.draw(torch.float32, "adversarial") for _ in range(2)))


def _stream(case: OpCase, device: torch.device) -> None:
    with torch.cuda.device(device):
        check_side_stream(case.call, case.draw(torch.float32, "adversarial"))


def _second_device(case: OpCase, device: torch.device) -> None:
    with torch.cuda.device(device):
        check_second_device(case.call, case.draw(torch.float32, "adversarial"))


def _run(check: Check) -> Result:
    try:
        check.run()
    except AssertionError as error:
        return Result(check, "differs", _one_line(error))
    except Exception as error:  # of compiling, launching or memory: the other checks go on
        return Result(check, "fails", f"{type(error).__name__}: {_one_line(error)}")
    return Result(check, "ok", "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
