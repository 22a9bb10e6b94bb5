"""Spectral clipping for any module and any optimizer: the projection after each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gruclip.dynamics import RecurrentLayer, StabilityLimit, recurrent_layers, stability_limit
from gruclip.errors import UserError
from gruclip.spectral import SpectralState, clip_singular_values_, spectral_norm


class ClippedMatrix(NamedTuple):
    """A line of `SpectralClipping.report`."""

    name: str
    cell: str
    spectral_norm: float
    limit: float  #: it is clipped at: the stability limit minus delta
    stability: StabilityLimit  #: for the biases of now
    last_clipped: int  #: values clipped in the last step
    total_clipped: int  #: in all steps since this object was made or its state loaded


class SpectralClipping:
    """Keeps sigma_1 of every recurrent layer's W_hh at or below its stability limit minus `delta`.

        clipping = SpectralClipping(model, delta=0.2).attach(optimizer)

    Finds every GRU, LSTM and tanh RNN in `module` (see `gruclip.dynamics`), gruclip's and torch's, several layers and
    both directions, and after each step of the optimizer projects the block of weight_hh through which the
    state is fed back: in place, so that cuDNN's flattened weights stay valid. A step that gradient scaling skips
    clips nothing. The limits are taken once, here, for the biases of now; with a candidate bias they are
    heuristics, and `report` says so.

    Raises `UserError` if `module` holds no such layer or `delta` is not inside (0, limit) of each.
    """

    def __init__(self, module: nn.Module, delta: float = 0.2, algorithm: str = "auto") -> None:
        self.layers = recurrent_layers(module)
        self.delta, self.algorithm = delta, algorithm
        self.limits: list[float] = []
        for layer in self.layers:
            limit = stability_limit(layer).value
            if not 0 < delta < limit:
                raise UserError(
                    f"delta={delta}: should be inside (0, {limit:.4g}), the limit of {layer.name} ({layer.cell})"
                )
            self.limits.append(limit - delta)
        self.states = [SpectralState() for _ in self.layers]
        self.last_clipped = [0] * len(self.layers)
        self.total_clipped = [0] * len(self.layers)
        self._hook: Any = None

    def attach(self, optimizer: torch.optim.Optimizer) -> SpectralClipping:
        """Clip now, so that training starts inside the limits, and after each `optimizer.step()`; returns self.

        Raises `UserError` if already attached, or if the optimizer has none of the clipped weights.
        """
        if self._hook is not None:
            raise UserError("SpectralClipping is attached to an optimizer already; detach() it first")
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not any(id(layer.weight_hh) in trained for layer in self.layers):
            raise UserError(
                f"the optimizer trains none of {', '.join(layer.name for layer in self.layers)}; "
                "pass the optimizer of the same module"
            )
        self.clip()
        self._hook = optimizer.register_step_post_hook(lambda *_: self.clip())
        return self

    def detach(self) -> None:
        """Clip no more; what was clipped stays."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @torch.no_grad()
    def clip(self) -> None:
        """Project every matrix now. Raises `NonFiniteError` for NaN or infinity in one."""
        for index, (layer, limit, state) in enumerate(zip(self.layers, self.limits, self.states, strict=True)):
            result = clip_singular_values_(layer.clipped.detach(), limit, algorithm=self.algorithm, state=state)
            self.last_clipped[index] = int(result.values_clipped)
            self.total_clipped[index] += self.last_clipped[index]

    def report(self) -> list[ClippedMatrix]:
        """Each matrix's name, spectral norm now, limit, and the values clipped."""
        return [
            ClippedMatrix(layer.name, layer.cell, _norm(layer), limit, stability_limit(layer), last, total)
            for layer, limit, last, total in zip(
                self.layers, self.limits, self.last_clipped, self.total_clipped, strict=True
            )
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """What the next step depends on, and the counts: plain tensors."""
        saved = {"last_clipped": torch.tensor(self.last_clipped), "total_clipped": torch.tensor(self.total_clipped)}
        for layer, state in zip(self.layers, self.states, strict=True):
            saved |= {f"{layer.name}/{name}": tensor for name, tensor in state.state_dict().items()}
        return saved

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Take what `state_dict` gave. Raises `UserError` if it is of other layers."""
        counts = [saved.get(name) for name in ("last_clipped", "total_clipped")]
        names = {layer.name for layer in self.layers}
        strangers = {key.split("/")[0] for key in saved if "/" in key} - names
        if strangers or any(count is None or len(count) != len(self.layers) for count in counts):
            raise UserError(
                f"state_dict is of other layers than {', '.join(sorted(names))}; load it into its own module"
            )
        self.last_clipped, self.total_clipped = (count.tolist() for count in counts if count is not None)
        for layer, state in zip(self.layers, self.states, strict=True):
            prefix = f"{layer.name}/"
            own = {key.removeprefix(prefix): tensor for key, tensor in saved.items() if key.startswith(prefix)}
            state.load_state_dict(own, device=layer.weight_hh.device)


def _norm(layer: RecurrentLayer) -> float:
    return float(spectral_norm(layer.clipped))
