"""Settings for all tests, and what several folders of them share."""

import os
import signal

# A shell without job control starts what ends in `&` with Ctrl-C ignored, and hybridizer then ignores it too; the tests
# of Ctrl-C send it all the same.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything loads torch: results of one thread and of two differ in their last bits, and nothing may ask a hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Modules whose annotated shapes, dtypes and types are checked at every call. In a test run only, and before they are
# imported; tests/models/test_shapes.py proves that it happens.
CHECKED_MODULES = (
    "hybridizer.models.loss",
    "hybridizer.models.objective",
    "hybridizer.models.parts",
    "hybridizer.models.residual",
    "hybridizer.models.ridge",
    "hybridizer.models.sharding",
    "hybridizer.trace.baselines",
    "hybridizer.trace.divergence",
    "hybridizer.trace.lens",
    "hybridizer.trace.measure",
    "hybridizer.trace.perturbation",
    "hybridizer.trace.readings",
    "hybridizer.trace.sensitivity",
    "hybridizer.trace.tuned_lens",
)
install_import_hook(CHECKED_MODULES, "beartype.beartype")

# How long an example takes says nothing here; benchmarks measure speed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The working folder of a test that runs commands: empty, with a cache of its own."""
    monkeypatch.setenv("HYBRIDIZER_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tokenizer(tmp_path):
    """The tiny tokenizer, as transformers loads it."""
    from transformers import AutoTokenizer

    from support.tiny import tiny_tokenizer

    return AutoTokenizer.from_pretrained(tiny_tokenizer(tmp_path))


@pytest.fixture(params=[True, False], ids=["bfloat16-cpu", "float32-cpu"])
def bfloat16_cpu(request, monkeypatch):
    """Both kinds of CPU in turn: whether it is said to multiply bfloat16 in hardware. Subprocesses see the true one.

    Either kind can stand in for the other: what its hardware lacks, torch emulates.
    """
    flags = frozenset({"avx2", "avx512_bf16"} if request.param else {"avx2"})
    monkeypatch.setattr("hybridizer.models.hardware.cpu_flags", lambda: flags)
    return request.param
