"""What is carried from one projection of a matrix to the next."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class SpectralState:
    """What is known of a batch of matrices, from step to step: plain tensors with a leading batch axis.

    A new state knows nothing. Entries exist from the first call that is given the state; a matrix of which
    nothing is known has zeros throughout.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None) -> None:
        self.tensors: dict[str, Tensor] = dict(tensors or {})

    def index_select(self, index: int | list[int] | Tensor) -> SpectralState:
        """The state of some of the matrices, in the order of `index`; an integer keeps the axis, of size 1."""
        select = torch.as_tensor(index).reshape(-1)
        return SpectralState({name: tensor[select.to(tensor.device)] for name, tensor in self.tensors.items()})

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors, copied."""
        return {name: tensor.clone() for name, tensor in self.tensors.items()}

    def load_state_dict(self, saved: Mapping[str, Tensor], index: int | None = None) -> None:
        """Take what `state_dict` gave: for all matrices, or of one for the matrix at `index` of the batch."""
        if index is None:
            self.tensors = {name: tensor.clone() for name, tensor in saved.items()}
            return
        for name in self.tensors.keys() | saved.keys():
            held, new = self.tensors.get(name), saved.get(name)
            example = held if held is not None else saved[name]
            shape = [max(sizes) for sizes in zip(*(t.shape[1:] for t in (held, new) if t is not None), strict=True)]
            rows = max(index + 1, 0 if held is None else held.shape[0])
            tensor = example.new_zeros(rows, *shape)
            if held is not None:
                put(tensor, held)
            tensor[index] = 0
            if new is not None:
                put(tensor[index : index + 1], new)
            self.tensors[name] = tensor


def put(into: Tensor, tensor: Tensor) -> None:
    """Copy `tensor` to the leading corner of a tensor at least as large along every axis."""
    into[tuple(slice(size) for size in tensor.shape)] = tensor
