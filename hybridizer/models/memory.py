"""How much memory this process has needed so far, and what keeps the heap small."""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_STATUS = Path("/proc/self/status")


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory in use at once since the process began: on the device for CUDA, in the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    if _STATUS.exists():  # Linux: getrusage starts at the size of the process that started this one
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        if found:
            return 1024 * int(found[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak_(device: torch.device) -> None:
    """Let the peak begin again, at what is in use now: on CUDA and on Linux; elsewhere it stays."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _STATUS.exists():
        _STATUS.with_name("clear_refs").write_text("5")


def trim_heap() -> None:
    """Give glibc's free pages back to the system; without glibc nothing is done."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@contextmanager
def trimmed_heap(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Inside the block, glibc's free pages go back to the system where a forward pass is half done, and where it ends.

    Activations that are kept lie between blocks that come and go. What those leave is too small for the next layer's,
    and stays with the process: 11 to 12% of the peak of a training on a CPU (docs/log.md). Without glibc nothing is
    done.
    """
    trim = _malloc_trim()
    if trim is None or not layers:
        yield
        return

    def give_back(_module: nn.Module, _args: Any, _output: Any) -> None:
        trim(0)

    with ExitStack() as stack:
        for number in sorted({len(layers) // 2, len(layers) - 1}):
            stack.callback(layers[number].register_forward_hook(give_back).remove)
        yield


def page_out(tensors: Sequence[Tensor]) -> None:
    """Let pages of `tensors` that are mapped from a file leave this process until they are read again; on Linux.

    Only of mappings without a page that the process has changed: such a page would be lost. All others stay.
    """
    smaps, size = _STATUS.with_name("smaps"), mmap.PAGESIZE
    if not smaps.exists():
        return
    pattern = r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ [1-9]\d* .*?^Anonymous: +0 kB$"
    unchanged = []
    for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", smaps.read_text()):
        if found := re.match(pattern, part, re.MULTILINE | re.DOTALL):
            unchanged.append((int(found[1], 16), int(found[2], 16)))
    for tensor in tensors:
        start = tensor.data_ptr()
        begin, end = -(-start // size) * size, (start + tensor.nbytes) // size * size
        if begin < end and any(low <= begin and end <= high for low, high in unchanged):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


@cache
def _malloc_trim() -> Any:
    """glibc's function that returns free pages of the heap to the system; None for other libraries."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
