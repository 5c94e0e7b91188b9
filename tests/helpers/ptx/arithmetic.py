"""Scalar instructions, bit for bit, on arrays of one element a thread."""

from fractions import Fraction

import numpy as np

from helpers.ptx.dtypes import f2, f4, f8, i4, i8, u2, u4, u8


def nudge(value, *operands):
    """Up to 2 ulp off, by a hash of the operands."""
    h = np.full(value.shape, 2166136261, u4)
    for operand in operands:
        h = (h ^ operand.view(u4)) * u4(16777619)
        h = h ^ (h >> u4(15))
    step = (h % u4(5)).astype(i4) - i4(2)
    bits = value.view(i4)
    ok = np.isfinite(value) & (np.abs(value) > f4(1e-37)) & (np.abs(value) < f4(1e38))
    return np.where(ok, bits + step, bits).view(f4)


def fma(a, b, c):
    """Rounded once: the sum in float64 is rounded to odd before it is rounded to float32."""
    p, c = a.astype(f8) * b, c.astype(f8)
    s = p + c
    t = s - p
    e = (p - (s - t)) + (c - t)
    bits = s.view(i8)
    step = np.where((e > 0) == (s > 0), 1, -1)
    odd = np.isfinite(s) & (e != 0) & ((bits & 1) == 0)
    return np.where(odd, bits + step, bits).view(f8).astype(f4)


def add_exactly(a, b):
    """-> the rounded sum and its error."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def fma64(a, b, c):
    """Rounded once: product and sum with their errors; as fractions where the errors cannot be added exactly."""
    a, b, c = np.broadcast_arrays(a, b, c)
    p = a * b
    (ah, al), (bh, bl) = ((h := x * 134217729.0 - (x * 134217729.0 - x), x - h) for x in (a, b))
    s, error = add_exactly(p, c)
    low, rest = add_exactly(error, ((ah * bh - p) + ah * bl + al * bh) + al * bl)
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    sure = (rest == 0) & (np.abs(p) > 1e-250) & (np.abs(s) < 1e290)
    out = np.where(sure, s + low, s)
    for i in np.flatnonzero(finite & ~sure & (p != 0)):
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        out[i] = float(exact) if exact and np.isfinite(s[i]) else s[i]
    return out


def fmax(a, b, nan=False):
    r, bits = np.maximum(a, b) if nan else np.fmax(a, b), f"u{a.dtype.itemsize}"
    if not r.all():  # max(-0, +0) is +0
        r = np.where((a == 0) & (b == 0), (a.view(bits) & b.view(bits)).view(a.dtype), r)
    return r


def fmin(a, b, nan=False):
    r, bits = np.minimum(a, b) if nan else np.fmin(a, b), f"u{a.dtype.itemsize}"
    if not r.all():
        r = np.where((a == 0) & (b == 0), (a.view(bits) | b.view(bits)).view(a.dtype), r)
    return r


def pair(op, dtype, *operands):
    """Two elements in one register: float32 on sm_100, int16 on sm_90."""
    function = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "fma": fma, "min": np.minimum, "max": np.maximum,
    }[op]  # fmt: skip
    halves = [np.ascontiguousarray(o).view(dtype).reshape(-1, 2) for o in operands]
    return np.ascontiguousarray(function(*halves)).view(f"u{2 * halves[0].itemsize}").ravel()


def ftz(a):
    return np.where(np.abs(a) < f4(1.1754944e-38), np.copysign(f4(0), a), a)


def divide(a, b):
    """Integers, towards zero; by zero: all ones."""
    zero = b == 0
    b = np.where(zero, a.dtype.type(1), b)
    q = a // b
    if a.dtype.kind == "i":
        q = q + ((a - q * b != 0) & ((a < 0) != (b < 0))).astype(a.dtype)
    return np.where(zero, ~a.dtype.type(0), q)


def remainder(a, b):
    return np.where(b == 0, a, a - divide(a, b) * b)


def multiply_high(a, b):
    """The upper half of the product."""
    if a.dtype.itemsize < 8:
        wide = i8 if a.dtype.kind == "i" else u8
        return ((a.astype(wide) * b.astype(wide)) >> wide(8 * a.dtype.itemsize)).astype(a.dtype)
    mask, half, x, y = u8(0xFFFFFFFF), u8(32), a.view(u8), b.view(u8)
    x0, x1, y0, y1 = x & mask, x >> half, y & mask, y >> half
    middle = ((x0 * y0) >> half) + ((x1 * y0) & mask) + ((x0 * y1) & mask)
    high = x1 * y1 + ((x1 * y0) >> half) + ((x0 * y1) >> half) + (middle >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, u8(0)) - np.where(b < 0, x, u8(0))
    return high.view(a.dtype)


def shift_left(a, s, bits):
    return np.where(s < bits, a << (s & u4(bits - 1)).astype(a.dtype), a.dtype.type(0))


def shift_right(a, s, bits):
    s = np.minimum(s, u4(bits - 1)) if a.dtype.kind == "i" else s
    shifted = a >> (s & u4(bits - 1)).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(s < bits, shifted, a.dtype.type(0))


def funnel(left, low, high, s, wrap):
    """shf: the upper word of the pair shifted left, or its lower word shifted right."""
    s = ((s & u4(31)) if wrap else np.minimum(s, u4(32))).astype(u8)
    both = (high.astype(u8) << u8(32)) | low
    return (((both << s) >> u8(32)) if left else (both >> s)).astype(u4)


def to_int(x, dtype):
    """Saturating; NaN is 0, in 64 bits 1 << 63 (PTX ISA, cvt)."""
    info = np.iinfo(dtype)
    x = x.astype(f8)
    inside = (x > float(info.min)) & (x < float(info.max))
    r = np.where(inside, np.where(inside, x, 0).astype(dtype), np.where(x >= float(info.max), info.max, 0)).astype(
        dtype
    )
    r = np.where(x <= float(info.min), info.min, r).astype(dtype)
    return np.where(np.isnan(x), u8(1 << 63).view(i8).astype(dtype), r) if info.bits == 64 else r


def to_f16(x):
    return x.astype(f2).view(u2)


def to_bf16(x):
    """Round to nearest even -> uint16."""
    bits = x.view(u4)
    r = ((bits + u4(0x7FFF) + ((bits >> u4(16)) & u4(1))) >> u4(16)).astype(u2)
    return np.where(np.isnan(x), u2(0x7FFF), r)


def from_bf16(h):
    return (h.astype(u4) << u4(16)).view(f4)


def choose_half(function, kind, nan, a, b):
    """``function``, fmax or fmin, of bfloat16, or of two half types in one register."""
    a, b = (np.ascontiguousarray(value).view(u2) for value in (a, b))
    if kind == "f16x2":
        return np.ascontiguousarray(function(a.view(f2), b.view(f2), nan)).view(u4)
    r = to_bf16(np.ascontiguousarray(function(from_bf16(a), from_bf16(b), nan)))
    return np.ascontiguousarray(r).view(u4 if kind == "bf16x2" else u2)


def to_tf32(x):
    """Round to nearest, ties away from zero; the 13 bits below are zero."""
    bits = x.view(u4)
    return np.where(np.isfinite(x), (bits + u4(0x1000)) & u4(0xFFFFE000), bits)


def extract_bits(a, position, length, signed):
    position, length = position & u4(255), length & u4(255)
    wide = (a.view(i4).astype(i8) if signed else a.astype(i8)) >> np.minimum(position, u4(63)).astype(i8)
    length = np.minimum(length, u4(32)).astype(i8)
    r = wide & ((i8(1) << length) - i8(1))
    if signed:
        sign = (length > 0) & (((r >> np.maximum(length - i8(1), i8(0))) & i8(1)) != 0)
        r = np.where(sign, r - (i8(1) << length), r)
    return r.astype(i8).view(u8).astype(u4)


def insert_bits(a, b, position, length):
    position, length = position & u4(255), np.minimum(length & u4(255), u4(32)).astype(u8)
    mask = (((u8(1) << length) - u8(1)) << np.minimum(position, u4(32)).astype(u8)).astype(u4)
    return (b & ~mask) | (shift_left(a, position, 32) & mask)


def permute_bytes(a, b, selector):
    table = (b.astype(u8) << u8(32)) | a.astype(u8)
    r = u4(0)
    for i in range(4):
        s = (selector >> u4(4 * i)) & u4(15)
        byte = ((table >> ((s & u4(7)) * u4(8)).astype(u8)) & u8(255)).astype(u4)
        byte = np.where(s & u4(8), np.where(byte & u4(128), u4(255), u4(0)), byte)
        r = r | (byte << u4(8 * i))
    return r


def look_up(a, b, c, table):
    """lop3: any function of three bits."""
    r = u4(0)
    for k in range(8):
        if int(table) >> k & 1:
            r = r | ((a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c))
    return r


def popc(a):
    return np.bitwise_count(a).astype(u4)


def clz(a):
    """Leading zeros: below the highest bit all are made ones."""
    bits = 8 * a.dtype.itemsize
    for shift in (1, 2, 4, 8, 16, 32)[: bits.bit_length() - 1]:
        a = a | (a >> a.dtype.type(shift))
    return u4(bits) - popc(a)


def bfind(a, shift_amount=False):
    """The highest bit's place, of a negative number the highest zero's; all ones where there is none."""
    a = np.where(a < 0, ~a, a).view(f"u{a.dtype.itemsize}") if a.dtype.kind == "i" else a
    zeros, bits = clz(a), u4(8 * a.dtype.itemsize)
    return np.where(zeros == bits, u4(0xFFFFFFFF), zeros if shift_amount else bits - u4(1) - zeros)


def brev(a):
    bits = 8 * a.dtype.itemsize
    r = np.zeros_like(a)
    for i in range(bits):
        r = r | (((a >> a.dtype.type(i)) & a.dtype.type(1)) << a.dtype.type(bits - 1 - i))
    return r
