"""A compiled kernel's machine code: instructions with the source lines they come from, blocks, and natural loops."""

import re
from collections.abc import Iterator
from typing import NamedTuple

Place = tuple[str, int]  # file, line
Stack = tuple[Place, ...]  # of inlined calls, outermost first

_FILE = re.compile(r'File "([^"]+)", line (\d+)')
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P[0-9T]+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
_LABEL = re.compile(r"^(\.L_[\w]+|\.text\.[\w.$]+):")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
_REGISTER = re.compile(r"\b(UR|UP|R|P)(\d+)\b(\.64)?")
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
    """Instructions that run one after the other, and which blocks follow."""

    instructions: list[Instruction]
    successors: list[int]


class Code(NamedTuple):
    """A kernel's blocks in order of address, and its natural loops as sets of these, outer before inner ones."""

    blocks: list[Block]
    loops: list[frozenset[int]]


def parse(text: str) -> Code:
    """``text``: of ``nvdisasm -gi -c``."""
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
        instruction = _instruction(*found.groups(), stack)
        blocks[-1].append(instruction)
        if instruction.opcode.startswith(("BRA", "EXIT", "RET", "BRX", "CALL", "JMP")):
            blocks.append([])
    if not blocks[-1]:
        blocks.pop()
    linked = [Block(block, list(_successors(i, block, labels, len(blocks)))) for i, block in enumerate(blocks)]
    return Code(linked, _loops(linked))


def _instruction(predicate: str | None, opcode: str, operands: str, stack: Stack) -> Instruction:
    target = _TARGET.search(operands)
    parts = [part.strip() for part in _TARGET.sub("", operands).split(",")]
    stores = opcode.startswith(("ST", "RED.", "BAR", "BRA", "EXIT", "CALL", "RET", "BSYNC", "FENCE"))
    reads = [predicate.lstrip("!")] if predicate else []
    writes: list[str] = []
    written = opcode.startswith(("ISETP", "FSETP", "PLOP3", "DSETP", "UISETP", "UPLOP3")) and 2 or 1
    for number, part in enumerate(parts):
        for kind, index, wide in _REGISTER.findall(part):
            into = number < written and not stores and "[" not in part
            into = into or (kind == "P" and not stores and number == 1 and parts[0].startswith(("R", "P")) and written == 1
                            and opcode.startswith(("IADD3", "LEA", "SHFL", "VIADD", "FCHK")))  # fmt: skip
            count = 1
            if into and kind in ("R", "UR"):
                width = _WIDTH.search(opcode)
                count = int(width[1]) // 32 if width else (2 if ".WIDE" in opcode else 1)
                count = 4 if opcode.startswith("HMMA") else count
            elif wide or (kind == "R" and _WIDTH.search(opcode) and not into and "[" not in part):
                count = 2 if wide else int(_WIDTH.findall(opcode)[0]) // 32
            names = [f"{kind}{int(index) + i}" for i in range(count)]
            (writes if into else reads).extend(names)
    return Instruction(
        opcode, stack, bool(predicate) or ".DIV" in opcode or bool(re.match(r"!?U?P\d", parts[0])),
        target[1] if target else None, tuple(reads), tuple(writes),
    )  # fmt: skip


def _successors(i: int, block: list[Instruction], labels: dict[str, int], number: int) -> Iterator[int]:
    last = block[-1] if block else None
    # BRA.DIV is for warps whose lanes went apart, which Triton's do not
    if last is not None and last.opcode.startswith("BRA") and ".DIV" not in last.opcode and last.target in labels:
        yield labels[last.target]
    ends = last is not None and last.opcode.startswith(("BRA", "EXIT", "RET", "JMP", "BRX")) and not last.conditional
    if not ends and i + 1 < number:  # a call comes back
        yield i + 1


def _loops(blocks: list[Block]) -> list[frozenset[int]]:
    """The natural loops of what can be reached, those with the same header joined."""
    order, seen, stack = [], {0}, [(0, iter(blocks[0].successors))]
    while stack:
        block, rest = stack[-1]
        follower = next((one for one in rest if one not in seen), None)
        if follower is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(follower)
            stack.append((follower, iter(blocks[follower].successors)))
    order.reverse()
    before: dict[int, set[int]] = {block: set() for block in order}
    for block in order:
        for follower in blocks[block].successors:
            before[follower].add(block)
    dominators: dict[int, set[int]] = {block: set(order) for block in order} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            new = set.intersection(*(dominators[one] for one in before[block])) | {block}
            changed |= new != dominators[block]
            dominators[block] = new
    loops: dict[int, set[int]] = {}
    for block in order:
        for header in blocks[block].successors:
            if header in dominators[block]:
                body, todo = loops.setdefault(header, {header}), [block]
                while todo:
                    one = todo.pop()
                    if one not in body:
                        body.add(one)
                        todo.extend(before[one])
    return sorted(map(frozenset, loops.values()), key=len, reverse=True)


def reachable(code: Code) -> list[int]:
    """The blocks that control can come to without a call: not the subroutines of slow paths, nor the padding."""
    seen, todo = {0}, [0]
    while todo:
        for follower in code.blocks[todo.pop()].successors:
            if follower not in seen:
                seen.add(follower)
                todo.append(follower)
    return sorted(seen)


def of_ptx(text: str) -> Iterator[tuple[str, Stack]]:
    """PTX instructions by name, and the source lines they come from."""
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', text, re.M))
    stacks: dict[str, Stack] = {}  # by place, of which inlined_at names one that stood above
    stack: Stack = ()
    for line in text.splitlines():
        place = re.search(r"\.loc\s+(\d+ \d+ \d+)(?:.*inlined_at (\d+ \d+ \d+))?", re.sub(r"[ \t]+", " ", line))
        if place:
            file, number, _ = place[1].split()
            stack = (*stacks.get(place[2], ()), (files.get(file, file), int(number)))
            stacks[place[1]] = stack
        elif re.match(r"\s+(@!?%p\d+\s+)?[a-z]", line):
            yield line.split()[1 if "@" in line else 0].rstrip(";"), stack
