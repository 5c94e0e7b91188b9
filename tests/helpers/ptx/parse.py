"""PTX text -> basic blocks of instructions."""

import dataclasses
import re

PREDICATED = re.compile(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*)$")
BARRIERS = ("bar.sync", "barrier.sync", "barrier.sync.aligned")
IGNORED_LABELS = ("$L__tmp", "$L__func", "$L__info")  # of debug information


@dataclasses.dataclass
class Instruction:
    opcode: str
    operands: list[str]
    text: str
    predicate: str | None = None  # a register
    negated: bool = False

    @property
    def parts(self) -> list[str]:
        return self.opcode.replace("::cta", "").split(".")

    @property
    def name(self) -> str:
        return self.parts[0]

    @property
    def type(self) -> str:
        return self.parts[-1]

    def has(self, *parts: str) -> bool:
        return any(p in self.parts for p in parts)


@dataclasses.dataclass
class Block:
    labels: list[str]
    instructions: list[Instruction]


@dataclasses.dataclass
class Entry:
    name: str
    params: list[tuple[str, str]]  # types and names
    blocks: list[Block]


def parse(ptx: str) -> Entry:
    """The one .entry of a module."""
    text = re.sub(r"//[^\n]*", "", ptx)
    entry = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\{(.*?)\n\}", text, re.S)
    assert entry, "no .entry"
    params = re.findall(r"\.param\s+\.(\w+)[^,]*?(\w+_param_\d+)", entry[2])
    if ".local" in entry[4] or ".func" in text:
        raise NotImplementedError("local memory or functions")
    return Entry(entry[1], params, _split_blocks(entry[4]))


def _split_blocks(body: str) -> list[Block]:
    """A branch ends a block; a label or a barrier begins one."""
    blocks = [Block([], [])]
    lines = [line for line in body.split("\n") if not re.match(r"\s*\.(loc|reg|pragma|file)", line)]
    for part in re.split(r"(?m)^\s*(\$\w+:)|;", "\n".join(lines)):
        statement = " ".join((part or "").split())
        if not statement or statement in "{}" or statement.startswith(IGNORED_LABELS):
            continue
        if statement.endswith(":") and " " not in statement:
            if blocks[-1].instructions:
                blocks.append(Block([], []))
            blocks[-1].labels.append(statement[:-1])
            continue
        match = PREDICATED.match(statement)
        if not match:
            raise NotImplementedError(statement)
        operands = [o.strip() for o in re.split(r",(?![^{\[]*[}\]])", match[4])] if match[4] else []
        if match[3] in BARRIERS and blocks[-1].instructions:
            blocks.append(Block([], []))
        blocks[-1].instructions.append(Instruction(match[3], operands, statement, match[2], bool(match[1])))
        if match[3].startswith(("bra", "ret")):
            blocks.append(Block([], []))
    return blocks if blocks[-1].instructions else blocks[:-1]


def contract(block: Block) -> None:
    """d = x * y; e = d + c -> e = fma(x, y, c), where both are unmarked; as ptxas does by default."""
    products: dict[str, list[str]] = {}
    for i, op in enumerate(block.instructions):
        if op.opcode in ("add.f32", "sub.f32") and op.predicate is None:
            d, a, b = op.operands
            name = "fma.rn.f32" if op.opcode == "add.f32" else None
            if a in products and a != b:
                block.instructions[i] = Instruction(
                    name or "fma.negc.f32", [d, *products[a], b], "contracted " + op.text
                )
            elif b in products and a != b:
                block.instructions[i] = Instruction(
                    name or "fma.negab.f32", [d, *products[b], a], "contracted " + op.text
                )
        for written in re.findall(r"%\w+", op.operands[0]) if op.operands else []:
            products = {k: v for k, v in products.items() if k != written and written not in v}
        if op.opcode == "mul.f32" and op.predicate is None and op.operands[0] not in op.operands[1:]:
            products[op.operands[0]] = op.operands[1:]
