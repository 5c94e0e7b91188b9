"""FASTMASK_KERNELS: which ops keep the eager fallback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastmask.selftest.op_cases  # noqa: F401 -- registers them all
from fastmask.kernels import launch

TWO = frozenset({"nms_padded", "encode_masks"})
# what is launched is not run: Triton 3.6's interpreter has no loops with NumPy from 2.4 on
SCRIPT = """
import contextlib
import warnings
import torch
from fastmask.kernels import launch
from fastmask.kernels.triton import nms as nms_triton, paste as paste_triton
from fastmask.kernels.nms import nms_padded_op
from fastmask.kernels.paste import paste_masks_op

launched = []

class Launched(Exception):
    pass

def launch_of(name):
    def on_device(tensor):
        launched.append(name)
        raise Launched
    return on_device

for module in (nms_triton, paste_triton):
    module.on_device = launch_of(module.__name__)
warnings.simplefilter("always")
boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5]])
counts = []
with warnings.catch_warnings(record=True) as warned:
    for _ in range(2):
        with contextlib.suppress(Launched):
            counts += nms_padded_op(boxes[None], torch.rand(1, 2), None, None, 0.5, 2)[1].tolist()
        with contextlib.suppress(Launched):
            paste_masks_op(torch.rand(2, 2, 2), boxes, 6, 6, "bool", 0.5, False, False, 1)
print(sorted(set(launched)), counts, len(warned), warned[0].message if warned else "", sep=chr(10))
print(launch.is_capturable(), launch.describe(), sep=chr(10))
"""


def run(switch: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"TRITON_INTERPRET": "1", "FASTMASK_KERNELS": switch}
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(command, env=env, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("text", "ops"),
    [
        ("", frozenset()),
        ("on", frozenset()),
        ("off", frozenset(launch.OPS)),
        ("off:nms_padded", frozenset({"nms_padded"})),
        ("off:encode_masks,nms_padded", TWO),
    ],
)
def test_what_the_switch_says(text: str, ops: frozenset[str]) -> None:
    assert launch.parse_switch(text) == ops


@pytest.mark.parametrize("text", ["0", "Off", "on:nms_padded", "off:", "off:nms", "off:nms_padded,"])
def test_a_switch_that_says_nothing_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"FASTMASK_KERNELS must be on, off, or off: and some of multi.*, got '"):
        launch.parse_switch(text)


@pytest.mark.skipif(not launch.HAS_TRITON, reason="Triton is for Linux only: elsewhere there is one path")
def test_one_op_switched_off() -> None:
    """In the interpreter, whose device is the CPU: one warning, the op's own fallback, the others' kernels."""
    done = run("off:nms_padded")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "['fastmask.kernels.triton.paste']",
        "[1, 1]",
        "1",
        "FASTMASK_KERNELS takes slow, eager PyTorch instead of Triton kernels for nms_padded",
        "False",
        f"Triton for {', '.join(op for op in launch.OPS if op != 'nms_padded')} on CPU tensors, in Triton's "
        "interpreter; eager PyTorch for nms_padded (FASTMASK_KERNELS)",
    ]


@pytest.mark.skipif(not launch.HAS_TRITON, reason="Triton is for Linux only: elsewhere there is one path")
def test_nothing_switched_off() -> None:
    done = run("on")
    assert done.returncode == 0, done.stderr
    launched = "['fastmask.kernels.triton.nms', 'fastmask.kernels.triton.paste']"
    assert done.stdout.splitlines() == [
        launched,
        "[]",
        "0",
        "",
        "True",
        "Triton for all ops on CPU tensors, in Triton's interpreter",
    ]


def test_what_the_environment_has_wrong_is_named_at_import() -> None:
    done = run("no")
    assert done.returncode != 0
    assert "FASTMASK_KERNELS must be on, off, or off: and some of" in done.stderr


@pytest.mark.gpu
def test_predictions_without_kernels(tmp_path: Path) -> None:
    """Their eager fallbacks have a host sync, which a CUDA graph cannot capture."""
    env = os.environ | {"FASTMASK_KERNELS": "off"}
    command = [sys.executable, "-m", "fastmask", "demo", "--number", "4", "--device", "cuda", "--out", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "FASTMASK_KERNELS takes slow, eager PyTorch" in done.stderr


def test_every_switch_has_an_op() -> None:
    assert all(hasattr(torch.ops.fastmask, name) for name in launch.OPS)
