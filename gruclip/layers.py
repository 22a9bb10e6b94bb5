"""The recurrent layers in a module: gruclip's and torch's, and which block of their weights is clipped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gruclip.choices import CELLS
from gruclip.errors import UserError
from gruclip.gru import GRU
from gruclip.spectral.arguments import is_a

#: torch's single cells, as `CELLS` has them.
SINGLE_CELLS = {nn.RNNCell: "tanh_rnn", nn.GRUCell: "gru_reset_after", nn.LSTMCell: "lstm"}
#: Recurrent modules that TorchScript may have been made of; and what is said of one, and of one without values.
SCRIPTED = ("GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell")
ON_META = "is on the meta device; call to_empty(device=...) and initialise it first"
SCRIPT = "is TorchScript, which shows no more what it is; clip the module before it is scripted or traced"


def clipped_block(cell: str, hidden_size: int) -> slice:
    """The rows of weight_hh that spectral clipping projects: the candidate's.

    >>> clipped_block("lstm", 100)  # gates i, f, g, o
    slice(200, 300, None)
    """
    return gate_rows(cell, CELLS[cell].candidate, hidden_size)


def gate_rows(cell: str, gate: str, hidden_size: int) -> slice:
    """The rows of a gate in weight_hh, weight_ih and the biases, which have hidden_size of them for each gate."""
    start = CELLS[cell].gates.index(gate) * hidden_size
    return slice(start, start + hidden_size)


@dataclass(frozen=True)
class RecurrentLayer:
    """One direction of one layer of a recurrent module, whose tensors are looked up whenever they are asked for."""

    name: str  #: of weight_hh in the module, e.g. "rnn.weight_hh_l0_reverse"
    cell: str  #: of `gruclip.choices.CELLS`
    root: nn.Module  #: the module that was searched
    path: str  #: of the recurrent module in it
    suffix: str  #: of the parameters, e.g. "_l0_reverse"; none of a single cell's
    below: tuple[int, ...]  #: places in the list of the layers it is fed from, none for the first

    def _tensor(self, name: str) -> Any:
        return getattr(self.root.get_submodule(self.path), f"{name}{self.suffix}", None)

    @property
    def weight_ih(self) -> Tensor:
        """Of the inputs, (gates n, k)."""
        return self._tensor("weight_ih")

    @property
    def weight_hh(self) -> Tensor:
        """Of the state, (gates n, n)."""
        return self._tensor("weight_hh")

    @property
    def biases(self) -> tuple[Tensor, Tensor] | None:
        """bias_ih and bias_hh, (gates n,) each, of a layer that has them."""
        b_ih, b_hh = self._tensor("bias_ih"), self._tensor("bias_hh")
        return None if b_ih is None else (b_ih, b_hh)

    @property
    def hidden_size(self) -> int:
        """Units n: columns of weight_hh."""
        return self.weight_hh.shape[-1]

    @property
    def clipped(self) -> Tensor:
        """The block that is clipped, a view (n, n)."""
        return self.weight_hh[clipped_block(self.cell, self.hidden_size)]


def recurrent_layers(module: nn.Module) -> list[RecurrentLayer]:
    """Every layer and direction of every GRU, LSTM and tanh RNN in `module`, gruclip's and torch's, single cells too.

    What a single cell is fed is its caller's affair: it counts as a first layer. Raises `UserError` if there is none,
    for relu in place of tanh, for a TorchScript module, and for an LSTM with projections, whose state is fed back
    through a product of two parameters.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.RNN(3, 5, num_layers=2))
    >>> [(layer.name, layer.cell, layer.below) for layer in recurrent_layers(model)]
    [('1.weight_hh_l0', 'tanh_rnn', ()), ('1.weight_hh_l1', 'tanh_rnn', (0,))]
    """
    layers = find_recurrent(module)
    if not layers:
        raise UserError(f"{type(module).__name__}: holds no GRU, LSTM or tanh RNN; pass a module that does")
    return layers


def layers_with_values(module: nn.Module) -> list[RecurrentLayer]:
    """`recurrent_layers`. Raises `UserError` where they are on the meta device or sharded, too."""
    layers = recurrent_layers(module)
    for layer in layers:
        if is_a(layer.weight_hh, "DTensor"):
            raise UserError(f"{layer.name}: is a DTensor, sharded over devices; give a module of whole tensors")
        if layer.weight_hh.is_meta:
            raise UserError(f"{layer.name}: {ON_META}")
    return layers


def check_module(module: object) -> None:
    """Raise `UserError` for what is no module."""
    if not isinstance(module, nn.Module):
        raise UserError(f"module of {type(module).__name__}: should be a torch.nn.Module")


def is_scripted(part: nn.Module, *names: str) -> bool:
    """Whether it is TorchScript's, made of a module of one of these classes."""
    return isinstance(part, torch.jit.ScriptModule) and getattr(part, "original_name", None) in names


def find_recurrent(module: nn.Module) -> list[RecurrentLayer]:
    """`recurrent_layers`, of which there may be none."""
    check_module(module)
    layers: list[RecurrentLayer] = []
    for path, part in module.named_modules():
        if is_scripted(part, *SCRIPTED):
            raise UserError(f"{path or part.original_name}: {SCRIPT}")
        if isinstance(part, nn.RNNBase | GRU):
            layers += _layers_of(module, path, part, len(layers))
        elif isinstance(part, tuple(SINGLE_CELLS)):
            if isinstance(part, nn.RNNCell) and part.nonlinearity == "relu":
                raise _no_limit_for_relu(part, path)
            cell = next(cell for kind, cell in SINGLE_CELLS.items() if isinstance(part, kind))
            layers.append(RecurrentLayer(full_name(path, "weight_hh"), cell, module, path, "", ()))
    return layers


def full_name(path: str, attribute: str) -> str:
    """The name of a parameter, without what `torch.compile` puts before the names of a module that it wraps."""
    return ".".join(part for part in (*path.split("."), attribute) if part not in ("", "_orig_mod"))


def _layers_of(root: nn.Module, path: str, part: nn.RNNBase | GRU, offset: int) -> Iterator[RecurrentLayer]:
    cell = "gru" if isinstance(part, GRU) else {"GRU": "gru_reset_after", "LSTM": "lstm"}.get(part.mode, "tanh_rnn")
    if not isinstance(part, GRU) and part.mode == "RNN_RELU":
        raise _no_limit_for_relu(part, path)
    if not isinstance(part, GRU) and part.proj_size > 0:
        raise UserError(
            f"{path or type(part).__name__}: proj_size={part.proj_size}: its state is fed back through weight_hh times "
            "weight_hr, and no limit is known for either alone; take proj_size=0, or clip both with "
            "SpectralClipping(..., delta=None, limit=..., select='*weight_h*')"
        )
    directions = ("", "_reverse") if part.bidirectional else ("",)
    below: tuple[int, ...] = ()
    for layer in range(part.num_layers):
        for direction in directions:
            suffix = f"_l{layer}{direction}"
            yield RecurrentLayer(full_name(path, f"weight_hh{suffix}"), cell, root, path, suffix, below)
        below = tuple(range(offset + layer * len(directions), offset + (layer + 1) * len(directions)))


def _no_limit_for_relu(part: nn.Module, path: str) -> UserError:
    return UserError(
        f"{path or type(part).__name__}: nonlinearity='relu' has no limit here; take tanh, or "
        "SpectralClipping(..., delta=None, limit=..., select='*weight_hh*')"
    )
