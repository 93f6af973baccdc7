"""What the hardware of a device can do, and the dtype that a training computes in there: the same for plan and run.

Nothing here imports torch for a CPU on Linux, so that a plan can be made without it.
"""

from __future__ import annotations

import math
import os
from importlib.util import find_spec
from pathlib import Path

# FLOP/s of dense bfloat16 products with float32 sums, by the name that CUDA gives the device. NVIDIA's data sheets of
# H100, H200, L40S and HGX B200 (of eight) print figures with sparsity: 1979, 1979, 733 and 36,000 TFLOP/s; half is
# dense. RTX 4090: white paper of the Ada architecture. Laptop GPUs, MIG slices and the like are other devices.
DATASHEET_FLOPS = {
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA B200": 2250e12,
}

_BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # of x86 twice, and of ARM
# Fewer end before compilation, about a minute on an H200, has won back its time (docs/log.md).
MIN_COMPILED_STEPS = 300
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


def choose_compile(requested: bool | str, device: str, num_steps: int) -> bool:
    """Whether a training of `num_steps` on a device of that type compiles its layers.

    As requested; `auto` does on CUDA, for at least `MIN_COMPILED_STEPS`. On a CPU compiled layers do without the
    attention and the fused networks that are faster there. Without Triton, torch has nothing to compile to on CUDA.
    """
    if requested == "auto":
        return device == "cuda" and num_steps >= MIN_COMPILED_STEPS and find_spec("triton") is not None
    return bool(requested)


def device_bytes(device: str) -> int | None:
    """The memory of this process's device of that type: of the GPU, or of this machine; None where it is unknown."""
    if device == "cpu":
        names = "SC_PAGE_SIZE", "SC_PHYS_PAGES"
        return math.prod(map(os.sysconf, names)) if os.sysconf_names.keys() >= set(names) else None
    if device == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(None).total_memory) if torch.cuda.is_available() else None
    return None


def datasheet_flops(name: str, dtype: str) -> float:
    """FLOP/s of products in `dtype` by the data sheet of the device called `name`; 0 for those not in the table."""
    return DATASHEET_FLOPS.get(name, 0.0) if dtype == "bfloat16" else 0.0


def device_name(device: str) -> str:
    """What the maker calls a CUDA device such as cuda:0; of other devices, nothing."""
    if not device.startswith("cuda"):
        return ""
    import torch

    return torch.cuda.get_device_name(device)


def cpu_flags() -> frozenset[str]:
    """The instruction sets of this CPU as Linux names them; elsewhere those that torch reports."""
    try:
        return frozenset(flag for value in _of_cpu("flags", "Features") for flag in value.split())
    except OSError:
        import torch

        return frozenset(name for name, there in torch.cpu.get_capabilities().items() if there is True)


def is_amd() -> bool:
    """Whether this CPU is made by AMD, or by Hygon to its design; False where Linux does not name the maker."""
    try:
        return not {"AuthenticAMD", "HygonGenuine"}.isdisjoint(_of_cpu("vendor_id"))
    except OSError:
        return False


def _of_cpu(*names: str) -> list[str]:
    """What Linux says of the CPU under any of `names`. Raises OSError on other systems."""
    lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for key, _, value in pairs if key.strip() in names]
