"""`clip_updates`: what each step of an optimizer adds to its matrices, projected."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gruclip.clipping.batches import Stack, batches, clip_stacks_
from gruclip.clipping.matrices import check
from gruclip.clipping.rounding import is_finite, norms_of, surely_inside
from gruclip.clipping.saved import join, split
from gruclip.clipping.selection import Select, check_optimizer, matrices, number, pick
from gruclip.errors import NonFiniteError, UserError
from gruclip.spectral import SpectralState, check_algorithm
from gruclip.spectral.eager import untraced

#: One for all, or of a parameter group, e.g. ``lambda group: 0.1 * group["lr"]``; infinity leaves a group alone.
Limit: TypeAlias = float | Callable[[dict[str, Any]], float]


#: What to do where an optimizer was made of parameters without their names.
UNNAMED = "; for the module's names make the optimizer of model.named_parameters()"


class ClippedUpdate(NamedTuple):
    """A line of `UpdateClipping.report`: the updates of one parameter."""

    name: str  #: of the parameter, where the optimizer was given names; else its group and place in it, e.g. "0.3"
    limit: float  #: of the last step; NaN before the first
    last_clipped: int  #: values clipped in the last step
    total_clipped: int  #: in all steps since this object was made or its state loaded


class Update(NamedTuple):
    """A parameter in a step that is under way."""

    name: str
    parameter: Tensor
    limit: float
    before: Tensor  #: a copy

    def change(self) -> Tensor:
        """(1, m, n), new."""
        return self.as_matrix(self.parameter.detach() - self.before)

    @staticmethod
    def as_matrix(tensor: Tensor) -> Tensor:
        """(1, m, n)."""
        return tensor.reshape(1, tensor.shape[0], -1)


def clip_updates(
    optimizer: torch.optim.Optimizer, limit: Limit, select: Select | None = None, algorithm: str = "auto"
) -> UpdateClipping:
    """Clip the singular values of what each `optimizer.step()` adds to a matrix, from now on.

    >>> layer = torch.nn.Linear(16, 8)
    >>> optimizer = torch.optim.SGD(layer.named_parameters(), lr=1.0)
    >>> clipping = clip_updates(optimizer, limit=lambda group: 0.1 * group["lr"])
    >>> before = layer.weight.detach().clone()
    >>> layer(torch.ones(4, 16)).square().sum().backward()
    >>> optimizer.step()
    >>> round(float(torch.linalg.matrix_norm(layer.weight.detach() - before, 2)), 4)
    0.1
    >>> [(line.name, line.last_clipped) for line in clipping.report()]
    [('weight', 1)]

    For any `torch.optim` optimizer, and every parameter of two axes or more, reshaped to first axis x rest (so that a
    fused in_proj_weight of query, key and value is one matrix, and a grouped convolution's weight, too), or those that
    `select` picks: names or patterns (`fnmatch`), or a predicate of name and parameter. An update is the change of
    the parameter by the whole step, learning rate, momentum and weight decay included, so `limit` is in the units of
    the weight; a function of the parameter group gives one in units of the learning rate, or each group its own;
    infinity leaves a group alone, and 0, as where a schedule's rate is 0, lets nothing move. The optimizer's own state
    stays as it is: momentum is that of the gradients, and LBFGS's curvature is that of the step before clipping.

    Afterwards sigma_1(W_new - W_old) <= limit (1 + 2e-6) + eps ||W_new||_F, the rounding of W_old + update. An update
    inside the limit is left bit for bit; a step skipped by gradient scaling changes nothing. Memory: a copy of each
    selected parameter from before a step to its end, one of an update (on a GPU of those of a shape), and one that is
    carried from step to step of each update that had to be decomposed. Where weights are clipped, too, these are
    clipped last, whatever was attached first, and W_new is the weight before that. A deep copy of what is returned, or
    one that was pickled, is attached to nothing.

    Raises `UserError` for a limit that is not positive, and for what cannot be clipped; among these are parameters of
    16 bits, where rounding W_old + update moves the weight as far as updates do. MuCon (arXiv 2605.26459) and SPECTRA
    (arXiv 2603.14315) do this by Newton-Schulz iterations, for their own optimizers.
    """
    return UpdateClipping(optimizer, limit, select, algorithm).attach()


class UpdateClipping:
    """What `clip_updates` returns, attached: `detach`, `report`, and the state for a checkpoint."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, limit: Limit, select: Select | None = None, algorithm: str = "auto"
    ) -> None:
        check_algorithm(algorithm)
        check_optimizer(optimizer)
        self.optimizer, self.limit, self.select, self.algorithm = optimizer, limit, select, algorithm
        self.states: dict[str, SpectralState] = {}
        self.limits: dict[str, float] = {}
        self.last_clipped: dict[str, int] = {}
        self.total_clipped: dict[str, int] = {}
        self._under_way: list[list[Update]] = []
        # Where a step calls that of its base class, torch calls the hooks for both, if it has patched that class, too.
        self._deepest = sum(
            "step" in vars(kind) for kind in type(optimizer).__mro__ if kind is not torch.optim.Optimizer
        )
        self._hooks: list[Any] = []
        self._known: tuple[tuple[str, int], ...] = ()
        self._picked: set[str] = set()
        chosen = self._chosen()
        if not chosen:
            raise UserError("the optimizer has no parameter of two axes or more")
        for name, parameter, group in chosen:
            self._limit(group)
            _check(name, parameter)

    def __getstate__(self) -> dict[str, Any]:
        # A copied or loaded optimizer has no hooks: attach the copy.
        return {**self.__dict__, "_hooks": [], "_under_way": []}

    def attach(self) -> UpdateClipping:
        """Clip the updates of each step from now on; returns self. Raises `UserError` if attached."""
        if self._hooks:
            raise UserError("the updates are clipped already; detach() first")
        begin = self.optimizer.register_step_pre_hook(self._before_step)
        end = self.optimizer.register_step_post_hook(self._after_step)
        # Before those that project weights: what they do is no part of the update.
        order = self.optimizer._optimizer_step_post_hooks
        assert isinstance(order, OrderedDict)
        order.move_to_end(end.id, last=False)
        self._hooks = [begin, end]
        return self

    def detach(self) -> None:
        """Clip no more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def report(self) -> list[ClippedUpdate]:
        """For each parameter its name, the limit of the last step, and the values clipped."""
        names = [name for name, _, _ in self._chosen()]
        last, total = self.last_clipped, self.total_clipped
        return [ClippedUpdate(name, self.limits.get(name, math.nan), last.get(name, 0), total[name]) for name in names]

    def state_dict(self) -> dict[str, Tensor]:
        """What the next step depends on, and the counts: plain tensors."""
        names = [name for name, _, _ in self._chosen()]
        counts = [(self.last_clipped.get(name, 0), self.total_clipped[name]) for name in names]
        return join(names, counts, [self.states[name] for name in names])

    def load_state_dict(self, saved: Mapping[str, Tensor]) -> None:
        """Take what `state_dict` gave. Raises `UserError` if it is of other parameters."""
        parameters = {name: parameter for name, parameter, _ in self._chosen()}
        for name, (counts, held) in split(saved, list(parameters)).items():
            self.last_clipped[name], self.total_clipped[name] = counts
            self.states[name].load_state_dict(held, device=parameters[name].device)

    def _chosen(self) -> list[tuple[str, Tensor, dict[str, Any]]]:
        """Name, parameter and group of each selected parameter, as they are now."""
        offered: dict[str, tuple[Tensor, dict[str, Any]]] = {}
        for number_of_group, group in enumerate(self.optimizer.param_groups):
            numbered = [f"{number_of_group}.{place}" for place in range(len(group["params"]))]
            for place, name in enumerate(group.get("param_names", numbered)):
                offered[numbered[place] if name in offered else name] = group["params"][place], group
        known = tuple((name, id(parameter)) for name, (parameter, _) in offered.items())
        if known != self._known:
            named = {name: parameter for name, (parameter, _) in offered.items()}
            unnamed = not any("param_names" in group for group in self.optimizer.param_groups)
            picked = matrices(named) if self.select is None else pick(self.select, named, UNNAMED if unnamed else "")
            self._known, self._picked = known, set(picked)
            for name in picked:
                self.states.setdefault(name, SpectralState())
                self.total_clipped.setdefault(name, 0)
        return [(name, *offered[name]) for name in offered if name in self._picked]

    def _limit(self, group: dict[str, Any]) -> float:
        if not callable(self.limit):
            limit = number("limit", self.limit)
            if not limit > 0:
                raise UserError(f"limit={self.limit}: should be a positive number")
            return limit
        limit = number("limit(group)", self.limit(group))
        if not limit >= 0:
            rate = f" of a group with lr={group['lr']}" if "lr" in group else ""
            raise UserError(f"limit(group)={limit}{rate}: should be a positive number, or 0 where nothing may move")
        return limit

    @untraced
    @torch.no_grad()
    def _before_step(self, *_: object) -> None:
        begun: list[Update] = []
        self.last_clipped = {}
        for name, parameter, group in self._chosen():
            limit = self.limits[name] = self._limit(group)
            if limit < math.inf:
                _check(name, parameter)
                begun.append(Update(name, parameter, limit, parameter.detach().clone()))
        # Those before it are of steps around this one, or of some that an exception ended: no more of these are kept.
        self._under_way = [*self._under_way, begun][-self._deepest :]

    @untraced
    @torch.no_grad()
    def _after_step(self, *_: object) -> None:
        under_way = self._under_way.pop() if self._under_way else []
        every_norm = norms_of(update.change() for update in under_way)
        for update, norms in zip(under_way, every_norm, strict=True):
            if not is_finite(norms, update.change):
                raise NonFiniteError(f"the update of {update.name} holds NaN or infinity; no update was clipped")
        outside: list[Update] = []
        for update, norms in zip(under_way, every_norm, strict=True):
            if update.limit == 0 and any(norms):  # a schedule has come to a rate of 0
                self._count(update, min(update.as_matrix(update.before).shape[-2:]))
                update.parameter.detach().copy_(update.before)
            elif update.limit > 0 and not surely_inside(norms, [update.limit]):
                outside.append(update)
        for batch in batches([update.as_matrix(update.before) for update in outside], self.algorithm):
            updates = [outside[place] for place in batch]
            stacks = [Stack(update.change(), [update.limit], self.states[update.name]) for update in updates]
            for update, stack, count in zip(updates, stacks, clip_stacks_(stacks, self.algorithm), strict=True):
                if count:
                    torch.add(update.before, stack.matrices.view_as(update.before), out=update.parameter.detach())
                self._count(update, count)

    def _count(self, update: Update, count: int) -> None:
        self.last_clipped[update.name] = self.last_clipped.get(update.name, 0) + count
        self.total_clipped[update.name] += count


def _check(name: str, parameter: Tensor) -> None:
    check(name, parameter)
    if parameter.dtype.itemsize < 4:
        raise UserError(
            f"{name} of {parameter.dtype}: rounding the weight moves it as far as updates do; "
            "clip those of float32 master weights"
        )
