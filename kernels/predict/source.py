"""Source regions of a kernel's lines: the loops and conditions around each, also those of its callers."""

import ast
import functools
from pathlib import Path
from typing import NamedTuple

import triton

from fastmask.kernels.predict.assembly import Stack


class Region(NamedTuple):
    """A loop or a condition of a source file: its first line as written, and the lines it spans."""

    file: str
    function: str  # that it stands in
    header: str  # such as "for k in range(0, num_kept, BLOCK)"
    loop: bool
    first: int
    last: int


Path_ = tuple[tuple[Region, Stack], ...]  # regions around a place, outermost first, with the calls that lead there


@functools.cache
def regions(file: str) -> tuple[Region, ...]:
    """Run-time loops and conditions of a file, outer before inner ones.

    "else of" a condition is its own; where the condition's body returns, that is all that follows in the function.
    """
    found: set[Region] = set()
    for function in ast.walk(ast.parse(Path(file).read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            header = _header(node)
            if header is None or not isinstance(node, ast.For | ast.While | ast.If):
                continue
            last = _last(node.body[-1])
            found.add(Region(file, function.name, header, not isinstance(node, ast.If), node.lineno, last))
            if isinstance(node, ast.If) and isinstance(node.body[-1], ast.Return) and not node.orelse:
                found.add(Region(file, function.name, f"else of {header}", False, last + 1, _last(function)))
            elif isinstance(node, ast.If) and node.orelse and not isinstance(node.orelse[0], ast.If):
                first, last = node.orelse[0].lineno, _last(node.orelse[-1])
                found.add(Region(file, function.name, f"else of {header}", False, first, last))
    return tuple(sorted(found, key=lambda region: (region.first, -region.last, region.loop)))


def _header(node: ast.AST) -> str | None:
    if isinstance(node, ast.For) and "static_range" not in ast.unparse(node.iter):
        return f"for {ast.unparse(node.target)} in {ast.unparse(node.iter)}"
    if isinstance(node, ast.While | ast.If):
        return f"{'while' if isinstance(node, ast.While) else 'if'} {ast.unparse(node.test)}"
    return None


def _last(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def is_ours(file: str) -> bool:
    """Whether a file is ours: not of Triton's library, whose loops are unrolled, and not missing."""
    return Path(file).is_file() and not Path(file).is_relative_to(Path(triton.__file__).parent)


@functools.cache
def around(stack: Stack) -> Path_:
    """The regions around an instruction, outermost first."""
    path: list[tuple[Region, Stack]] = []
    for depth, (file, line) in enumerate(stack):
        if not is_ours(file):
            continue
        calls = stack[:depth]
        path.extend((region, calls) for region in regions(file) if region.first <= line <= region.last)
    return tuple(path)
