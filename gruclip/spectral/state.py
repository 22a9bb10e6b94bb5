"""What is carried from one projection of a matrix to the next."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gruclip.spectral.block import Tracked


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

    def tracked(self, index: int, weight: Tensor) -> Tracked | None:
        """What is tracked of matrix `index`, if it is of the shape and dtype of `weight`."""
        basis, reference = self.tensors.get("basis"), self.tensors.get("reference")
        if basis is None or reference is None or index >= basis.shape[0]:
            return None
        frozen, columns = self.tensors["columns"][index].tolist()
        held = reference[index]
        if columns == 0 or held.shape != weight.shape or held.dtype != weight.dtype or held.device != weight.device:
            return None
        return Tracked(basis[index, :, :columns], frozen, held, float(self.tensors["bulk"][index]))

    def track(self, index: int, tracked: Tracked | None) -> None:
        """Carry `tracked` for matrix `index`; None forgets it."""
        if tracked is None:
            if "columns" in self.tensors and index < self.tensors["columns"].shape[0]:
                self.tensors["columns"][index] = 0
            return
        self.load_state_dict(
            {
                "basis": tracked.basis.unsqueeze(0),
                "columns": torch.tensor([[tracked.frozen, tracked.basis.shape[1]]]),
                "reference": tracked.reference.unsqueeze(0),
                "bulk": torch.tensor([tracked.bulk], dtype=torch.float64),
            },
            index,
        )


def put(into: Tensor, tensor: Tensor) -> None:
    """Copy `tensor` to the leading corner of a tensor at least as large along every axis."""
    into[tuple(slice(size) for size in tensor.shape)] = tensor
