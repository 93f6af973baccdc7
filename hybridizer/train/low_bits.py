"""Matrices in 8 or 4 bits, and back: plain torch, on any device."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from hybridizer.plan.dimensions import BLOCK
from hybridizer.recipe.train import LowDtype

# The 16 numbers of NormalFloat: quantiles of a normal distribution, zero among them (arXiv 2305.14314, appendix E).
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_LARGEST = {"int8": 127.0, "fp8": 448.0, "nf4": 1.0}


def encode(weight: Tensor, kind: LowDtype) -> tuple[Tensor, Tensor]:
    """`weight` (rows, columns) as values and their scales (rows, blocks of a row), which `in_dtype` multiplies.

    Values are int8 or float8_e4m3fn (rows, columns) with one scale per row, or uint8 (rows, columns / 2) of two 4-bit
    numbers each, with one scale per block of at most 64. Scales are bfloat16, so that both precisions compute with the
    same weight. `columns` is a multiple of 16.
    """
    rows, columns = weight.shape
    exact = weight.float().view(rows, -1, math.gcd(columns, BLOCK) if kind == "nf4" else columns)
    scales = (exact.abs().amax(2) / _LARGEST[kind]).bfloat16()
    units = torch.where(scales == 0, 1, scales).float()[..., None]
    exact = (exact / units).clamp_(-_LARGEST[kind], _LARGEST[kind]).view(rows, columns)
    if kind == "int8":
        return exact.round_().to(torch.int8), scales
    if kind == "fp8":
        return exact.to(torch.float8_e4m3fn), scales
    code = torch.tensor(NF4, device=weight.device)
    numbers = torch.bucketize(exact, (code[1:] + code[:-1]) / 2).to(torch.uint8)
    return (numbers[:, ::2] << 4) | numbers[:, 1::2], scales


def in_dtype(values: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight (rows, columns) in `dtype`, float32 or bfloat16, of what `encode` gave; without scales a cast."""
    if scales is None:
        return values.to(dtype)
    rows, compiling = len(values), torch.compiler.is_compiling()  # the compiler takes no cached functions
    if values.dtype == torch.uint8:
        pairs = (_pairs if compiling else _cached_pairs)(dtype, values.device)
        weight = pairs.index_select(0, values.view(-1).int()).view(dtype)
    elif values.dtype == torch.float8_e4m3fn and values.device.type == "cpu" and not compiling:
        # A quarter of the time of a cast.
        weight = _cached_numbers(dtype).index_select(0, values.view(torch.uint8).view(-1).int())
    else:
        weight = values.to(dtype)
    return weight.view(rows, scales.shape[1], -1).mul_(scales.to(dtype)[..., None]).view(rows, -1)


def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The two numbers that each byte stands for, side by side in one integer: one look-up gives both."""
    code = torch.tensor(NF4, device=device).to(dtype)
    both = torch.stack([code.repeat_interleave(16), code.repeat(16)], 1)
    return both.view(torch.int64 if dtype == torch.float32 else torch.int32).view(-1)


@cache
def _cached_pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    return _pairs(dtype, device)


@cache
def _cached_numbers(dtype: torch.dtype) -> Tensor:
    """The number that each byte stands for."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(dtype)
