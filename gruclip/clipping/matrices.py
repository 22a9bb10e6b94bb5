"""Which matrices the parameters of a module hold, and why some cannot be clipped."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from gruclip.choices import CELLS, MIN_DELTA, is_delta
from gruclip.clipping.selection import Select, pick
from gruclip.dynamics import limits_of
from gruclip.errors import UserError
from gruclip.gru import GRU
from gruclip.layers import ON_META, SCRIPT, RecurrentLayer, find_recurrent, full_name, is_scripted
from gruclip.spectral import check_writable
from gruclip.spectral.arguments import is_a

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Recurrent = (nn.RNNBase, nn.RNNCellBase, GRU)
Convolution = nn.modules.conv._ConvNd

SCRIPTED_LAYERS = ("Linear", *(f"Conv{kind}{axes}d" for kind in ("", "Transpose") for axes in (1, 2, 3)))

AGAIN = "make a new SpectralClipping of the module as it is"
WHOLE = "singular values are those of a whole matrix; clip before it is sharded, or leave it out"


@dataclass(frozen=True)
class ClippedParameter:
    """A parameter of a module as a stack of matrices; looked up whenever it is asked for."""

    name: str  #: in the module, e.g. "blocks.0.attention.in_proj_weight"
    root: nn.Module  #: the module that was searched
    path: str  #: of the module in it that has the parameter
    attribute: str
    blocks: int  #: matrices stacked in its first axis
    chosen: slice  #: those of them that are clipped
    limit: float = math.inf  #: given for each of these
    layer: RecurrentLayer | None = None  #: whose candidate's matrix has one of its own: `stability` minus `delta`
    stability: float = math.inf
    delta: float = 0.0

    def tensor(self) -> Tensor:
        """The module's current parameter. Raises `UserError`, with the reason, if it cannot be clipped."""
        part, parameter = self.found()
        if blocks_of(part, self.attribute, parameter) != self.blocks or parameter.shape[0] % self.blocks:
            raise UserError(f"{self.name} of shape {tuple(parameter.shape)}: was {self.blocks} matrices; {AGAIN}")
        return parameter

    def found(self) -> tuple[nn.Module, Tensor]:
        """The owning module and the parameter, whatever its number of matrices."""
        try:
            part = self.root.get_submodule(self.path) if self.path else self.root
        except AttributeError as error:
            raise self._gone() from error
        if isinstance(part, torch.jit.ScriptModule):
            raise UserError(f"{self.name}: {SCRIPT}")
        parameter = part._parameters.get(self.attribute)
        if parameter is None:
            if how := _computers(part).get(self.attribute):
                left_out = (
                    "leave it out with select=" if self.layer is None else "leave recurrent layers out: delta=None"
                )
                raise UserError(
                    f"{self.name}: is computed by {how} at each forward pass; remove that first, or {left_out}"
                )
            raise self._gone()
        check(self.name, parameter)
        return part, parameter

    def matrices(self, parameter: Tensor) -> Tensor:
        """(blocks, m, n): a view of the parameter, or a copy where its memory has another order."""
        return parameter.detach().unflatten(0, (self.blocks, -1)).flatten(2)[self.chosen]

    def put_back(self, parameter: Tensor, matrices: Tensor) -> None:
        """Copy clipped matrices back into the parameter unless they are views of it."""
        if matrices.untyped_storage().data_ptr() != parameter.untyped_storage().data_ptr():
            parameter.detach().copy_(matrices.reshape(parameter.shape))

    @property
    def candidate(self) -> int | None:
        """Index of the candidate's block among the chosen matrices."""
        if self.layer is None:
            return None
        return _candidate(self.layer) if self.limit < math.inf else 0

    @property
    def limits(self) -> tuple[float, ...]:
        """One for each of the chosen matrices."""
        limits = [self.limit] * len(range(self.blocks)[self.chosen])
        if self.candidate is not None:
            limits[self.candidate] = min(self.limit, self.stability - self.delta)
        return tuple(limits)

    def stable(self, stability: float, delta: float) -> ClippedParameter:
        """With this stability limit and delta. Raises `UserError` where the latter is not inside (0, the former)."""
        if self.layer is not None and not is_delta(delta, stability):
            whose = f"the limit of {self.name} ({self.layer.cell})"
            raise UserError(f"delta={delta}: should be inside (0, {stability:.4g}), {whose}, by {MIN_DELTA:g} of it")
        return replace(self, stability=stability, delta=delta)

    def _gone(self) -> UserError:
        return UserError(f"{self.name}: the module has no such parameter any more; {AGAIN}")


def find(module: nn.Module, delta: float | None, limit: float | None, select: Select | None) -> list[ClippedParameter]:
    """The parameters to be clipped: the recurrent layers' by `delta`, and at `limit` what `select` picks.

    Raises `UserError` where there is none, and for what cannot be clipped.
    """
    if delta is None and limit is None:
        raise UserError("give delta= for the recurrent layers, limit= for other weights, or both")
    if select is not None and limit is None:
        raise UserError("select= picks what is clipped at limit=; give that too")
    for path, part in module.named_modules():
        if is_a(part, "FullyShardedDataParallel"):
            raise UserError(f"{path or 'the module'}: FullyShardedDataParallel shards its parameters; {WHOLE}")
    found: dict[str, ClippedParameter] = {}
    if delta is not None:
        found = {entry.name: entry for entry in _stable(find_recurrent(module), delta)}
    if limit is not None:
        selected = _selected(module, select)
        if not selected:
            raise UserError(
                f"limit={limit:g}: holds for no weight of {type(module).__name__}; without select= it is for Linear, "
                "MultiheadAttention and convolutions, select='*weight_hh*' picks recurrent ones"
            )
        for path, part, attribute in selected:
            entry = _limited(module, path, part, attribute, limit)
            if stable := found.get(entry.name):  # each gate's matrix at the limit, the candidate's at the smaller
                entry = replace(entry, layer=stable.layer, stability=stable.stability, delta=stable.delta)
            found[entry.name] = entry
    if not found:
        raise UserError(f"{type(module).__name__}: holds no recurrent layer; limit= clips other weights")
    return list(found.values())


def _stable(layers: list[RecurrentLayer], delta: float) -> Iterator[ClippedParameter]:
    """The candidates' blocks, with the stability limits of now."""
    entries = []
    for layer in layers:
        blocks, chosen = len(CELLS[layer.cell].gates), slice(_candidate(layer), _candidate(layer) + 1)
        attribute = f"weight_hh{layer.suffix}"
        entry = ClippedParameter(layer.name, layer.root, layer.path, attribute, blocks, chosen, layer=layer)
        entries.append(entry)
        entry.tensor()  # on the meta device its biases, which set the limit, have no values
    for entry, (stability, _) in zip(entries, limits_of(layers), strict=True):
        yield entry.stable(stability, delta)


def _candidate(layer: RecurrentLayer) -> int:
    """Index of the candidate among the gates of a layer's weight_hh."""
    return CELLS[layer.cell].gates.index(CELLS[layer.cell].candidate)


def _limited(root: nn.Module, path: str, part: nn.Module, attribute: str, limit: float) -> ClippedParameter:
    """Every matrix of a parameter at one limit. It may still be on the meta device: it is looked up at each step."""
    entry = ClippedParameter(full_name(path, attribute), root, path, attribute, 1, slice(None), limit)
    held = getattr(part, attribute, None)
    blocks = blocks_of(part, attribute, held if isinstance(held, nn.Parameter) and held.is_meta else entry.found()[1])
    return replace(entry, blocks=blocks)


def blocks_of(part: nn.Module, attribute: str, parameter: Tensor) -> int:
    """How many matrices are stacked in the first axis of a parameter."""
    if isinstance(part, Convolution) and attribute == "weight":
        return part.groups
    if isinstance(part, nn.MultiheadAttention) and attribute == "in_proj_weight":
        return 3
    if isinstance(part, Recurrent) and attribute.startswith(("weight_ih", "weight_hh")):
        return int(parameter.shape[0] // part.hidden_size)
    return 1


# -- what is selected ----------------------------------------------------------------------------------


def _selected(module: nn.Module, select: Select | None) -> list[tuple[str, nn.Module, str]]:
    """Path, module and attribute of each weight that `select` picks, or of those that are clipped without it."""
    weights = list(_weights(module))
    if select is None:
        return [(path, part, attribute) for path, part, attribute in weights if _is_layer_weight(part, attribute)]
    named = {full_name(path, attribute): (path, part, attribute) for path, part, attribute in weights}
    return [named[name] for name in pick(select, {name: getattr(*one[1:]) for name, one in named.items()})]


def _weights(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Every parameter; a computed weight in place of those that it is computed from."""
    for path, part in module.named_modules():
        if "parametrizations" in path.split("."):
            continue
        made = _computers(part)
        # Of torch's hooks; parametrisations keep theirs in modules of their own.
        originals = {f"{name}_{suffix}" for name in made for suffix in ("orig", "g", "v")}
        for attribute, parameter in part._parameters.items():
            if parameter is not None and attribute not in originals:
                yield path, part, attribute
        for attribute in made:
            yield path, part, attribute


def _is_layer_weight(part: nn.Module, attribute: str) -> bool:
    if isinstance(part, nn.MultiheadAttention):
        return attribute in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    scripted = is_scripted(part, *SCRIPTED_LAYERS)  # to be refused by name
    return (isinstance(part, nn.Linear | Convolution) or scripted) and attribute == "weight"


# -- what cannot be clipped ----------------------------------------------------------------------------


def check(name: str, parameter: Tensor) -> None:
    """Raise `UserError`, with the reason, where a parameter cannot be clipped."""
    if is_lazy(parameter):
        raise UserError(f"{name}: is not initialised yet; call the module once first")
    if is_a(parameter, "DTensor"):
        raise UserError(f"{name}: is a DTensor, sharded over devices; {WHOLE}")
    if parameter.is_meta:
        raise UserError(f"{name}: {ON_META}")
    if parameter.layout != torch.strided:
        raise UserError(f"{name} of layout {parameter.layout}: should be dense")
    if parameter.dtype not in DTYPES:
        raise UserError(f"{name} of {parameter.dtype}: should be float32, float64, bfloat16 or float16")
    if parameter.dim() < 2 or parameter.numel() == 0:
        raise UserError(f"{name} of shape {tuple(parameter.shape)}: should have two axes or more, and none of it empty")
    check_writable(name, parameter)


def _computers(part: nn.Module) -> dict[str, str]:
    """What computes which attribute of a module: its parametrisations and those of torch's hooks."""
    made = {}
    for hook in part._forward_pre_hooks.values():
        name = getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)
        if isinstance(name, str) and type(hook).__module__.startswith("torch.nn.utils."):
            made[name] = f"torch.nn.utils' {type(hook).__name__}"
    if parametrize.is_parametrized(part):
        assert isinstance(part.parametrizations, nn.ModuleDict)
        for name, steps in part.parametrizations.items():
            kinds = ", ".join(type(step).__name__.strip("_") for step in steps.children())
            made[name] = f"the parametrisation {kinds}"
    return made
