"""What the hardware of a device can do, and the dtype that a training computes in there: the same for plan and run.

Nothing here imports torch for a CPU on Linux, so that a plan can be made without it.
"""

from __future__ import annotations

from pathlib import Path

_BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # of x86 twice, and of ARM
_CPUINFO = Path("/proc/cpuinfo")


def has_bfloat16(device: str) -> bool:
    """Whether a device of that type (cpu, cuda, ...) multiplies bfloat16 in hardware.

    A CPU without it emulates it, three times slower than float32 here. Where no CUDA device is at hand, a recent one
    is assumed.
    """
    if device == "cpu":
        return not _BFLOAT16_FLAGS.isdisjoint(cpu_flags())
    if device == "cuda":
        import torch

        return not torch.cuda.is_available() or bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return True


def choose_compute_dtype(precision: str, device: str) -> str:
    """The dtype that training computes in: as requested; `auto` is bfloat16 where there is hardware for it."""
    if precision != "auto":
        return precision
    return "bfloat16" if has_bfloat16(device) else "float32"


def choose_matmul_dtype(dtype: str, device: str) -> str:
    """The dtype in which a training in `dtype` multiplies: itself, or float32 where a CPU would emulate bfloat16."""
    emulated = dtype == "bfloat16" and device == "cpu" and not has_bfloat16(device)
    return "float32" if emulated else dtype


def cpu_flags() -> frozenset[str]:
    """The instruction sets of this CPU as Linux names them; elsewhere those that torch reports."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        import torch

        return frozenset(name for name, there in torch.cpu.get_capabilities().items() if there is True)
    named = (line.partition(":") for line in lines)
    return frozenset(flag for key, _, value in named if key.strip() in ("flags", "Features") for flag in value.split())
