"""Matrix products of float32 tensors on AMD processors with AVX-512, by oneDNN: twice as fast as torch's own.

torch multiplies float32 matrices with Intel's MKL, which uses AVX-512 on Intel's processors alone. oneDNN, which torch
has too and multiplies bfloat16 with, uses it on every processor. Here the kernels of torch's own operators are
replaced, below autograd, so that forward and backward passes of any model take part. Sums are in float32 as before; the
last digits of a product differ, and the same operands give the same bits, whatever rows share their matrix.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from hybridizer.models.hardware import is_amd

VARIABLE: Final = "HYBRIDIZER_ONEDNN"  # "0" leaves torch's own kernels
KERNELS_VARIABLE: Final = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
NUM_KERNELS: Final = 64  # more than the shapes that are the same in every step
MIN_PRODUCTS: Final = 1 << 21  # multiplications of numbers: fewer are faster by MKL
PIECE_BYTES: Final = 2 << 20  # of a product that goes into memory that is there

_OVERRIDDEN = ("mm", "mm.out", "addmm", "addmm.out")
_libraries: list[torch.library.Library] = []  # the kernels are in place as long as their library is


def prepare_onednn() -> None:
    """Let oneDNN keep few kernels, and multiply float32 where it is faster: in each process that runs a model."""
    bound_kernels()
    if is_faster():
        take_over()


def bound_kernels() -> None:
    """Let oneDNN keep few compiled kernels in this process; a number that the environment gives stays as it is.

    It compiles a kernel for each shape of a product, half a megabyte each, and keeps 1024 of them. Documents have many
    lengths: a training grew by 10 MB per step (docs/log.md). oneDNN reads the number once, before its first product.
    """
    os.environ.setdefault(KERNELS_VARIABLE, str(NUM_KERNELS))


def is_faster() -> bool:
    """Whether torch multiplies float32 matrices with MKL on an AMD processor with AVX-512, and has oneDNN at hand."""
    if os.environ.get(VARIABLE) == "0" or not (torch.backends.mkl.is_available() and is_amd()):
        return False
    has_onednn = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_onednn and torch.backends.cpu.get_cpu_capability() == "AVX512"


@cache
def take_over() -> None:
    """Multiply large float32 matrices with oneDNN in this process from now on."""
    own = {name: torch.library.get_kernel(f"aten::{name}", "CPU") for name in _OVERRIDDEN}
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that kernels are replaced
        for name, make in zip(_OVERRIDDEN, (_make_mm, _make_mm_out, _make_addmm, _make_addmm_out), strict=True):
            library.impl(name, make(own[name].call_boxed), "CPU", with_keyset=True, allow_override=True)
    _libraries.append(library)


def _make_mm(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def mm(keys: Any, a: Tensor, b: Tensor) -> Tensor:
        return _product(a, b) if _takes(a, b) else own(keys, a, b)

    return mm


def _make_mm_out(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def mm_out(keys: Any, a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        if not (_takes(a, b) and _fits(out, a, b)):
            return own(keys, a, b, out=out)
        for rows, columns in _pieces(out):
            out[rows, columns] = _product(a[rows], b[:, columns])
        return out

    return mm_out


def _make_addmm(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def addmm(keys: Any, total: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        if not (beta == alpha == 1 and total.dtype == torch.float32 and _takes(a, b)):
            return own(keys, total, a, b, beta=beta, alpha=alpha)
        if total.shape == b.shape[1:] and total.is_contiguous():
            return _product(a, b, total)
        return _product(a, b).add_(total)

    return addmm


def _make_addmm_out(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def addmm_out(
        keys: Any, total: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1, out: Tensor
    ) -> Tensor:
        if not (beta == alpha == 1 and total is out and _takes(a, b) and _fits(out, a, b)):
            return own(keys, total, a, b, beta=beta, alpha=alpha, out=out)
        for rows, columns in _pieces(out):
            out[rows, columns] += _product(a[rows], b[:, columns])
        return out

    return addmm_out


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(a, b.t(), bias, "none", [], "")
    return product


def _takes(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN can multiply (rows, inner) `a` and (inner, columns) `b`, and does it faster."""
    return (
        a.dtype == b.dtype == torch.float32
        and a.ndim == b.ndim == 2
        and a.shape[1] == b.shape[0]
        and a.shape[0] * b.numel() >= MIN_PRODUCTS
        and _is_matrix(a)
        and _is_matrix(b)
    )


def _fits(out: Tensor, a: Tensor, b: Tensor) -> bool:
    """Whether `out` can take the product in pieces: it has its shape and memory of its own."""
    places = [tensor.untyped_storage().data_ptr() for tensor in (out, a, b)]
    shape = (a.shape[0], b.shape[1])
    return out.dtype == torch.float32 and out.shape == shape and _is_matrix(out) and places[0] not in places[1:]


def _is_matrix(tensor: Tensor) -> bool:
    """Whether rows, or columns, are contiguous and do not overlap."""
    (rows, columns), (down, across) = tensor.shape, tensor.stride()
    return (across == 1 and down >= columns) or (down == 1 and across >= rows)


def _pieces(out: Tensor) -> Iterator[tuple[slice, slice]]:
    """Blocks of `out` of about PIECE_BYTES: runs of rows, or of columns where there are more of these."""
    rows, columns = out.shape
    longer, shorter = max(rows, columns), min(rows, columns)
    step = max(1, PIECE_BYTES // (4 * shorter))
    for start in range(0, longer, step):
        part = slice(start, start + step)
        yield (part, slice(None)) if rows >= columns else (slice(None), part)
