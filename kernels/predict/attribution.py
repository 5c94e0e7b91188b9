"""Attribution of executions: how often each block of a compiled kernel runs, from the trip counts of source loops."""

import collections
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmask.kernels.predict import source
from fastmask.kernels.predict.assembly import Code, Stack

Counts = float | NDArray[Any]  # the same for each program, or [programs]
Label = tuple[source.Region, Stack]
INSIDE = " -> "  # between the beginnings of a loop and of another one inside it, of a function that is called twice

# where PTX and SASS name the same thing: if ptxas wrote a loop's body several times, SASS has more of them
ANCHORS = {
    "ld.global": "LDG", "st.global": "STG", "ld.shared": "LDS", "st.shared": "STS", "bar.sync": "BAR",
    "shfl.sync": "SHFL", "div.rn.f32": "FCHK", "mma.sync": "HMMA", "atom.global": "ATOM",
}  # fmt: skip


def executions(code: Code, trips: Mapping[str, Counts], ptx: Code | None = None) -> Iterator[tuple[int, str, Counts]]:
    """Yield blocks, the loop or condition that each is in, and how often it runs in each program.

    Args:
        trips: by the beginning of a loop's or condition's first line; see model.Work.
        ptx: the source of ``code``, if that is SASS; it shows where ptxas unrolled a loop.
    """
    _check(code, trips)
    loops = _labels(code)
    copies = _copies(code, loops, ptx) if ptx else dict.fromkeys(loops, 1)
    tests = {i: _test(code, loop) for i, loop in enumerate(code.loops)}
    before = {i: _before(code, loop) for i, loop in enumerate(code.loops)}

    def of_loop(i: int) -> Counts:
        return _trips(loops[i], trips) / copies[i] if copies[i] else 0.0

    for number in code.reached:
        inside = [i for i in loops if number in code.loops[i]]  # outer first
        count: Counts = 1.0
        name = ""
        around = [source.around(instruction.stack) for instruction in code.blocks[number].instructions]
        paths = collections.Counter(path for path in around if path)  # barriers have no line
        path = paths.most_common(1)[0][0] if paths else ()
        if inside:
            label, name = loops[inside[-1]], _name(loops[inside[-1]])
            count = of_loop(inside[-1])
            if number in tests[inside[-1]]:  # the one that ends the loop comes on top, each time that it is entered
                count = count + (of_loop(inside[-2]) if len(inside) > 1 else 1.0)
            path = path[path.index(label) + 1 :] if label in path else ()
        for i in loops:  # what leads into a loop alone, behind the test whether it runs at all
            if number in before[i] and not tests[i]:
                count = np.minimum(count, _trips(loops[i], trips))
        for place in path:
            if place[0].loop:  # beside a loop: once for each time that it is entered
                count = np.minimum(count, _trips(place, trips))
            elif _named(place, trips):
                count, name = np.minimum(count, _trips(place, trips)), _name(place)
        yield number, name, count


def _exits(code: Code, number: int) -> bool:
    block = code.blocks[number]
    return not block.successors or block.instructions[-1].opcode.startswith("EXIT")


def _before(code: Code, loop: frozenset[int]) -> set[int]:
    """The blocks outside of a loop that it always follows."""
    found = {number for number in code.reached if not _exits(code, number)} - loop
    while True:
        left = {number for number in found if (found | loop).issuperset(code.blocks[number].successors)}
        if left == found:
            return found
        found = left


def _test(code: Code, loop: frozenset[int]) -> set[int]:
    """The blocks of a loop that come before its way out, where that is not at the loop's end."""
    ends = [i for i in loop if _exits(code, i) or not loop.issuperset(code.blocks[i].successors)]
    headers = {
        number for number in loop if any(number in code.blocks[i].successors for i in code.reached if i not in loop)
    }
    if len(ends) != 1 or headers & set(code.blocks[ends[0]].successors):
        return set()
    after, pending = set(headers), [block for block in code.blocks[ends[0]].successors if block in loop]
    while pending:
        block = pending.pop()
        if block not in after:
            after.add(block)
            pending.extend(set(code.blocks[block].successors) & loop)
    return set(loop) - (after - headers)


def _check(code: Code, trips: Mapping[str, Counts]) -> None:
    """Check that every key is the beginning of one loop or condition."""
    stacks = {instruction.stack for number in code.reached for instruction in code.blocks[number].instructions}
    places = {place for stack in stacks for place in source.around(stack)}
    for key in trips:
        named = {place[0] for place in places if _named(place, [key])}
        if len(named) > 1:
            found = [f"{region.function}: {region.header}" for region in sorted(named)]
            raise ValueError(f"trips: `{key}` must be the beginning of one loop or condition, is of {found}")
        # a loop that the compiler has unrolled is in the source alone
        files = {file for stack in stacks for file, _ in stack if source.is_ours(file)}
        last = key.split(INSIDE)[-1]
        if not named and not any(_begins(region, last) for file in files for region in source.regions(file)):
            raise ValueError(f"trips: `{key}` must be the beginning of a loop or condition of {sorted(files)}")


def _begins(region: source.Region, key: str) -> bool:
    return f"{region.header}:".startswith(key) or f"{region.function}: {region.header}:".startswith(key)


def _outer(place: Label) -> list[source.Region]:
    """The regions around a place."""
    region, calls = place
    path = [other for other, _ in source.around((*calls, (region.file, region.first)))]
    return path[: path.index(region)]


def _name(place: Label) -> str:
    return INSIDE.join(region.header for region in [*_outer(place)[-1:], place[0]])


def _named(place: Label, trips: Iterable[str]) -> list[str]:
    """The keys that match a place; the longest is the most specific."""
    region, outer = place[0], _outer(place)
    found = []
    for key in trips:
        *parts, last = key.split(INSIDE)
        rest = iter(outer)
        if _begins(region, last) and all(any(_begins(other, part) for other in rest) for part in parts):
            found.append(key)
    return found


def _trips(place: Label, trips: Mapping[str, Counts]) -> Counts:
    found = _named(place, trips)
    if not found:
        region = place[0]
        raise ValueError(f"trips: must say how often `{region.function}: {region.header}` runs, got {list(trips)}")
    return trips[max(found, key=len)]


def _labels(code: Code) -> dict[int, Label]:
    """The source loop of each loop of the machine code: the one that shares most instructions with it."""
    under: dict[Label, set[int]] = collections.defaultdict(set)
    of_block: dict[int, set[int]] = {}
    for number in code.reached:
        of_block[number] = set()
        for instruction in code.blocks[number].instructions:
            of_block[number].add(id(instruction))
            for place in source.around(instruction.stack):
                if place[0].loop:
                    under[place].add(id(instruction))
    labels: dict[int, Label] = {}
    for i, loop in enumerate(code.loops):
        mine = set().union(*(of_block[number] for number in loop))
        outer = [labels[j] for j in labels if loop < code.loops[j]]
        scores = {place: len(mine & ids) / len(mine | ids) for place, ids in under.items() if place not in outer}
        if not scores:
            raise ValueError("a loop of the machine code has no loop in the source")
        # what was moved out of a loop blurs which of two nested ones it is: the outer one where there is one inside
        close = [place for place, score in scores.items() if score >= 0.9 * max(scores.values())]
        holds = any(other < loop for other in code.loops)
        labels[i] = (min if holds else max)(close, key=lambda place: (len(_outer(place)), scores[place]))
    return labels


def _copies(code: Code, loops: Mapping[int, Any], ptx: Code) -> dict[int, int]:
    """Number of copies of its body in each loop of the machine code; 0 for a loop over the remainder."""
    written: dict[tuple[str, Stack], int] = collections.Counter()
    for block in ptx.blocks:
        for instruction in block.instructions:
            for anchor, kind in ANCHORS.items():
                if instruction.opcode.startswith(anchor):
                    written[kind, instruction.stack] += 1
    copies: dict[int, int] = {}
    for i, loop in enumerate(code.loops):
        nested = set().union(*(other for other in code.loops if other < loop))
        found: dict[tuple[str, Stack], int] = collections.Counter()
        for number in loop - nested:
            for instruction in code.blocks[number].instructions:
                for kind in ANCHORS.values():
                    if instruction.opcode.startswith(kind) and (kind, instruction.stack) in written:
                        found[kind, instruction.stack] += 1
        ratios = [number / written[key] for key, number in found.items()]
        copies[i] = max(round(float(np.median(ratios))), 1) if ratios else 1
    for i in loops:
        same = [j for j in loops if loops[j] == loops[i] and not (code.loops[i] < code.loops[j])]
        if copies[i] < max(copies[j] for j in same):
            copies[i] = 0
    return copies
