"""SGD with the gradient clipped, with the recurrent matrices clipped, or with both.

A step for every run of a stack, each with its own rate, threshold and limit:

    gradient clipping    g <- g min(1, threshold / ||g||)     ||g|| over all parameters
    every method         W <- W - lr g
    spectral clipping    W_hh <- projection of W_hh onto {sigma_1 <= limit}, layer by layer (`projections`)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.kernels import fused

#: Equal squares that torch adds up one after another in float32 on a CPU; each costs some 1e-9.
FLOAT32_SQUARES = 2048


class RowGradient(NamedTuple):
    """A row-sparse gradient of a parameter (R V, n), of a fixed shape, as CUDA graphs need it.

    A row may occur more than once: one occurrence then has its gradient, and the others are zero.
    """

    rows: Tensor  #: (R M,)
    values: Tensor  #: (R, M, n)


Gradient = Tensor | RowGradient


def row_gradient(rows: Tensor, gradient: Tensor) -> RowGradient:
    """The gradient of a parameter of which ``parameter[rows]`` was taken: rows (R, M), gradient (R, M, n).

    Which rows are equal must be the same in all runs, as it is where they read the same words. Equal rows are summed in
    a fixed order.
    """
    runs, count, n = gradient.shape
    first = (rows[0, :, None] == rows[0]).int().argmax(1)
    places = first + torch.arange(runs, device=rows.device)[:, None] * count
    values = gradient.new_zeros(runs * count, n).index_put_(
        (places.flatten(),), gradient.flatten(0, 1), accumulate=True
    )
    return RowGradient(rows.flatten(), values.view(runs, count, n))


def gradient_norms(gradients: Iterable[Gradient], runs: int, waits: bool = True) -> Tensor:
    """Global norm of each run's gradient, float64 (R,): it overflows only where the gradient does.

    Gradients are (R, ...), or sparse (R V, n) and coalesced. `waits`: whether the host may wait for a value.
    """
    total: Tensor | float = 0.0
    for gradient in gradients:
        if isinstance(gradient, Tensor) and gradient.is_sparse:
            rows = gradient.shape[0] // runs
            squares = _norms(gradient.values(), waits).square().view(len(gradient.values()), -1).sum(1)
            total = total + squares.new_zeros(runs).index_add_(0, gradient.indices()[0] // rows, squares)
        else:
            values = gradient.values if isinstance(gradient, RowGradient) else gradient
            total = total + _norms(values, waits).square().view(runs, -1).sum(1)
    assert isinstance(total, Tensor)
    return total.sqrt()


def _norms(a: Tensor, waits: bool) -> Tensor:
    """Norms along the last axis, as float64, or of its parts, in an axis more: `FLOAT32_SQUARES` at a time lose 2e-6 in
    float32, at most."""
    if waits and a.device.type == "cpu" and a.dtype == torch.float32:
        parts, blocks = [a], a.shape[-1] // FLOAT32_SQUARES
        if blocks:
            whole = blocks * FLOAT32_SQUARES
            parts = [a[..., :whole].unflatten(-1, (blocks, FLOAT32_SQUARES)), a[..., whole:].unsqueeze(-2)]
        norms = torch.cat([torch.linalg.vector_norm(part, dim=-1) for part in parts], -1)
        # Their sum may overflow where the gradient does not; a pass in float64 takes fifty times as long on a CPU.
        if bool(torch.isfinite(norms).all()):
            return norms.double()
    if fused.takes(a):
        return fused.row_norms(a)
    return torch.linalg.vector_norm(a, dim=-1, dtype=torch.float64)


def clipping_factors(norms: Tensor, thresholds: Tensor) -> Tensor:
    """min(1, threshold / norm) for each run; a threshold of infinity clips nothing."""
    return torch.where(norms > thresholds, thresholds / norms, torch.ones_like(norms))


@torch.no_grad()
def sgd_step_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Gradient],
    step_sizes: Tensor,
    copies: Sequence[Tensor] | None = None,
) -> None:
    """``p <- p - step_size * gradient`` in place; step_sizes (R,) float64; sparse gradients touch their rows only.

    `copies`: each parameter's rounded copy, updated in the same pass, or the parameter itself.
    """
    runs = step_sizes.shape[0]
    for parameter, gradient, copy in zip(parameters, gradients, copies or parameters, strict=True):
        held = None if copy is parameter else copy
        if isinstance(gradient, RowGradient):
            values = gradient.values * step_sizes.to(parameter.dtype).view(-1, 1, 1)
            parameter.index_add_(0, gradient.rows, values.flatten(0, 1), alpha=-1)
        elif not gradient.is_sparse and parameter.shape[0] == runs and fused.takes(parameter, gradient, copy):
            fused.update_(parameter, gradient, step_sizes, held)
            held = None
        elif gradient.is_sparse:
            indices, values = gradient.indices()[0], gradient.values()
            factors = step_sizes[indices // (parameter.shape[0] // runs)].to(values.dtype)
            parameter.index_add_(0, indices, values * factors.unsqueeze(1), alpha=-1)
        elif runs == 1 and parameter.device.type == "cpu":
            # A rate beyond the dtype's range becomes infinity, as in a stack.
            largest = torch.finfo(parameter.dtype).max
            rate = step_sizes.item()
            parameter.add_(gradient, alpha=-rate if rate <= largest else -math.inf)
        else:
            factors = step_sizes.to(parameter.dtype).view(-1, *[1] * parameter.dim())
            # Rows of several runs may lie one after the other: (R V, n) for the input.
            by_run = parameter.view(runs, -1, *parameter.shape[1:])
            by_run.addcmul_(gradient.view_as(by_run).to(parameter.dtype), factors, value=-1)
        if held is not None:
            held.copy_(parameter)
