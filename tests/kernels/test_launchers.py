"""Launchers of Triton kernels have no host sync: their source calls nothing that has one."""

import ast
from pathlib import Path

import pytest

import fastmask.kernels

LAUNCHERS = sorted(Path(fastmask.kernels.__file__).parent.glob("triton/*.py"))
SYNCING = {"item", "tolist", "cpu", "nonzero", "numpy", "synchronize", "any", "all", "unique", "new_tensor", "tensor"}


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_no_launcher_has_a_host_sync(path: Path) -> None:
    """Built-in ``all`` and ``any`` over host values are fine: only methods and torch's functions are meant."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in SYNCING, f"{path.name}:{node.lineno} calls .{node.func.attr}"


def test_there_are_launchers() -> None:
    assert LAUNCHERS
