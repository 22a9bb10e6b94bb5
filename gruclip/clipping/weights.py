"""`SpectralClipping`: the weights of any module, projected after each step of any optimizer."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gruclip.clipping.batches import Stack, batches, clip_stacks_
from gruclip.clipping.matrices import ClippedParameter, find
from gruclip.clipping.rounding import is_finite, norm_dtype, norms_of, surely_inside
from gruclip.clipping.saved import join, split
from gruclip.clipping.selection import Select, check_optimizer, number, share, trained_by
from gruclip.dynamics import StabilityLimit, stability_limit
from gruclip.errors import NonFiniteError, UserError
from gruclip.layers import check_module
from gruclip.spectral import SpectralState, check_algorithm, spectral_norm
from gruclip.spectral.eager import untraced

#: The entry of a saved parameter that holds the stability limit of its layer.
STABILITY = "stability"


class ClippedMatrix(NamedTuple):
    """A line of `SpectralClipping.report`: one parameter; of several matrices in it, the one nearest to its limit."""

    name: str  #: in the module, e.g. "rnn.weight_hh_l0"
    cell: str | None  #: of `gruclip.choices.CELLS`, for a recurrent layer's matrix clipped by delta
    spectral_norm: float  #: NaN for a matrix that is not finite
    limit: float  #: it is clipped at: the one given, or the stability limit minus delta
    stability: StabilityLimit | None  #: of that layer, for the biases of now
    last_clipped: int  #: values clipped in the last step, in all matrices of the parameter
    total_clipped: int  #: in all steps since this object was made or its state loaded


class _Found(NamedTuple):
    """A parameter of now."""

    place: int  #: its index
    entry: ClippedParameter
    parameter: Tensor
    matrices: Tensor
    limits: tuple[float, ...]  #: one for each of these


class SpectralClipping:
    """Keeps the singular values of a module's weights at or below their limits.

    >>> model = torch.nn.GRU(8, 64)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> clipping = SpectralClipping(model, delta=0.2).attach(optimizer)  # and train as before
    >>> [line] = clipping.report()
    >>> line.name, line.cell, line.limit, line.spectral_norm <= line.limit
    ('weight_hh_l0', 'gru_reset_after', 1.8, True)

    `delta` is for recurrent layers: in every GRU, LSTM and tanh RNN (see `gruclip.dynamics`), gruclip's and torch's,
    several layers, both directions and single cells, the block of weight_hh through which the state is fed back is
    clipped at its stability limit minus delta. The stability limits are those of the biases of now, and are saved with
    the state: in a run that is resumed, make this object before the weights are loaded, or load its state before it is
    attached. Where a candidate bias, the layer's own or one below, moves the fixed point, they are heuristics, and
    `report` says so. The method is that of Kanai, Fujiwara and Iwamura (2017), there for the GRU. delta=None leaves
    these layers alone.

    `limit` is for other weights, those of every Linear, MultiheadAttention and convolution, or those that `select`
    picks instead: names or patterns (`fnmatch`), or a predicate of name and parameter, which is asked about parameters
    of two axes or more.

    >>> model = torch.nn.Sequential(torch.nn.Embedding(100, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 100))
    >>> clipping = SpectralClipping(model, limit=0.5, select=["1.weight", "0.*"])
    >>> clipping.clip()
    >>> [(line.name, round(line.spectral_norm, 3)) for line in clipping.report()]
    [('1.weight', 0.5), ('0.weight', 0.5)]

    What is a matrix: in_proj_weight is three, those of query, key and value; a convolution's weight (a transposed
    one's, too) is reshaped to first axis x rest, for each group alone; a recurrent layer's weight_ih and weight_hh, if
    picked, are one for each gate, and delta still holds for the candidate's unless it is None; any other parameter is
    reshaped to first axis x rest. ``README.md`` in `gruclip/clipping` says what a limit then means.

    After each step of an optimizer that it is attached to, the weights are clipped in place; where there are several,
    those that this optimizer trains, and after the first one's those that none trains. They are looked up by name each
    time, so that a module may be moved, converted, or given other parameters; one that has several names is clipped
    once. A step that gradient scaling skips clips nothing. Afterwards sigma_1 <= limit (1 + 2e-6), in float32, float64,
    bfloat16 and float16 alike.

    Raises `UserError` if nothing is found, `delta` is not inside (0, limit) of each recurrent layer, `limit` is not
    positive and finite, and for what cannot be clipped: weights that are computed by a parametrisation, sharded, of
    another dtype, of one axis, or on the meta device: by `delta` here, by `limit` at a step.

    A deep copy, or one that was pickled, is attached to nothing.
    """

    def __init__(
        self,
        module: nn.Module,
        delta: float | None = 0.2,
        limit: float | None = None,
        select: Select | None = None,
        algorithm: str = "auto",
    ) -> None:
        check_algorithm(algorithm)
        check_module(module)
        self.module, self.algorithm = module, algorithm
        self._delta = None if delta is None else number("delta", delta)
        self._limit = None if limit is None else _positive(limit)
        self.parameters = find(module, self._delta, self._limit, select)
        self.states = [SpectralState() for _ in self.parameters]
        self.last_clipped = [0] * len(self.parameters)
        self.total_clipped = [0] * len(self.parameters)
        self._optimizers: tuple[torch.optim.Optimizer, ...] = ()
        self._hooks: list[Any] = []

    @property
    def delta(self) -> float | None:
        """Of the recurrent layers; may be set to another number, which holds from the next step on."""
        return self._delta

    @delta.setter
    def delta(self, delta: float) -> None:
        if self._delta is None:
            raise UserError(f"delta={delta}: recurrent layers were left out when this object was made; make a new one")
        value = number("delta", delta)
        self.parameters = [entry.stable(entry.stability, value) if entry.layer else entry for entry in self.parameters]
        self._delta = value

    @property
    def limit(self) -> float | None:
        """Of the other weights; may be set to another number, which holds from the next step on."""
        return self._limit

    @limit.setter
    def limit(self, limit: float) -> None:
        if self._limit is None:
            raise UserError(f"limit={limit}: other weights were left out when this object was made; make a new one")
        self._limit = value = _positive(limit)
        self.parameters = [
            replace(entry, limit=value) if entry.limit < math.inf else entry for entry in self.parameters
        ]

    def __getstate__(self) -> dict[str, Any]:
        # A copied or loaded optimizer has no hooks: attach the copy.
        return {**self.__dict__, "_optimizers": (), "_hooks": []}

    def attach(self, *optimizers: torch.optim.Optimizer) -> SpectralClipping:
        """Clip now, so that training starts inside the limits, and after each step of any of these; returns self.

        What is inside already, as after its state was loaded, stays as it is, and so does what is known of it.

        Raises `UserError` if already attached, or if a clipped weight that requires a gradient is trained by none.
        """
        if self._hooks:
            raise UserError(
                "SpectralClipping is attached already; detach() it, then attach(...) to all optimizers at once"
            )
        for optimizer in optimizers:
            check_optimizer(optimizer)
        optimizers = tuple(dict.fromkeys(optimizers))
        trained = trained_by(*optimizers)
        tensors = {entry.name: entry.tensor() for entry in self.parameters}
        left = [name for name, one in tensors.items() if one.requires_grad and id(one) not in trained]
        if left or not optimizers:
            raise UserError(
                f"no optimizer given trains {', '.join(left or tensors)}; pass every one that trains the module, or "
                "freeze what none trains with requires_grad_(False)"
            )
        known = any(self.total_clipped) or any(state.matrices for state in self.states)
        before = self.state_dict() if known else {}
        self.clip()
        if known and not any(self.last_clipped):
            self.load_state_dict(before)  # a look is no step: the next one starts from the same state
        self._optimizers = optimizers
        self._hooks = [optimizer.register_step_post_hook(self._after_step) for optimizer in optimizers]
        return self

    @untraced
    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        # A fused optimizer's step is called even if gradient scaling skips it: it checks found_inf itself.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not bool(found_inf):
            self._project(share(optimizer, self._optimizers))

    def detach(self) -> None:
        """Clip no more; what was clipped stays."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @untraced
    @torch.no_grad()
    def clip(self) -> None:
        """Project every matrix now.

        Raises `NonFiniteError`, before any is changed, for NaN or infinity in one; `UserError` for a parameter that has
        become one that cannot be clipped.
        """
        self._project(None)

    @torch.no_grad()
    def _project(self, chosen: Callable[[int], bool] | None) -> None:
        """`clip`, of parameters that are chosen by their ids, or of all."""
        found = [one for one in self._found() if chosen is None or chosen(id(one.parameter))]
        every_norm = norms_of([one.matrices for one in found])
        for one, norms in zip(found, every_norm, strict=True):
            if not is_finite(norms, partial(one.entry.matrices, one.parameter)):
                raise NonFiniteError(f"{one.entry.name} holds NaN or infinity; nothing was changed")
        if chosen is None:
            self.last_clipped = [0] * len(self.parameters)
        for one in found:
            self.last_clipped[one.place] = 0
        # A parameter with two entries, of different blocks, is clipped in two rounds, one after the other.
        rounds: defaultdict[int, list[_Found]] = defaultdict(list)
        seen: Counter[int] = Counter()
        for one, norms in zip(found, every_norm, strict=True):
            if not surely_inside(norms, one.limits):
                rounds[seen[id(one.parameter)]].append(one)
                seen[id(one.parameter)] += 1
        for one_round in rounds.values():
            for batch in batches([one.matrices for one in one_round], self.algorithm):
                self._clip([one_round[place] for place in batch])

    def _clip(self, found: list[_Found]) -> None:
        """Clip a batch of distinct parameters."""
        every = [one.entry.matrices(one.parameter) for one in found]
        stacks = [
            Stack(matrices, one.limits, self.states[one.place]) for matrices, one in zip(every, found, strict=True)
        ]
        for one, matrices, count in zip(found, every, clip_stacks_(stacks, self.algorithm), strict=True):
            self.last_clipped[one.place] = count
            self.total_clipped[one.place] += count
            one.entry.put_back(one.parameter, matrices)

    def _found(self) -> list[_Found]:
        """The current parameters, one of several names once, at the smallest limits."""
        found: dict[tuple[int, int, int | None], _Found] = {}
        for index, entry in enumerate(self.parameters):
            parameter = entry.tensor()
            key = id(parameter), entry.blocks, entry.chosen.start
            if key in found:
                smaller = tuple(min(pair) for pair in zip(entry.limits, found[key].limits, strict=True))
                found[key] = found[key]._replace(limits=smaller)
            else:
                found[key] = _Found(index, entry, parameter, entry.matrices(parameter), entry.limits)
        return list(found.values())

    @torch.no_grad()
    def report(self) -> list[ClippedMatrix]:
        """For each parameter its name, cell, spectral norm now, limit, stability, and the values clipped."""
        stability = stability_limit(self.module) if any(entry.layer for entry in self.parameters) else {}
        lines = []
        for index, entry, _, matrices, limits in self._found():
            norm, limit, nearest = math.nan, limits[0], 0
            if bool(matrices.isfinite().all()):
                norms = spectral_norm(matrices.to(norm_dtype(matrices.dtype))).tolist()
                nearest = max(range(len(norms)), key=lambda block: norms[block] / limits[block])
                norm, limit = norms[nearest], limits[nearest]
            layer = entry.layer if nearest == entry.candidate else None
            of_layer = (layer.cell, stability[layer.name]) if layer else (None, None)
            counts = self.last_clipped[index], self.total_clipped[index]
            lines.append(ClippedMatrix(entry.name, of_layer[0], norm, limit, of_layer[1], *counts))
        return lines

    def state_dict(self) -> dict[str, Tensor]:
        """What the next step depends on, the stability limits among it, and the counts: plain tensors."""
        counts = list(zip(self.last_clipped, self.total_clipped, strict=True))
        stability = {
            f"{entry.name}/{STABILITY}": torch.tensor(entry.stability, dtype=torch.float64, device="cpu")
            for entry in self.parameters
            if entry.layer
        }
        return join([entry.name for entry in self.parameters], counts, self.states) | stability

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Take what `state_dict` gave; `delta` and `limit` stay as they are.

        Raises `UserError` if it is of other layers, or `delta` is not below a saved stability limit.
        """
        own = split(saved, [entry.name for entry in self.parameters])
        stability = {name: float(held.pop(STABILITY)) for name, (_, held) in own.items() if STABILITY in held}
        self.parameters = [
            entry.stable(stability[entry.name], entry.delta) if entry.name in stability else entry
            for entry in self.parameters
        ]
        for index, entry in enumerate(self.parameters):
            counts, held = own[entry.name]
            self.last_clipped[index], self.total_clipped[index] = counts
            self.states[index].load_state_dict(held, device=entry.tensor().device)


def _positive(limit: float) -> float:
    value = number("limit", limit)
    if not 0 < value < math.inf:
        raise UserError(f"limit={limit}: should be a positive number, and finite")
    return value
