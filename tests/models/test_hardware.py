import subprocess
import sys

import pytest
import torch

from hybridizer.models import hardware
from hybridizer.models.hardware import choose_compute_dtype, choose_matmul_dtype, cpu_flags, has_bfloat16

X86 = "processor\t: 0\nflags\t\t: fpu avx2 {0}\nbugs\t\t: spectre_v1\n\nprocessor\t: 1\nflags\t\t: fpu avx2 {0}\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {0}\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(("text", "flag"), [(X86, "avx512_bf16"), (X86, "amx_bf16"), (ARM, "bf16")])
def test_a_cpu_has_bfloat16_where_it_lists_one_of_the_instruction_sets(tmp_path, monkeypatch, text, flag):
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    for listed, expected in ((flag, True), ("avx512f", False)):
        (tmp_path / "cpuinfo").write_text(text.format(listed))
        assert has_bfloat16("cpu") is expected


def test_where_linux_lists_nothing_torch_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "missing")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": True, "neon": False, "cache": 3})
    assert cpu_flags() == {"bf16"} and has_bfloat16("cpu")


def test_this_cpu_lists_what_torch_finds():
    able = torch.cpu.get_capabilities()
    assert has_bfloat16("cpu") == any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def test_auto_is_bfloat16_where_there_is_hardware_for_it(bfloat16_cpu):
    assert choose_compute_dtype("auto", "cpu") == ("bfloat16" if bfloat16_cpu else "float32")
    assert [choose_compute_dtype(dtype, "cpu") for dtype in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    assert choose_matmul_dtype("bfloat16", "cpu") == ("bfloat16" if bfloat16_cpu else "float32")
    assert choose_matmul_dtype("float32", "cpu") == "float32"


def test_the_capabilities_of_a_cpu_need_no_torch():
    program = "import sys, hybridizer.models.hardware as h; h.has_bfloat16('cpu'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_data_sheet_is_that_of_the_very_device_and_of_bfloat16():
    assert hardware.datasheet_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989.5e12
    assert hardware.datasheet_flops("NVIDIA H100 80GB HBM3", "float32") == 0
    for other in ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", ""):
        assert hardware.datasheet_flops(other, "bfloat16") == 0, other


def test_a_cpu_has_no_name_in_the_table():
    assert hardware.device_name("cpu") == ""


MANY, FEW = hardware.MIN_COMPILED_STEPS, hardware.MIN_COMPILED_STEPS - 1


@pytest.mark.parametrize(("requested", "device", "steps", "triton", "compiles"), [
    ("auto", "cpu", MANY, True, False), ("auto", "cuda", MANY, True, True), ("auto", "cuda", MANY, False, False),
    ("auto", "cuda", FEW, True, False), ("auto", "mps", MANY, True, False), (True, "cpu", FEW, False, True),
    (False, "cuda", MANY, True, False),
])  # fmt: skip
def test_layers_are_compiled_as_requested_and_by_default_in_long_trainings_on_cuda(
    monkeypatch, requested, device, steps, triton, compiles
):
    monkeypatch.setattr(hardware, "find_spec", lambda name: name if triton else None)
    assert hardware.choose_compile(requested, device, steps) is compiles


def test_the_memory_of_a_device_is_that_of_the_gpu_or_of_this_machine(monkeypatch):
    assert hardware.device_bytes("cpu") > 2**28
    assert hardware.device_bytes("mps") is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Found", (), {"total_memory": 80}))
    assert hardware.device_bytes("cuda") == 80
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.device_bytes("cuda") is None
