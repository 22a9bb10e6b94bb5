"""Which of some named parameters are to be clipped: by names, patterns or a predicate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gruclip.errors import UserError

#: Names or patterns of names as in `fnmatch`, e.g. "blocks.*.weight", or a predicate of a name and a parameter.
Select: TypeAlias = Callable[[str, Tensor], bool] | str | Sequence[str]


#: Names that a message lists at most.
SHOWN = 6


def pick(select: Select, offered: Mapping[str, Tensor], remedy: str = "") -> list[str]:
    """The names of the parameters of two axes or more that are selected, each once.

    Raises `UserError` where a predicate, or any of the patterns, picks none.
    """
    possible = matrices(offered)
    if callable(select):
        picked = [name for name in possible if select(name, offered[name])]
        if not picked:
            raise UserError(f"select: the predicate picks none of {len(possible)} parameters of two axes or more")
        return picked
    patterns = [select] if isinstance(select, str) else select
    if not isinstance(patterns, Sequence) or not patterns or not all(isinstance(one, str) for one in patterns):
        raise UserError(f"select={select!r}: should be a name or pattern, several of them, or a predicate")
    chosen: dict[str, None] = {}
    for pattern in patterns:
        named = [name for name in offered if fnmatchcase(name, pattern)]
        picked = [name for name in named if name in possible]
        if not picked:
            what = f"picks {named[0]}, which has one axis" if named else "picks no parameter"
            some = ", ".join(possible[:SHOWN]) + (", ..." if len(possible) > SHOWN else "")
            raise UserError(
                f"select={pattern!r}: {what}; weights of two axes or more are {some or 'not there'}{remedy}"
            )
        chosen |= dict.fromkeys(picked)
    return list(chosen)


def check_optimizer(optimizer: object) -> None:
    """Raise `UserError` for what is no optimizer, has no hooks, or is to be differentiated through."""
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"optimizer of {type(optimizer).__name__}: should be a torch.optim.Optimizer")
    if not hasattr(optimizer, "_optimizer_step_post_hooks"):
        raise UserError(
            f"optimizer of {type(optimizer).__name__}: was made without Optimizer.__init__ and has no hooks; give the "
            "optimizer inside it"
        )
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise UserError(
            "optimizer with differentiable=True: clipping after a step has no gradient; use clip_singular_values"
        )


def trained_by(*optimizers: Optimizer) -> set[int]:
    """The ids of the parameters that these optimizers have."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {id(parameter) for group in groups for parameter in group["params"]}


def share(optimizer: Optimizer, optimizers: Sequence[Optimizer]) -> Callable[[int], bool] | None:
    """Which parameters, by their ids, are looked at after a step of one of these optimizers; None: all of them.

    Of several those that it trains, since looks at all would grow with their square; and after the first one's those
    that none trains, as where they are frozen or were replaced.
    """
    first, *others = optimizers
    if not others:
        return None
    own = trained_by(optimizer)
    if optimizer is not first:
        return own.__contains__
    elsewhere = trained_by(*others) - own
    return lambda parameter: parameter not in elsewhere


def matrices(offered: Mapping[str, Tensor]) -> list[str]:
    """The names of the parameters of two axes or more."""
    return [name for name, parameter in offered.items() if is_lazy(parameter) or parameter.dim() > 1]


def number(name: str, value: object) -> float:
    """A setting as a float. Raises `UserError` if it is none."""
    try:
        if isinstance(value, bool | str | bytes):
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # the last of a tensor on the meta device
        raise UserError(f"{name}={repr(value)[:40]}: should be a number") from error
