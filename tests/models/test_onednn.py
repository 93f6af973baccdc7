import os
import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from hybridizer.models import hardware, onednn
from hybridizer.models.hardware import has_bfloat16
from hybridizer.models.load import load_model
from support.lines import make_donor

# Resident bytes that products of 400 shapes leave behind.
SHAPES = """
import torch
from hybridizer.models.memory import trim_heap
from hybridizer.models.onednn import bound_kernels

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if __import__("sys").argv[1] == "bounded":
    bound_kernels()
weight = torch.ones(64, 64, dtype=torch.bfloat16)
start = resident()
for rows in range(1, 401):
    torch.ones(rows, 64, dtype=torch.bfloat16) @ weight
trim_heap()
print(resident() - start)
"""
CPUINFO = "processor\t: 0\nvendor_id\t: {}\nflags\t\t: fpu avx512f\n"

has_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
takes_over = pytest.mark.skipif(not onednn.is_faster(), reason="torch's own products are as fast on this processor")


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def refuse(*args, **kwargs):
    raise AssertionError("torch's own kernel was called")


def close(found, expected):
    """Within the rounding of float32 sums."""
    return (found - expected).abs().max() <= 2e-6 * expected.abs().max()


# Forward products, and those of both gradients: of rows, columns, and what is summed over.
OPERANDS = {
    "forward": lambda: (drawn(300, 96), drawn(700, 96).T),
    "of the input": lambda: (drawn(300, 700), drawn(700, 96)),
    "of the weight": lambda: (drawn(400, 300).T, drawn(400, 96)),
    "of a part": lambda: (drawn(300, 100)[:, 2:98], drawn(96, 710)[:, 3:703]),
}


@has_onednn
@pytest.mark.parametrize("which", OPERANDS)
def test_products_are_those_of_the_numbers_in_float64(monkeypatch, which):
    monkeypatch.setattr(onednn, "PIECE_BYTES", 50_000)
    a, b = OPERANDS[which]()
    expected, start, bias = a.double() @ b.double(), drawn(a.shape[0], b.shape[1]), drawn(b.shape[1])
    assert close(onednn._make_mm(refuse)(None, a, b), expected)
    out = torch.full_like(start, torch.nan)
    assert onednn._make_mm_out(refuse)(None, a, b, out=out) is out and close(out, expected)
    assert close(onednn._make_addmm(refuse)(None, bias, a, b), expected + bias)
    assert close(onednn._make_addmm(refuse)(None, start, a, b), expected + start)
    total = start.clone()
    assert onednn._make_addmm_out(refuse)(None, total, a, b, out=total) is total and close(total, expected + start)


@has_onednn
def test_a_row_has_the_same_bits_whatever_rows_share_its_matrix():
    a, b = OPERANDS["forward"]()
    mm = onednn._make_mm(refuse)
    assert torch.equal(mm(None, a, b)[:200], mm(None, a[:200], b))


@has_onednn
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (drawn(8, 96), drawn(96, 700)),
        (drawn(300, 96).double(), drawn(96, 700).double()),
        (drawn(300, 96).bfloat16(), drawn(96, 700).bfloat16()),
        (drawn(300, 1).expand(300, 96), drawn(96, 700)),
        (drawn(300, 192)[:, ::2], drawn(96, 700)),
        (drawn(300, 96), drawn(90, 700)),
    ],
    ids=["small", "float64", "bfloat16", "overlapping rows", "every second column", "shapes that do not fit"],
)
def test_other_operands_go_to_torch(a, b):
    own = object()
    assert onednn._make_mm(lambda keys, *args: own)(None, a, b) is own


@has_onednn
def test_other_sums_and_places_go_to_torch():
    a, b = OPERANDS["forward"]()
    total, own = drawn(a.shape[0], b.shape[1]), object()

    def torchs(keys, *args, **kwargs):
        return own

    addmm, addmm_out, mm_out = (
        make(torchs) for make in (onednn._make_addmm, onednn._make_addmm_out, onednn._make_mm_out)
    )
    assert addmm(None, total, a, b, beta=0.5) is own
    assert addmm(None, total, a, b, alpha=2) is own
    assert addmm(None, total.double(), a, b) is own
    assert addmm_out(None, total, a, b, out=total.clone()) is own
    assert addmm_out(None, total, a, b, alpha=2, out=total) is own
    assert mm_out(None, a, b, out=total[:, :1]) is own
    assert mm_out(None, a, b, out=total.double()) is own
    square = drawn(200, 200)
    assert mm_out(None, square, square.T, out=square) is own


@takes_over
def test_a_process_that_loads_a_model_multiplies_by_onednn(tmp_path):
    load_model(make_donor(tmp_path / "donor"))
    x, weight = drawn(300, 96), drawn(700, 96).requires_grad_()
    with profile(activities=[ProfilerActivity.CPU]) as seen, FlopCounterMode(display=False) as counted:
        torch.nn.functional.linear(x, weight).square().sum().backward()
    assert sum(event.name == "mkldnn::_linear_pointwise" for event in seen.events()) == 2
    assert counted.get_total_flops() == 2 * 2 * 300 * 96 * 700
    expected = 2 * (x.double() @ weight.double().T).T @ x.double()
    assert close(weight.grad, expected.detach())


@takes_over
def test_an_environment_that_says_0_keeps_torchs_products(monkeypatch):
    monkeypatch.setenv(onednn.VARIABLE, "0")
    assert not onednn.is_faster()


def test_amds_processors_are_known_by_their_maker(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    assert not hardware.is_amd()
    for maker, expected in (("AuthenticAMD", True), ("HygonGenuine", True), ("GenuineIntel", False)):
        (tmp_path / "cpuinfo").write_text(CPUINFO.format(maker))
        assert hardware.is_amd() is expected


def test_a_model_that_is_loaded_bounds_the_kernels_that_onednn_keeps(tmp_path, monkeypatch):
    monkeypatch.setenv(onednn.KERNELS_VARIABLE, "")  # so that what is set here is undone
    monkeypatch.delenv(onednn.KERNELS_VARIABLE)
    load_model(make_donor(tmp_path / "donor"))
    assert os.environ[onednn.KERNELS_VARIABLE] == str(onednn.NUM_KERNELS)


def test_a_number_of_kernels_that_the_environment_gives_stays(monkeypatch):
    monkeypatch.setenv(onednn.KERNELS_VARIABLE, "7")
    onednn.bound_kernels()
    assert os.environ[onednn.KERNELS_VARIABLE] == "7"


@pytest.mark.skipif(not has_bfloat16("cpu"), reason="oneDNN compiles bfloat16 products where there is hardware for it")
@pytest.mark.slow
def test_products_of_many_shapes_leave_less_behind_where_kernels_are_bounded():
    environment = {name: value for name, value in os.environ.items() if name != onednn.KERNELS_VARIABLE}
    left = {}
    for how in ("bounded", "free"):
        command = [sys.executable, "-c", SHAPES, how]
        left[how] = int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    assert left["bounded"] < 0.8 * left["free"], left
