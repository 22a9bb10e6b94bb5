"""The recurrent layers in a module: gruclip's and torch's, and which block of their weights is clipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from gruclip.errors import UserError
from gruclip.gru import GRU

#: Gates stacked in the rows of weight_hh, in torch's order; h is the tanh RNN's only one.
GATES = {"gru": "rzn", "gru_reset_after": "rzn", "lstm": "ifgo", "tanh_rnn": "h"}
#: The gate whose matrix is clipped: the one through which the state is fed back.
CANDIDATE = {"gru": "n", "gru_reset_after": "n", "lstm": "g", "tanh_rnn": "h"}


def clipped_block(cell: str, hidden_size: int) -> slice:
    """The rows of weight_hh that spectral clipping projects: the candidate's.

    >>> clipped_block("lstm", 100)  # gates i, f, g, o
    slice(200, 300, None)
    """
    return gate_rows(cell, CANDIDATE[cell], hidden_size)


def gate_rows(cell: str, gate: str, hidden_size: int) -> slice:
    """The rows of a gate in weight_hh, weight_ih and the biases, which have hidden_size of them for each gate."""
    start = GATES[cell].index(gate) * hidden_size
    return slice(start, start + hidden_size)


class RecurrentLayer(NamedTuple):
    """One direction of one layer of a recurrent module, its tensors those of the module."""

    name: str  #: of weight_hh in the module, e.g. "rnn.weight_hh_l0_reverse"
    cell: str  #: of `GATES`
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    below: tuple[int, ...]  #: places in the list of the layers it is fed from, none for the first

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
    and for relu in place of tanh or an LSTM with projections.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.RNN(3, 5, num_layers=2))
    >>> [(layer.name, layer.cell, layer.below) for layer in recurrent_layers(model)]
    [('1.weight_hh_l0', 'tanh_rnn', ()), ('1.weight_hh_l1', 'tanh_rnn', (0,))]
    """
    layers: list[RecurrentLayer] = []
    for name, part in module.named_modules():
        # torch.compile wraps a module under this name.
        prefix = name.replace("_orig_mod.", "").removesuffix("_orig_mod")
        prefix = f"{prefix}." if prefix else ""
        if isinstance(part, nn.RNNBase | GRU):
            layers += _layers_of(part, prefix, len(layers))
        elif isinstance(part, nn.RNNCellBase):
            layers.append(_layer_of_cell(part, prefix))
    if not layers:
        raise UserError(f"{type(module).__name__}: holds no GRU, LSTM or tanh RNN; pass a module that does")
    return layers


def _layers_of(part: nn.RNNBase | GRU, prefix: str, offset: int) -> Iterator[RecurrentLayer]:
    cell = "gru" if isinstance(part, GRU) else {"GRU": "gru_reset_after", "LSTM": "lstm"}.get(part.mode, "tanh_rnn")
    if not isinstance(part, GRU) and part.mode == "RNN_RELU":
        raise _no_limit_for_relu(part, prefix)
    if not isinstance(part, GRU) and part.proj_size > 0:
        raise UserError(f"{prefix or type(part).__name__}: proj_size={part.proj_size}: should be 0")
    directions = ("", "_reverse") if part.bidirectional else ("",)
    below: tuple[int, ...] = ()
    for layer in range(part.num_layers):
        for direction in directions:
            suffix = f"_l{layer}{direction}"
            weight_ih, weight_hh = getattr(part, f"weight_ih{suffix}"), getattr(part, f"weight_hh{suffix}")
            bias_ih, bias_hh = (getattr(part, f"bias_{kind}{suffix}") if part.bias else None for kind in ("ih", "hh"))
            yield RecurrentLayer(f"{prefix}weight_hh{suffix}", cell, weight_ih, weight_hh, bias_ih, bias_hh, below)
        below = tuple(range(offset + layer * len(directions), offset + (layer + 1) * len(directions)))


def _layer_of_cell(part: nn.RNNCellBase, prefix: str) -> RecurrentLayer:
    if isinstance(part, nn.RNNCell) and part.nonlinearity == "relu":
        raise _no_limit_for_relu(part, prefix)
    cell = {nn.GRUCell: "gru_reset_after", nn.LSTMCell: "lstm"}.get(type(part), "tanh_rnn")
    bias_ih, bias_hh = (part.bias_ih, part.bias_hh) if part.bias else (None, None)
    return RecurrentLayer(f"{prefix}weight_hh", cell, part.weight_ih, part.weight_hh, bias_ih, bias_hh, ())


def _no_limit_for_relu(part: nn.Module, prefix: str) -> UserError:
    return UserError(f"{prefix or type(part).__name__}: nonlinearity='relu' has no limit here; take tanh")
