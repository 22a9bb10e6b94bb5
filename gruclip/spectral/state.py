"""What is carried from one projection of a matrix to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gruclip.errors import UserError
from gruclip.kernels.dropout import random_bits

#: Directions that a `SubspaceState` holds of each matrix, at least.
CARRIED = 56
#: The entry that holds a tracked matrix's numbers, which the host reads.
NUMBERS = "numbers"
#: What a `SubspaceState` holds of each matrix.
ENTRIES = ("right", "previous", "bulk", "draws", "missed")
#: Weight of a step in `SubspaceState.missed`: fifty or so count.
RECENT = 0.02


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
        """The entries of `count` matrices; missing ones are empty, extra ones dropped."""
        self.matrices = [*self.matrices[:count], *({} for _ in range(count - len(self.matrices)))]
        if not torch.is_inference_mode_enabled():
            # Tensors made under it cannot be written to outside it.
            for entries in self.matrices:
                entries.update({name: tensor.clone() for name, tensor in entries.items() if tensor.is_inference()})
        return self.matrices

    def index_select(self, index: int | Sequence[int]) -> SpectralState:
        """A copy of the state of some of the matrices, in the order of `index`."""
        chosen = [index] if isinstance(index, int) else index
        every = [self.matrices[i] if i < len(self.matrices) else {} for i in chosen]
        return SpectralState([{name: tensor.clone() for name, tensor in entries.items()} for entries in every])

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all tensors, by ``"<matrix>.<entry>"``."""
        return {
            f"{i}.{name}": tensor.clone() for i, entries in enumerate(self.matrices) for name, tensor in entries.items()
        }

    def load_state_dict(
        self, saved: Mapping[str, Tensor], index: int | None = None, device: torch.device | None = None
    ) -> None:
        """Load a `state_dict`; with `index`, that of one matrix into that place. Empty: a new state.

        `device`: of the matrices, if not that of `saved`. Numbers are needed by the host and stay there. Raises
        `UserError` for keys of something else.
        """
        matrices: dict[int, dict[str, Tensor]] = {}
        for key, tensor in saved.items():
            number, dot, name = key.partition(".")
            if not dot or not number.isdecimal():
                raise UserError(f"state_dict with {key!r}: should be what state_dict() gave")
            home = device if tensor.dim() and name != NUMBERS else None
            matrices.setdefault(int(number), {})[name] = tensor.to(home, copy=True)
        if index is None:
            self.matrices = [matrices.get(i, {}) for i in range(max(matrices, default=-1) + 1)]
        else:
            self.resize(max(len(self.matrices), index + 1))[index] = matrices.get(0, {})


# So that `torch.load(weights_only=True)` reads a checkpoint whose optimizer state holds one.
torch.serialization.add_safe_globals([SpectralState])


class SubspaceState:
    """What `clip_singular_values_deferred_` carries from step to step for the matrices (..., m, n) of a batch.

    Tensors on their device, written in place. A new state knows nothing. `carried`: k, of each matrix.
    """

    def __init__(self, weight: Tensor, carried: int = CARRIED) -> None:
        *batch, m, n = weight.shape
        count, device = math.prod(batch), weight.device
        #: (R,): how often random vectors were drawn.
        self.draws = torch.zeros(count, dtype=torch.int64, device=device)
        #: (R, n, k): the leading right singular directions.
        self.right = gaussian(self.draws, n, carried).to(weight.dtype)
        #: (R, m, n): the matrices after the last step.
        self.previous = torch.zeros(count, m, n, dtype=weight.dtype, device=device)
        #: (R,): the largest value that the directions leave out, by an estimate.
        self.bulk = torch.zeros(count, dtype=torch.float64, device=device)
        #: (R,): the share of the last steps that had no certificate.
        self.missed = torch.zeros(count, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, weight: Tensor, matrices: Sequence[Mapping[str, Tensor]], carried: int) -> SubspaceState:
        """For a batch (..., m, n), copies of the entries of each matrix. Where some are missing or differ in
        form, by `load_state_dict`, with `carried` directions at least.
        """
        (m, n), kind = weight.shape[-2:], weight.dtype
        width = matrices[0]["right"].shape[-1] if matrices and "right" in matrices[0] else 0
        expected = {"right": ((n, width), kind), "previous": ((m, n), kind), "bulk": ((), torch.float64)}
        expected |= {"draws": ((), torch.int64), "missed": ((), torch.float64)}
        if not CARRIED <= width <= min(m, n) or any(
            {name: (tensor.shape, tensor.dtype) for name, tensor in entries.items()} != expected for entries in matrices
        ):
            state = cls(weight, carried)
            state.load_state_dict(SpectralState([dict(entries) for entries in matrices]).state_dict())
            return state
        # At once: copying hundreds of entries one by one costs a GPU more than the projection.
        state = cls.__new__(cls)
        for name in ENTRIES:
            setattr(state, name, torch.stack([entries[name].to(weight.device) for entries in matrices]))
        return state

    @property
    def carried(self) -> int:
        """k, the directions that are held of each matrix."""
        return self.right.shape[-1]

    def widen(self, carried: int) -> None:
        """Hold `carried` directions of each matrix, if that is more; the new ones are random.

        `right` is then a new tensor, which no captured program reads; `missed` starts again at 0.
        """
        if carried > self.carried:
            self.right = _filled(self.right, self.draws, carried)
            self.missed.zero_()

    def _entries(self, index: int) -> dict[str, Tensor]:
        """Views."""
        return {name: getattr(self, name)[index] for name in ENTRIES}

    def index_select(self, index: int | Sequence[int]) -> SpectralState:
        """What is known of some of the matrices, in the order of `index`, as views."""
        return SpectralState([self._entries(i) for i in ([index] if isinstance(index, int) else index)])

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of all tensors, by ``"<matrix>.<entry>"``."""
        return self.index_select(range(len(self.draws))).state_dict()

    def load_state_dict(
        self, saved: Mapping[str, Tensor], index: int | None = None, device: torch.device | None = None
    ) -> None:
        """Take what `state_dict` gave; with `index`, one matrix's for the matrix there. Where nothing was saved, or
        something of another algorithm's, nothing is known.

        What was saved of a wider state widens this one; what was saved of a narrower one is filled up.
        """
        for position in range(len(self.draws)) if index is None else [index]:
            entries = self._saved(saved, 0 if index is not None else position)
            if entries is None:
                entries = SubspaceState(self.previous[position], self.carried)._entries(0)
            self.widen(entries["right"].shape[-1])
            right = entries["right"].to(self.right.device)[None]
            if right.shape[-1] < self.carried:
                entries["missed"] = torch.zeros_like(entries["missed"])  # with fewer, as where `widen` is called
            entries["right"] = _filled(right, entries["draws"].to(right.device)[None], self.carried)[0]
            for name, tensor in self._entries(position).items():
                tensor.copy_(entries[name])

    def _saved(self, saved: Mapping[str, Tensor], number: int) -> dict[str, Tensor] | None:
        """The entries of a matrix of this shape, if they are all there."""
        own = self._entries(0)
        # The earliest saved states lack it.
        known = {"missed": torch.zeros((), dtype=torch.float64)}
        entries = known | {name: saved[f"{number}.{name}"] for name in own if f"{number}.{name}" in saved}
        shapes = {name: tensor.shape for name, tensor in entries.items()}
        expected = {name: tensor.shape for name, tensor in own.items()}
        n, carried = (*shapes.get("right", ()), 0, 0)[:2]
        if n == self.right.shape[1] and CARRIED <= carried <= min(self.previous.shape[1:]):
            expected["right"] = shapes["right"]
        return entries if shapes == expected else None


def _filled(right: Tensor, draws: Tensor, carried: int) -> Tensor:
    """Directions (R, n, k) padded to `carried` with random ones, which no step of `draws` (R,) and no narrower padding
    uses."""
    missing = carried - right.shape[-1]
    if not missing:
        return right
    seeds = -1 - draws * right.shape[1] - right.shape[-1]
    return torch.cat((right, gaussian(seeds, right.shape[1], missing).to(right.dtype)), -1)


def gaussian(seeds: Tensor, rows: int, columns: int) -> Tensor:
    """(R, rows, columns) standard Gaussian numbers, float32, the same for equal seeds (R,): Box and Muller's."""
    bits = random_bits(seeds, -(-rows * columns // 2))
    radius = ((((bits >> 40) & 0xFFFFFF) + 1).float() * 2**-24).log().mul(-2).sqrt()
    angle = (bits & 0xFFFFFF).float() * (2 * math.pi * 2**-24)
    both = torch.cat((radius * angle.cos(), radius * angle.sin()), 1)
    return both[:, : rows * columns].view(-1, rows, columns)
