"""Small Triton kernels, one for each group of instructions that the interpreter executes; some are wrong on purpose."""

import triton
import triton.language as tl


@triton.jit
def neighbors(x_ptr, scratch_ptr, out_ptr, BARRIER: tl.constexpr, BLOCK: tl.constexpr):
    """Each thread reads what another one wrote: a race without the barrier."""
    lanes = tl.arange(0, BLOCK)
    tl.store(scratch_ptr + lanes, tl.load(x_ptr + lanes) * 2)
    if BARRIER:
        tl.debug_barrier()
    tl.store(out_ptr + lanes, tl.load(scratch_ptr + (lanes + 37) % BLOCK))


@triton.jit
def overlap(x_ptr, out_ptr, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """Programs write one place where STEP < BLOCK."""
    offs = tl.program_id(0) * STEP + tl.arange(0, BLOCK)
    tl.store(out_ptr + offs, tl.load(x_ptr + offs) + tl.program_id(0))


@triton.jit
def copy(x_ptr, out_ptr, num, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + offs, tl.load(x_ptr + offs), mask=offs < num)


@triton.jit
def dot(
    a_ptr, b_ptr, out_ptr, depth,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """a [M, depth] @ b [depth, N], float32 [M, N]; loads of the next steps are asynchronous where STAGES > 1."""
    rows, columns, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros([M, N], tl.float32)
    for k in tl.range(0, depth, K, num_stages=STAGES):
        a = tl.load(a_ptr + rows[:, None] * depth + k + inner, mask=k + inner[None] < depth, other=0)
        b = tl.load(b_ptr + (k + inner[:, None]) * N + columns, mask=k + inner[:, None] < depth, other=0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
    tl.store(out_ptr + rows[:, None] * N + columns, total)


@triton.jit
def scan(x_ptr, out_ptr, R: tl.constexpr, C: tl.constexpr, AXIS: tl.constexpr):
    offs = tl.arange(0, R)[:, None] * C + tl.arange(0, C)
    tl.store(out_ptr + offs, tl.cumsum(tl.load(x_ptr + offs), AXIS))


@triton.jit
def later(a, fa, b, fb):
    return tl.where(fb > 0, b, a), tl.maximum(fa, fb)


@triton.jit
def last_valid(x_ptr, valid_ptr, out_ptr, C: tl.constexpr):
    offs = tl.arange(0, C)
    x, _ = tl.associative_scan((tl.load(x_ptr + offs), tl.load(valid_ptr + offs).to(tl.int32)), 0, later)
    tl.store(out_ptr + offs, x)


@triton.jit
def gather(x_ptr, index_ptr, out_ptr, R: tl.constexpr, C: tl.constexpr, AXIS: tl.constexpr):
    offs = tl.arange(0, R)[:, None] * C + tl.arange(0, C)
    tl.store(out_ptr + offs, tl.gather(tl.load(x_ptr + offs), tl.load(index_ptr + offs), AXIS))


@triton.jit
def sort(x_ptr, out_ptr, R: tl.constexpr, C: tl.constexpr, DESCENDING: tl.constexpr):
    offs = tl.arange(0, R)[:, None] * C + tl.arange(0, C)
    tl.store(out_ptr + offs, tl.sort(tl.load(x_ptr + offs), descending=DESCENDING))


@triton.jit
def reduce(x_ptr, sum_ptr, max_ptr, argmax_ptr, xor_ptr, R: tl.constexpr, C: tl.constexpr, XOR: tl.constexpr):
    rows, columns = tl.arange(0, R), tl.arange(0, C)
    x = tl.load(x_ptr + rows[:, None] * C + columns)
    tl.store(sum_ptr + columns, tl.sum(x, 0))
    tl.store(max_ptr + rows, tl.max(x, 1))
    tl.store(argmax_ptr + rows, tl.argmax(x, 1))
    if XOR:
        tl.store(xor_ptr + rows, tl.xor_sum(x, 1))


@triton.jit
def count(x_ptr, counts_ptr, old_ptr, num, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < num
    x = tl.load(x_ptr + offs, mask=mask, other=0)
    tl.atomic_add(counts_ptr + x, 1, mask=mask, sem="relaxed")
    tl.store(old_ptr + tl.program_id(0), tl.atomic_add(counts_ptr, tl.sum((x >= 0).to(tl.int32))))


@triton.jit
def last_program(
    x_ptr, partial_ptr, arrived_ptr, out_ptr, programs,
    P: tl.constexpr, BLOCK: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """The program that arrives last adds up what all of them stored: a race unless the atomic orders that."""
    pid = tl.program_id(0)
    lanes, rows = tl.arange(0, BLOCK), tl.arange(0, P)
    tl.store(partial_ptr + pid * BLOCK + lanes, tl.load(x_ptr + pid * BLOCK + lanes) * 2)
    tl.debug_barrier()
    if tl.atomic_add(arrived_ptr, 1, sem=ORDER) == programs - 1:
        partial = tl.load(partial_ptr + rows[:, None] * BLOCK + lanes, mask=rows[:, None] < programs, other=0)
        tl.store(out_ptr + lanes, tl.sum(partial, 0))
        tl.store(arrived_ptr, 0)


@triton.jit
def bits(x_ptr, y_ptr, out_ptr, BLOCK: tl.constexpr):
    """64-bit logic: shifts, and, or, not, products' high halves, remainder."""
    offs = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + offs), tl.load(y_ptr + offs)
    tl.store(out_ptr + offs, (x << 7) ^ (y >> 3))
    tl.store(out_ptr + BLOCK + offs, (x & ~y) | (y & 0x0F0F0F0F0F0F0F0F))
    tl.store(out_ptr + 2 * BLOCK + offs, x * y + 12345)
    tl.store(out_ptr + 3 * BLOCK + offs, x % (tl.abs(y) + 1))
    tl.store(out_ptr + 4 * BLOCK + offs, tl.where(x < y, x // 1000, -1))


@triton.jit
def floats(x_ptr, y_ptr, z_ptr, out_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    x, y, z = tl.load(x_ptr + offs), tl.load(y_ptr + offs), tl.load(z_ptr + offs)
    tl.store(out_ptr + offs, tl.fma(x, y, z))
    tl.store(out_ptr + BLOCK + offs, tl.div_rn(x, y))
    tl.store(out_ptr + 2 * BLOCK + offs, tl.sqrt_rn(tl.abs(x)))
    tl.store(out_ptr + 3 * BLOCK + offs, tl.floor(x) + tl.ceil(y))
    tl.store(out_ptr + 4 * BLOCK + offs, (x.to(tl.float64) * y.to(tl.float64) + z.to(tl.float64)).to(tl.float32))
    tl.store(out_ptr + 5 * BLOCK + offs, tl.where(x.to(tl.float64) < y.to(tl.float64), x, z))
    tl.store(out_ptr + 6 * BLOCK + offs, tl.minimum(x, y) + tl.maximum(y, z))
    tl.store(out_ptr + 7 * BLOCK + offs, x.to(tl.bfloat16).to(tl.float32) + y.to(tl.float16).to(tl.float32))


@triton.jit
def functions(x_ptr, out_ptr, BLOCK: tl.constexpr):
    """Approximate instructions: ex2, lg2, rsqrt, sin, cos, division."""
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs)
    tl.store(out_ptr + offs, tl.exp(x))
    tl.store(out_ptr + BLOCK + offs, tl.log(tl.abs(x) + 1))
    tl.store(out_ptr + 2 * BLOCK + offs, tl.rsqrt(tl.abs(x) + 1))
    tl.store(out_ptr + 3 * BLOCK + offs, tl.sigmoid(x))
    tl.store(out_ptr + 4 * BLOCK + offs, x / (tl.abs(x) + 3))


@triton.jit
def integers(x_ptr, out_ptr, BLOCK: tl.constexpr):
    """float32 -> integers and back, narrow types."""
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs)
    tl.store(out_ptr + offs, x.to(tl.int32).to(tl.float32))
    tl.store(out_ptr + BLOCK + offs, x.to(tl.int64).to(tl.float32))
    tl.store(out_ptr + 2 * BLOCK + offs, x.to(tl.int8).to(tl.float32))
    tl.store(out_ptr + 3 * BLOCK + offs, tl.umulhi(x.to(tl.int32), x.to(tl.int32) + 7).to(tl.float32))
    tl.store(out_ptr + 4 * BLOCK + offs, x.to(tl.int16).to(tl.float32))
