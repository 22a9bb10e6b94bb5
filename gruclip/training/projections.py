"""The projection of a stack's recurrent matrices after each update, each run at its own limit or only measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.errors import NonFiniteError
from gruclip.kernels.graphs import Capture
from gruclip.spectral import (
    ClipResult,
    SpectralState,
    SubspaceState,
    algorithm_for,
    are_finite,
    clip_singular_values_,
    clip_singular_values_deferred_,
    redo_uncertified_,
    spectral_norm,
    spectral_norm_deferred,
)
from gruclip.spectral.products import finite_matrices
from gruclip.spectral.stages import Stages
from gruclip.training.widening import directions

#: How far above its limit a matrix may be found, relative to it: five times what the projection promises.
CHECKED = 1e-5


class ProjectionError(RuntimeError):
    """The projection does not hold its limit."""


class Projected(NamedTuple):
    """What became of the matrices of all layers."""

    values_clipped: Tensor  #: singular values above the limit, all layers together, (R,)
    spectral_norm: Tensor  #: after clipping, (layers, R); NaN for a matrix that is not finite
    deferred: list[ClipResult]  #: of each layer, where nobody has looked at the flags


class Projections:
    """Clips or measures the matrices (R, n, n) of every layer.

    `limits`: of each run, None where its matrices are only measured; `algorithm` as in `clip_singular_values_`;
    weights: the matrices, or others of their shape, dtype and device; `capture`: how the redo is captured.
    """

    def __init__(
        self,
        limits: Sequence[float | None],
        weights: Sequence[Tensor],
        algorithm: str,
        capture: Capture | None = None,
    ) -> None:
        device = weights[0].device
        self.algorithm = algorithm_for(weights[0], algorithm, followed=True)
        follows = self.algorithm == "program"
        self.states = [SubspaceState(weight) if follows else SpectralState() for weight in weights]
        self.any_limit = any(limit is not None for limit in limits)
        self.limits = torch.tensor(
            [torch.inf if limit is None else limit for limit in limits], dtype=torch.float64, device=device
        )
        #: Runs whose matrices are clipped, and those whose are only measured.
        self._limited, self._free = (
            torch.tensor([run for run, limit in enumerate(limits) if (limit is None) is free], device=device).long()
            for free in (False, True)
        )
        self._redone = [0] * len(limits)
        self._stages = Stages(capture)
        self._held = self._subspaces()

    @property
    def needs_no_host(self) -> bool:
        """Whether the host decides nothing in `project`, so that it can be captured in a CUDA graph."""
        return self.algorithm in ("products", "program")

    def project(self, weights: Sequence[Tensor]) -> Projected:
        """Clip in place, where runs are clipped, and measure."""
        if self.algorithm == "products":
            results = self._project_by_products(weights)
        else:
            results = [self._project_layer(weight, state) for weight, state in zip(weights, self.states, strict=True)]
        norms = [torch.where(one.finite, one.spectral_norm.to(torch.float64), torch.nan) for one in results]
        clipped = torch.stack([one.values_clipped for one in results]).sum(0)
        # By `program` what is only measured, too.
        deferred = self.algorithm == "program" or (self.algorithm == "products" and self.any_limit)
        return Projected(clipped, torch.stack(norms), results if deferred else [])

    def redo(self, weights: Sequence[Tensor], projected: Projected) -> bool:
        """Redo what deferred projections could not certify, and mend `projected` in place; whether any was.

        The host waits for the device.
        """
        any_redone = False
        for layer, (weight, result, state) in enumerate(zip(weights, projected.deferred, self.states, strict=False)):
            if not bool((result.certified | ~result.finite).all()):
                followed = state if isinstance(state, SubspaceState) else None
                full = redo_uncertified_(weight, self.limits, result, followed, self._stages)
                self._count(full)
                projected.values_clipped.add_(full.values_clipped - result.values_clipped)
                norms = projected.spectral_norm
                norms[layer] = torch.where(full.redone, full.spectral_norm, norms[layer])
                any_redone = True
        return any_redone

    def adapt(self, weights: Sequence[Tensor]) -> None:
        """Follow more directions of each matrix where too many steps had no certificate. The host waits."""
        states = [state for state in self.states if isinstance(state, SubspaceState)]
        if states:
            carried = directions(weights, self.limits, states)
            for state in states:
                state.widen(carried)

    def pop_moved(self) -> bool:
        """Whether a subspace has moved in memory since the last call, so that a captured `project` is stale."""
        before, self._held = self._held, self._subspaces()
        return any(one is not other for one, other in zip(before, self._held, strict=True))

    def run_state(self, index: int) -> dict[str, Tensor]:
        """Copies of what is known of one run's matrices."""
        return {
            f"projection/{layer}/{name}": tensor
            for layer, state in enumerate(self.states)
            for name, tensor in state.index_select(index).state_dict().items()
        }

    def load_run_state(self, index: int, state: Mapping[str, Tensor]) -> None:
        """Take what `run_state` gave from among other tensors."""
        for layer, known in enumerate(self.states):
            prefix = f"projection/{layer}/"
            saved = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
            known.load_state_dict(saved, index, self.limits.device)

    def _subspaces(self) -> list[Tensor]:
        return [state.right for state in self.states if isinstance(state, SubspaceState)]

    def check(self, weights: Sequence[Tensor]) -> None:
        """Raise `ProjectionError` where a clipped matrix is not inside its limit, by torch's own decompositions.

        In float64. All of a layer are inside where ``bound^2 I - W W^T`` has a Cholesky factor; a matrix for which it
        has none is decomposed. For the ends of epochs, not for every step.
        """
        for layer, weight in enumerate(weights if len(self._limited) else ()):
            matrices = weight[self._limited].double()
            bounds = self.limits[self._limited] * (1 + CHECKED)
            gaps = torch.baddbmm(torch.diag_embed(bounds.square()[:, None].expand(matrices.shape[:2])), matrices,
                                 matrices.mT, alpha=-1)  # fmt: skip
            outside = torch.linalg.cholesky_ex(gaps).info != 0
            for run in self._limited[outside & are_finite(matrices)].tolist():
                matrix, limit = weight[run].double(), float(self.limits[run])
                norm = float(torch.linalg.matrix_norm(matrix, 2))
                if norm > limit * (1 + CHECKED):
                    raise ProjectionError(
                        f"layer {layer}, run {run} of the stack: sigma_1 is {norm:.8g} after clipping at {limit:.8g} "
                        f"by {self.algorithm}: a fault of gruclip, please report it"
                    )

    def pop_redone(self) -> list[int]:
        """How many matrices of each run were redone for want of a certificate, since the last call."""
        redone, self._redone = self._redone, [0] * len(self.limits)
        return redone

    def _project_by_products(self, weights: Sequence[Tensor]) -> list[ClipResult]:
        """Clip those matrices of all layers, at once, that have a limit; the others cost a fifth, since they are only
        measured."""
        layers = torch.stack(list(weights))
        if not self.any_limit:
            return [_measured(norms) for norms in spectral_norm_deferred(layers)]
        matrices = layers[:, self._limited]
        clipped = clip_singular_values_deferred_(matrices, self.limits[self._limited].expand(matrices.shape[:2]))
        measured = _measured(spectral_norm_deferred(layers[:, self._free])) if len(self._free) else None
        for weight, of_layer in zip(weights, matrices, strict=True):
            weight.index_copy_(0, self._limited, of_layer)

        def merged(of_limited: Tensor, of_free: Tensor) -> Tensor:
            both = of_limited.new_empty(*of_limited.shape[:1], len(self.limits))
            return both.index_copy(1, self._limited, of_limited).index_copy(1, self._free, of_free)

        whole = clipped if measured is None else ClipResult(*map(merged, clipped, measured))
        return [ClipResult(*parts) for parts in zip(*whole, strict=True)]

    def _project_layer(self, weight: Tensor, state: SpectralState | SubspaceState) -> ClipResult:
        """Clip the matrices of a layer, or only measure them. A run whose update overflowed keeps its matrix: the
        next loss is not finite and ends it."""
        if isinstance(state, SubspaceState):
            return clip_singular_values_deferred_(weight, self.limits, state)
        try:
            return self._clip_or_measure(weight, state)
        except NonFiniteError:
            finite, matrices = finite_matrices(weight)
            result = self._clip_or_measure(matrices, state)
            weight[finite] = matrices[finite]
            return result._replace(finite=finite)

    def _clip_or_measure(self, weight: Tensor, state: SpectralState) -> ClipResult:
        if not self.any_limit:
            return _measured(spectral_norm(weight, state))
        result = clip_singular_values_(weight, self.limits, algorithm=self.algorithm, state=state)
        self._count(result)
        return result

    def _count(self, result: ClipResult) -> None:
        self._redone = [count + int(one) for count, one in zip(self._redone, result.redone.tolist(), strict=True)]


def _measured(norms: Tensor) -> ClipResult:
    """The result for matrices that were left as they were; NaN: they are not finite."""
    none = torch.zeros_like(norms, dtype=torch.bool)
    return ClipResult(none.long(), norms, ~none, ~norms.isnan(), none)
