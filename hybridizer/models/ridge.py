"""Affine maps fitted in closed form: ridge regression on streamed statistics."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Map = tuple[Float[Tensor, "width width"], Float[Tensor, "width"]]


def ridge_map(source: Float[Tensor, "rows width"], target: Float[Tensor, "rows width"], ridge: float) -> Map:
    """The (weight, bias) that fit source + source @ weight + bias to target: least squares with a ridge."""
    centre, aim = source.mean(dim=0), target.mean(dim=0)
    x = source - centre
    gram = x.T @ x
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    weight = torch.linalg.solve(damped, x.T @ (target - aim - x))
    return weight, aim - centre - centre @ weight
