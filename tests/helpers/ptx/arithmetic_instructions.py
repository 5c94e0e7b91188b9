"""Instructions of single threads that touch no memory -> NumPy code."""

from helpers.ptx.dtypes import TYPES, size_of
from helpers.ptx.parse import Instruction
from helpers.ptx.translate import Translator, refuse, split_list, spread, translates

COMPARISONS = {
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">", "hs": ">=",
}  # fmt: skip
ROUNDINGS = {"rmi": "floor", "rpi": "ceil", "rzi": "trunc", "rni": "rint"}
# by kind of the operands: u and i, f; {0} to {2}: the operands
SIMPLE = {
    "add": ("{0} + {1}", "{0} + {1}"), "sub": ("{0} - {1}", "{0} - {1}"), "and": ("{0} & {1}", None),
    "or": ("{0} | {1}", None), "xor": ("{0} ^ {1}", None), "not": ("~{0}", None), "neg": ("-{0}", "-{0}"),
    "abs": ("abs({0})", "abs({0})"), "rem": ("remainder({0}, {1})", None), "brev": ("brev({0})", None),
}  # fmt: skip
BITS = {"bfe": "extract_bits", "bfi": "insert_bits", "prmt": "permute_bytes", "lop3": "look_up", "shf": "funnel"}
PAIRS = {"f32x2": "f4", "s16x2": "i2", "u16x2": "u2"}
APPROXIMATE = {
    "ex2": "exp2({})", "lg2": "log2({})", "rcp": "1 / {}", "rsqrt": "1 / sqrt({})", "sin": "sin({})", "cos": "cos({})",
    "tanh": "tanh({})", "sqrt": "sqrt({})",
}  # fmt: skip


@translates(*SIMPLE)
def calculate_simply(t: Translator, op: Instruction) -> list[str]:
    if op.has("sat"):
        raise NotImplementedError(op.opcode)
    kind = TYPES[op.type]
    template = SIMPLE[op.name][kind[0] == "f"]
    if template is None or kind == "f2" or (kind[0] == "f" and op.has("ftz")):
        raise NotImplementedError(op.opcode)
    return t.write(op, template.format(*(t.read(o, kind) for o in op.operands[1:])), kind)


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


@translates(*PAIRS)
def calculate_pairs(t: Translator, op: Instruction) -> list[str]:
    refuse(op, "rn")
    kind = PAIRS[op.type]
    whole = f"u{2 * int(kind[1])}"
    return t.write(op, f"pair('{op.name}', {kind}, {', '.join(t.read(o, whole) for o in op.operands[1:])})", whole)


@translates("shl", "shr")
def shift(t: Translator, op: Instruction) -> list[str]:
    kind, function = TYPES[op.type], {"shl": "shift_left", "shr": "shift_right"}[op.name]
    a, s = t.read(op.operands[1], kind), t.read(op.operands[2], "u4")
    return t.write(op, f"{function}({a}, {s}, {8 * int(kind[1])})", kind)


@translates("bfe", "bfi", "prmt", "lop3", "shf")
def handle_bits(t: Translator, op: Instruction) -> list[str]:
    words = [t.read(o, "u4") for o in op.operands[1:]]
    if op.type not in ("b32", "u32", "s32") or (op.name == "prmt" and len(op.parts) > 2):
        raise NotImplementedError(op.opcode)
    if op.name == "bfe":
        words.append(str(op.type == "s32"))
    if op.name == "shf":
        words = [str(op.has("l")), *words, str(op.has("wrap"))]
    return t.write(op, f"{BITS[op.name]}({', '.join(words)})", "u4")


@translates("popc", "clz", "bfind")
def find_bits(t: Translator, op: Instruction) -> list[str]:
    value = t.read(op.operands[1], TYPES[op.type])
    return t.write(op, f"{op.name}({value}{', True' if op.has('shiftamt') else ''})", "u4")


@translates("min", "max")
def choose(t: Translator, op: Instruction) -> list[str]:
    if op.type in ("bf16", "bf16x2", "f16x2"):
        refuse(op, "NaN")
        kind = "u4" if op.type.endswith("x2") else "u2"
        values = ", ".join(spread(t.read(o, kind)) for o in op.operands[1:])
        return t.write(op, f"choose_half(f{op.name}, '{op.type}', {op.has('NaN')}, {values})", kind)
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
    a, b, p = t.read(op.operands[1], kind), t.read(op.operands[2], kind), t.read(op.operands[3], "p")
    return t.write(op, f"where({p}, {a}, {b})", kind)


@translates("mov")
def move(t: Translator, op: Instruction) -> list[str]:
    kind = TYPES[op.type]
    target, source = op.operands
    if target.startswith("{"):  # unpack
        parts, size = split_list(target), size_of(source)
        part, value = size // len(parts), t.read(source, f"u{size}")
        values = [f"({value} >> u{size}({8 * part * i})).astype(u{part})" for i in range(len(parts))]
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
