"""Compiled Triton kernels, executed on a machine without a GPU: see launch.py."""

from helpers.ptx.case import MODES, Case, execute
from helpers.ptx.compare import close, same
from helpers.ptx.launch import execute_ptx, launched
from helpers.ptx.plant import Bug, planted
from helpers.ptx.report import Options, Run, Trap

__all__ = [
    "MODES",
    "Bug",
    "Case",
    "Options",
    "Run",
    "Trap",
    "close",
    "execute",
    "execute_ptx",
    "launched",
    "planted",
    "same",
]
