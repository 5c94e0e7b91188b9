"""PTX's types in NumPy's words, and its registers: untyped bits, of uint16, uint32, uint64, or bool for predicates."""

import re

import numpy as np

WARP = 32
u1, u2, u4, u8 = np.uint8, np.uint16, np.uint32, np.uint64
i1, i2, i4, i8 = np.int8, np.int16, np.int32, np.int64
f2, f4, f8 = np.float16, np.float32, np.float64
UNSIGNED = {1: u1, 2: u2, 4: u4, 8: u8}  # by bytes

TYPES = {
    "s8": "i1", "u8": "u1", "b8": "u1", "s16": "i2", "u16": "u2", "b16": "u2", "f16": "f2", "s32": "i4", "u32": "u4",
    "b32": "u4", "f32": "f4", "s64": "i8", "u64": "u8", "b64": "u8", "f64": "f8", "pred": "p",
}  # fmt: skip
REGISTER = re.compile(r"%(p|rs|rd|r|fd|f|hh|h)(\d+)$")
REGISTER_SIZES = {"rs": 2, "r": 4, "rd": 8, "f": 4, "fd": 8, "h": 2, "hh": 4}
# what a register holds before it is written: NaN. LLVM does read such ones, as halves of pairs that nothing uses
UNDEFINED = {"p": np.False_} | {
    name: {2: u2(0x7FFF), 4: u4(0x7FC0DEAD), 8: u8(0x7FC0DEAD7FC0DEAD)}[size] for name, size in REGISTER_SIZES.items()
}


def size_of(register: str) -> int:
    """Bytes of a register, from its name."""
    match = REGISTER.match(register)
    assert match, register
    return REGISTER_SIZES[match[1]]
