"""Instructions that threads see of one another -> NumPy code: those of whole warps, order, memory.

Not supported: wgmma, tensor memory, TMA (Triton chooses wgmma on sm_90 for tl.dot of 64 rows or more in four warps),
mbarriers, clusters, local memory, calls.
"""

import re

from helpers.ptx.dtypes import TYPES, size_of
from helpers.ptx.parse import Instruction
from helpers.ptx.translate import Translator, refuse, split_list, spread, translates

CACHES = ("ca", "cg", "cs", "nc", "wb", "wt", "L1::evict_last", "L1::evict_first", "L1::no_allocate")


@translates("shfl", "redux", "vote", "match")
def exchange(t: Translator, op: Instruction) -> list[str]:
    """Lanes see one another's values."""
    check = [f"T.check_whole({t.mask(op)}, {op.text!r})"]
    if op.name == "shfl":
        targets = op.operands[0].split("|")
        a, b, c = (t.read(o, "u4") for o in op.operands[1:4])
        lines = [*check, f"v, g = shuffle('{op.parts[2]}', {spread(a)}, {b}, {c})", *t.write(op, "v", "u4", targets[0])]
        return lines + (t.write(op, "g", "p", targets[1]) if len(targets) > 1 else [])
    if op.name == "redux":
        kind = TYPES[op.type]
        if kind[0] == "f":
            raise NotImplementedError(op.opcode)
        return check + t.write(op, f"reduce('{op.parts[2]}', {spread(t.read(op.operands[1], kind))})", kind)
    if op.name == "match":
        if not op.has("any") or op.type != "b32":
            raise NotImplementedError(op.opcode)
        return check + t.write(op, f"match_any({spread(t.read(op.operands[1], 'u4'))})", "u4")
    negated = op.operands[1].startswith("!")
    value = f"vote('{op.parts[2]}', {spread('~' * negated + t.read(op.operands[1].lstrip('!'), 'p'))})"
    return check + t.write(op, value, "u4" if op.has("ballot") else "p")


@translates("mma")
def multiply_matrices(t: Translator, op: Instruction) -> list[str]:
    match = re.match(r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col\.f32\.(tf32|bf16|f16)\.(\w+)\.f32$", op.opcode)
    if not match or match[2] != match[3]:
        raise NotImplementedError(op.opcode)
    d, *fragments = (split_list(o) for o in op.operands)
    a, b, c = (f"[{', '.join(spread(t.read(r, 'u4')) for r in part)}]" for part in fragments)
    lines = [f"T.check_whole({t.mask(op)}, {op.text!r})"]
    lines.append(f"v = multiply_matrices('{match[2]}', {match[1]}, {a}, {b}, {c}, T.batch.run.options.perturb)")
    return lines + [line for i, r in enumerate(d) for line in t.write(op, f"v[{i}]", "u4", r)]


@translates("ldmatrix", "stmatrix")
def access_matrices(t: Translator, op: Instruction) -> list[str]:
    if op.type != "b16" or not op.has("m8n8"):
        raise NotImplementedError(op.opcode)
    count = int(next(p[1:] for p in op.parts if re.match(r"x\d$", p)))
    writes = op.name == "stmatrix"
    where, registers = op.operands if writes else op.operands[::-1]
    (base, offset), names = t.address(where, "u4"), split_list(registers)
    values = ", ".join(spread(t.read(r, "u4")) for r in names) if writes else ""
    lines = [f"T.check_whole({t.mask(op)}, {op.text!r})"]
    lines.append(
        f"v = T.matrices({spread(base)}, {offset}, [{values}], {count}, {op.has('trans')}, {writes}, {op.text!r})"
    )
    return lines + ([] if writes else [x for i, r in enumerate(names) for x in t.write(op, f"v[{i}]", "u4", r)])


# order


@translates("bar", "barrier")
def synchronize(t: Translator, op: Instruction) -> list[str]:
    if op.has("warp"):
        return [f"T.synchronize_warps({t.mask(op)}, {op.text!r})"]
    if not op.has("sync") or op.operands[0] != "0":
        raise NotImplementedError(op.opcode)
    return [f"T.synchronize({t.mask(op)}, {op.text!r})"]


@translates("membar", "fence", "griddepcontrol", "nanosleep")
def ignore(t: Translator, op: Instruction) -> list[str]:
    return []


# memory


def space_of(op: Instruction) -> str:
    if op.has("global") == op.has("shared"):
        raise NotImplementedError(op.opcode)
    return "T.batch.memory" if op.has("global") else "T.batch.shared"


def pointer(t: Translator, op: Instruction, operand: str) -> str:
    base, offset = t.address(operand, "u8" if op.has("global") else "u4")
    return f"{spread(base)}, {offset}"


@translates("ld", "st")
def access(t: Translator, op: Instruction) -> list[str]:
    if op.has("param"):
        return load_parameter(t, op)
    refuse(op, "global", "shared", "v1", "v2", "v4", "v8", "volatile", *CACHES)
    kind = TYPES[op.type]
    size = int(kind[1])
    where, registers = op.operands[::-1] if op.name == "ld" else op.operands
    names = split_list(registers)
    if op.name == "st":
        values = ", ".join(t.read(r, f"u{size}") for r in names)
        return [f"{space_of(op)}.store(T, {pointer(t, op, where)}, {t.mask(op)}, {size}, [{values}], {op.text!r})"]
    lines = [f"v = {space_of(op)}.load(T, {pointer(t, op, where)}, {t.mask(op)}, {size}, {len(names)}, {op.text!r})"]
    for i, register in enumerate(names):
        wide = size_of(register)
        value = f"v[{i}]" if wide == size else f"v[{i}].astype(u{wide})"
        if op.type[0] == "s" and wide != size:
            value = f"v[{i}].view(i{size}).astype(i{wide}).view(u{wide})"
        lines += t.write(op, value, f"u{wide}", register)
    return lines


def load_parameter(t: Translator, op: Instruction) -> list[str]:
    name, kind, size = re.match(r"\[\s*([^\s+\]]+)", op.operands[1])[1], TYPES[op.type], size_of(op.operands[0])
    if name in t.params:
        value = f"T.full(T.batch.params[{t.params.index(name)}].view({kind}))"
    else:  # LLVM selects a parameter's address where a kernel selects its value
        base, offset = t.address(op.operands[1], f"u{size_of(name)}")
        value = f"T.load_parameter({base} + u{size_of(name)}({offset}), {kind})"
    return t.write(op, f"{value}.astype({'i' if kind[0] == 'i' else 'u'}{size}).view(u{size})", f"u{size}")


@translates("atom", "red")
def update(t: Translator, op: Instruction) -> list[str]:
    kind = TYPES[op.type]
    operands = op.operands if op.name == "red" else op.operands[1:]
    name = next(p for p in op.parts if p in ("add", "min", "max", "and", "or", "xor", "exch", "cas"))
    meaning = {p for p in op.parts if p in ("acquire", "release", "acq_rel")}
    if kind == "f2" or op.type.endswith("x2"):
        raise NotImplementedError(op.opcode)
    values = ", ".join(t.read(o, kind) for o in operands[1:])
    where = f"{pointer(t, op, operands[0])}, {t.mask(op)}"
    call = f"{space_of(op)}.update(T, {where}, '{name}', {kind}, [{values}], {meaning}, {op.text!r})"
    if op.name == "red":
        return [call]
    return [f"v = {call}", *t.write(op, "v", f"u{kind[1]}")]


@translates("cp")
def copy_async(t: Translator, op: Instruction) -> list[str]:
    if op.opcode == "cp.async.commit_group":
        return [f"T.commit_copies({t.mask(op)})"]
    if op.opcode in ("cp.async.wait_group", "cp.async.wait_all"):
        most = "0" if op.has("wait_all") else op.operands[0]
        commit = [f"T.commit_copies({t.mask(op)})"] if op.has("wait_all") else []
        return [*commit, f"T.batch.shared.finish_copies(T, {most})"]
    if not op.opcode.startswith(("cp.async.ca.shared.global", "cp.async.cg.shared.global")) or len(op.operands) > 4:
        raise NotImplementedError(op.opcode)
    (to, to_offset), (source, offset) = t.address(op.operands[0], "u4"), t.address(op.operands[1], "u8")
    size = int(op.operands[2], 0)
    copied = t.read(op.operands[3], "u4") if len(op.operands) > 3 else str(size)
    return [
        f"T.batch.shared.copy_async(T, {spread(to)}, {to_offset}, {spread(source)}, {offset}, "
        f"{copied}, {t.mask(op)}, {size}, {op.text!r})"
    ]
