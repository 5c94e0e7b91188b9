"""Whether a CPU computes bfloat16 itself."""

import os

import torch

FEATURES = ("avx512_bf16", "amx_bf16", "bf16")  # of x86, x86 and Arm, by torch.cpu.get_capabilities' names
LIMITS = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}  # of oneDNN, without
EMULATED = "dtype {} is emulated on this CPU, which has neither AVX512_BF16 nor AMX nor Arm's BF16: float32 is faster"


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself, by AVX512_BF16, AMX or Arm's BF16, and oneDNN may use that.

    oneDNN emulates it on other CPUs, slower than float32, and where ``ONEDNN_MAX_CPU_ISA`` names an older one.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
    mkldnn = torch.backends.mkldnn
    if limit.upper() in LIMITS or not (mkldnn.is_available() and mkldnn.enabled):  # type: ignore[attr-defined]
        return False
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in FEATURES)
