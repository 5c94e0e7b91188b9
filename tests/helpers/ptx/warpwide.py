"""Instructions of whole warps: arrays are [warps, 32] inside, one element a thread outside."""

import numpy as np

from helpers.ptx.arithmetic import from_bf16, nudge
from helpers.ptx.dtypes import WARP, f2, f4, f8, i4, i8, u2, u4

LANES = np.arange(WARP)
GROUP, MEMBER = LANES // 4, LANES % 4  # of an mma's fragments


def shuffle(mode, a, b, c):
    """-> value, whether it came from a lane in range."""
    shape = a.shape
    a = a.reshape(-1, WARP)
    b, c = (np.broadcast_to(x, shape).reshape(-1, WARP).astype(i8) for x in (b, c))
    b, clamp, segment = b & 31, c & 31, (c >> 8) & 31
    most, least = (LANES & segment) | (clamp & ~segment), LANES & segment
    source = {"up": LANES - b, "down": LANES + b, "bfly": LANES ^ b, "idx": least | (b & ~segment)}[mode]
    good = source >= most if mode == "up" else source <= most
    return np.take_along_axis(a, np.where(good, source, LANES), 1).ravel(), good.ravel()


def reduce(op, a):
    """redux.sync."""
    function = {
        "add": np.add, "min": np.minimum, "max": np.maximum,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    }[op]  # fmt: skip
    return np.repeat(function.reduce(a.reshape(-1, WARP), axis=1, dtype=a.dtype), WARP)


def vote(op, p):
    p = p.reshape(-1, WARP)
    if op == "ballot":
        return np.repeat(np.packbits(p, axis=1, bitorder="little").view(u4).ravel(), WARP)
    if op == "uni":
        return np.repeat(p.all(1) | ~p.any(1), WARP)
    return np.repeat(p.all(1) if op == "all" else p.any(1), WARP)


def match_any(a):
    a = a.reshape(-1, WARP)
    equal = a[:, :, None] == a[:, None, :]
    return np.packbits(equal, axis=2, bitorder="little").view(u4).reshape(-1)


def _unpack(registers, kind):
    """Fragment registers -> float64 [warps, 32, registers * elements in each]."""
    stacked = np.stack([r.reshape(-1, WARP) for r in registers], 2)
    if kind == "tf32":  # the hardware does not look at the lowest 13 bits
        return (stacked & u4(0xFFFFE000)).view(f4).astype(f8)
    halves = stacked.view(u2)
    return (halves.view(f2) if kind == "f16" else from_bf16(halves)).astype(f8)


def multiply_matrices(kind, depth, a, b, c, perturb):
    """mma.sync m16n8k``depth``: a [16, depth] @ b [depth, 8] + c [16, 8] -> the four registers of float32 d.

    The sum is rounded once; with ``perturb`` it is off as if the tensor core had cut off bits of each product.
    """
    a, b = _unpack(a, kind), _unpack(b, kind)
    c = [r.view(f4).reshape(-1, WARP) for r in c]
    each = 1 if kind == "tf32" else 2  # elements in a register
    warps = len(a)
    left, right = np.zeros((warps, 16, depth)), np.zeros((warps, depth, 8))
    for i in range(a.shape[2]):  # registers: rows 0-7, rows 8-15, then the same of the next columns
        register, element = divmod(i, each)
        left[:, GROUP + 8 * (register % 2), each * MEMBER + element + 4 * each * (register // 2)] = a[:, :, i]
    for i in range(b.shape[2]):
        register, element = divmod(i, each)
        right[:, each * MEMBER + element + 4 * each * register, GROUP] = b[:, :, i]
    total = left @ right
    largest = np.abs(left).max(2, keepdims=True) * np.abs(right).max(1, keepdims=True) if perturb else None
    out = []
    for i in range(4):
        row, column = GROUP + 8 * (i // 2), 2 * MEMBER + i % 2
        value = (total[:, row, column] + c[i]).astype(f4)
        if perturb:
            step = (nudge(np.ones_like(value), value, c[i]).view(i4) - i4(0x3F800000)) / 2
            size = np.maximum(largest[:, row, column], np.abs(c[i]))
            value = np.where(np.isfinite(value), value + step * size * 2.0**-23, value).astype(f4)
        out.append(value.view(u4).ravel())
    return out
