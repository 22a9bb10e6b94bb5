"""The recurrent layers a model can be made of, each a function on stacked runs.

`gru` is the paper's (`gruclip.gru`); the others are torch's own, for the question whether spectral
clipping works beyond GRUs. None has a bias, so that each has a stability limit (`gruclip.dynamics`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gruclip.gru import gru_layer


def recurrent_layer(
    cell: str,
    x: Tensor,
    state: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    keep: Tensor | None = None,
    compute: torch.dtype | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One layer over a window: outputs (R, T, B, n) and the state after it; the input is ``x * mask``.

    x (R, T, B, k); state (R, B, n), for the LSTM (R, B, 2n) = [h, c]; weight_ih (R, gates n, k);
    weight_hh (R, gates n, n); keep (R, T, B), zero where the state is reset before the step; mask (R, T, B, k),
    dropout's factors.
    """
    if cell == "gru":
        outputs = gru_layer(x, state, weight_ih, weight_hh, keep=keep, compute=compute, mask=mask)
        return outputs, outputs[:, -1]
    if mask is not None:
        x = x * mask
    if keep is not None:
        keep = keep.expand(x.shape[:-1])  # of an evaluation, in which all runs read the same lanes
    runs = [
        _torch_layer(cell, x[r], state[r], weight_ih[r], weight_hh[r], None if keep is None else keep[r])
        for r in range(x.shape[0])
    ]
    return torch.stack([outputs for outputs, _ in runs]), torch.stack([last for _, last in runs])


def _torch_layer(
    cell: str, x: Tensor, state: Tensor, weight_ih: Tensor, weight_hh: Tensor, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """torch's layer, called once for every stretch of steps without a reset."""
    starts = [0]
    if keep is not None:
        starts += [t for t in (keep == 0).any(-1).nonzero().flatten().tolist() if t > 0]
    outputs = []
    for start, stop in zip(starts, [*starts[1:], x.shape[0]], strict=True):
        if keep is not None:
            state = state * keep[start].unsqueeze(-1)
        output, state = _call_torch(cell, x[start:stop], state, [weight_ih, weight_hh])
        outputs.append(output)
    return torch.cat(outputs), state


def _call_torch(cell: str, x: Tensor, state: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    # has_biases, num_layers, dropout, train, bidirectional, batch_first; cuDNN has no backward but in training.
    options = (False, 1, 0.0, x.is_cuda, False, False)
    if cell == "lstm":
        h, c = (part.unsqueeze(0).contiguous() for part in state.chunk(2, dim=-1))
        output, h, c = torch.lstm(x, (h, c), weights, *options)
        return output, torch.cat((h[0], c[0]), dim=-1)
    layers = {"gru_reset_after": torch.gru, "tanh_rnn": torch.rnn_tanh}
    output, h = layers[cell](x, state.unsqueeze(0), weights, *options)
    return output, h[0]
