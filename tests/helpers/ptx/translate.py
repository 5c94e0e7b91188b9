"""Operands of instructions -> Python: R are the registers, T the threads of a block, K0, K1, ... constants."""

import re
from collections.abc import Callable

import numpy as np

from helpers.ptx import dtypes
from helpers.ptx.dtypes import REGISTER, size_of, u4, u8
from helpers.ptx.parse import Instruction

SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid)\.[xyz]$|%laneid$")


class Translator:
    def __init__(self, params: list[str]):
        self.params = params
        self.registers: dict[str, int] = {}
        self.constants: dict[str, object] = {}
        self.numbers: dict[bytes, str] = {}
        self.reads: set[int] = set()
        self.writes: set[int] = set()

    # operands

    def register(self, name: str, write: bool = False) -> str:
        number = self.registers.setdefault(name, len(self.registers))
        if not write:
            self.reads |= {number} - self.writes
        return f"R[{number}]"

    def constant(self, value: np.generic) -> str:
        key = value.dtype.char.encode() + value.tobytes()
        name = self.numbers.setdefault(key, f"K{len(self.numbers)}")
        self.constants[name] = value
        return name

    def mask(self, op: Instruction) -> str | None:
        """The lanes an instruction acts on; None: all."""
        return ("~" if op.negated else "") + self.register(op.predicate) if op.predicate else None

    def read(self, operand: str, kind: str) -> str:
        """An operand as an expression of NumPy type ``kind`` (i4, f4, p, ...): an array, or a constant."""
        operand = operand.strip("{} ")
        match = REGISTER.match(operand)
        if match:
            expression = self.register(operand)
            if match[1] == "p" or kind == "p":
                return expression
            size = size_of(operand)
            if size != int(kind[1]):
                if kind[0] not in "ui" or size < int(kind[1]):
                    raise NotImplementedError(f"{operand} as {kind}")
                expression = f"{expression}.astype(u{kind[1]})"
            return expression if kind[0] == "u" else f"{expression}.view({kind})"
        if SPECIAL.match(operand):
            expression = f"T.special('{operand[1:]}')"
            return expression if kind[0] == "u" else f"{expression}.view({kind})"
        if operand in self.params and kind in ("u4", "u8"):
            return self.constant(vars(dtypes)[kind](8 * self.params.index(operand)))
        if operand == "global_smem":
            operand = "0"
        if kind == "p":
            return self.constant(np.bool_(int(operand) != 0))
        bits = {"1": np.uint8, "2": np.uint16, "4": u4, "8": u8}[kind[1]]
        if operand[:2] in ("0f", "0d"):
            value = bits(int(operand[2:], 16))
        else:
            value = bits(int(operand.rstrip("U"), 0) & (256 ** int(kind[1]) - 1))
        return self.constant(value.view(vars(dtypes)[kind]))

    def write(self, op: Instruction, expression: str, kind: str, destination: str | None = None) -> list[str]:
        """Assign to the first operand, through the predicate."""
        destination = op.operands[0] if destination is None else destination
        if destination == "_":
            return []
        match = REGISTER.match(destination)
        if match[1] != "p":
            if kind[0] in "if":
                expression = f"({expression}).view(u{kind[1]})"
            if size_of(destination) != int(kind[1]):
                raise NotImplementedError(f"{destination} = {kind}")
        mask = self.mask(op)
        if mask is not None:
            expression = f"where({mask}, {expression}, {self.register(destination)})"
        elif not re.search(r"\b(R\[|T\.|v\b|g\b)", expression):
            expression = f"T.full({expression})"
        target = self.register(destination, write=True)
        self.writes.add(int(target[2:-1]))
        return [f"{target} = {expression}"]

    def address(self, operand: str, kind: str) -> tuple[str, int]:
        """[register + number] -> expression, number."""
        match = re.match(r"\[\s*(\S+?)\s*(?:\+\s*(-?\w+))?\s*\]$", operand)
        return self.read(match[1], kind), int(match[2] or "0", 0)


def split_list(operand: str) -> list[str]:
    """{a, b} -> a, b."""
    return [part.strip() for part in operand.strip("{} ").split(",")]


Translation = Callable[[Translator, Instruction], list[str]]
FAMILIES: dict[str, Translation] = {}  # by the instruction's name


def translates(*names: str) -> Callable[[Translation], Translation]:
    def register(function: Translation) -> Translation:
        FAMILIES.update(dict.fromkeys(names, function))
        return function

    return register


def refuse(op: Instruction, *allowed: str) -> None:
    """Modifiers that nobody has thought of."""
    if set(op.parts[1:-1]) - set(allowed):
        raise NotImplementedError(op.opcode)


def spread(expression: str) -> str:
    """An operand that may be a constant -> an array."""
    return expression if expression.startswith("R[") else f"broadcast_to({expression}, T.num)"
