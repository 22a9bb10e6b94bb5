"""The linearised cells, against autograd through the cells themselves and against their free dynamics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gruclip import choices
from gruclip.dynamics import cell_jacobian, free_step, jacobian_at_origin, linearize, spectral_radius, stability_limit
from gruclip.errors import UserError
from gruclip.gru import GRU
from gruclip.layers import clipped_block, recurrent_layers

SIZE = 7
MODULES = {
    "gru": GRU,
    "gru_reset_after": nn.GRU,
    "lstm": nn.LSTM,
    "tanh_rnn": nn.RNN,
}
CELLS = list(MODULES)


def test_every_cell_is_tested_here_and_no_other_has_a_jacobian() -> None:
    assert list(choices.CELLS) == CELLS
    with pytest.raises(KeyError):
        cell_jacobian("mgu", torch.zeros(2, 2))


def module_of(cell: str, bias: bool = True, num_layers: int = 1, scale: float = 1.0, **options: bool) -> nn.Module:
    """A module whose parameters are drawn anew, larger than torch draws them, the candidate's biases zero."""
    generator = torch.Generator().manual_seed(SIZE)
    module = MODULES[cell](SIZE, SIZE, num_layers, bias=bias, **options).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator) / math.sqrt(SIZE))
            if "bias" in name:
                parameter[clipped_block(cell, SIZE)] = 0
    return module


def state_after(module: nn.Module, state: Tensor, steps: int = 1) -> Tensor:
    """The state [h] or [h, c] of a one-layer module `steps` steps of zero input later."""
    x = torch.zeros(steps, 1, SIZE, dtype=state.dtype)
    if isinstance(module, nn.LSTM):
        _, (h, c) = module(x, (state[:SIZE].view(1, 1, -1), state[SIZE:].view(1, 1, -1)))
        return torch.cat((h.flatten(), c.flatten()))
    return module(x, state.view(1, 1, -1))[1].flatten()


def origin(cell: str) -> Tensor:
    return torch.zeros(SIZE * (2 if cell == "lstm" else 1), dtype=torch.float64)


def autograd_jacobian(module: nn.Module, at: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda state: state_after(module, state), at)


@pytest.mark.parametrize("cell", CELLS)
def test_the_jacobian_without_biases_is_the_cells_own(cell):
    module = module_of(cell, bias=False)
    expected = autograd_jacobian(module, origin(cell))
    torch.testing.assert_close(cell_jacobian(cell, module.weight_hh_l0.detach()), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(jacobian_at_origin(module)["weight_hh_l0"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", ["gru", "gru_reset_after", "lstm"])
def test_the_jacobian_with_biases_on_the_gates_is_the_cells_own(cell):
    module = module_of(cell)
    expected = autograd_jacobian(module, origin(cell))
    torch.testing.assert_close(jacobian_at_origin(module)["weight_hh_l0"], expected, rtol=0, atol=1e-12)


def test_the_jacobian_of_a_stack_of_weights_is_each_ones():
    weights = torch.randn(4, len(choices.CELLS["lstm"].gates) * SIZE, SIZE, dtype=torch.float64)
    expected = torch.stack([cell_jacobian("lstm", weight) for weight in weights])
    assert torch.equal(cell_jacobian("lstm", weights), expected)
    assert spectral_radius(expected).shape == (4,)


@pytest.mark.parametrize("cell", CELLS)
def test_the_free_step_is_the_modules(cell):
    module = module_of(cell)
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    state = torch.randn(origin(cell).shape, dtype=torch.float64).tanh()
    (layer,) = recurrent_layers(module)
    torch.testing.assert_close(free_step(layer, state), state_after(module, state).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("target", [0.95, 1.05])
def test_the_free_dynamics_return_to_the_origin_when_the_radius_is_below_one_and_leave_it_above(cell, target):
    module = module_of(cell, bias=False)
    block = module.weight_hh_l0.data[clipped_block(cell, SIZE)]
    low, high = 0.0, 100.0
    original = block.clone()
    for _ in range(32):
        middle = (low + high) / 2
        block.copy_(original * middle)
        low, high = (middle, high) if float(spectral_radius(module)) < target else (low, middle)
    assert float(spectral_radius(module)) == pytest.approx(target, abs=1e-6)
    start = 1e-6 * torch.randn(origin(cell).shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    after = state_after(module, start, 300).detach()
    assert (float(after.norm()) < float(start.norm())) == (target < 1)


@pytest.mark.parametrize("cell", CELLS)
def test_below_the_stability_limit_the_radius_is_below_one_whatever_the_gates(cell):
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        module = module_of(cell)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))
                if "bias" in name:
                    parameter[clipped_block(cell, SIZE)] = 0
            (layer,) = recurrent_layers(module)
            limit = stability_limit(module)[layer.name]
            assert limit.guaranteed
            layer.clipped.mul_(0.9999 * limit.value / torch.linalg.matrix_norm(layer.clipped, 2))
        assert float(spectral_radius(module)) < 1


def test_at_the_limit_without_biases_the_radius_reaches_one():
    # sigma_1 = limit in the worst direction, a multiple of the identity: so no larger limit would do.
    for cell in CELLS:
        module = module_of(cell, bias=False)
        (layer,) = recurrent_layers(module)
        with torch.no_grad():
            layer.clipped.copy_(stability_limit(module)[layer.name].value * torch.eye(SIZE))
        assert float(spectral_radius(module)) == pytest.approx(1, abs=1e-7)


def test_the_limits_that_the_protocol_states():
    for cell, limit in {"gru": 2.0, "gru_reset_after": 2.0, "lstm": 2.0, "tanh_rnn": 1.0}.items():
        assert stability_limit(module_of(cell, bias=False)) == {"weight_hh_l0": (limit, True)}
    lstm = module_of("lstm", scale=0.0)
    with torch.no_grad():
        lstm.bias_hh_l0[SIZE : 2 * SIZE] = 1
    assert stability_limit(lstm)["weight_hh_l0"].value == pytest.approx(1.0758, abs=1e-4)


@pytest.mark.parametrize("cell", ["gru", "gru_reset_after", "lstm"])
def test_a_candidate_bias_moves_the_fixed_point_and_takes_the_guarantee(cell):
    module = module_of(cell)
    with torch.no_grad():
        module.bias_ih_l0[clipped_block(cell, SIZE)] = 0.5
    (found,) = linearize(module)
    assert not found.limit.guaranteed
    assert found.limit == stability_limit(module)["weight_hh_l0"]
    assert found.state is not None
    assert float(found.state.abs().max()) > 0.01
    torch.testing.assert_close(state_after(module, found.state).detach(), found.state, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.jacobian, autograd_jacobian(module, found.state), rtol=0, atol=1e-9)
    with pytest.raises(UserError, match="weight_hh_l0: its candidate bias moves the fixed point"):
        jacobian_at_origin(module)


def test_the_reset_products_own_bias_counts_in_torchs_gru():
    # In the paper's cell the two candidate biases add up; inside a reset product they do not cancel.
    for cell, guaranteed in (("gru", True), ("gru_reset_after", False)):
        module = module_of(cell)
        with torch.no_grad():
            module.bias_ih_l0[clipped_block(cell, SIZE)] = 0.5
            module.bias_hh_l0[clipped_block(cell, SIZE)] = -0.5
        assert stability_limit(module)["weight_hh_l0"].guaranteed == guaranteed


@pytest.mark.parametrize("cell", ["gru_reset_after", "lstm", "tanh_rnn"])
def test_layers_and_directions_above_are_linearised_where_the_fixed_output_below_puts_them(cell):
    module = module_of(cell, num_layers=2, bidirectional=True, scale=0.5)
    with torch.no_grad():
        for name, bias in module.named_parameters():
            if "bias" in name:
                bias[clipped_block(cell, SIZE)] = 0.5 if name.startswith("bias_ih_l0") else 0
    layers = linearize(module)
    assert {found.layer.name: found.limit for found in layers} == stability_limit(module)
    assert [found.limit.guaranteed for found in layers] == [cell == "tanh_rnn"] * 4
    with pytest.raises(UserError, match="weight_hh_l0: its candidate bias"):
        jacobian_at_origin(module)
    assert [found.layer.name for found in layers] == [
        "weight_hh_l0",
        "weight_hh_l0_reverse",
        "weight_hh_l1",
        "weight_hh_l1_reverse",
    ]
    output = module(torch.zeros(400, 1, SIZE, dtype=torch.float64))[0][200, 0]
    expected = torch.cat([found.output for found in layers[2:]])
    torch.testing.assert_close(output.detach(), expected, rtol=0, atol=1e-8)


def test_layers_are_found_in_any_module_under_the_names_of_their_parameters():
    model = nn.ModuleDict({"encoder": nn.LSTM(3, SIZE), "head": nn.Linear(SIZE, 2), "paper": GRU(3, SIZE, 2)})
    names = [layer.name for layer in recurrent_layers(model)]
    assert names == ["encoder.weight_hh_l0", "paper.weight_hh_l0", "paper.weight_hh_l1"]
    assert set(names) <= {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(("single", "module"), [(nn.GRUCell, nn.GRU), (nn.LSTMCell, nn.LSTM), (nn.RNNCell, nn.RNN)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_single_cell_of_torchs_is_a_layer(single, module, bias):
    cell, layer = single(3, SIZE, bias=bias), module(3, SIZE, bias=bias)
    cell.load_state_dict({name.removesuffix("_l0"): tensor for name, tensor in layer.state_dict().items()})
    assert stability_limit(nn.ModuleDict({"cell": cell})) == {"cell.weight_hh": stability_limit(layer)["weight_hh_l0"]}
    assert float(spectral_radius(cell)) == float(spectral_radius(layer))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_radius_of_a_matrix_that_is_not_finite_is_not_a_number(bad):
    matrices = torch.eye(5).repeat(2, 1, 1)
    matrices[1, 0, 3] = bad
    assert spectral_radius(matrices).isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("matrix", "complaint"),
    [
        (torch.ones(3, 4), "should be square"),
        (torch.ones(3), "should be matrices"),
        (torch.ones(2, 0, 0), "should be matrices"),
        (torch.eye(3).bfloat16(), "should be float32 or float64"),
        (torch.eye(3).to_sparse(), "should be dense"),
        (torch.eye(3, device="meta"), "is on the meta device"),
        ([[1.0]], "matrix of list: should be a tensor, or a module"),
        (nn.GRU(3, 4, device="meta"), "weight_hh_l0: is on the meta device"),
    ],
)
def test_the_radius_of_what_is_no_square_matrix_is_refused(matrix, complaint):
    with pytest.raises(UserError, match=complaint):
        spectral_radius(matrix)


@pytest.mark.parametrize("function", [stability_limit, jacobian_at_origin, linearize])
def test_a_layer_without_values_is_named(function):
    with pytest.raises(UserError, match="weight_hh_l0: is on the meta device"):
        function(nn.GRU(3, 4, bias=False, device="meta"))


def test_a_default_device_is_none_of_the_radius_s_business():
    torch.manual_seed(0)
    module = nn.RNN(3, 4)
    expected = spectral_radius(module)
    with torch.device("meta"):
        assert torch.equal(spectral_radius(module), expected)


@pytest.mark.parametrize(
    ("module", "complaint"),
    [
        (nn.Linear(2, 2), "holds no GRU, LSTM or tanh RNN"),
        (nn.RNN(2, 2, nonlinearity="relu"), "nonlinearity='relu'"),
        (nn.RNNCell(2, 2, nonlinearity="relu"), "nonlinearity='relu'"),
        (nn.LSTM(2, 4, proj_size=2), "proj_size=2"),
    ],
)
def test_a_module_without_known_cells_is_refused(module, complaint):
    with pytest.raises(UserError, match=complaint):
        recurrent_layers(module)


def test_what_is_no_module_is_named() -> None:
    with pytest.raises(UserError, match=r"^module of str: should be a torch\.nn\.Module$"):
        stability_limit("gru")  # type: ignore[arg-type]


def test_layers_are_fed_from_those_of_their_own_module() -> None:
    model = nn.ModuleList([nn.RNN(3, 5), nn.GRU(3, 4, num_layers=3, bidirectional=True), GRU(3, 4, num_layers=2)])
    layers = recurrent_layers(model)
    assert [layer.below for layer in layers] == [(), (), (), (1, 2), (1, 2), (3, 4), (3, 4), (), (7,)]
