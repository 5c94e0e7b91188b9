"""Basic blocks -> Python functions of NumPy code: block(R, T) with R the registers, T the threads that execute it."""

from collections.abc import Callable

import numpy as np

from helpers.ptx import arithmetic, arithmetic_instructions, dtypes, shared_instructions, warpwide  # noqa: F401, they fill FAMILIES
from helpers.ptx.dtypes import REGISTER, TYPES, UNDEFINED
from helpers.ptx.parse import BARRIERS, Instruction, contract, parse
from helpers.ptx.translate import FAMILIES, Translator


class Program:
    """One .entry, compiled to Python."""

    def __init__(self, ptx: str, contracted: bool):
        entry = parse(ptx)
        self.name, self.params, self.blocks = entry.name, entry.params, entry.blocks
        for block in self.blocks if contracted else []:
            contract(block)
        ops = [op for block in self.blocks for op in block.instructions]
        self.granules = {space: find_granule(ops, space) for space in ("global", "shared")}
        self.releases = any(op.has("acq_rel", "release", "acquire") for op in ops)
        self.waits = [block.instructions[0].opcode in BARRIERS for block in self.blocks]
        self.sizes = [len(block.instructions) for block in self.blocks]
        labels = {label: i for i, block in enumerate(self.blocks) for label in block.labels}
        translator = Translator([name for _, name in entry.params])
        lines, self.uses = [], []
        for number, block in enumerate(self.blocks):
            translator.reads, translator.writes = set(), set()
            lines += translate_block(translator, number, block.instructions, labels, len(self.blocks))
            self.uses.append((sorted(translator.reads), sorted(translator.writes)))
        space = {**vars(np), **vars(dtypes), **vars(arithmetic), **vars(warpwide), **translator.constants}
        exec(compile("\n".join(lines), f"<{self.name}>", "exec"), space)
        self.functions: list[Callable] = [space[f"block_{i}"] for i in range(len(self.blocks))]
        self.undefined = [UNDEFINED[REGISTER.match(name)[1]] for name in translator.registers]


def find_granule(ops: list[Instruction], space: str) -> int:
    """Bytes of the smallest access to global or to shared memory."""
    sizes = [4]
    for op in ops:
        if op.has(space) and op.name in ("ld", "st", "atom", "red"):
            sizes.append(int(TYPES[op.type][1]))
    return min(sizes)


def translate_block(t: Translator, number: int, ops: list[Instruction], labels: dict[str, int], end: int) -> list[str]:
    """The function returns the next block's number, or, where lanes part, the branch's target and who takes it."""
    lines, ending = [], f"return {number + 1}"
    for op in ops:
        if op.name in ("bra", "ret"):
            ending = f"return {end if op.name == 'ret' else labels[op.operands[0]]}"
            if op.predicate:
                lines += [f"c = {t.mask(op)}", f"if c.all(): {ending}", f"if c.any(): {ending}, c"]
                ending = f"return {number + 1}"
            continue
        try:
            lines += FAMILIES[op.type if op.type in FAMILIES else op.name](t, op)
        except (NotImplementedError, KeyError, ValueError, IndexError, TypeError) as error:
            raise NotImplementedError(f"instruction not supported: {op.text!r} ({error!r})") from error
    return [f"def block_{number}(R, T):", *(f"  {line}" for line in [*lines, ending])]
