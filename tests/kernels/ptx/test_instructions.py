"""Single instructions of the PTX interpreter against Python's integers, also those that no kernel contains today."""

import functools
import operator
import random
import re

import numpy as np
import pytest
import torch

from fastmask.kernels.launch import HAS_TRITON, INTERPRET

if INTERPRET or not HAS_TRITON:
    pytest.skip("executes compiled kernels, which Triton's interpreter does not have", allow_module_level=True)

from helpers.ptx import Options, execute_ptx

pytestmark = pytest.mark.ptx

INSTRUCTIONS = {  # of words x, y -> r
    "mov.u32 %r6, %ntid.x; mov.u32 %r7, %nctaid.y; add.s32 %r5, %r6, %r7;": lambda x, y: 64 + 1,
    "popc.b32 %r5, %r3;": lambda x, y: bin(x).count("1"),
    "clz.b32 %r5, %r3;": lambda x, y: 32 - x.bit_length(),
    "brev.b32 %r5, %r3;": lambda x, y: int(f"{x:032b}"[::-1], 2),
    "bfind.u32 %r5, %r3;": lambda x, y: x.bit_length() - 1,
    "bfind.s32 %r5, %r3;": lambda x, y: (x if x < 2**31 else 2**32 - 1 - x).bit_length() - 1,
    "lop3.b32 %r5, %r3, %r4, 0x0F0F0F0F, 0xE8;": lambda x, y: (x & y) | (x & 0x0F0F0F0F) | (y & 0x0F0F0F0F),
    "bfe.u32 %r5, %r3, 5, 9;": lambda x, y: x >> 5 & 511,
    "bfe.s32 %r5, %r3, 4, 3;": lambda x, y: ((x >> 4 & 7) ^ 4) - 4,
    "bfi.b32 %r5, %r3, %r4, 8, 12;": lambda x, y: (y & ~(0xFFF << 8)) | (x & 0xFFF) << 8,
    "prmt.b32 %r5, %r3, %r4, 0x5410U;": lambda x, y: (x & 0xFFFF) | (y & 0xFFFF) << 16,
    "shf.l.wrap.b32 %r5, %r3, %r4, 7;": lambda x, y: y << 7 | x >> 25,
    "shf.r.clamp.b32 %r5, %r3, %r4, 9;": lambda x, y: x >> 9 | y << 23,
    "mul.hi.u32 %r5, %r3, %r4;": lambda x, y: x * y >> 32,
    "mad.lo.s32 %r5, %r3, %r4, %r3;": lambda x, y: x * y + x,
    "add.s16x2 %r5, %r3, %r4;": lambda x, y: (x + y & 0xFFFF) | ((x >> 16) + (y >> 16)) << 16,
    "max.u16x2 %r5, %r3, 65537;": lambda x, y: max(x & 0xFFFF, 1) | max(x >> 16, 1) << 16,
    "mov.b32 %r6, 0x3F80C000; mov.b32 %r7, 0xBF807FC0; max.NaN.bf16x2 %r5, %r6, %r7;": lambda x, y: 0x3F807FFF,
    "mov.b32 %r6, 0x3F80C000; mov.b32 %r7, 0xBF807FC0; min.bf16x2 %r5, %r6, %r7;": lambda x, y: 0xBF80C000,
    "mov.b32 %r6, 0x3C00C000; mov.b32 %r7, 0xBC007000; max.NaN.f16x2 %r5, %r6, %r7;": lambda x, y: 0x3C007000,
    "mov.b16 %rs6, 0xC000; mov.b16 %rs7, 0x4000; max.NaN.bf16 %rs5, %rs6, %rs7; mov.b32 %r5, {%rs5, %rs6};":
        lambda x, y: 0xC0004000,
    "rem.u32 %r5, %r3, 1000;": lambda x, y: x % 1000,
    "cvt.rna.tf32.f32 %r5, 0f3F801000;": lambda x, y: 0x3F802000,
    "mov.b64 %rd9, {%r3, %r4}; mad.wide.u32 %rd9, %r3, 3, %rd9; mov.b64 {%r6, %r5}, %rd9;":
        lambda x, y: ((y << 32 | x) + 3 * x) >> 32,
    "setp.gt.u32 %p5, %r3, %r4; selp.b32 %r5, %r3, %r4, %p5;": lambda x, y: max(x, y),
    "setp.lt.s32 %p5, %r3, 0; @%p5 bra $DOWN; mov.b32 %r5, 1; bra.uni $END; $DOWN: mov.b32 %r5, 2; $END:":
        lambda x, y: 2 if x >> 31 else 1,
}  # fmt: skip
EXCHANGES = {  # of all lanes' words x -> r
    "redux.sync.add.s32 %r5, %r3, -1;": lambda x: [sum(x)] * 32,
    "redux.sync.max.u32 %r5, %r3, -1;": lambda x: [max(x)] * 32,
    "redux.sync.xor.b32 %r5, %r3, -1;": lambda x: [functools.reduce(operator.xor, x)] * 32,
    "setp.lt.s32 %p5, %r3, 0; vote.sync.ballot.b32 %r5, %p5, -1;": lambda x: (
        [sum(v >> 31 << i for i, v in enumerate(x))] * 32
    ),
    "match.any.sync.b32 %r5, %r2, -1;": lambda x: [1 << i for i in range(32)],
    "shfl.sync.up.b32 %r5, %r3, 3, 0, -1;": lambda x: [x[max(i - 3, 0) if i >= 3 else i] for i in range(32)],
    "shfl.sync.down.b32 %r5, %r3, 5, 31, -1;": lambda x: [x[i + 5 if i + 5 < 32 else i] for i in range(32)],
    "shfl.sync.idx.b32 %r5, %r3, 9, 31, -1;": lambda x: [x[9]] * 32,
    "shfl.sync.bfly.b32 %r5, %r3, 6, 31, -1;": lambda x: [x[i ^ 6] for i in range(32)],
}
TEMPLATE = """
.visible .entry small(
	.param .u64 .ptr .global .align 1 small_param_0, .param .u64 .ptr .global .align 1 small_param_1
)
{
	ld.param.b64 %rd1, [small_param_0];
	ld.param.b64 %rd2, [small_param_1];
	mov.u32 %r2, %tid.x;
	mad.wide.u32 %rd3, %r2, 8, %rd1;
	ld.global.v2.b32 {%r3, %r4}, [%rd3];
	INSTRUCTIONS
	mad.wide.u32 %rd4, %r2, 4, %rd2;
	st.global.b32 [%rd4], %r5;
	ret;
}
"""


def execute_text(text: str, x: list[tuple[int, int]]) -> list[int]:
    words, out = torch.from_numpy(np.array(x, np.uint32).view(np.int32)), torch.zeros(len(x), dtype=torch.int32)
    text = re.sub(r"(\$[A-Z]+:)", r"\n\1\n", text.replace("; ", ";\n\t"))
    run = execute_ptx(TEMPLATE.replace("INSTRUCTIONS", text), 0, len(x) // 32, (1,), [words, out], Options())
    assert not run.errors, run.errors
    return out.numpy().view(np.uint32).tolist()


def draw_words() -> list[tuple[int, int]]:
    special = [0, 1, 2**31, 2**32 - 1, 0xFFFF]
    return [(random.choice([*special, random.getrandbits(32)]), random.getrandbits(32)) for _ in range(64)]


@pytest.mark.parametrize("text", INSTRUCTIONS)
def test_instruction(text: str) -> None:
    words = draw_words()
    assert execute_text(text, words) == [INSTRUCTIONS[text](x, y) & 0xFFFFFFFF for x, y in words]


@pytest.mark.parametrize("text", EXCHANGES)
def test_exchange(text: str) -> None:
    words = draw_words()
    expected = [r & 0xFFFFFFFF for first in (0, 32) for r in EXCHANGES[text]([x for x, _ in words[first : first + 32]])]
    if "match" in text:
        expected = [1 << i % 32 for i in range(64)]
    assert execute_text(text, words) == expected


@pytest.mark.parametrize("last", ["$JOIN", "$BODY"])  # which of the two parts of the threads stands further down
def test_threads_wait_at_a_barrier(last: str) -> None:
    """One warp takes another way to the barrier; that way may lie below it."""
    body = "$BODY: mov.b32 %r6, %r3; bra.uni $JOIN;"
    join = "$JOIN: bar.sync 0; mov.b32 %r5, %r6; bra.uni $END;"
    blocks = [body, join] if last == "$JOIN" else [join, body]
    text = f"setp.lt.u32 %p5, %r2, 32; mov.b32 %r6, 7; @%p5 bra $BODY; bra.uni $JOIN; {' '.join(blocks)} $END:"
    words = draw_words()
    assert execute_text(text, words) == [x if i < 32 else 7 for i, (x, _) in enumerate(words)]


def test_a_barrier_that_some_threads_do_not_reach() -> None:
    with pytest.raises(AssertionError, match="barrier not reached by all threads"):
        execute_text("setp.lt.u32 %p5, %r2, 32; @%p5 bra $END; bar.sync 0; $END: mov.b32 %r5, 0;", draw_words())
