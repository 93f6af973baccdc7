import subprocess
import sys

import numpy as np
import pytest
import torch

from hybridizer.models import memory
from hybridizer.models.memory import forget_peak_, peak_memory_bytes

CPU = torch.device("cpu")
CHILD = "import torch; from hybridizer.models.memory import peak_memory_bytes as p; print(p(torch.device('cpu')))"
# Resident bytes of 400 MB in blocks of 64 kB, every second of which is free, before and after.
HOLES = """
import torch
from hybridizer.models.memory import trimmed_heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

start = resident()
blocks = [torch.ones(2**14) for _ in range(6000)]
del blocks[::2]
full = resident() - start
layer = torch.nn.Identity()
with trimmed_heap([layer]):
    layer(blocks[0])
print(full, resident() - start)
"""


@pytest.mark.slow
def test_a_peak_stays_after_what_made_it_is_gone():
    before = peak_memory_bytes(CPU)
    np.ones(before, np.uint8)
    assert peak_memory_bytes(CPU) >= 1.5 * before


@pytest.mark.slow
def test_a_peak_can_begin_anew():
    np.ones(2 * peak_memory_bytes(CPU), np.uint8)
    high = peak_memory_bytes(CPU)
    forget_peak_(CPU)
    assert peak_memory_bytes(CPU) < 0.8 * high


@pytest.mark.slow
def test_a_process_does_not_count_what_started_it():
    held = np.ones(2 * peak_memory_bytes(CPU), np.uint8)
    child = subprocess.run([sys.executable, "-c", CHILD], check=True, capture_output=True, text=True)
    assert int(child.stdout) < len(held)


def test_the_heap_is_trimmed_where_a_forward_pass_is_half_done_and_where_it_ends(monkeypatch):
    events, model = [], torch.nn.Sequential(*(torch.nn.Identity() for _ in range(6)))
    monkeypatch.setattr(memory, "_malloc_trim", lambda: lambda pad: events.append("trim"))
    for number, layer in enumerate(model):
        layer.register_forward_hook(lambda _module, _args, _output, number=number: events.append(number))
    with memory.trimmed_heap(model):
        model(torch.ones(1))
    assert events == [0, 1, 2, 3, "trim", 4, 5, "trim"]
    model(torch.ones(1))
    assert events[-1] == 5


@pytest.mark.skipif(memory._malloc_trim() is None, reason="without glibc")
@pytest.mark.slow
def test_holes_in_the_heap_go_back_to_the_system():
    found = subprocess.run([sys.executable, "-c", HOLES], check=True, capture_output=True, text=True)
    full, trimmed = map(int, found.stdout.split())
    assert trimmed < 0.7 * full
