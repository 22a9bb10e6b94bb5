"""What `SpectralClipping` finds in a module at limit=, as which matrices, and why it refuses the rest."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.testing._internal.two_tensor import TwoTensor

from gruclip import (
    GRU,
    SpectralClipping,
    clip_singular_values,
    clip_singular_values_,
    spectral_norm,
    spectral_radius,
)
from gruclip.errors import UserError


def clipped(module: nn.Module, **options) -> dict[str, Tensor]:
    """The module's weights, ten times as large and then clipped once, by name, in float64."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(10)
    SpectralClipping(module, **options).clip()
    return {name: parameter.detach().double() for name, parameter in module.named_parameters()}


def sigma_1(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach(), 2))


def at(limit: float):
    return pytest.approx(limit, rel=2e-6)


def names(clipping: SpectralClipping) -> list[str]:
    return [line.name for line in clipping.report()]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.convolution = nn.Conv2d(4, 6, (3, 2))
        self.bilinear = nn.Bilinear(3, 4, 5)
        self.gru = nn.GRU(8, 8)
        self.head = nn.Linear(8, 20)


def test_without_select_it_is_every_linear_attention_and_convolution() -> None:
    found = names(SpectralClipping(Model(), delta=None, limit=1.0))
    assert found == ["attention.in_proj_weight", "attention.out_proj.weight", "convolution.weight", "head.weight"]
    with_delta = SpectralClipping(Model(), delta=0.3, limit=1.0).report()
    assert {line.name for line in with_delta} == {*found, "gru.weight_hh_l0"}
    assert {line.name: line.limit for line in with_delta}["gru.weight_hh_l0"] == 1.7


def test_queries_keys_and_values_are_matrices_of_their_own() -> None:
    torch.manual_seed(1)
    for weight in clipped(nn.MultiheadAttention(12, 3), limit=1.5)["in_proj_weight"].chunk(3):
        assert sigma_1(weight) == at(1.5)
    parts = clipped(nn.MultiheadAttention(12, 3, kdim=5, vdim=7), limit=1.5)
    assert [sigma_1(parts[f"{name}_proj_weight"]) for name in "qkv"] == [at(1.5)] * 3
    assert sigma_1(parts["out_proj.weight"]) == at(1.5)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_a_convolution_s_groups_are_matrices_of_their_own(kind, groups) -> None:
    torch.manual_seed(2)
    weight = clipped(kind(4, 8, 3, groups=groups), limit=0.7)["weight"]
    assert [sigma_1(part.flatten(1)) for part in weight.chunk(groups)] == [at(0.7)] * groups


@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolution_lengthens_nothing_by_more_than_its_limit_times_the_root_of_its_windows(transposed) -> None:
    """||y|| <= limit sqrt(product of ceil(kernel / stride)) ||x||, the bound that the page states."""
    torch.manual_seed(3)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(3, 4, 3, stride=2, padding=1, bias=False).double()
    clipped(layer, limit=1.0)
    size = (5, 5) if transposed else (9, 9)
    jacobian = torch.func.jacrev(lambda x: layer(x).flatten())(torch.zeros(3, *size).double())
    assert sigma_1(jacobian.flatten(1)) <= 2.0 * (1 + 1e-9)


def test_a_convolution_in_another_memory_format_is_clipped_where_it_lies() -> None:
    torch.manual_seed(4)
    layer = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    plain = clipped(copy.deepcopy(layer).to(memory_format=torch.contiguous_format), limit=0.5)["weight"]
    address = layer.weight.data_ptr()
    assert torch.allclose(clipped(layer, limit=0.5)["weight"], plain, atol=1e-6)
    assert layer.weight.data_ptr() == address
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_select_takes_names_patterns_several_of_them_or_a_predicate() -> None:
    model = Model()
    for select, expected in {
        "head.weight": ["head.weight"],
        "*bedding*": ["embedding.weight"],
        ("head.*", "bilinear.weight", "head.weight"): ["head.weight", "bilinear.weight"],
        lambda name, weight: weight.shape[0] == 20: ["embedding.weight", "head.weight"],
    }.items():
        assert names(SpectralClipping(model, delta=None, limit=1.0, select=select)) == expected
    # What it picks replaces the choice that is made without it.
    parts = clipped(model, delta=None, limit=1.0, select=["bilinear.weight", "embedding.weight"])
    assert sigma_1(parts["bilinear.weight"].flatten(1)) == at(1.0)
    assert sigma_1(parts["embedding.weight"]) == at(1.0)
    assert sigma_1(parts["head.weight"]) > 2


@pytest.mark.parametrize("layer", [nn.GRU(8, 8), nn.LSTM(8, 8), GRU(8, 8), nn.GRUCell(8, 8)])
@pytest.mark.parametrize(("limit", "delta"), [(3.0, 0.5), (0.5, 0.5), (0.5, None), (3.0, None)])
def test_a_recurrent_weight_that_is_picked_is_clipped_gate_by_gate_and_delta_still_holds(layer, limit, delta) -> None:
    torch.manual_seed(5)
    parts = clipped(copy.deepcopy(layer), delta=delta, limit=limit, select="weight_[hi]h*")
    gates, candidate = (4, 2) if isinstance(layer, nn.LSTM) else (3, 2)
    for name, weight in parts.items():
        if name.startswith("weight"):
            norms = [sigma_1(gate) for gate in weight.chunk(gates)]
            stable = 1.5 if delta and name.startswith("weight_hh") else torch.inf
            assert norms[candidate] <= min(limit, stable) * (1 + 2e-6)
            assert max(norms) <= max(limit, min(limit, stable)) * (1 + 2e-6)
            assert norms[0] == at(limit)


def test_relu_and_projected_recurrent_layers_take_a_limit_where_delta_has_none_for_them() -> None:
    torch.manual_seed(6)
    lstm = nn.LSTM(3, 8, proj_size=4)
    with pytest.raises(UserError, match="proj_size=4: its state is fed back through weight_hh times weight_hr"):
        SpectralClipping(lstm)
    parts = clipped(lstm, delta=None, limit=1.2, select="weight_h*")
    candidate, projection = parts["weight_hh_l0"].chunk(4)[2], parts["weight_hr_l0"]
    assert sigma_1(projection) == at(1.2)
    assert sigma_1(candidate @ projection) <= 1.2**2 * (1 + 4e-6)
    rnn = nn.RNN(3, 8, nonlinearity="relu")
    with pytest.raises(UserError, match="nonlinearity='relu' has no limit here; take tanh, or SpectralClipping"):
        SpectralClipping(rnn)
    assert sigma_1(clipped(rnn, delta=None, limit=1.2, select="weight_hh*")["weight_hh_l0"]) == at(1.2)


# -- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"delta": None}, "give delta= for the recurrent layers, limit= for other weights, or both"),
        ({"select": "*"}, "select= picks what is clipped at limit="),
        ({"limit": 0.0}, r"limit=0\.0: should be a positive number"),
        ({"limit": torch.inf}, "limit=inf: should be a positive number"),
        ({"limit": float("nan")}, "limit=nan: should be a positive number"),
        ({"limit": "much"}, "limit='much': should be a number"),
        ({"limit": 1.0, "select": "tail.*"}, r"select='tail\.\*': picks no parameter"),
        ({"limit": 1.0, "select": ["head.*", "tail.*"]}, r"select='tail\.\*': picks no parameter"),
        ({"limit": 1.0, "select": "*.bias"}, r"select='\*\.bias': picks attention\.out_proj\.bias, which has one axis"),
        ({"limit": 1.0, "select": lambda *_: False}, "the predicate picks none of 8 parameters of two axes"),
        ({"limit": 1.0, "select": []}, r"select=\[\]: should be a name or pattern"),
        ({"limit": 1.0, "select": 3}, r"select=3: should be a name or pattern"),
        ({"limit": 1.0, "select": ["head.*", 3]}, r"select=\['head\.\*', 3\]: should be a name or pattern"),
    ],
)
def test_settings_that_clip_nothing_are_refused(options, complaint) -> None:
    with pytest.raises(UserError, match=complaint):
        SpectralClipping(Model(), **options)


def test_a_module_without_anything_to_clip_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match="Linear: holds no recurrent layer; limit= clips other weights"):
        SpectralClipping(nn.Linear(2, 2))
    for module in (nn.Embedding(2, 2), nn.GRU(2, 8)):
        with pytest.raises(
            UserError, match=f"limit=0.7: holds for no weight of {type(module).__name__}; without select="
        ):
            SpectralClipping(module, limit=0.7)
    clipping = SpectralClipping(nn.GRU(2, 8), limit=0.7, select="*weight_hh*")
    assert [line.limit for line in clipping.report()] == [0.7]


class Identity(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight


def computed() -> Iterator[tuple[str, nn.Module]]:
    yield "the parametrisation Orthogonal", parametrizations.orthogonal(nn.Linear(3, 3))
    yield "the parametrisation SpectralNorm", parametrizations.spectral_norm(nn.Linear(3, 3))
    yield "the parametrisation WeightNorm", parametrizations.weight_norm(nn.Linear(3, 3))
    yield "torch.nn.utils' SpectralNorm", nn.utils.spectral_norm(nn.Linear(3, 3))
    yield "torch.nn.utils' WeightNorm", weight_norm_of_old()
    yield "torch.nn.utils' L1Unstructured", prune.l1_unstructured(nn.Linear(3, 3), "weight", 2)
    layer = nn.Linear(3, 3)
    nn.utils.parametrize.register_parametrization(layer, "weight", Identity())
    yield "the parametrisation Identity", layer


def weight_norm_of_old() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(3, 3))


@pytest.mark.parametrize("select", [None, "*", "0.weight", lambda name, weight: name == "0.weight"])
def test_a_weight_that_is_computed_is_refused_by_what_computes_it(select) -> None:
    for how, layer in computed():
        with pytest.raises(UserError, match=rf"^0\.weight: is computed by {how} at each forward pass; remove"):
            SpectralClipping(nn.Sequential(layer), limit=1.0, select=select)
        # Others beside it can be clipped.
        other = nn.Sequential(layer, nn.Linear(3, 3))
        assert names(SpectralClipping(other, limit=1.0, select="1.*")) == ["1.weight"]


@pytest.mark.parametrize("cell", [nn.GRU(3, 4), nn.LSTM(3, 4), GRU(3, 4)])
def test_a_recurrent_weight_that_is_computed_is_refused_by_what_computes_it(cell) -> None:
    parametrizations.orthogonal(layer := copy.deepcopy(cell), "weight_hh_l0")
    fault = r"^weight_hh_l0: is computed by the parametrisation Orthogonal at each forward pass; remove that first, or "
    with pytest.raises(UserError, match=fault + "leave recurrent layers out: delta=None"):
        SpectralClipping(layer)
    with pytest.raises(UserError, match=fault + "leave it out with select="):
        SpectralClipping(layer, delta=None, limit=1.0, select="*")
    assert names(SpectralClipping(layer, delta=None, limit=1.0, select="weight_ih_l0")) == ["weight_ih_l0"]


def test_a_lazy_module_is_refused_until_it_was_called() -> None:
    module = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(UserError, match=r"0\.weight: is not initialised yet; call the module once first"):
        SpectralClipping(module, limit=1.0)
    module(torch.zeros(2, 5))
    assert names(SpectralClipping(module, limit=1.0)) == ["0.weight"]


@pytest.mark.parametrize(
    ("parameter", "complaint"),
    [
        (torch.ones(2, 2, dtype=torch.complex64), r"^weight of torch\.complex64: should be float32, float64, bfloat16"),
        (torch.ones(2, 2, dtype=torch.int8), r"^weight of torch\.int8: should be float32"),
        (torch.ones(2, 2).to(torch.float8_e4m3fn), r"^weight of torch\.float8_e4m3fn: should be float32"),
        (torch.ones(2, 2).to_sparse(), r"^weight of layout torch\.sparse_coo: should be dense"),
        (
            TwoTensor(torch.ones(2, 2), torch.ones(2, 2)),
            "^weight of TwoTensor: has operations of its own .*, or leave it",
        ),
        (torch.ones(2, 0), r"^weight of shape \(2, 0\): should have two axes or more, and none of it empty"),
    ],
)
def test_a_parameter_that_holds_no_matrix_of_floats_is_refused(parameter, complaint) -> None:
    module = nn.Module()
    module.weight = nn.Parameter(parameter, requires_grad=False)
    with pytest.raises(UserError, match=complaint):
        SpectralClipping(module, limit=1.0, select="weight")


@pytest.mark.parametrize("function", [clip_singular_values_, clip_singular_values, lambda one, _: spectral_norm(one)])
def test_a_tensor_with_operations_of_its_own_is_refused(function) -> None:
    with pytest.raises(UserError, match=r"^weight of TwoTensor: has operations of its own"):
        function(TwoTensor(torch.eye(3), torch.eye(3)), 0.5)


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_sharded_parameters_are_refused_by_name(one_process) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (1,))
    layer = nn.Linear(4, 4)
    whole = SpectralClipping(layer, limit=1.0)
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh))
    with pytest.raises(UserError, match=r"^weight: is a DTensor, sharded over devices; singular values are"):
        SpectralClipping(layer, limit=1.0)
    with pytest.raises(UserError, match=r"^weight: is a DTensor"):
        whole.clip()
    for function in (
        partial(clip_singular_values_, limit=1.0),
        partial(clip_singular_values, limit=1.0),
        spectral_norm,
    ):
        with pytest.raises(UserError, match=r"^weight is a DTensor: singular values are those of a whole matrix"):
            function(layer.weight.detach())
    with pytest.raises(UserError, match=r"^matrix is a DTensor"):
        spectral_radius(layer.weight.detach())
    fully_shard(recurrent := nn.GRU(3, 4), mesh=mesh)
    with pytest.raises(UserError, match=r"^weight_hh_l0: is a DTensor, sharded over devices; give a module of whole"):
        spectral_radius(recurrent)
    sharded = nn.Sequential(nn.Linear(4, 4))
    fully_shard(sharded, mesh=mesh)
    with pytest.raises(UserError, match=r"^0\.weight: is a DTensor"):
        SpectralClipping(sharded, limit=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process shards nothing
        wrapped = nn.Sequential(FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu")))
    with pytest.raises(UserError, match=r"^0: FullyShardedDataParallel shards its parameters"):
        SpectralClipping(wrapped, limit=1.0)
