"""One translation per family of instructions. What is not here raises NotImplementedError with the instruction's text.

Not supported: wgmma, tensor memory, TMA (Triton chooses wgmma on sm_90 for tl.dot of 64 rows or more in four warps),
mbarriers, clusters, local memory, calls.
"""

import re
from collections.abc import Callable

from helpers.ptx.dtypes import TYPES, size_of
from helpers.ptx.parse import Instruction
from helpers.ptx.translate import Translator, split_list

Translation = Callable[[Translator, Instruction], list[str]]
FAMILIES: dict[str, Translation] = {}
COMPARISONS = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}
ROUNDINGS = {"rmi": "floor", "rpi": "ceil", "rzi": "trunc", "rni": "rint"}
# by kind of the operands: u and i, f; {0} to {2}: the operands
SIMPLE = {
    "add": ("{0} + {1}", "{0} + {1}"), "sub": ("{0} - {1}", "{0} - {1}"), "and": ("{0} & {1}", None),
    "or": ("{0} | {1}", None), "xor": ("{0} ^ {1}", None), "not": ("~{0}", None), "neg": ("-{0}", "-{0}"),
    "abs": ("abs({0})", "abs({0})"), "div": ("divide({0}, {1})", None), "rem": ("remainder({0}, {1})", None),
    "min": ("minimum({0}, {1})", None), "max": ("maximum({0}, {1})", None), "brev": ("brev({0})", None),
}  # fmt: skip
APPROXIMATE = {
    "ex2": "exp2({})", "lg2": "log2({})", "rcp": "1 / {}", "rsqrt": "1 / sqrt({})", "sin": "sin({})", "cos": "cos({})",
    "tanh": "tanh({})", "sqrt": "sqrt({})",
}  # fmt: skip


def translates(*names: str) -> Callable[[Translation], Translation]:
    def register(function: Translation) -> Translation:
        FAMILIES.update(dict.fromkeys(names, function))
        return function

    return register


def translate(t: Translator, op: Instruction) -> list[str]:
    if op.type == "f32x2" and set(op.parts[1:-1]) <= {"rn"}:
        return t.write(op, f"pair('{op.name}', {', '.join(t.read(o, 'u8') for o in op.operands[1:])})", "u8")
    if op.name in FAMILIES:
        return FAMILIES[op.name](t, op)
    if op.has("sat") or op.name not in SIMPLE:
        raise NotImplementedError(op.opcode)
    kind = TYPES[op.type]
    template = SIMPLE[op.name][kind[0] == "f"]
    if template is None or kind == "f2" or (kind[0] == "f" and op.has("ftz")):
        raise NotImplementedError(op.opcode)
    return t.write(op, template.format(*(t.read(o, kind) for o in op.operands[1:])), kind)


def refuse(op: Instruction, *allowed: str) -> None:
    """Modifiers that nobody has thought of."""
    if set(op.parts[1:-1]) - set(allowed):
        raise NotImplementedError(op.opcode)


# integers


@translates("mul", "mad", "fma")
def multiply(t: Translator, op: Instruction) -> list[str]:
    kind = TYPES[op.type]
    if op.has("wide"):
        wide = f"{kind[0]}{2 * int(kind[1])}"
        value = f"{t.read(op.operands[1], kind)}.astype({wide}) * {t.read(op.operands[2], kind)}.astype({wide})"
        return t.write(op, value + (f" + {t.read(op.operands[3], wide)}" if op.name == "mad" else ""), wide)
    a, b, *c = (t.read(o, kind) for o in op.operands[1:])
    if op.has("hi"):
        return t.write(op, f"multiply_high({a}, {b})" + (f" + {c[0]}" if c else ""), kind)
    if kind[0] != "f":
        refuse(op, "lo")
        return t.write(op, f"{a} * {b}" + (f" + {c[0]}" if c else ""), kind)
    refuse(op, "rn", "ftz", "negc", "negab")
    if kind == "f2" or (op.has("ftz") and not c):
        raise NotImplementedError(op.opcode)
    if not c:
        return t.write(op, f"{a} * {b}", kind)
    value = f"fma{'64' if kind == 'f8' else ''}({'-' * op.has('negab')}{a}, {b}, {'-' * op.has('negc')}{c[0]})"
    return t.write(op, f"ftz({value})" if op.has("ftz") else value, kind)


@translates("shl", "shr")
def shift(t: Translator, op: Instruction) -> list[str]:
    kind = TYPES[op.type]
    function = "shift_left" if op.name == "shl" else "shift_right"
    return t.write(
        op, f"{function}({t.read(op.operands[1], kind)}, {t.read(op.operands[2], 'u4')}, {8 * int(kind[1])})", kind
    )


@translates("bfe", "bfi", "prmt", "lop3", "shf")
def handle_bits(t: Translator, op: Instruction) -> list[str]:
    words = [t.read(o, "u4") for o in op.operands[1:]]
    if op.type not in ("b32", "u32", "s32") or (op.name == "prmt" and len(op.parts) > 2):
        raise NotImplementedError(op.opcode)
    if op.name == "bfe":
        words.append(str(op.type == "s32"))
    if op.name == "shf":
        words = [str(op.has("l")), *words, str(op.has("wrap"))]
    function = {
        "bfe": "extract_bits",
        "bfi": "insert_bits",
        "prmt": "permute_bytes",
        "lop3": "look_up",
        "shf": "funnel",
    }
    return t.write(op, f"{function[op.name]}({', '.join(words)})", "u4")


@translates("popc", "clz", "bfind")
def find_bits(t: Translator, op: Instruction) -> list[str]:
    value = t.read(op.operands[1], TYPES[op.type])
    return t.write(op, f"{op.name}({value}{', True' if op.has('shiftamt') else ''})", "u4")


# floats


@translates("min", "max")
def choose(t: Translator, op: Instruction) -> list[str]:
    kind = TYPES[op.type]
    a, b, *c = (t.read(o, kind) for o in op.operands[1:])
    if kind[0] != "f":
        return t.write(op, f"{op.name}imum({a}, {b})", kind)
    refuse(op, "NaN")
    value = f"f{op.name}({a}, {b}, {op.has('NaN')})"
    return t.write(op, f"f{op.name}({value}, {c[0]}, {op.has('NaN')})" if c else value, kind)


@translates("div", "ex2", "lg2", "rcp", "rsqrt", "sin", "cos", "tanh", "sqrt")
def calculate(t: Translator, op: Instruction) -> list[str]:
    kind = TYPES[op.type]
    a, *b = (t.read(o, kind) for o in op.operands[1:])
    if kind[0] != "f":
        return t.write(op, f"divide({a}, {b[0]})", kind)
    if op.has("rn"):
        refuse(op, "rn")
        exact = {"div": f"{a} / {b[0] if b else None}", "sqrt": f"sqrt({a})", "rcp": f"{kind}(1) / {a}"}[op.name]
        return t.write(op, exact, kind)
    refuse(op, "approx", "full", "ftz")
    if kind != "f4":
        raise NotImplementedError(op.opcode)
    if op.name == "div":
        return t.write(op, f"T.approximate_quotient({a}, {b[0]})", kind)
    value = f"({APPROXIMATE[op.name].format(f'{a}.astype(f8)')}).astype(f4)"
    return t.write(op, f"T.approximate({value}, {a})", kind)


@translates("testp")
def test_property(t: Translator, op: Instruction) -> list[str]:
    function = {"finite": "isfinite({})", "infinite": "isinf({})", "notanumber": "isnan({})", "number": "~isnan({})"}
    return t.write(op, function[op.parts[1]].format(t.read(op.operands[1], TYPES[op.type])), "p")


@translates("setp")
def compare(t: Translator, op: Instruction) -> list[str]:
    comparison, kind = op.parts[1], TYPES[op.type]
    if len(op.operands) > 3 or len(op.parts) > 3 or "|" in op.operands[0] or kind == "f2":
        raise NotImplementedError(op.opcode)
    a, b = t.read(op.operands[1], kind), t.read(op.operands[2], kind)
    unordered = f"isnan({a}) | isnan({b})"
    if comparison in ("num", "nan"):
        return t.write(op, f"~({unordered})" if comparison == "num" else unordered, "p")
    if comparison in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
        return t.write(op, f"({a} {COMPARISONS[comparison[:2]]} {b}) | {unordered}", "p")
    if comparison == "ne" and kind[0] == "f":
        return t.write(op, f"({a} != {b}) & ~({unordered})", "p")
    if op.type[0] == "b" and comparison not in ("eq", "ne"):
        raise NotImplementedError(op.opcode)
    return t.write(op, f"{a} {COMPARISONS[comparison]} {b}", "p")


@translates("selp")
def select(t: Translator, op: Instruction) -> list[str]:
    kind = TYPES[op.type]
    return t.write(
        op,
        f"where({t.read(op.operands[3], 'p')}, {t.read(op.operands[1], kind)}, {t.read(op.operands[2], kind)})",
        kind,
    )


@translates("mov")
def move(t: Translator, op: Instruction) -> list[str]:
    kind = TYPES[op.type]
    target, source = op.operands
    if target.startswith("{"):  # unpack
        parts, size = split_list(target), size_of(source)
        part, whole = size // len(parts), t.read(source, f"u{size}")
        values = [f"({whole} >> u{size}({8 * part * i})).astype(u{part})" for i in range(len(parts))]
        return [line for p, v in zip(parts, values, strict=True) for line in t.write(op, v, f"u{part}", p)]
    if source.startswith("{"):  # pack
        parts, size = split_list(source), size_of(target)
        part = size // len(parts)
        pieces = [f"({t.read(p, f'u{part}')}.astype(u{size}) << u{size}({8 * part * i}))" for i, p in enumerate(parts)]
        return t.write(op, " | ".join(pieces), f"u{size}")
    return t.write(op, t.read(source, kind), kind)


@translates("cvt")
def convert(t: Translator, op: Instruction) -> list[str]:
    kinds = {**TYPES, "bf16": "bf16", "bf16x2": "", "f16x2": "", "tf32": ""}
    modifiers = {p for p in op.parts[1:] if p not in kinds}
    to, source = (p for p in op.parts[1:] if p in kinds)
    if "sat" in modifiers:
        raise NotImplementedError(op.opcode)
    if to in ("f16x2", "bf16x2"):
        high, low = (f"to_{to[:-2]}({t.read(o, 'f4')}).astype(u4)" for o in op.operands[1:3])
        return t.write(op, f"({high} << u4(16)) | {low}", "u4")
    if to == "tf32":
        if modifiers != {"rna"} or source != "f32":
            raise NotImplementedError(op.opcode)
        return t.write(op, f"to_tf32({t.read(op.operands[1], 'f4')})", "u4")
    if source == "bf16":
        if to != "f32":
            raise NotImplementedError(op.opcode)
        return t.write(op, f"from_bf16({t.read(op.operands[1], 'u2')})", "f4")
    kind, a = TYPES[source], t.read(op.operands[1], TYPES[source])
    if to == "bf16" or (to == "f16" and source == "f32"):
        if source != "f32" or modifiers != {"rn"}:
            raise NotImplementedError(op.opcode)
        return t.write(op, f"to_{to}({a})", "u2")
    target, rounding = TYPES[to], [ROUNDINGS[m] for m in modifiers if m in ROUNDINGS]
    if kind[0] == "f" and target[0] == "f":
        if kind == target and rounding:
            return t.write(op, f"{rounding[0]}({f'ftz({a})' if 'ftz' in modifiers else a})", target)
        if modifiers - {"rn"} or (kind == "f8" and target == "f2"):
            raise NotImplementedError(op.opcode)
        return t.write(op, f"{a}.astype({target})", target)
    if kind[0] == "f":
        value = f"to_int({rounding[0]}({a}), {target})"
    elif target[0] == "f":
        if modifiers != {"rn"} or target == "f2":
            raise NotImplementedError(op.opcode)
        return t.write(op, f"{a}.astype({target})", target)
    else:
        value = f"{a}.astype({target})"
    size = size_of(op.operands[0])  # a narrower integer lies sign- or zero-extended in a wider register
    if size != int(target[1]):
        value, target = f"{value}.astype({target[0]}{size})", f"{target[0]}{size}"
    return t.write(op, value, target)


# whole warps

whole = "broadcast_to({}, T.num)".format  # where an operand may be a constant


@translates("shfl", "redux", "vote", "match")
def exchange(t: Translator, op: Instruction) -> list[str]:
    """Lanes see one another's values."""
    check = [f"T.check_whole({t.mask(op)}, {op.text!r})"]
    if op.name == "shfl":
        targets = op.operands[0].split("|")
        a, b, c = (t.read(o, "u4") for o in op.operands[1:4])
        lines = [*check, f"v, g = shuffle('{op.parts[2]}', {whole(a)}, {b}, {c})", *t.write(op, "v", "u4", targets[0])]
        return lines + (t.write(op, "g", "p", targets[1]) if len(targets) > 1 else [])
    if op.name == "redux":
        kind = TYPES[op.type]
        if kind[0] == "f":
            raise NotImplementedError(op.opcode)
        return check + t.write(op, f"reduce('{op.parts[2]}', {whole(t.read(op.operands[1], kind))})", kind)
    if op.name == "match":
        if not op.has("any") or op.type != "b32":
            raise NotImplementedError(op.opcode)
        return check + t.write(op, f"match_any({whole(t.read(op.operands[1], 'u4'))})", "u4")
    negated = op.operands[1].startswith("!")
    value = f"vote('{op.parts[2]}', {whole('~' * negated + t.read(op.operands[1].lstrip('!'), 'p'))})"
    return check + t.write(op, value, "u4" if op.has("ballot") else "p")


@translates("mma")
def multiply_matrices(t: Translator, op: Instruction) -> list[str]:
    match = re.match(r"mma\.sync\.aligned\.m16n8k(\d+)\.row\.col\.f32\.(tf32|bf16|f16)\.(\w+)\.f32$", op.opcode)
    if not match or match[2] != match[3]:
        raise NotImplementedError(op.opcode)
    d, *fragments = (split_list(o) for o in op.operands)
    a, b, c = (f"[{', '.join(whole(t.read(r, 'u4')) for r in part)}]" for part in fragments)
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
    values = ", ".join(whole(t.read(r, "u4")) for r in names) if writes else ""
    lines = [f"T.check_whole({t.mask(op)}, {op.text!r})"]
    lines.append(f"v = T.matrices({base}, {offset}, [{values}], {count}, {op.has('trans')}, {writes}, {op.text!r})")
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
    return f"{whole(base)}, {offset}"


@translates("ld", "st")
def access(t: Translator, op: Instruction) -> list[str]:
    if op.has("param"):
        return load_parameter(t, op)
    refuse(
        op, "global", "shared", "v1", "v2", "v4", "v8", "volatile", "relaxed", "gpu", "L1", "evict_last", "evict_first"
    )
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
    (name, kind), size = (t.base(op.operands[1]), TYPES[op.type]), size_of(op.operands[0])
    if name.startswith("%"):  # LLVM selects a parameter's address where a kernel selects its value
        base, offset = t.address(op.operands[1], "u8")
        value = f"T.load_parameter({base} + u8({offset}), {kind})"
    else:
        value = f"T.full(T.batch.params[{t.params.index(name)}].view({kind}))"
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
        return ([f"T.commit_copies({t.mask(op)})"] if op.has("wait_all") else []) + [
            f"T.batch.shared.finish_copies(T, {most})"
        ]
    if not op.opcode.startswith(("cp.async.ca.shared.global", "cp.async.cg.shared.global")) or len(op.operands) > 4:
        raise NotImplementedError(op.opcode)
    (to, to_offset), (source, offset) = t.address(op.operands[0], "u4"), t.address(op.operands[1], "u8")
    size = int(op.operands[2], 0)
    copied = t.read(op.operands[3], "u4") if len(op.operands) > 3 else str(size)
    return [
        f"T.batch.shared.copy_async(T, {whole(to)}, {to_offset}, {whole(source)}, {offset}, "
        f"{copied}, {t.mask(op)}, {size}, {op.text!r})"
    ]
