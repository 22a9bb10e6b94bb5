"""What is carried from one projection of a matrix to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class SpectralState:
    """What is known of the matrices of a batch, each in a dictionary of tensors; a new state knows nothing.

    `matrices[i]` belongs to matrix i of the batch, in row-major order. Its entries are the algorithm's own:
    they are there after the first call that was given the state, and two calls with equal matrices and equal
    states give the same bits.

    >>> from gruclip import spectral_norm
    >>> weight, state = torch.eye(200), SpectralState()
    >>> for step in range(3):
    ...     weight[0, 0] += 0.1
    ...     norm = spectral_norm(weight, state)  # cheaper from the second call on
    >>> round(float(norm), 3)
    1.3
    """

    def __init__(self, matrices: Sequence[dict[str, Tensor]] = ()) -> None:
        self.matrices = list(matrices)

    def resize(self, count: int) -> list[dict[str, Tensor]]:
        """The entries of `count` matrices; what is missing is empty, what is too much goes."""
        self.matrices = [*self.matrices[:count], *({} for _ in range(count - len(self.matrices)))]
        return self.matrices

    def index_select(self, index: int | Sequence[int]) -> SpectralState:
        """The state of some of the matrices, in the order of `index`."""
        chosen = [index] if isinstance(index, int) else index
        return SpectralState([dict(self.matrices[i]) if i < len(self.matrices) else {} for i in chosen])

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all tensors, by ``"<matrix>.<entry>"``."""
        return {f"{i}.{name}": tensor.clone() for i, held in enumerate(self.matrices) for name, tensor in held.items()}

    def load_state_dict(
        self, saved: Mapping[str, Tensor], index: int | None = None, device: torch.device | None = None
    ) -> None:
        """Take what `state_dict` gave; with `index`, one matrix's for the matrix there. Nothing saved: a new state.

        `device`: of the matrices, if not that of `saved`. Numbers are needed by the host and stay there.
        """
        matrices: dict[int, dict[str, Tensor]] = {}
        for key, tensor in saved.items():
            number, name = key.split(".", 1)
            home = device if tensor.dim() else None
            matrices.setdefault(int(number), {})[name] = tensor.to(home, copy=True)
        if index is None:
            self.matrices = [matrices.get(i, {}) for i in range(max(matrices, default=-1) + 1)]
        else:
            self.resize(max(len(self.matrices), index + 1))[index] = matrices.get(0, {})
