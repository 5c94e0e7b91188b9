"""CUDA's cuobjdump and nvdisasm, which Triton's wheel brings, on kernels compiled ahead of time."""

import re
import subprocess
import tempfile
from pathlib import Path

import triton


def run_tool(command: list[str], cubin: bytes) -> str:
    """Output of ``cuobjdump`` or ``nvdisasm`` for a cubin."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        arguments = [str(folder / command[0]), *command[1:], file.name]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


def registers_and_stack(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, which are the spilled ones."""
    usage = run_tool(["cuobjdump", "-res-usage"], cubin)
    registers, stack = (int(re.findall(rf"{key}:(\d+)", usage)[0]) for key in ("REG", "STACK"))
    return registers, stack
