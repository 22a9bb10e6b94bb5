"""Spectral clipping for any module and any optimizer: the projection after each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gruclip.dynamics import StabilityLimit, limits_of
from gruclip.errors import NonFiniteError, UserError
from gruclip.layers import recurrent_layers
from gruclip.spectral import SpectralState, check_algorithm, clip_singular_values_, spectral_norm


class ClippedMatrix(NamedTuple):
    """A line of `SpectralClipping.report`: one recurrent layer in one direction."""

    name: str  #: of weight_hh in the module, e.g. "rnn.weight_hh_l0"
    cell: str  #: of `gruclip.layers.GATES`
    spectral_norm: float  #: NaN for a matrix that is not finite
    limit: float  #: it is clipped at: the stability limit minus delta
    stability: StabilityLimit  #: for the biases of now
    last_clipped: int  #: values clipped in the last step
    total_clipped: int  #: in all steps since this object was made or its state loaded


class SpectralClipping:
    """Keeps sigma_1 of every recurrent layer's W_hh at or below its stability limit minus `delta`.

    >>> model = torch.nn.GRU(8, 64)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> clipping = SpectralClipping(model, delta=0.2).attach(optimizer)  # and train as before
    >>> [line] = clipping.report()
    >>> line.name, line.cell, line.limit, line.spectral_norm <= line.limit
    ('weight_hh_l0', 'gru_reset_after', 1.8, True)

    Finds every GRU, LSTM and tanh RNN in `module` (see `gruclip.dynamics`), gruclip's and torch's, several layers,
    both directions and single cells, trained by the optimizer or not, and after each of its steps projects the block of
    weight_hh through which the state is fed back: in place, so that cuDNN's flattened weights stay valid. A step that
    gradient scaling skips clips nothing. The limits are taken once, here, for the biases of now; where a candidate
    bias, the layer's own or one below, moves the fixed point, they are heuristics, and `report` says so.

    Raises `UserError` if `module` holds no such layer, one in neither float32 nor float64, or `delta` is not inside
    (0, limit) of each. The method is that of Kanai, Fujiwara and Iwamura (2017), there for the GRU.
    """

    def __init__(self, module: nn.Module, delta: float = 0.2, algorithm: str = "auto") -> None:
        check_algorithm(algorithm)
        self.layers = recurrent_layers(module)
        try:
            self.delta, self.algorithm = float(delta), algorithm
        except (TypeError, ValueError) as error:
            raise UserError(f"delta={delta!r}: should be a number") from error
        self.limits: list[float] = []
        for layer, (limit, _) in zip(self.layers, limits_of(self.layers), strict=True):
            if layer.weight_hh.dtype not in (torch.float32, torch.float64):
                raise UserError(f"{layer.name} of {layer.weight_hh.dtype}: should be float32 or float64")
            if not 0 < self.delta < limit:
                raise UserError(
                    f"delta={delta}: should be inside (0, {limit:.4g}), the limit of {layer.name} ({layer.cell})"
                )
            self.limits.append(limit - self.delta)
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
        self._hook = optimizer.register_step_post_hook(self._after_step)
        return self

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        # A fused optimizer is called for a step that gradient scaling skips, too, and looks at this itself.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not bool(found_inf):
            self.clip()

    def detach(self) -> None:
        """Clip no more; what was clipped stays."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    @torch.no_grad()
    def clip(self) -> None:
        """Project every matrix now. Raises `NonFiniteError`, before any is changed, for NaN or infinity in one."""
        for name, finite in zip((layer.name for layer in self.layers), self._finite(), strict=True):
            if not finite:
                raise NonFiniteError(f"{name} holds NaN or infinity; nothing was changed")
        for index, (layer, limit, state) in enumerate(zip(self.layers, self.limits, self.states, strict=True)):
            result = clip_singular_values_(layer.clipped.detach(), limit, algorithm=self.algorithm, state=state)
            self.last_clipped[index] = int(result.values_clipped)
            self.total_clipped[index] += self.last_clipped[index]

    def _finite(self) -> list[bool]:
        flags = [layer.clipped.detach().isfinite().all().to(self.layers[0].weight_hh.device) for layer in self.layers]
        return list(map(bool, torch.stack(flags).tolist()))

    @torch.no_grad()
    def report(self) -> list[ClippedMatrix]:
        """For each matrix its name, cell, spectral norm now, limit, stability, and the values clipped."""
        norms = [
            float(spectral_norm(layer.clipped)) if finite else math.nan
            for layer, finite in zip(self.layers, self._finite(), strict=True)
        ]
        columns = norms, self.limits, limits_of(self.layers), self.last_clipped, self.total_clipped
        return [
            ClippedMatrix(layer.name, layer.cell, *line) for layer, *line in zip(self.layers, *columns, strict=True)
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """What the next step depends on, and the counts: plain tensors."""
        saved = {"last_clipped": torch.tensor(self.last_clipped), "total_clipped": torch.tensor(self.total_clipped)}
        for layer, state in zip(self.layers, self.states, strict=True):
            saved |= {f"{layer.name}/{name}": tensor for name, tensor in state.state_dict().items()}
        return saved

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Take what `state_dict` gave. Raises `UserError` if it is of other layers."""
        counts = [torch.as_tensor(saved.get(name, ())) for name in ("last_clipped", "total_clipped")]
        names = {layer.name for layer in self.layers}
        strangers = {key.rpartition("/")[0] for key in saved if "/" in key} - names
        if strangers or any(count.shape != (len(self.layers),) for count in counts):
            raise UserError(
                f"state_dict is of other layers than {', '.join(sorted(names))}; load it into its own module"
            )
        self.last_clipped, self.total_clipped = (count.tolist() for count in counts)
        for layer, state in zip(self.layers, self.states, strict=True):
            prefix = f"{layer.name}/"
            own = {key.removeprefix(prefix): tensor for key, tensor in saved.items() if key.startswith(prefix)}
            state.load_state_dict(own, device=layer.weight_hh.device)
