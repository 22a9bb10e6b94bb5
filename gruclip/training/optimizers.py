"""SGD with the gradient clipped, with the recurrent matrices clipped, or with both.

A step for every run of a stack, each with its own rate, threshold and limit:

    gradient clipping    g <- g min(1, threshold / ||g||)     ||g|| over all parameters
    every method         W <- W - lr g
    spectral clipping    W_hh <- projection of W_hh onto {sigma_1 <= limit}, layer by layer (`projections`)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def gradient_norms(gradients: Iterable[Tensor], runs: int) -> Tensor:
    """Global norm of each run's gradient, float64 (R,): it overflows only where the gradient does.

    Gradients are (R, ...), or sparse (R V, n) and coalesced.
    """
    total: Tensor | float = 0.0
    for gradient in gradients:
        if gradient.is_sparse:
            rows = gradient.shape[0] // runs
            squares = _row_norms(gradient.values()).square()
            total = total + squares.new_zeros(runs).index_add_(0, gradient.indices()[0] // rows, squares)
        else:
            total = total + _row_norms(gradient).square().view(runs, -1).sum(1)
    assert isinstance(total, Tensor)
    return total.sqrt()


def _row_norms(a: Tensor) -> Tensor:
    """Norms along the last axis, as float64: a few thousand squares at a time lose nothing in float32."""
    if a.device.type == "cpu" and a.dtype == torch.float32:
        norms = torch.linalg.vector_norm(a, dim=-1)
        # Their sum may overflow where the gradient does not; a pass in float64 takes twenty times as long on a CPU.
        if bool(torch.isfinite(norms).all()):
            return norms.double()
    return torch.linalg.vector_norm(a, dim=-1, dtype=torch.float64)


def clipping_factors(norms: Tensor, thresholds: Tensor) -> Tensor:
    """min(1, threshold / norm) for each run; a threshold of infinity clips nothing."""
    return torch.where(norms > thresholds, thresholds / norms, torch.ones_like(norms))


@torch.no_grad()
def sgd_step_(parameters: Iterable[Tensor], gradients: Iterable[Tensor], step_sizes: Tensor) -> None:
    """``p <- p - step_size * gradient`` in place; step_sizes (R,) float64; sparse gradients touch their rows only."""
    runs = step_sizes.shape[0]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient.is_sparse:
            indices, values = gradient.indices()[0], gradient.values()
            factors = step_sizes[indices // (parameter.shape[0] // runs)].to(values.dtype)
            parameter.index_add_(0, indices, values * factors.unsqueeze(1), alpha=-1)
        elif runs == 1 and parameter.device.type == "cpu":
            parameter.add_(gradient, alpha=-step_sizes.item())
        else:
            factors = step_sizes.to(parameter.dtype).view(-1, *[1] * parameter.dim())
            # Rows of several runs may lie one after the other: (R V, n) for the input.
            by_run = parameter.view(runs, -1, *parameter.shape[1:])
            by_run.addcmul_(gradient.view_as(by_run), factors, value=-1)
