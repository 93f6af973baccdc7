"""Which lines of the package read values of tensors: on a GPU, each makes the host wait and leaves the GPU idle."""

import traceback
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hybridizer

OURS = str(Path(hybridizer.__file__).parent)
READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


class HostReads(TorchDispatchMode):
    """Lists the lines of the package that read a value of a tensor, or need one to know a shape."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1])
        if func in READS or masks:
            stack = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename][:-1]
            if stack[-1].filename.startswith(OURS):
                self.lines.append(f"{stack[-1].filename}:{stack[-1].lineno} {func}")
        return func(*args, **(kwargs or {}))
