"""Layers padded with zero units: a GPU's fast products need rows that are multiples of 16 bytes.

Added units have zero weights. Their state is zero and stays so, for z h + (1 - z) tanh(0) = 0 at h = 0, and so
are the gradients of all their weights: the other units compute what they compute without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from gruclip.choices import CELLS
from gruclip.config import ModelConfig
from gruclip.model.stacked import Parameters, parameter_shapes

#: Numbers of bf16 in 16 bytes. By rows of 656 numbers the products over a vocabulary of 10,000 words take a third of
#: what they take by rows of 650 on an H200 (gruclip/bench/gpu.md).
WHOLE = 8


@dataclass(frozen=True)
class Width:
    """Of the layers of `model`: its own, or `padded` to a multiple of `WHOLE`."""

    model: ModelConfig
    padded: bool = False

    @property
    def stored(self) -> ModelConfig:
        """The model whose parameters are in memory."""
        n = self.model.hidden_size
        return replace(self.model, hidden_size=-(-n // WHOLE) * WHOLE if self.padded else n)

    def cut(self, name: str, stored: Tensor) -> Tensor:
        """The model's part of a stored parameter, or of states (..., n) by the name "hidden", as a view.

        Of weight_ih and weight_hh it is (..., gates, n, n).
        """
        n = self.model.hidden_size
        if name.startswith("weight"):
            return stored.unflatten(-2, (len(CELLS[self.model.cell].gates), -1))[..., :n, :n]
        if name in ("output", "output_bias"):
            return stored[..., :n, :] if name == "output" else stored
        return stored[..., :n] if self.padded else stored  # an LSTM's states are (h, c)

    def stacked(
        self, runs: Sequence[Parameters], num_outputs: int, device: torch.device, dtype: torch.dtype
    ) -> Parameters:
        """The parameters of each run in one tensor a name, (R, ...), as they are stored."""
        found = {}
        for name, shape in parameter_shapes(self.stored, num_outputs).items():
            found[name] = torch.zeros(len(runs), *shape, dtype=dtype, device=device)
            for whole, parameters in zip(found[name], runs, strict=True):
                part = self.cut(name, whole)
                part.copy_(parameters[name].view(part.shape))
        return found

    def fit(self, masks: list[Tensor]) -> list[Tensor]:
        """Factors (..., n), with zeros for the other units."""
        more = self.stored.hidden_size - self.model.hidden_size
        return [pad(factors, (0, more)) for factors in masks] if more else masks
