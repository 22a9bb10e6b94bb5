"""The linearised cells: Jacobian, spectral radius, and the limit on sigma_1(W_hh) that keeps them stable.

Without input, at a fixed point s* of a layer's state, the dynamics are s -> s* + J (s - s*): locally
asymptotically stable when the spectral radius of J is below 1, unstable when it is above. Let W be the block of
weight_hh that is clipped (`clipped_block`) and sigma_1 its spectral norm. At the origin, with gates at their values
for zero input and state, r = sigmoid(b_r), z = sigmoid(b_z), and so on:

- ``gru``, the paper's: h' = z h + (1 - z) tanh(W (r h)), so J = diag(z) + diag(1 - z) W diag(r), and J = I/2 + W/4
  without biases. The origin is a fixed point when the candidate has no bias. If
  sigma_1 max(r) < 1 then A = W diag(r) has norm below 1, and J v = lambda v gives
  (lambda - z) v = (1 - z) A v, elementwise; |lambda| >= 1 would need |lambda - z_j| >= 1 - z_j for every j,
  hence ||v|| <= ||A v|| < ||v||. So sigma_1 < 1 / max(r) suffices whatever the update gate: 2 without biases.
- ``gru_reset_after``, `torch.nn.GRU`: h' = z h + (1 - z) tanh(r (W h + b_hn) + b_in), so J = diag(z) +
  diag(1 - z) diag(r) W when b_in = b_hn = 0. The same limit.
- ``lstm``: c' = f c + i tanh(W h), h' = o tanh(c'), so J = [[o i W, o f], [i W, f]] over (h, c). If J v = lambda v,
  v = (h, c): lambda h = o lambda c, h = o c, and (lambda - f) c = i W diag(o) c: |lambda| >= 1 would need
  ||c|| min_j((1 - f_j) / i_j) <= sigma_1 max(o) ||c||. So sigma_1 < min_j((1 - f_j) / i_j) / max(o) suffices: 2 without
  biases, 1.0758 at forget bias 1.
- ``tanh_rnn``: h' = tanh(W h + b), |tanh'| <= 1: sigma_1 < 1 suffices with any bias, and makes the map a
  contraction, so for all states.

A candidate bias moves the fixed point of the GRU and LSTM; the gates there depend on the other recurrent
blocks, and no limit on sigma_1 alone guarantees anything. The bias-free limit is then a heuristic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gruclip.choices import CELLS
from gruclip.errors import UserError
from gruclip.layers import RecurrentLayer, clipped_block, gate_rows, layers_with_values
from gruclip.spectral import check_matrices
from gruclip.spectral.products import finite_matrices, radii_by_products

FIXED_POINT_ITERATIONS = 500
NEWTON_STEPS = 50


# -- cells given by their recurrent weight alone ------------------------------------------------------


def gru_jacobian(weight_hh_candidate: Tensor) -> Tensor:
    """J = I/2 + W/4 of the GRU without biases at the origin, for W (..., n, n); either order of reset.

    The linearised GRU of Kanai, Fujiwara and Iwamura (2017).

    >>> gru_jacobian(torch.tensor([[2.0, 0.0], [0.0, -2.0]]))
    tensor([[1., 0.],
            [0., 0.]])
    """
    return weight_hh_candidate / 4 + _eye(weight_hh_candidate) / 2


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def cell_jacobian(cell: str, weight_hh: Tensor) -> Tensor:
    """Jacobian at the origin of a cell without biases, from weight_hh (..., gates n, n), by the module's formulas.

    (..., n, n), for the LSTM (..., 2n, 2n) over (h, c). Raises KeyError for a cell that `gruclip.choices.CELLS` lacks.
    """
    n = weight_hh.shape[-1]
    W = weight_hh[..., clipped_block(cell, n), :]
    if cell in ("gru", "gru_reset_after"):
        return gru_jacobian(W)
    if cell == "tanh_rnn":
        return W
    if cell != "lstm":
        raise KeyError(cell)
    eye = _eye(W).expand_as(W)
    return torch.cat((torch.cat((W / 4, eye / 4), dim=-1), torch.cat((W / 2, eye / 2), dim=-1)), dim=-2)


# -- layers of modules --------------------------------------------------------------------------------


class StabilityLimit(NamedTuple):
    """The limit on sigma_1 of the block of weight_hh that is clipped, and whether it guarantees stability."""

    value: float  #: sigma_1 below it keeps the layer stable at the origin
    guaranteed: bool  #: False: a heuristic, since a candidate bias moves the fixed point


class Linearization(NamedTuple):
    """A layer at a fixed point of its dynamics without input."""

    layer: RecurrentLayer
    state: Tensor | None  #: h (n,), for the LSTM (h, c) (2n,), float64; None where none was found
    jacobian: Tensor | None
    spectral_radius: float  #: NaN where no fixed point was found
    limit: StabilityLimit

    @property
    def output(self) -> Tensor:
        """h at the fixed point, (n,): what the layer above is fed."""
        assert self.state is not None
        return self.state[: self.layer.hidden_size]


def stability_limit(module: nn.Module) -> dict[str, StabilityLimit]:
    """The limit on sigma_1 of the block that is clipped, for the current biases, by the name of weight_hh.

    Raises `UserError` for a module without recurrent layers (see `gruclip.layers.recurrent_layers`).

    >>> stability_limit(nn.LSTM(3, 4, bias=False))
    {'weight_hh_l0': StabilityLimit(value=2.0, guaranteed=True)}
    >>> stability_limit(nn.GRU(3, 4))  # a candidate bias moves the fixed point
    {'weight_hh_l0': StabilityLimit(value=2.0, guaranteed=False)}
    """
    layers = layers_with_values(module)
    return {layer.name: limit for layer, limit in zip(layers, limits_of(layers), strict=True)}


def limits_of(layers: Sequence[RecurrentLayer]) -> list[StabilityLimit]:
    """The limit of each of `recurrent_layers`, as derived above; a candidate bias moves all layers above it, too."""
    return [_limit(layer, at_origin=not away) for layer, away in zip(layers, _moved(layers), strict=True)]


def _moved(layers: Sequence[RecurrentLayer]) -> list[bool]:
    """For each layer whether a bias moves its fixed point from the origin: its own, or one below."""
    moved: list[bool] = []
    for layer in layers:
        moved.append(_candidate_bias(layer) or any(moved[index] for index in layer.below))
    return moved


def _limit(layer: RecurrentLayer, at_origin: bool) -> StabilityLimit:
    """A layer's limit; at_origin: its fixed point is there."""
    cell, n, biases = layer.cell, layer.hidden_size, layer.biases
    if cell == "tanh_rnn" or not at_origin or biases is None:
        return StabilityLimit(CELLS[cell].bias_free_limit, guaranteed=cell == "tanh_rnn" or at_origin)
    bias = biases[0].detach().double() + biases[1].detach().double()
    gate = {name: torch.sigmoid(bias[gate_rows(cell, name, n)]) for name in CELLS[cell].gates}
    if cell == "lstm":
        return StabilityLimit(float(((1 - gate["f"]) / gate["i"]).min() / gate["o"].max()), guaranteed=True)
    return StabilityLimit(float(1 / gate["r"].max()), guaranteed=True)


def _candidate_bias(layer: RecurrentLayer) -> bool:
    """Whether the layer's own bias moves its fixed point from the origin."""
    if layer.biases is None:
        return False
    rows = clipped_block(layer.cell, layer.hidden_size)
    b_ih, b_hh = (bias.detach()[rows] for bias in layer.biases)
    moves = (b_ih != 0) | (b_hh != 0) if layer.cell == "gru_reset_after" else b_ih + b_hh != 0
    return bool(moves.any())


def jacobian_at_origin(module: nn.Module) -> dict[str, Tensor]:
    """J of every recurrent layer at the origin without input, by the name of its weight_hh.

    (n, n), for the LSTM (2n, 2n) over (h, c). Raises `UserError` where a candidate bias moves the fixed point:
    `linearize` finds it.

    >>> gru = nn.GRU(3, 2, bias=False)
    >>> gru.weight_hh_l0.data[-2:] = 2 * torch.eye(2)  # the candidate's rows: at the limit
    >>> jacobian_at_origin(gru)
    {'weight_hh_l0': tensor([[1., 0.],
            [0., 1.]])}
    """
    layers = layers_with_values(module)
    for layer, moved in zip(layers, _moved(layers), strict=True):
        if moved:
            whose = "its" if _candidate_bias(layer) else "a lower layer's"
            raise UserError(
                f"{layer.name}: {whose} candidate bias moves the fixed point from the origin; use linearize"
            )
    return {layer.name: _origin_jacobian(layer) for layer in layers}


def _origin_jacobian(layer: RecurrentLayer) -> Tensor:
    """J by the formulas of the module's docstring."""
    cell, n, W = layer.cell, layer.hidden_size, layer.clipped.detach()
    bias = W.new_zeros(layer.weight_hh.shape[0])
    if layer.biases is not None:
        bias = (layer.biases[0] + layer.biases[1]).detach()
    if cell == "tanh_rnn":
        return W.clone()
    gate = {name: torch.sigmoid(bias[gate_rows(cell, name, n)]) for name in CELLS[cell].gates}
    if cell == "lstm":
        into_c = torch.cat((gate["i"][:, None] * W, torch.diag(gate["f"])), dim=1)
        return torch.cat((gate["o"][:, None] * into_c, into_c))
    r, z = gate["r"], gate["z"]
    fed_back = W * r if cell == "gru" else r[:, None] * W
    return torch.diag(z) + (1 - z)[:, None] * fed_back


def free_step(layer: RecurrentLayer, state: Tensor, x: Tensor | None = None) -> Tensor:
    """The state (..., n), for the LSTM (..., 2n) = [h, c], one step later under the constant input x (k,) or none."""
    cell, n = layer.cell, layer.hidden_size
    weight_hh = layer.weight_hh.detach().to(state)
    given = recurrent_bias = state.new_zeros(weight_hh.shape[0])
    if layer.biases is not None:
        given, recurrent_bias = (bias.detach().to(state) for bias in layer.biases)
    if x is not None:
        given = given + layer.weight_ih.detach().to(state) @ x.to(state)
    h = state[..., :n]
    if cell == "tanh_rnn":
        return torch.tanh(h @ weight_hh.mT + given + recurrent_bias)
    rows = {name: gate_rows(cell, name, n) for name in CELLS[cell].gates}
    a = h @ weight_hh.mT + recurrent_bias
    if cell == "lstm":
        i, f, o = (torch.sigmoid(a[..., rows[g]] + given[rows[g]]) for g in "ifo")
        c = f * state[..., n:] + i * torch.tanh(a[..., rows["g"]] + given[rows["g"]])
        return torch.cat((o * torch.tanh(c), c), dim=-1)
    r, z = (torch.sigmoid(a[..., rows[g]] + given[rows[g]]) for g in "rz")
    candidate = rows["n"]
    fed_back = r * a[..., candidate]
    if cell == "gru":
        fed_back = (r * h) @ weight_hh[candidate].mT + recurrent_bias[candidate]
    return z * h + (1 - z) * torch.tanh(fed_back + given[candidate])


def linearize(module: nn.Module) -> list[Linearization]:
    """Every recurrent layer of `module` at a fixed point of its dynamics without input.

    The origin where it is fixed; else the point to which the free dynamics from the origin lead, or a nearby root,
    by Newton's method in float64. In layers above one another the fixed output below is the constant input
    above, so that the Jacobian of the whole is block triangular and its spectral radius the largest of these. Where no
    fixed point is found, state and Jacobian are None and the radius is NaN. Raises `UserError` for a module without
    recurrent layers, and for one that is sharded.
    """
    done: list[Linearization] = []
    for layer in layers_with_values(module):
        if any(done[index].state is None for index in layer.below):
            done.append(Linearization(layer, None, None, float("nan"), _limit(layer, at_origin=False)))
            continue
        outputs = [done[index].output for index in layer.below]
        x = torch.cat(outputs) if outputs else None
        moved = _candidate_bias(layer) or (x is not None and bool((x != 0).any()))
        limit = _limit(layer, at_origin=not moved)
        state = _fixed_point(layer, x)
        if state is None:
            done.append(Linearization(layer, None, None, float("nan"), limit))
            continue
        jacobian = _jacobian(layer, state, x)
        done.append(Linearization(layer, state, jacobian, float(spectral_radius(jacobian)), limit))
    return done


def _jacobian(layer: RecurrentLayer, state: Tensor, x: Tensor | None) -> Tensor:
    return torch.func.jacrev(lambda s: free_step(layer, s, x))(state)


def _fixed_point(layer: RecurrentLayer, x: Tensor | None) -> Tensor | None:
    """A root of step(s) - s in float64, to 1e-10; None where Newton's method does not find one."""
    size = layer.hidden_size * (2 if layer.cell == "lstm" else 1)
    origin = torch.zeros(size, dtype=torch.float64, device=layer.weight_hh.device)
    led_to = origin
    for _ in range(FIXED_POINT_ITERATIONS):
        before, led_to = led_to, free_step(layer, led_to, x)
        if torch.equal(before, led_to):
            break
    for state in (led_to, origin):
        for _ in range(NEWTON_STEPS):
            off = free_step(layer, state, x) - state
            if float(off.abs().max()) < 1e-10:
                return state
            slope = torch.eye(size, dtype=state.dtype, device=state.device) - _jacobian(layer, state, x)
            step, failed = torch.linalg.solve_ex(slope, off)
            if bool(failed) or not bool(torch.isfinite(step).all()):
                break
            state = state + step
    return None


def spectral_radius(matrix: Tensor | nn.Module) -> Tensor:
    """The largest absolute eigenvalue: of each matrix of a batch (..., n, n), or of a module's free dynamics.

    For a module the largest over its layers, each at its fixed point (see `linearize`); NaN without one, and for a
    matrix that holds NaN or infinity. It has no gradient. Float64 for a module, of the matrices' dtype otherwise.
    Raises `UserError` for what is not square, float32 or float64, and for a module without recurrent layers.

    >>> round(float(spectral_radius(torch.tensor([[0.0, 4.0], [1.0, 0.0]]))), 4)
    2.0
    """
    if isinstance(matrix, nn.Module):
        every = [done.spectral_radius for done in linearize(matrix)]
        return torch.tensor(every, dtype=torch.float64, device="cpu").amax()
    if not isinstance(matrix, Tensor):
        raise UserError(f"matrix of {type(matrix).__name__}: should be a tensor, or a module")
    check_matrices(matrix, "matrix")
    if matrix.shape[-1] != matrix.shape[-2]:
        raise UserError(f"matrix of shape {tuple(matrix.shape)}: should be square (..., n, n)")
    # LAPACK fails on NaN and infinity; on a GPU eigvals takes one matrix after another, and longer for each.
    finite, safe = finite_matrices(matrix.detach())
    radii = radii_by_products(safe).to(matrix) if matrix.is_cuda else torch.linalg.eigvals(safe).abs().amax(-1)
    return torch.where(finite, radii, torch.nan)
