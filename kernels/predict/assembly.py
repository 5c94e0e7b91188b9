"""Compiled kernels, as SASS or PTX: instructions with the source lines they come from, blocks, and natural loops."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

Place = tuple[str, int]  # file, line
Stack = tuple[Place, ...]  # of inlined calls, outermost first

_FILE = re.compile(r'File "([^"]+)", line (\d+)')
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P[0-9T]+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
_LABEL = re.compile(r"^(\.L_[\w]+|\.text\.[\w.$]+):")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_REGISTER = re.compile(r"\b(UR|UP|R|P)(\d+)\b(\.64)?")
_PREDICATE = re.compile(r"U?P(T|\d+)")
_NO_OUTPUT = ("ST", "RED.", "BAR", "BRA", "EXIT", "CALL", "RET", "BSYNC", "BSSY", "FENCE", "WARPSYNC", "NOP")
_WIDTH = re.compile(r"\.(128|64)\b")


class Instruction(NamedTuple):
    """One instruction; ``reads`` and ``writes`` name registers such as R12, P0, UR4."""

    opcode: str
    stack: Stack
    conditional: bool  # executes under a predicate
    target: str | None  # the label it branches to
    reads: tuple[str, ...]
    writes: tuple[str, ...]


class Block(NamedTuple):
    """Instructions that run one after the other, and the blocks that may follow."""

    instructions: list[Instruction]
    successors: list[int]


class Code(NamedTuple):
    """A kernel's blocks in order of address.

    Args:
        loops: natural loops, as sets of blocks, outer before inner ones.
        reached: blocks that control can reach; not the subroutines of slow paths, which are called.
    """

    blocks: list[Block]
    loops: list[frozenset[int]]
    reached: list[int]


def parse_sass(text: str) -> Code:
    """Parse the output of ``nvdisasm -gi -c``."""
    blocks: list[list[Instruction]] = [[]]
    labels: dict[str, int] = {}
    stack: Stack = ()
    begun = False  # lines of one stack, the innermost first, end where an instruction follows
    for line in text.splitlines():
        place = _FILE.search(line)
        if place:
            stack = ((place[1], int(place[2])), *(stack if begun else ()))
            begun = True
            continue
        label = _LABEL.match(line)
        if label:
            if blocks[-1]:
                blocks.append([])
            labels[label[1]] = len(blocks) - 1
            continue
        found = _INSTRUCTION.search(line)
        if not found:
            continue
        begun = False
        instruction = _instruction(found[1], found[2], found[3], stack)
        blocks[-1].append(instruction)
        if instruction.opcode.startswith(("BRA", "EXIT", "RET", "BRX", "CALL", "JMP")):
            blocks.append([])
    if not blocks[-1]:
        blocks.pop()
    return _link_blocks(blocks, labels)


def parse_ptx(text: str) -> Code:
    """Parse PTX, without registers: for what is executed, not for how long it takes."""
    blocks: list[list[Instruction]] = [[]]
    labels: dict[str, int] = {}
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', text, re.M))
    stacks: dict[str, Stack] = {}  # by place, of which inlined_at names one that stood above
    stack: Stack = ()
    for line in re.sub(r"[ \t]+", " ", text).splitlines():
        label = re.match(r"(\$L__BB\w+):", line)
        place = re.match(r" \.loc (\d+ \d+ \d+)(?:.*inlined_at (\d+ \d+ \d+))?", line)
        found = re.match(r" ?(@!?%p\d+ )?([a-z][\w.:]*)([^;]*);", line)
        if label:
            if blocks[-1]:
                blocks.append([])
            labels[label[1]] = len(blocks) - 1
        elif place:
            file, number, _ = place[1].split()
            stack = (*stacks.get(place[2], ()), (files.get(file, file), int(number)))
            stacks[place[1]] = stack
        elif found:
            predicate, name, operands = found.groups()
            jumps = name.startswith("bra")
            opcode = {"bra": "BRA", "ret": "EXIT"}.get(name.split(".")[0], name)
            blocks[-1].append(Instruction(opcode, stack, bool(predicate), operands.strip() if jumps else None, (), ()))
            if opcode in ("BRA", "EXIT"):
                blocks.append([])
    return _link_blocks(blocks, labels)


def _link_blocks(blocks: list[list[Instruction]], labels: Mapping[str, int]) -> Code:
    if not blocks[-1]:
        blocks.pop()
    linked = [Block(block, list(_successors(i, block, labels, len(blocks)))) for i, block in enumerate(blocks)]
    order = _order_blocks(linked)
    return Code(linked, _loops(linked, order), sorted(order))


def _instruction(predicate: str | None, opcode: str, operands: str, stack: Stack) -> Instruction:
    target = _TARGET.search(operands)
    parts = [part.strip() for part in _TARGET.sub("", operands).split(",")]
    width = _WIDTH.search(opcode)
    loaded = int(width[1]) // 32 if width else 2 if ".WIDE" in opcode else 4 if "HMMA" in opcode else 1
    outputs = 0 if opcode.startswith(_NO_OUTPUT) else 1
    while 0 < outputs < len(parts) and _PREDICATE.fullmatch(parts[outputs]):  # carries
        outputs += 1
    if outputs == 1 and _PREDICATE.fullmatch(parts[0]) and opcode.startswith(("SHFL", "LOP3")):
        outputs = 2
    reads = [predicate.lstrip("!")] if predicate else []
    writes: list[str] = []
    for number, part in enumerate(parts):
        for kind, index, pair in _REGISTER.findall(part):
            data = "R" in kind and "[" not in part and (number < outputs or outputs == 0)
            count = loaded if data else 2 if pair else 1
            names = [f"{kind}{int(index) + i}" for i in range(count)]
            (writes if number < outputs else reads).extend(names)
    conditional = bool(predicate) or ".DIV" in opcode or bool(re.match(r"!?U?P\d", parts[0]))
    return Instruction(opcode, stack, conditional, target[1] if target else None, tuple(reads), tuple(writes))


def _successors(i: int, block: list[Instruction], labels: Mapping[str, int], number: int) -> Iterator[int]:
    last = block[-1] if block else None
    # BRA.DIV is for warps whose lanes went apart, which Triton's do not
    if last is not None and last.opcode.startswith("BRA") and ".DIV" not in last.opcode and last.target:
        yield labels[last.target]
    ends = last is not None and last.opcode.startswith(("BRA", "EXIT", "RET", "JMP", "BRX")) and not last.conditional
    if not ends and i + 1 < number:  # a call comes back
        yield i + 1


def _order_blocks(blocks: list[Block]) -> list[int]:
    """Numbers of the blocks that control can reach, in reverse postorder."""
    order, seen, stack = [], {0}, [(0, iter(blocks[0].successors))]
    while stack:
        block, rest = stack[-1]
        follower = next((number for number in rest if number not in seen), None)
        if follower is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(follower)
            stack.append((follower, iter(blocks[follower].successors)))
    return order[::-1]


def _loops(blocks: list[Block], order: list[int]) -> list[frozenset[int]]:
    """The natural loops, those with the same header joined."""
    before: dict[int, set[int]] = {block: set() for block in order}
    for block in order:
        for follower in blocks[block].successors:
            before[follower].add(block)
    dominators: dict[int, set[int]] = {block: set(order) for block in order} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = set.intersection(*(dominators[number] for number in before[block])) | {block}
            changed |= new != dominators[block]
            dominators[block] = new
    loops: dict[int, set[int]] = {}
    for block in order:
        for header in blocks[block].successors:
            if header in dominators[block]:
                body, pending = loops.setdefault(header, {header}), [block]
                while pending:
                    number = pending.pop()
                    if number not in body:
                        body.add(number)
                        pending.extend(before[number])
    return sorted(map(frozenset, loops.values()), key=len, reverse=True)
