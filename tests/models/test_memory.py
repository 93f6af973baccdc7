import subprocess
import sys

import numpy as np
import pytest
import torch

from hybridizer.models.memory import forget_peak_, peak_memory_bytes

CPU = torch.device("cpu")
CHILD = "import torch; from hybridizer.models.memory import peak_memory_bytes as p; print(p(torch.device('cpu')))"


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
