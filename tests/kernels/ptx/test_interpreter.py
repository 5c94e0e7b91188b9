"""The PTX interpreter itself: small Triton kernels against PyTorch, and planted errors that must be found."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmask.kernels.launch import HAS_TRITON, INTERPRET

if INTERPRET or not HAS_TRITON:
    pytest.skip("executes compiled kernels, which Triton's interpreter does not have", allow_module_level=True)

import small_kernels
from helpers.ptx import Options, Run, launched, same

pytestmark = pytest.mark.ptx
ARCHITECTURES = pytest.mark.parametrize("capability", [80, 90])
NAN, INF = float("nan"), float("inf")


def run(capability: int, launch: Callable[[], object], **options: object) -> list[Run]:
    """Run launches, and check that the interpreter reports no error."""
    with launched(capability, Options(statistics=True, **options)) as runs:
        launch()
    assert not [error for r in runs for error in r.errors]
    return runs


def draw(*shape: int) -> Tensor:
    """Draw float32 of all magnitudes, with special values."""
    x = torch.randn(shape) * 2.0 ** torch.randint(-9, 9, shape)
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, 1e30, -1e-30, 3e38])
    return torch.where(torch.rand(shape) < 0.1, special[torch.randint(len(special), shape)], x)


@ARCHITECTURES
@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [
        (torch.float32, "tf32x3", 2e-6),
        (torch.float32, "tf32", 2e-3),
        (torch.float32, "ieee", 1e-6),
        (torch.bfloat16, "tf32", 1e-6),
        (torch.float16, "tf32", 1e-6),
    ],
)
def test_dot(capability: int, dtype: torch.dtype, precision: str, tolerance: float, stages: int) -> None:
    """Tensor cores (m16n8k8, m16n8k16), ldmatrix, and with stages cp.async."""
    a, b = torch.randn(32, 112).to(dtype), torch.randn(112, 16).to(dtype)
    exact, out = a.double() @ b.double(), torch.empty(32, 16)
    for perturb in (False, True):
        runs = run(
            capability,
            lambda: small_kernels.dot[(1,)](a, b, out, 112, M=32, N=16, K=32, PRECISION=precision, STAGES=stages),
            perturb=perturb,
        )
        assert (out - exact).abs().max() < tolerance * exact.abs().max() * (3 if perturb else 1)
    used = " ".join(runs[0].opcodes)
    assert ("mma.sync" in used) == (precision != "ieee")
    assert ("cp.async" in used) == (stages > 1)


@ARCHITECTURES
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
@pytest.mark.parametrize("axis", [0, 1])
def test_cumsum(capability: int, dtype: torch.dtype, axis: int) -> None:
    x = torch.randint(-1000, 1000, (4, 256)).to(dtype)
    out = torch.empty_like(x)
    run(capability, lambda: small_kernels.scan[(1,)](x, out, R=4, C=256, AXIS=axis))
    assert torch.equal(out, x.cumsum(axis).to(dtype))


@ARCHITECTURES
def test_associative_scan(capability: int) -> None:
    x, valid = torch.arange(512, dtype=torch.int32), torch.rand(512) < 0.1
    valid[0] = True
    out = torch.empty_like(x)
    run(capability, lambda: small_kernels.last_valid[(1,)](x, valid, out, C=512))
    assert torch.equal(out, torch.where(valid, x, 0).cummax(0).values)


@ARCHITECTURES
@pytest.mark.parametrize("axis", [0, 1])
def test_gather(capability: int, axis: int) -> None:
    x, index = torch.randn(8, 64), torch.randint((8, 64)[axis], (8, 64), dtype=torch.int32)
    out = torch.empty_like(x)
    run(capability, lambda: small_kernels.gather[(1,)](x, index, out, R=8, C=64, AXIS=axis))
    assert torch.equal(out, x.gather(axis, index.long()))


@ARCHITECTURES
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_sort(capability: int, dtype: torch.dtype) -> None:
    x = (torch.randn(2, 128) * 50).to(dtype)
    for descending in (False, True):
        out = torch.empty_like(x)
        run(capability, lambda: small_kernels.sort[(1,)](x, out, R=2, C=128, DESCENDING=descending))  # noqa: B023
        assert torch.equal(out, x.sort(1, descending=descending).values)


@ARCHITECTURES
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_reductions(capability: int, dtype: torch.dtype) -> None:
    x = (torch.randn(16, 64) * 50).to(dtype)
    sums, xor, index = torch.empty(64, dtype=dtype), torch.empty(16, dtype=dtype), torch.empty(16, dtype=torch.int32)
    largest = torch.empty(16, dtype=dtype)
    integers = dtype != torch.float32
    run(capability, lambda: small_kernels.reduce[(1,)](x, sums, largest, index, xor, R=16, C=64, XOR=integers))
    assert torch.equal(largest, x.amax(1))
    assert torch.equal(x.gather(1, index.long()[:, None])[:, 0], largest)
    torch.testing.assert_close(sums, x.sum(0).to(dtype), rtol=1e-5, atol=1e-4)
    if integers:
        assert xor.tolist() == [np.bitwise_xor.reduce(row) for row in x.numpy()]


@ARCHITECTURES
@pytest.mark.parametrize("order", ["random", "first", "last"])
def test_atomics(capability: int, order: str) -> None:
    x, counts, old = torch.randint(9, (900,), dtype=torch.int32), torch.zeros(9, dtype=torch.int32), torch.empty(4)
    old = old.to(torch.int32)
    run(capability, lambda: small_kernels.count[(4,)](x, counts, old, 900, BLOCK=256), order=order)
    expected = torch.bincount(x, minlength=9)
    expected[0] += 4 * 256
    assert counts.tolist() == expected.tolist()
    assert len(set(old.tolist())) == 4


@pytest.mark.parametrize("order", ["random", "first", "last"])
@pytest.mark.parametrize("most_threads", [128, 512, 2048])
def test_last_program_sees_the_others(order: str, most_threads: int) -> None:
    def launch(meaning: str) -> None:
        arrived.zero_()
        small_kernels.last_program[(10,)](x, torch.empty_like(x), arrived, out, 10, P=16, BLOCK=128, ORDER=meaning)

    def without_barriers(ptx: str) -> str:  # before the atomic; Triton 3.9 brings its own there
        before, atomic, after = ptx.partition("atom.")
        return before.replace("bar.sync", "// bar.sync") + atomic + after

    x, arrived, out = torch.randint(100, (10, 128)).float(), torch.zeros(1, dtype=torch.int32), torch.empty(128)
    options = {"order": order, "most_threads": most_threads}
    assert not find(lambda: launch("acq_rel"), **options)
    assert torch.equal(out, 2 * x.sum(0))
    assert arrived.item() == 0
    assert "race in global memory" in find(lambda: launch("relaxed"), **options)
    assert "race in global memory" in find(lambda: launch("release"), **options)
    assert "race in global memory" in find(lambda: launch("acq_rel"), without_barriers, **options)


@ARCHITECTURES
def test_64_bits(capability: int) -> None:
    x, y = (torch.randint(-(2**63), 2**63 - 1, (256,)) >> torch.randint(60, (256,)) for _ in range(2))
    out = torch.empty(5, 256, dtype=torch.int64)
    run(capability, lambda: small_kernels.bits[(1,)](x, y, out, BLOCK=256))
    divisor = y.abs() + 1
    expected = torch.stack(
        [
            (x << 7) ^ (y >> 3),
            (x & ~y) | (y & 0x0F0F0F0F0F0F0F0F),
            x * y + 12345,
            torch.where(divisor == 0, 0, x.fmod(divisor)),
            torch.where(x < y, x.div(1000, rounding_mode="trunc"), -1),
        ]
    )
    assert torch.equal(out, expected)


@ARCHITECTURES
def test_floats_are_exact(capability: int) -> None:
    """fma rounded once, correctly rounded division and root, rounding to bfloat16 and float16."""
    x, y, z = draw(256), draw(256), draw(256)
    z[:64] = -(x * y)[:64].nan_to_num(0, 0, 0)  # what is left of the sum is the rounding error
    out = torch.empty(8, 256)
    run(capability, lambda: small_kernels.floats[(1,)](x, y, z, out, BLOCK=256))
    a, b, c = (np.array([int(v * 2.0**300) if np.isfinite(v) else 0 for v in t.tolist()], object) for t in (x, y, z))
    exact = [float_of(int(p) * int(q) + (int(r) << 300), 600) for p, q, r in zip(a, b, c, strict=True)]
    expected = torch.stack(
        [
            torch.tensor(exact),
            x / y,
            x.abs().double().sqrt().float(),  # torch's own in float32 is not correctly rounded
            x.floor() + y.ceil(),
            (x.double() * y.double() + z.double()).float(),
            torch.where(x < y, x, z),
            torch.minimum(x, y) + torch.maximum(y, z),
            x.bfloat16().float() + y.half().float(),
        ]
    )
    for row in range(8):
        assert not same(f"row {row}", out[row].nan_to_num(7), expected[row].nan_to_num(7))


def float_of(numerator: int, shift: int) -> float:
    """numerator / 2**shift, rounded once to float32."""
    sign, numerator = (-1 if numerator < 0 else 1), abs(numerator)
    cut = max(numerator.bit_length() - 24, shift - 149)
    if cut > 0:
        low, numerator = numerator & ((1 << cut) - 1), numerator >> cut
        half = 1 << (cut - 1)
        numerator = (numerator + (low > half or (low == half and numerator & 1))) << cut
    value = sign * (numerator / (1 << shift)) if numerator.bit_length() - shift < 1000 else sign * INF
    return value if abs(value) < 2.0**128 else sign * INF


@ARCHITECTURES
@pytest.mark.parametrize("perturb", [False, True])
def test_approximate_functions(capability: int, perturb: bool) -> None:
    x = torch.randn(256) * 9
    out = torch.empty(5, 256)
    run(capability, lambda: small_kernels.functions[(1,)](x, out, BLOCK=256), perturb=perturb)
    w = x.double()
    expected = [w.exp(), (w.abs() + 1).log(), (w.abs() + 1).rsqrt(), w.sigmoid(), w / (w.abs() + 3)]
    torch.testing.assert_close(out.double(), torch.stack(expected), rtol=3e-6, atol=3e-7)
    assert (out[4] == (x / (x.abs() + 3))).all() != perturb


@ARCHITECTURES
def test_integers_from_floats(capability: int) -> None:
    x = torch.cat([torch.randn(200) * 60, torch.tensor([-0.0, 0.5, -0.5, 126.9, -127.9]), torch.ones(51)])
    out = torch.empty(5, 256)
    run(capability, lambda: small_kernels.integers[(1,)](x, out, BLOCK=256))
    whole = x.int()
    high = ((whole.long() & 0xFFFFFFFF) * ((whole.long() + 7) & 0xFFFFFFFF)).numpy().view(np.uint64) >> np.uint64(32)
    for row in (0, 1, 2, 4):
        assert torch.equal(out[row], whole.float())
    assert torch.equal(out[3], torch.from_numpy(high.astype(np.uint32).view(np.int32)).float())


# what is wrong on purpose


def find(launch: Callable[[], object], rewrite: Callable[[str], str] | None = None, **options: object) -> str:
    with launched(90, Options(**options), rewrite) as runs:
        launch()
    return "; ".join(error for r in runs for error in r.errors)


@pytest.mark.parametrize("order", ["random", "first", "last"])
def test_finds_a_missing_barrier(order: str) -> None:
    x, scratch, out = torch.arange(256.0), torch.empty(256), torch.empty(256)
    for barrier, wrong in ((True, ""), (False, "race in global memory")):
        errors = find(
            lambda: small_kernels.neighbors[(1,)](x, scratch, out, BARRIER=barrier, BLOCK=256),  # noqa: B023
            order=order,
        )
        assert errors.startswith(wrong)
        assert bool(errors) == bool(wrong)
    assert not find(lambda: small_kernels.neighbors[(1,)](x, scratch, out, BARRIER=True, BLOCK=256))
    assert torch.equal(out, (x * 2).roll(-37))


@pytest.mark.parametrize("most_threads", [128, 1024])  # one program after the other, and all of them together
def test_finds_programs_that_overlap(most_threads: int) -> None:
    x = torch.zeros(1024)
    assert not find(lambda: small_kernels.overlap[(4,)](x, torch.empty(1024), STEP=128, BLOCK=128))
    errors = find(
        lambda: small_kernels.overlap[(4,)](x, torch.empty(1024), STEP=100, BLOCK=128), most_threads=most_threads
    )
    assert "race in global memory" in errors


def test_finds_access_out_of_bounds() -> None:
    x, out = torch.zeros(256), torch.empty(200)
    assert not find(lambda: small_kernels.copy[(2,)](x, out, 200, BLOCK=128))
    assert "out of bounds" in find(lambda: small_kernels.copy[(2,)](x, out, 201, BLOCK=128))
    assert "out of bounds" in find(lambda: small_kernels.copy[(3,)](x, out, 200, BLOCK=128))
    errors = find(
        lambda: small_kernels.copy[(2,)](x, out, 200, BLOCK=128),
        lambda ptx: re.sub(r"\[ (%rd\d+) \+ 0 \]", r"[ \1 + 2 ]", ptx),
    )
    assert "misaligned" in errors


def test_finds_uninitialized_reads() -> None:
    out = torch.empty(256)
    with launched(90, Options()) as runs:
        small_kernels.copy[(2,)](torch.empty(256), out, 256, BLOCK=128)
    assert "nobody has written" in str(runs[0].errors)


def test_finds_missing_lanes() -> None:
    x, out = torch.randn(2, 128), torch.empty(2, 128)

    def leave(ptx: str) -> str:
        begin = ptx.index("mov.u32", ptx.index("{", ptx.index(".entry")))
        lanes = "\n\tmov.u32 %r999, %tid.x;\n\tsetp.eq.b32 %p999, %r999, 3;\n\t@%p999 ret;\n\t"
        return ptx[:begin] + lanes + ptx[begin:]

    assert "lanes of a warp are missing" in find(
        lambda: small_kernels.sort[(1,)](x, out, R=2, C=128, DESCENDING=True), leave
    )


def multiply_pipelined() -> Tensor:
    a, b, out = torch.randn(32, 128), torch.randn(128, 16), torch.empty(32, 16)
    small_kernels.dot[(1,)](a, b, out, 128, M=32, N=16, K=32, PRECISION="tf32", STAGES=3)
    return (out - a @ b).abs().max()


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        (r"cp.async.wait_group", "// cp.async.wait_group", "still copies"),
        (r"bar.sync", "// bar.sync", "race in shared memory"),
        (r"cp.async.commit_group", "// cp.async.commit_group", "still copies"),
    ],
)
def test_finds_bugs_of_asynchronous_copies(old: str, new: str, wrong: str) -> None:
    assert not find(multiply_pipelined)
    assert wrong in find(multiply_pipelined, lambda ptx: ptx.replace(old, new))


def test_names_an_unknown_instruction() -> None:
    x, out = torch.zeros(256), torch.empty(256)
    with pytest.raises(NotImplementedError, match=r"instruction not supported.*wgmma"):
        find(
            lambda: small_kernels.copy[(2,)](x, out, 200, BLOCK=128),
            lambda ptx: ptx.replace("\tret;", "\twgmma.fence.sync.aligned;\n\tret;"),
        )
