"""Sequences of matrices as training presents them to the projection: each the last one, clipped, plus an update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gruclip.config import DatasetConfig, ModelConfig, OptimizerConfig, RunConfig
from gruclip.data import load
from gruclip.errors import UserError
from gruclip.spectral import SpectralState, clip_singular_values_
from gruclip.training.engine import Engine, Iteration

#: Spectral norms of an update's part that pushes values over the limit, and of its noise, relative to the limit.
#: Together as on Penn Treebank (iterations 20 to 60 at rate 1): 1e-3 in spectral norm, 4e-3 in Frobenius norm.
DRIFT, NOISE = 1e-3, 4e-4

#: Of the recorded run.
HIDDEN_SIZE = 650

#: Share of the limit below which the values lie that are not meant to pass it.
INSIDE = 0.9


@dataclass(frozen=True)
class Sequence:
    """Matrices before clipping, in the order of the iterations."""

    name: str
    limit: float
    matrices: Tensor  #: float32 (N, n, n)


def drifting(n: int, above: int, steps: int, limit: float = 1.8, seed: int = 0) -> Sequence:
    """A made sequence in which `above` values pass the limit in every step, and the singular vectors turn slowly.

    The values that do not pass are spread evenly below 0.9 of the limit.
    """
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for _ in range(2))
    values = torch.cat((torch.full((above,), limit), torch.linspace(INSIDE * limit, 0, n - above)))
    weight = (left * values) @ right.mT
    outwards = DRIFT * limit * left[:, :above] @ right[:, :above].mT
    state, matrices = SpectralState(), torch.empty(steps, n, n)
    for before in matrices:
        # The spectral norm of a Gaussian matrix is near 2 sqrt(n).
        noise = torch.randn(n, n, generator=generator).mul_(NOISE * limit / (2 * n**0.5))
        weight += outwards + noise
        before.copy_(weight)
        clip_singular_values_(weight, limit, state=state)
    return Sequence(f"made, n={n}, {above} above", limit, matrices)


class _Recorder(Engine):
    """Keeps W_hh as it is before every projection from iteration `after` on."""

    recorded: list[Tensor]
    after: int

    def _clip(self, it: Iteration) -> None:
        self.after -= 1
        if self.after < 0:
            self.recorded.append(self.recurrent_blocks()[0][0].clone())
        super()._clip(it)


def record(iterations: int, keep: int, delta: float, root: str | None) -> Sequence:
    """W_hh before clipping in the last `keep` of the first `iterations` of a run on Penn Treebank, seed 0.

    Raises `UserError` for more iterations than an epoch has.
    """
    config = RunConfig(
        dataset=DatasetConfig("ptb", root),
        model=ModelConfig(hidden_size=HIDDEN_SIZE),
        optimizer=OptimizerConfig("spectral_clipping", lr=1.0, delta=delta),
    ).check()
    engine = _Recorder([config], load("ptb", root), torch.device("cpu"))
    engine.recorded, engine.after = [], iterations - keep
    available = engine.begin_epoch([1])
    if iterations > available:
        raise UserError(f"--record {iterations}: an epoch has {available} iterations; take as many at most")
    for i in range(iterations):
        engine.step(i, False)
    limit = config.spectral_limit
    assert limit is not None
    return Sequence(_name(delta), limit, torch.stack(engine.recorded))


def save_recorded(sequence: Sequence, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"recorded {sequence.name}.safetensors".replace(", ", "_").replace(" ", "_")
    save_file({"matrices": sequence.matrices}, path, metadata={"name": sequence.name, "limit": repr(sequence.limit)})
    return path


def load_recorded(folder: Path) -> Iterator[Sequence]:
    """Every recorded sequence in `folder`, in the order of their names."""
    for path in sorted(folder.glob("recorded_*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        yield Sequence(metadata["name"], float(metadata["limit"]), load_file(path)["matrices"])


def _name(delta: float) -> str:
    return f"ptb, delta {delta:g}"
