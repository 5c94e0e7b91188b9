"""Machine model: constants of an H100 SXM (sm_90), each once with its source.

[N] NVIDIA's H100 whitepaper and the throughput table of the CUDA C++ programming guide (compute capability 9.0).
[L] measured by Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture via Microbenchmarking",
    2024 (arXiv 2402.13499).
[A] an assumption. All of them stand from memory, none was measured by us: the first measurement corrects them.
"""

import re
from typing import NamedTuple

ARCHITECTURE = "sm_90"
MULTIPROCESSORS = 132  # [N]
SCHEDULERS = 4  # a multiprocessor, one warp instruction a cycle each [N]
CLOCK = 1.755e9  # Hz, boost under load [A]: the whitepaper's peak figures stand for 1.83e9
HBM = 3.35e12  # bytes a second [N]
L2 = 5.5e12  # bytes a second [A], from microbenchmarks between 5.5e12 and 5.7e12
WARPS, PROGRAMS = 64, 32  # at most on a multiprocessor [N]
REGISTERS, SHARED = 65_536, 227 * 1024  # of a multiprocessor [N]
SHARED_RESERVED = 1024  # bytes a program [N]

# What real kernels reach of the ceilings [A]
EFFICIENCY = 0.75  # of the busiest pipe or issue slot, dependent instructions apart: those are simulated
HBM_EFFICIENCY, L2_EFFICIENCY = 0.9, 0.8

LAUNCH = 2.5  # microseconds from one kernel's start to the next one's, inside a CUDA graph, without its work [A]

# Latencies in cycles, from issue to a dependent instruction's issue
GLOBAL_LATENCY = 263  # an access that hits the L2 cache; the first one of a program's data may take 479 [L]
BARRIER = 30  # of a program whose warps arrive together [A]
BRANCH = 8  # a taken branch [A]


class Unit(NamedTuple):
    """Pipe, cycles and latency of an instruction."""

    pipe: str
    cycles: float  # for which it occupies the pipe of its scheduler, for one warp
    latency: float


# by the opcode's beginning, first match first; cycles: 32 lanes over the lanes a scheduler's share of the pipe has [N]
UNITS: tuple[tuple[str, Unit], ...] = (
    (r"(LDGDEPBAR|DEPBAR)", Unit("control", 1, 1)),
    (r"HMMA\.1684\.F32\.TF32", Unit("tensor", 3.2, 18)),  # mma.sync reaches 62 % of wgmma's rate [L]
    (r"HMMA\.1688\.F32\.TF32", Unit("tensor", 6.5, 33)),
    (r"HMMA\.1688", Unit("tensor", 3.2, 18)),
    (r"HMMA\.16816", Unit("tensor", 6.5, 33)),
    (r"(FFMA|FMUL|FADD|FSWZADD)", Unit("fma", 1, 4)),  # 128 lanes a multiprocessor
    (r"(IMAD|HFMA2|HADD2|HMUL2)", Unit("fma heavy", 2, 5)),  # 64; IMAD.MOV and IMAD.IADD are the same
    (r"(MUFU|FCHK)", Unit("special", 8, 23)),  # 16
    (r"(F2I|I2F|FRND|F2F)\.?.*64", Unit("special", 8, 23)),
    (r"(F2I|I2F|FRND|F2F|POPC|FLO|BREV)", Unit("special", 8, 18)),
    (r"(DADD|DMUL|DFMA|DSETP)", Unit("double", 2, 16)),  # 64
    (r"(SHFL|VOTE|MATCH)", Unit("memory", 4, 24)),  # 32
    (r"REDUX", Unit("memory", 8, 30)),  # 16
    (r"(LDGSTS|LDG|LD\b|ATOMG|ATOM\b|RED\b|TEX).*\.128", Unit("memory", 16, GLOBAL_LATENCY)),  # 128 bytes a cycle
    (r"(LDGSTS|LDG|LD\b|ATOMG|ATOM\b|RED\b|TEX).*\.64", Unit("memory", 8, GLOBAL_LATENCY)),
    (r"(LDGSTS|LDG|LD\b|ATOMG|ATOM\b|RED\b|TEX)", Unit("memory", 4, GLOBAL_LATENCY)),
    (r"(LDS|STS|STG|LDL|STL|ST\b|LDSM|STSM).*\.(128|MT?88\.4)", Unit("memory", 16, 33)),
    (r"(LDS|STS|STG|LDL|STL|ST\b|LDSM|STSM).*\.(64|MT?88\.2)", Unit("memory", 8, 30)),
    (r"(LDS|STS|STG|LDL|STL|ST\b|LDSM|STSM)", Unit("memory", 4, 29)),
    (r"(ATOMS)", Unit("memory", 8, 60)),
    (r"(S2R|S2UR|CS2R\.32|LDC|R2UR)", Unit("constant", 2, 25)),
    (r"(ULDC|LDCU)", Unit("uniform", 1, 12)),
    (r"U[A-Z]", Unit("uniform", 1, 10)),
    (r"BAR", Unit("control", 1, BARRIER)),
    (r"(BRA|BRX|JMP|EXIT|RET|CALL|BSSY|BSYNC|BREAK|WARPSYNC|YIELD|NOP|ENDCOLLECTIVE|DEPBAR|MEMBAR|ERRBAR|CCTL|FENCE)",
     Unit("control", 1, 1)),
    (r"", Unit("integer", 2, 5)),  # 64: additions, comparisons, logic, shifts, minima and maxima, moves, selections
)  # fmt: skip

_COMPILED = tuple((re.compile(pattern), unit) for pattern, unit in UNITS)
_KNOWN: dict[str, Unit] = {}


def unit(opcode: str) -> Unit:
    """The unit of an instruction such as ``LDG.E.128``."""
    group = re.match(r"HGMMA\.64x(\d+)x", opcode)
    if group:  # four warps together; 512 products a cycle and scheduler of 16 bits, 256 of tf32, of which k is half [N]
        return Unit("tensor", int(group[1]) / 2, int(group[1]) / 2 + 32)
    if opcode not in _KNOWN:
        _KNOWN[opcode] = next(unit for pattern, unit in _COMPILED if pattern.match(opcode))
    return _KNOWN[opcode]


def resident(registers: int, shared_bytes: int, warps: int) -> int:
    """Programs that fit on one multiprocessor at a time."""
    per_warp = -(-registers * 32 // 256) * 256  # handed out in units of 256
    by_registers = REGISTERS // (SCHEDULERS * per_warp) * SCHEDULERS // warps if registers else PROGRAMS
    by_shared = SHARED // (shared_bytes + SHARED_RESERVED)
    return max(min(by_registers, by_shared, WARPS // warps, PROGRAMS), 1)
