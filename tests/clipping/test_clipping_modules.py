"""`SpectralClipping` while a module is trained, moved, converted, loaded and taken apart."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from gruclip import GRU, SpectralClipping
from gruclip.errors import NonFiniteError, UserError
from gruclip.spectral import SpectralState


def transformer(seed: int = 0) -> nn.ModuleDict:
    torch.manual_seed(seed)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.ModuleDict({"embedding": nn.Embedding(50, 32), "encoder": encoder, "head": nn.Linear(32, 50)})


def matrices_of(module: nn.Module) -> dict[str, Tensor]:
    """Every matrix that a transformer should be clipped in, in float64."""
    found = {}
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            found[name] = part.weight.detach().double()
        if isinstance(part, nn.MultiheadAttention):
            blocks = zip("qkv", part.in_proj_weight.detach().double().chunk(3), strict=True)
            found |= {f"{name}.{which}": block for which, block in blocks}
    return found


def sigma_1(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach().double(), 2))


def enlarge(module: nn.Module, factor: float = 10) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(factor)


def step(model: nn.ModuleDict, optimizer: torch.optim.Optimizer, seed: int) -> None:
    tokens = torch.randint(50, (4, 9), generator=torch.Generator().manual_seed(seed))
    states = model["encoder"](model["embedding"](tokens[:, :-1]))
    loss = nn.functional.cross_entropy(model["head"](states).flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_transformer_s_matrices_are_inside_the_limit_at_every_step_of_adamw(dtype) -> None:
    model = transformer().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    clipping = SpectralClipping(model, limit=1.0).attach(optimizer)
    assert len(matrices_of(model)) == 13
    for seed in range(6):
        step(model, optimizer, seed)
        assert all(sigma_1(matrix) <= 1.0 * (1 + 2e-6) for matrix in matrices_of(model).values())
    assert all(line.total_clipped > 0 for line in clipping.report())
    assert sigma_1(model["embedding"].weight) > 2


def test_training_continued_from_a_saved_state_gives_the_same_bits() -> None:
    def training(seeds: range, saved: tuple[dict, dict, dict] | None = None) -> tuple[dict, dict, dict]:
        model = transformer()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        clipping = SpectralClipping(model, limit=1.0)
        if saved is not None:
            for part, held in zip((model, optimizer, clipping), saved, strict=True):
                part.load_state_dict(held)
        clipping.attach(optimizer)
        for seed in seeds:
            step(model, optimizer, seed)
        return copy.deepcopy((model.state_dict(), optimizer.state_dict(), clipping.state_dict()))

    whole, parts = training(range(6)), training(range(3, 6), training(range(3)))
    assert all(torch.equal(parts[0][name], tensor) for name, tensor in whole[0].items())
    counts = [name for name in whole[2] if name.endswith("total_clipped")]
    assert counts
    assert all(torch.equal(parts[2][name], whole[2][name]) for name in counts)


@pytest.mark.parametrize(
    ("algorithm", "dtype"),
    [
        *((name, torch.float32) for name in ("auto", "block", "truncated", "program")),
        ("auto", torch.float64),
        ("gram", torch.float64),
    ],
)
@pytest.mark.parametrize("loaded_first", [False, True])
def test_it_goes_on_with_the_same_bits_whether_it_is_loaded_or_attached_first(
    algorithm: str, dtype: torch.dtype, loaded_first: bool
) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer, SpectralClipping]:
        torch.manual_seed(0)
        layer = nn.Linear(150, 150, bias=False, dtype=dtype)
        optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
        return layer, optimizer, SpectralClipping(layer, limit=1.1, algorithm=algorithm)

    def train(layer: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            layer.weight.grad = torch.randn(150, 150, generator=generator).to(dtype)
            optimizer.step()

    layer, optimizer, clipping = made()
    clipping.attach(optimizer)
    train(layer, optimizer, 1, 6)
    saved = copy.deepcopy([part.state_dict() for part in (layer, optimizer, clipping)])
    train(layer, optimizer, 2, 8)
    again, its_optimizer, its_clipping = made()
    if not loaded_first:
        its_clipping.attach(its_optimizer)
    for part, held in zip((again, its_optimizer, its_clipping), saved, strict=True):
        part.load_state_dict(held)
    if loaded_first:
        its_clipping.attach(its_optimizer)
        assert its_clipping.last_clipped == [int(saved[2]["weight/last_clipped"])]
    train(again, its_optimizer, 2, 8)
    assert torch.equal(again.weight, layer.weight)


@pytest.mark.parametrize("order", ["clipping before weights", "weights before clipping"])
def test_a_resumed_run_keeps_the_stability_limits_that_it_began_with(order: str) -> None:
    """Those of an LSTM with a forget bias of 1, whose other biases begin at 0 and are trained."""

    def made() -> tuple[nn.LSTM, torch.optim.Optimizer]:
        torch.manual_seed(0)
        lstm = nn.LSTM(8, 24)
        with torch.no_grad():
            for name, parameter in lstm.named_parameters():
                if "bias" in name:
                    parameter.zero_()
            lstm.bias_ih_l0[24:48] = 1.0
        return lstm, torch.optim.Adam(lstm.parameters(), lr=1e-2)

    def train(lstm: nn.LSTM, optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(10):
            optimizer.zero_grad()
            x = 3 * torch.randn(9, 4, 8, generator=generator)
            (lstm(x)[0][..., :8] - x.roll(-1, 0)).square().mean().backward()
            optimizer.step()

    lstm, optimizer = made()
    clipping = SpectralClipping(lstm, delta=0.2).attach(optimizer)
    train(lstm, optimizer, 1)
    saved = copy.deepcopy([part.state_dict() for part in (lstm, optimizer, clipping)])
    train(lstm, optimizer, 2)
    again, its_optimizer = made()
    its_clipping = SpectralClipping(again, delta=0.2) if order == "clipping before weights" else None
    again.load_state_dict(saved[0])
    its_optimizer.load_state_dict(saved[1])
    its_clipping = its_clipping or SpectralClipping(again, delta=0.2)
    its_clipping.load_state_dict(saved[2])
    its_clipping.attach(its_optimizer)
    train(again, its_optimizer, 2)
    assert its_clipping.report()[0].limit == clipping.report()[0].limit < 1.0
    assert torch.equal(again.weight_hh_l0, lstm.weight_hh_l0)
    # Of an older version, which did not hold them.
    its_clipping.load_state_dict({name: one for name, one in saved[2].items() if not name.endswith("/stability")})
    wider = SpectralClipping(made()[0], delta=1.05)
    with pytest.raises(UserError, match=r"delta=1\.05: should be inside \(0, 0\.5\), the limit of weight_hh_l0"):
        wider.load_state_dict(saved[2] | {"weight_hh_l0/stability": torch.tensor(0.5)})


def test_limit_and_delta_may_be_set_and_hold_from_the_next_step_on() -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"rnn": nn.GRU(6, 12), "out": nn.Linear(12, 20)})
    clipping = SpectralClipping(module, delta=0.2, limit=1.0)
    for delta, limit in ((0.2, 1.0), (0.5, 0.7), (0.1, 3.0)):
        clipping.delta, clipping.limit = delta, limit
        enlarge(module)
        clipping.clip()
        assert (clipping.delta, clipping.limit) == (delta, limit)
        assert sigma_1(module["rnn"].weight_hh_l0[24:]) == pytest.approx(2 - delta, rel=1e-5)
        assert sigma_1(module["out"].weight) == pytest.approx(limit, rel=1e-5)
        assert [line.limit for line in clipping.report()] == pytest.approx([2 - delta, limit])
    for name, value, complaint in (
        ("delta", 2.0, r"delta=2\.0: should be inside \(0, 2\)"),
        ("delta", None, "delta=None: should be a number"),
        ("limit", 0.0, r"limit=0\.0: should be a positive number"),
    ):
        with pytest.raises(UserError, match=complaint):
            setattr(clipping, name, value)
    assert (clipping.delta, clipping.limit) == (0.1, 3.0)
    with pytest.raises(UserError, match=r"limit=1\.0: other weights were left out when this object was made"):
        SpectralClipping(module).limit = 1.0
    with pytest.raises(UserError, match=r"delta=1\.0: recurrent layers were left out when this object was made"):
        SpectralClipping(module, delta=None, limit=1.0).delta = 1.0


def replaced_parameter(module: nn.Module) -> None:
    module[0].weight = nn.Parameter(50 * torch.randn_like(module[0].weight))


def replaced_module(module: nn.Module) -> None:
    module[0] = nn.Linear(5, 150)
    enlarge(module)


def assigned(module: nn.Module) -> None:
    module.load_state_dict({name: 50 * tensor for name, tensor in module.state_dict().items()}, assign=True)


def emptied(module: nn.Module) -> None:
    module.to("meta").to_empty(device="cpu")
    for parameter in module.parameters():
        nn.init.normal_(parameter)


CHANGES = {
    "loaded with assign": assigned,
    "another parameter": replaced_parameter,
    "another module": replaced_module,
    "to float64": lambda module: module.double(),
    "to bfloat16": lambda module: module.bfloat16(),
    "through the meta device": emptied,
    "data replaced": lambda module: setattr(module[0].weight, "data", 50 * torch.randn(140, 130)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_module_s_own_weights_are_clipped_whatever_became_of_them(change) -> None:
    """A tracked state is that of another tensor then, and of another shape, dtype or device."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(140, 150), nn.GRU(3, 150))
    clipping = SpectralClipping(module, limit=1.0)
    for _ in range(2):
        enlarge(module, 3)
        clipping.clip()
    change(module)
    enlarge(module, 3)
    clipping.clip()
    assert sigma_1(module[0].weight) == pytest.approx(1.0, rel=4e-3)
    assert sigma_1(module[0].weight) <= 1.0 * (1 + 2e-6)
    assert sigma_1(module[1].weight_hh_l0[300:]) <= 1.8 * (1 + 2e-6)
    norms = {line.name: line.spectral_norm for line in clipping.report()}
    assert norms["0.weight"] == pytest.approx(sigma_1(module[0].weight), rel=1e-4)


def test_a_parameter_that_is_gone_or_became_a_vector_is_named() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    clipping = SpectralClipping(module, limit=1.0)
    module[1] = nn.ReLU()
    with pytest.raises(UserError, match=r"1\.weight: the module has no such parameter any more; make a new Spectral"):
        clipping.clip()
    del module[1]
    with pytest.raises(UserError, match=r"1\.weight: the module has no such parameter any more"):
        clipping.clip()
    clipping = SpectralClipping(module, limit=1.0)
    module[0].weight = nn.Parameter(torch.ones(3))
    with pytest.raises(UserError, match=r"0\.weight of shape \(3,\): should have two axes"):
        clipping.clip()
    recurrent = nn.Sequential(nn.GRU(6, 6))
    clipping = SpectralClipping(recurrent)
    recurrent[0] = nn.LSTM(6, 6)
    with pytest.raises(UserError, match=r"0\.weight_hh_l0 of shape \(24, 6\): was 3 matrices; make a new"):
        clipping.clip()
    attention = nn.MultiheadAttention(4, 2)
    clipping = SpectralClipping(attention, limit=1.0)
    attention.in_proj_weight = nn.Parameter(torch.ones(4, 4))
    with pytest.raises(UserError, match=r"in_proj_weight of shape \(4, 4\): was 3 matrices"):
        clipping.clip()


def test_a_parametrisation_that_came_later_is_named() -> None:
    layer = nn.Linear(3, 3)
    clipping = SpectralClipping(layer, limit=1.0)
    nn.utils.parametrizations.orthogonal(layer)
    with pytest.raises(UserError, match="weight: is computed by the parametrisation Orthogonal"):
        clipping.clip()
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    clipping.clip()


def test_on_the_meta_device_a_limit_waits_and_delta_needs_biases() -> None:
    with torch.device("meta"):
        module, recurrent = nn.Linear(3, 3), nn.GRU(3, 3)
    clipping = SpectralClipping(module, limit=0.5)
    for call in (clipping.clip, clipping.report, lambda: clipping.attach(torch.optim.SGD(module.parameters()))):
        with pytest.raises(UserError, match=r"^weight: is on the meta device; call to_empty\(device=\.\.\.\)"):
            call()
    module.to_empty(device="cpu")
    nn.init.eye_(module.weight)
    clipping.clip()
    assert sigma_1(module.weight) == pytest.approx(0.5)
    with pytest.raises(UserError, match="weight_hh_l0: is on the meta device"):
        SpectralClipping(recurrent)


def test_tied_weights_are_clipped_once_and_each_alone_when_the_tie_is_cut() -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"embedding": nn.Embedding(9, 5), "head": nn.Linear(5, 9), "same": nn.Linear(5, 9)})
    module["embedding"].weight = module["same"].weight = module["head"].weight
    clipping = SpectralClipping(module, limit=0.5, select="*.weight")
    clipping.clip()
    (line,) = clipping.report()
    assert line.name == "embedding.weight"
    assert line.last_clipped == sum(clipping.last_clipped) > 0
    # load_state_dict(assign=True) with tensors of their own cuts it.
    module.load_state_dict({name: 9 * tensor.clone() for name, tensor in module.state_dict().items()}, assign=True)
    clipping.clip()
    assert [line.name for line in clipping.report()] == ["embedding.weight", "head.weight", "same.weight"]
    assert all(sigma_1(part.weight) == pytest.approx(0.5) for part in module.values())


def test_two_recurrent_layers_with_one_weight_keep_the_smaller_limit() -> None:
    module = nn.ModuleList([nn.LSTM(4, 4), nn.LSTM(4, 4)])
    with torch.no_grad():
        for layer, forget in zip(module, (0.0, 1.0), strict=True):
            for name, parameter in layer.named_parameters():
                if name.startswith("bias"):
                    parameter.zero_()[4:8] = forget / 2
            layer.weight_hh_l0.mul_(10)
    module[0].weight_hh_l0 = module[1].weight_hh_l0
    SpectralClipping(module, delta=0.2).clip()
    assert sigma_1(module[0].weight_hh_l0[8:12]) == pytest.approx(0.8758, rel=1e-3)


@pytest.mark.parametrize("make", [nn.GRU, nn.LSTM, nn.RNN, GRU])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_recurrent_layers_of_16_bits_are_inside_their_limits_after_rounding(make, dtype) -> None:
    torch.manual_seed(1)
    layer = make(5, 40).to(dtype)
    enlarge(layer)
    clipping = SpectralClipping(layer, delta=0.2)
    clipping.clip()
    (line,) = clipping.report()
    rows = {"lstm": slice(80, 120), "tanh_rnn": slice(None)}.get(line.cell, slice(80, None))
    assert line.last_clipped > 0
    assert line.limit * 0.97 < sigma_1(layer.weight_hh_l0[rows]) <= line.limit * (1 + 2e-6)
    before = layer.weight_hh_l0.detach().clone()
    clipping.clip()
    assert torch.equal(layer.weight_hh_l0, before)


def test_functional_calls_use_the_tensors_they_are_given() -> None:
    layer = nn.Linear(3, 3)
    clipping = SpectralClipping(layer, limit=0.1)
    given = {"weight": 5 * torch.eye(3), "bias": torch.zeros(3)}
    assert torch.equal(torch.func.functional_call(layer, given, (torch.ones(1, 3),)), torch.full((1, 3), 5.0))
    clipping.clip()
    assert torch.equal(given["weight"], 5 * torch.eye(3))
    assert sigma_1(layer.weight) == pytest.approx(0.1)


def test_a_matrix_that_cannot_pass_its_limit_is_not_looked_at(monkeypatch) -> None:
    """Its Frobenius norm is below: that costs one pass over it."""
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        nn.init.eye_(module[0].weight).mul_(0.4)
        nn.init.eye_(module[1].weight).mul_(0.6)
    looked_at = []
    original = SpectralState.resize
    monkeypatch.setattr(SpectralState, "resize", lambda state, count: looked_at.append(state) or original(state, count))
    clipping = SpectralClipping(module, limit=1.0)
    clipping.clip()
    assert looked_at == [clipping.states[1]]


def test_the_report_of_several_matrices_is_that_of_the_nearest_to_its_limit() -> None:
    torch.manual_seed(2)
    layer = nn.GRU(4, 6, bias=False)
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
        layer.weight_hh_l0[:6] = 2.5 * torch.eye(6)
        layer.weight_hh_l0[12:] = torch.eye(6)
    clipping = SpectralClipping(layer, limit=3.0, select="weight_hh*")
    (line,) = clipping.report()
    assert (line.cell, line.stability, line.limit) == (None, None, 3.0)
    assert line.spectral_norm == pytest.approx(2.5, rel=1e-4)
    with torch.no_grad():
        layer.weight_hh_l0[12:] *= 1.7
    (line,) = clipping.report()
    assert (line.cell, line.stability.value, line.limit) == ("gru_reset_after", 2.0, 1.8)
    assert line.spectral_norm == pytest.approx(1.7, rel=1e-4)


def test_nothing_is_changed_where_one_of_the_weights_is_not_finite() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(2, 2, 2))
    enlarge(module, 100)
    with torch.no_grad():
        module[1].weight[1, 0, 1] = torch.inf
    clipping = SpectralClipping(module, limit=1.0)
    before = module[0].weight.detach().clone()
    with pytest.raises(NonFiniteError, match=r"^1\.weight holds NaN or infinity; nothing was changed$"):
        clipping.clip()
    assert torch.equal(module[0].weight, before)
    assert math.isnan(clipping.report()[1].spectral_norm)
