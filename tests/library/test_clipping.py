"""`SpectralClipping` on any module and optimizer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from gruclip.choices import MIN_DELTA
from gruclip.clipping import SpectralClipping
from gruclip.dynamics import spectral_radius
from gruclip.errors import NonFiniteError, UserError
from gruclip.gru import GRU


def model() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "torch_gru": nn.GRU(4, 12, num_layers=2, bidirectional=True),
            "lstm": nn.LSTM(4, 10),
            "rnn": nn.RNN(4, 9),
            "paper": GRU(4, 150, bias=False),
            "other": nn.Linear(4, 4),
        }
    )


def grow(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A step that enlarges every weight."""
    optimizer.zero_grad()
    loss = -sum((parameter**2).sum() for parameter in module.parameters())
    assert isinstance(loss, Tensor)
    loss.backward()
    optimizer.step()


OPTIMIZERS = [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad]


@pytest.mark.parametrize("optimizer_class", OPTIMIZERS)
def test_every_recurrent_matrix_stays_inside_its_limit_after_each_step_of_any_optimizer(optimizer_class):
    module = model()
    optimizer = optimizer_class(module.parameters(), lr=0.1)
    clipping = SpectralClipping(module, delta=0.2).attach(optimizer)
    for _ in range(5):
        grow(module, optimizer)
        for line in clipping.report():
            weight = module.get_parameter(line.name).detach().double()
            hidden = weight.shape[-1]
            rows = {"lstm": slice(2 * hidden, 3 * hidden), "tanh_rnn": slice(None)}.get(
                line.cell, slice(2 * hidden, None)
            )
            assert line.limit == pytest.approx(0.8 if line.cell == "tanh_rnn" else 1.8)
            norm = float(torch.linalg.matrix_norm(weight[rows], 2))
            assert norm <= line.limit * (1 + 2e-6)
            assert line.spectral_norm == pytest.approx(norm, rel=1e-4)
    assert all(line.total_clipped > 0 for line in clipping.report())


def test_gates_and_other_parameters_are_what_the_optimizer_made_them():
    module, alone = model(), model()
    optimizer, reference = (torch.optim.SGD(m.parameters(), lr=0.3) for m in (module, alone))
    # Only the LSTM's, and above its limit after the step, not before.
    SpectralClipping(module["lstm"], delta=0.5).attach(optimizer)
    grow(module, optimizer)
    grow(alone, reference)
    for name, parameter in module.named_parameters():
        expected = alone.get_parameter(name).detach().clone()
        if name == "lstm.weight_hh_l0":
            assert not torch.equal(parameter[20:30], expected[20:30])
            expected[20:30] = parameter[20:30].detach()
        assert torch.equal(parameter, expected)


def test_weights_are_changed_in_place_so_that_flattened_weights_stay_valid():
    module = model()
    addresses = [parameter.data_ptr() for parameter in module.parameters()]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    SpectralClipping(module, delta=0.2).attach(optimizer)
    grow(module, optimizer)
    assert [parameter.data_ptr() for parameter in module.parameters()] == addresses


def test_a_detached_projection_clips_no_more():
    module = model()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    clipping = SpectralClipping(module, delta=0.2).attach(optimizer)
    clipping.detach()
    for _ in range(5):
        grow(module, optimizer)
    assert any(line.spectral_norm > line.limit for line in clipping.report())
    clipping.attach(optimizer)
    assert all(line.spectral_norm <= line.limit * (1 + 2e-6) for line in clipping.report())


def test_training_continued_from_a_saved_state_gives_the_same_bits():
    def training(steps: int, saved: tuple[dict, dict, dict] | None = None) -> tuple[dict, dict, dict]:
        module = model()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.03)
        clipping = SpectralClipping(module, delta=0.2)
        if saved is not None:
            module.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
            clipping.load_state_dict(saved[2])
        clipping.attach(optimizer)
        for _ in range(steps):
            grow(module, optimizer)
        copied = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        return copied, optimizer.state_dict(), clipping.state_dict()

    whole = training(6)
    parts = training(3, training(3))
    for name, tensor in whole[0].items():
        assert torch.equal(parts[0][name], tensor), name
    counts = [name for name in whole[2] if name.endswith("total_clipped")]
    assert counts
    assert all(torch.equal(parts[2][name], whole[2][name]) for name in counts)


def test_a_state_of_other_layers_is_refused():
    saved = SpectralClipping(nn.GRU(3, 4)).state_dict()
    with pytest.raises(UserError, match="state_dict is of other parameters than weight_hh_l0, weight_hh_l1"):
        SpectralClipping(nn.GRU(3, 4, num_layers=2)).load_state_dict(saved)


def test_a_step_that_gradient_scaling_skips_clips_nothing():
    module = nn.GRU(4, 8)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    clipping = SpectralClipping(module, delta=0.2).attach(optimizer)
    with torch.no_grad():
        module.weight_hh_l0.mul_(100)
    before = module.weight_hh_l0.detach().clone()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(module.weight_hh_l0.sum()).backward()
    module.weight_hh_l0.grad[0, 0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(module.weight_hh_l0, before)
    assert clipping.last_clipped == [0]


def test_a_step_that_a_fused_optimizer_skips_itself_clips_nothing():
    module = nn.GRU(4, 8)
    optimizer = torch.optim.Adam(module.parameters(), fused=True)
    clipping = SpectralClipping(module, delta=0.2).attach(optimizer)
    with torch.no_grad():
        module.weight_hh_l0.mul_(100)
    before = module.weight_hh_l0.detach().clone()
    scaler = torch.amp.GradScaler("cpu")
    for bad, changed in ((torch.inf, False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale(module.weight_hh_l0.sum()).backward()
        module.weight_hh_l0.grad[0, 0] = bad
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(module.weight_hh_l0, before) != changed
        assert (clipping.last_clipped != [0]) == changed


def test_a_compiled_model_is_clipped_under_its_own_names():
    module = nn.Sequential(nn.GRU(4, 8))
    compiled = torch.compile(module, backend="eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.3)
    clipping = SpectralClipping(compiled, delta=1.9).attach(optimizer)
    (line,) = clipping.report()
    assert line.name == "0.weight_hh_l0"
    assert line.spectral_norm == pytest.approx(0.1, rel=1e-5)


def test_the_report_says_whether_the_limit_is_a_guarantee():
    with_bias, without = (SpectralClipping(nn.GRU(4, 8, bias=bias)).report()[0] for bias in (True, False))
    assert (with_bias.stability.guaranteed, without.stability.guaranteed) == (False, True)


def test_a_bias_below_takes_the_guarantee_of_the_layer_above():
    module = nn.GRU(3, 8, num_layers=2)
    with torch.no_grad():
        for bias in (module.bias_ih_l1, module.bias_hh_l1):
            bias.zero_()
    assert [line.stability.guaranteed for line in SpectralClipping(module).report()] == [False, False]


def test_a_layer_that_is_not_finite_is_named_before_any_is_clipped_and_the_report_shows_it():
    module = nn.ModuleDict({"first": GRU(3, 8), "second": nn.LSTM(3, 8)})
    clipping = SpectralClipping(module)
    with torch.no_grad():
        module["first"].weight_hh_l0.mul_(100)
        module["second"].weight_hh_l0[20, 3] = torch.nan
    before = module["first"].weight_hh_l0.detach().clone()
    with pytest.raises(NonFiniteError, match=r"^second\.weight_hh_l0 holds NaN or infinity; nothing was changed$"):
        clipping.clip()
    assert torch.equal(module["first"].weight_hh_l0, before)
    first, second = clipping.report()
    assert first.spectral_norm > first.limit
    assert math.isnan(second.spectral_norm)


def test_single_cells_are_clipped_too():
    module = nn.ModuleDict({"gru": nn.GRUCell(3, 8), "lstm": nn.LSTMCell(3, 8), "rnn": nn.RNNCell(3, 8)})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(100)
    clipping = SpectralClipping(module)
    clipping.clip()
    for line in clipping.report():
        assert line.name.endswith(".weight_hh")
        assert line.last_clipped > 0
        assert line.spectral_norm <= line.limit * (1 + 2e-6)


def test_a_layer_of_any_name_has_its_state_saved_and_loaded():
    module = nn.ModuleDict({"a/b": GRU(3, 300, bias=False)})
    clipping = SpectralClipping(module)
    clipping.clip()
    other = SpectralClipping(module)
    other.load_state_dict(clipping.state_dict())
    assert other.states[0].state_dict().keys() == clipping.states[0].state_dict().keys()


@pytest.mark.parametrize("other", [nn.LSTM(3, 4), nn.Sequential(nn.GRU(3, 4)), nn.GRU(3, 4, 2)])
def test_the_state_of_another_module_is_refused(other):
    clipping = SpectralClipping(nn.GRU(3, 4))
    saved = SpectralClipping(other).state_dict()
    if isinstance(other, nn.LSTM):  # of the same names, but for one
        saved.pop("weight_hh_l0/total_clipped")
    with pytest.raises(UserError, match="state_dict is of other parameters than weight_hh_l0"):
        clipping.load_state_dict(saved)


def test_an_algorithm_there_is_not_and_a_layer_of_another_dtype_are_refused_at_once():
    with pytest.raises(UserError, match="algorithm='svd'"):
        SpectralClipping(nn.GRU(3, 4), algorithm="svd")
    with pytest.raises(UserError, match=r"weight of torch\.complex64: should be float32, float64, bfloat16 or float16"):
        SpectralClipping(nn.Linear(3, 4, dtype=torch.complex64), limit=1.0)
    with pytest.raises(UserError, match="delta='much': should be a number"):
        SpectralClipping(nn.GRU(3, 4), delta="much")


def test_the_smallest_delta_leaves_a_layer_stable():
    layer = nn.GRU(3, 8, bias=False)
    layer.weight_hh_l0.data[-8:] = 2.000003 * torch.eye(8)
    clipping = SpectralClipping(layer, delta=2 * MIN_DELTA)
    clipping.clip()
    assert float(spectral_radius(layer)) < 1


@pytest.mark.parametrize("delta", [0.0, -0.1, 1e-20, 1e-7, 1.0 - 1e-7, 1.0, 2.0, float("nan")])
def test_a_delta_outside_the_limit_of_a_layer_is_refused(delta):
    with pytest.raises(UserError, match=r"delta=.*: should be inside \(0, 1\), the limit of weight_hh_l0 \(tanh_rnn\)"):
        SpectralClipping(nn.RNN(3, 4), delta=delta)


def test_an_optimizer_of_another_module_is_refused():
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    with pytest.raises(UserError, match="no optimizer given trains weight_hh_l0; pass every one"):
        SpectralClipping(nn.GRU(3, 4)).attach(optimizer)
    with pytest.raises(UserError, match="no optimizer given trains weight_hh_l0"):
        SpectralClipping(nn.GRU(3, 4)).attach()


def test_attaching_twice_is_refused():
    module = nn.GRU(3, 4)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    clipping = SpectralClipping(module).attach(optimizer)
    with pytest.raises(UserError, match="attached already; detach"):
        clipping.attach(optimizer)
