"""Settings for all tests, and what several folders of them share."""

import pytest
from hypothesis import settings

# How long an example takes says nothing here; benchmarks measure speed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(params=[True, False], ids=["bfloat16-cpu", "float32-cpu"])
def bfloat16_cpu(request, monkeypatch):
    """Both kinds of CPU in turn: whether it is said to multiply bfloat16 in hardware. Subprocesses see the true one.

    Either kind can stand in for the other: what its hardware lacks, torch emulates.
    """
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": request.param})
    return request.param
