"""One iteration of a stack: what its phases hand on to each other, and what it measured."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from gruclip.data import Lanes
from gruclip.training.optimizers import Gradient
from gruclip.training.projections import Projected


@dataclass
class StepMetrics:
    """What one iteration measured, one entry a run."""

    time_steps: int  #: of the window
    loss: Tensor  #: nats per token or per time step, (R,)
    grad_norm: Tensor  #: before clipping, (R,) float64
    spectral_norm: Tensor  #: of each layer's W_hh after the update, (layers, R)
    spectral_radius: Tensor | None  #: of each layer's Jacobian at the origin, (layers, R), when it was due
    values_clipped: Tensor  #: singular values above the limit, all layers together, (R,)


@dataclass
class Iteration:
    """What the phases of one iteration read and hand on."""

    window: Lanes
    seeds: Tensor | None  #: of the masks, one a run
    embedded: Tensor | None = None  #: the words' vectors, where their gradient is taken by rows
    rows: Tensor = field(init=False)  #: of the input's weight, whose vectors they are
    total: Tensor = field(init=False)  #: negative log-likelihood (R,)
    states: list[Tensor] = field(init=False)  #: after the window
    gradients: list[Gradient] = field(init=False)
    grad_norm: Tensor = field(init=False)
    projected: Projected = field(init=False)
