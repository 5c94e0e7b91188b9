"""Short launches against Triton's own: the same compiled kernel, with the same arguments, for any arguments."""

import contextlib
import importlib
import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

import fastmask.kernels
from fastmask.kernels.launch import HAS_TRITON, INTERPRET

if INTERPRET or not HAS_TRITON:
    pytest.skip("launches compiled kernels", allow_module_level=True)

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fastmask.kernels import jit as jit_module
from fastmask.kernels.jit import Kernel, Plan, is_known, jit

SIZE = tl.constexpr(3)
TENSORS = {
    (dtype, offset): torch.zeros(64, dtype=dtype)[offset:]
    for dtype, offset in itertools.product((torch.float32, torch.bfloat16, torch.int64), (0, 2, 16))
}
INTEGERS = (0, 1, 2, 16, 48, -1, -16, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63, True, False)
NUMBERS = (0.5, 1.0, -0.0, float("nan"), float("inf"), 1, 16, 3)


def scale_rows(in_ptr, out_ptr, rows, varying, scale, FLAG: tl.constexpr, BLOCK: tl.constexpr = 16, last=None):  # noqa: N803
    tl.store(out_ptr + rows, scale * SIZE)


class Compiled:
    """A compiled kernel's stand-in: it records what it was compiled for, and how it was launched."""

    packed_metadata, function = (), 7

    def __init__(self, facts: Any) -> None:
        self.facts = facts

    def launch_metadata(self, *_: Any) -> None:
        return None

    def run(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        _metadata, _launch_metadata, _enter, _exit, *values = rest
        LAUNCHES.append((self.facts, (x, y, z), stream, function, values))


LAUNCHES: list[Any] = []
DEVICE = 3


@pytest.fixture(autouse=True)
def driver() -> Iterator[None]:
    """A driver with one GPU's target, so that nothing is compiled."""
    LAUNCHES.clear()
    fake = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: DEVICE,
        get_current_stream=lambda device: 11 + device,
    )
    with mock.patch.object(triton.runtime.driver, "_active", fake):
        yield


def stub_compiler(kernel: JITFunction) -> JITFunction:
    def compile(src: Any, target: Any, options: Any, **_: Any) -> Compiled:
        parts = (src.signature, src.constants, src.attrs, dict(options))
        return Compiled(tuple(repr(sorted(part.items(), key=str)) for part in parts))

    _ = kernel.device_caches[DEVICE]  # which sets what is replaced here
    kernel.compile = compile
    return kernel


def pair() -> tuple[Kernel, JITFunction]:
    kernel = stub_compiler(jit(do_not_specialize=["varying"])(scale_rows))
    assert isinstance(kernel, Kernel)
    original = stub_compiler(triton.jit(scale_rows, do_not_specialize=["varying"]))
    assert type(original) is JITFunction
    return kernel, original


@contextlib.contextmanager
def counted_runs() -> Iterator[list[Any]]:
    """Count the launches of our kernels that take Triton's own path."""
    runs: list[Any] = []
    real = JITFunction.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self, Kernel):
            runs.append(self)
        return real(self, *args, **kwargs)

    with mock.patch.object(JITFunction, "run", run), mock.patch.object(jit_module, "_RUN", run):
        yield runs


def same_launch(ours: Any, theirs: Any) -> bool:
    return ours[:4] == theirs[:4] and all(a is b for a, b in zip(ours[4], theirs[4], strict=True))


def draws(number: int) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]]:
    """Grids, positional and named arguments."""
    for _ in range(number):
        values = {
            "in_ptr": random.choice([*TENSORS.values(), None]),
            "out_ptr": random.choice(list(TENSORS.values())),
            "rows": random.choice(INTEGERS),
            "varying": random.choice(INTEGERS),
            "scale": random.choice(NUMBERS),
            "FLAG": random.choice([True, False, "fma", 2, tl.int32, None]),
        }
        values |= random.choice([{}, {"BLOCK": 32}, {"last": 16}, {"BLOCK": 16, "last": None}])
        values |= random.choice([{}, {"num_warps": 2}, {"num_warps": 4, "enable_fp_fusion": False}, {"num_warps": 8}])
        items = list(values.items())
        first = random.randint(0, 6)
        rest = items[first:]
        if random.random() < 0.3:
            random.shuffle(rest)
        grid = random.choice([(5,), (5, 2), (5, 2, 9), [4, 3]])
        yield grid, tuple(value for _, value in items[:first]), dict(rest)


def test_launches_are_tritons() -> None:
    kernel, original = pair()
    chosen = list(draws(400))
    with counted_runs() as runs:
        for grid, args, kwargs in chosen + random.sample(chosen, len(chosen)):
            ours = kernel[grid](*args, **kwargs)
            theirs = original[grid](*args, **kwargs)
            launch, expected = LAUNCHES[-2:]
            assert same_launch(launch, expected), (launch, expected)
            assert ours.facts == theirs.facts
        assert len(runs) < 500  # the second time, none


def test_triton_is_asked_once_for_each_specialization() -> None:
    kernel, _ = pair()
    tensor = TENSORS[torch.float32, 0]
    with counted_runs() as runs:
        for rows, varying, scale in itertools.product((16, 32, 48), (1, 5, 2**20), (0.5, 7.5)):
            kernel[(1,)](tensor, tensor, rows=rows, varying=varying, scale=scale, FLAG=True, num_warps=1)
        assert len(runs) == 1
        kernel[(1,)](tensor, tensor, rows=17, varying=5, scale=0.5, FLAG=True, num_warps=1)
        kernel[(1,)](tensor[1:], tensor, rows=16, varying=5, scale=0.5, FLAG=True, num_warps=1)
        kernel[(1,)](tensor, tensor, rows=16, varying=2**40, scale=0.5, FLAG=True, num_warps=1)
        kernel[(1,)](tensor, tensor, rows=16, varying=5, scale=1, FLAG=True, num_warps=1)
        kernel[(1,)](tensor, tensor, rows=16, varying=5, scale=0.5, FLAG=False, num_warps=1)
        kernel[(1,)](tensor, tensor, rows=16, varying=5, scale=0.5, FLAG=True, num_warps=2)
        assert len(runs) == 7
        for fusion in (False, 0):  # equal, but Triton makes a string of options
            kernel[(1,)](tensor, tensor, rows=16, varying=5, scale=0.5, FLAG=True, enable_fp_fusion=fusion)
        assert len(runs) == 9
        with mock.patch.object(kernel, "run", return_value=None):  # stopped by a hook
            assert kernel[(1,)](tensor, tensor, rows=16, varying=5, scale=0.5, FLAG=3) is None
        kernel[(1,)](tensor, tensor, rows=16, varying=5, scale=0.5, FLAG=3)
        assert len(runs) == 10


def test_plans_are_launches() -> None:
    kernel, original = pair()
    with counted_runs() as runs:
        for grid, _, kwargs in draws(60):
            numbers = {"rows": 16, "varying": 5, "scale": 0.5, "FLAG": True} | kwargs
            numbers = {name: value for name, value in numbers.items() if not name.endswith("_ptr")}
            plan = Plan(kernel, grid, **numbers)
            for tensors in random.choices(list(itertools.product(TENSORS.values(), repeat=2)), k=8) * 2:
                plan(*tensors)
                original[grid](*tensors, **numbers)
                launch, expected = LAUNCHES[-2:]
                assert same_launch(launch, expected), (launch, expected)
        assert len(runs) <= 60 * 8


def test_debug_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, original = pair()
    tensor = TENSORS[torch.float32, 0]
    plan = Plan(kernel, (1,), rows=2, varying=3, scale=0.5, FLAG=True)
    for debug in (False, True, False):
        monkeypatch.setattr(triton.knobs.runtime, "debug", debug)
        kernel[(1,)](tensor, tensor, 2, 3, 0.5, True)
        plan(tensor, tensor)
        original[(1,)](tensor, tensor, 2, 3, 0.5, True)
        assert same_launch(LAUNCHES[-3], LAUNCHES[-1])
        assert same_launch(LAUNCHES[-2], LAUNCHES[-1])
    assert len({launch[0] for launch in LAUNCHES}) == 2


@pytest.mark.parametrize("how", ["enter hook", "exit hook", "no hooks known", "pre-run hook", "run", "stages"])
def test_what_is_unusual_is_tritons(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, _ = pair()
    tensor = TENSORS[torch.float32, 0]
    plan = Plan(kernel, (1,), rows=2, varying=3, scale=0.5, FLAG=True)
    plan(tensor, tensor)
    seen: list[Any] = []
    runtime = triton.knobs.runtime
    assert kernel.usual_device() == DEVICE
    if how == "enter hook":
        monkeypatch.setattr(runtime.launch_enter_hook, "calls", [seen.append])
    elif how == "exit hook":
        monkeypatch.setattr(runtime.launch_exit_hook, "calls", [seen.append])
    elif how == "no hooks known":
        monkeypatch.setattr(runtime, "launch_enter_hook", None)
    elif how == "pre-run hook":
        kernel.add_pre_run_hook(lambda *args, **kwargs: seen.append(args))
    elif how == "run":
        monkeypatch.setattr(JITFunction, "run", lambda self, *args, **kwargs: seen.append(args))
    else:
        monkeypatch.setattr(runtime, "add_stages_inspection_hook", lambda *args: ("", ""))
    assert kernel.usual_device() is None
    if how in ("pre-run hook", "run"):
        kernel[(1,)](tensor, tensor, 2, 3, 0.5, True)
        plan(tensor, tensor)
        assert len(seen) == 2


def test_a_global_that_changed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, _ = pair()
    tensor = TENSORS[torch.float32, 0]
    plan = Plan(kernel, (1,), rows=2, varying=3, scale=0.5, FLAG=True)
    assert kernel.cache_key  # Triton reads the source for it when it compiles
    plan(tensor, tensor)
    monkeypatch.setitem(globals(), "SIZE", tl.constexpr(4))
    for launch in (plan, lambda *tensors: kernel[(1,)](*tensors, 2, 3, 0.5, True)):
        with pytest.raises(RuntimeError, match="SIZE has changed"):
            launch(tensor, tensor)


def test_what_triton_forgets_is_forgotten() -> None:
    kernel, _ = pair()
    tensor = TENSORS[torch.float32, 0]
    plan = Plan(kernel, (1,), rows=2, varying=3, scale=0.5, FLAG=True)
    first = plan(tensor, tensor)
    assert plan(tensor, tensor) is first
    kernel.device_caches.clear()
    stub_compiler(kernel)
    second = plan(tensor, tensor)
    assert second is not first
    assert kernel[(1,)](tensor, tensor, rows=2, varying=3, scale=0.5, FLAG=True) is second


def test_arguments_that_do_not_fit() -> None:
    kernel, _ = pair()
    with pytest.raises(TypeError, match="FLAG"):
        kernel[(1,)](None, None, 1, 2, 3)
    with pytest.raises(TypeError, match="rows"):
        kernel[(1,)](None, None, 1, 2, 3, True, rows=5)


def test_versions() -> None:
    assert is_known("3.6.0")
    assert is_known("3.8.1+git12")
    assert not is_known("3.5.1")
    assert not is_known("3.9.0")
    assert not is_known("4.0")


def test_every_launched_kernel_is_one() -> None:
    """Launchers index kernels with a grid or a plan; under plain ``triton.jit`` these would be right, but slower."""
    launched = set()
    for path in Path(fastmask.kernels.__file__).parent.glob("triton/*.py"):
        text = path.read_text()
        names = re.findall(r"(?:(\w+)_triton\.)?(_\w+_kernel)\[", text) + re.findall(r"Plan\(\s*()(_\w+_kernel),", text)
        launched |= {(module or path.stem, name) for module, name in names}
    assert len(launched) > 20
    for module, name in launched:
        kernel = getattr(importlib.import_module(f"fastmask.kernels.triton.{module}"), name)
        assert isinstance(kernel, Kernel), f"{module}.{name} must be decorated by fastmask.kernels.jit.jit"
