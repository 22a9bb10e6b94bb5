"""The linearised cells: Jacobian at the origin, spectral radius, stability limit."""

from __future__ import annotations

import torch
from torch import Tensor

#: Gates stacked in the rows of weight_hh, in torch's order, and the one whose matrix is clipped.
GATES = {"gru": "rzn", "gru_reset_after": "rzn", "lstm": "ifgo", "tanh_rnn": "h"}
CANDIDATE = {"gru": "n", "gru_reset_after": "n", "lstm": "g", "tanh_rnn": "h"}


def clipped_block(cell: str, hidden_size: int) -> slice:
    """The rows of weight_hh that spectral clipping projects: the candidate's."""
    start = GATES[cell].index(CANDIDATE[cell]) * hidden_size
    return slice(start, start + hidden_size)


def cell_jacobian(cell: str, weight_hh: Tensor) -> Tensor:
    """Jacobian of the cell without input and biases at the origin, from weight_hh (..., gates n, n)."""
    n = weight_hh.shape[-1]
    W = weight_hh[..., clipped_block(cell, n), :]
    eye = torch.eye(n, dtype=W.dtype, device=W.device)
    if cell in ("gru", "gru_reset_after"):
        return eye / 2 + W / 4
    if cell == "tanh_rnn":
        return W
    # c' = c/2 + W_g h / 2 and h' = c' / 2, over (h, c).
    eye = eye.expand_as(W)
    return torch.cat((torch.cat((W / 4, eye / 4), dim=-1), torch.cat((W / 2, eye / 2), dim=-1)), dim=-2)


def spectral_radius(matrix: Tensor) -> Tensor:
    """The largest absolute eigenvalue of each matrix of a batch (..., n, n)."""
    return torch.linalg.eigvals(matrix.detach()).abs().amax(-1)
