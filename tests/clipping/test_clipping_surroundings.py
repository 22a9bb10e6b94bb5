"""Clipping of modules and updates inside what people do to both: compile, copy, save, split over optimizers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from gruclip import SpectralClipping, clip_singular_values, clip_singular_values_, clip_updates, spectral_norm
from gruclip.clipping import weights
from gruclip.clipping.rounding import norms_of
from gruclip.errors import UserError

LIMIT = 0.5


def sigma_1(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.detach().double(), 2))


def at(limit: float) -> Any:
    return pytest.approx(limit, rel=1e-5)


def net(n: int = 200) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n, n), nn.Tanh(), nn.Linear(n, n))


def backward(module: nn.Module, seed: int) -> None:
    inputs = torch.randn(16, 200, generator=torch.Generator().manual_seed(seed))
    (module(inputs) - inputs.roll(1)).square().sum().backward()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def after_clipped_weights(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    SpectralClipping(module, limit=LIMIT).attach(optimizer)


def after_clipped_updates(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    clip_updates(optimizer, 0.01)


@pytest.mark.parametrize("clip", [after_clipped_weights, after_clipped_updates])
def test_a_compiled_step_is_followed_by_what_follows_a_step(clip: Callable[..., None], fresh_compiler: None) -> None:
    trained = []
    for wrap in (lambda step: step, lambda step: torch.compile(step, backend="eager")):
        module = net()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        clip(module, optimizer)
        step = wrap(lambda: optimizer.step())  # noqa: B023
        for seed in range(4):
            optimizer.zero_grad()
            backward(module, seed)
            step()
        trained.append([parameter.detach() for parameter in module.parameters()])
    for plain, compiled in zip(*trained, strict=True):
        torch.testing.assert_close(plain, compiled)
    assert clip is after_clipped_updates or sigma_1(trained[1][0]) == at(LIMIT)


class Clipped(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return clip_singular_values(weight, LIMIT)


def test_a_compiled_module_whose_parametrisation_clips_trains_as_it_does_by_itself(fresh_compiler: None) -> None:
    gradients = []
    for wrap in (lambda module: module, lambda module: torch.compile(module, backend="eager")):
        module = net()
        parametrize.register_parametrization(module[0], "weight", Clipped())
        call = wrap(module)
        for seed in range(3):
            backward(call, seed)
        gradients.append([parameter.grad for parameter in module.parameters()])
    for plain, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, compiled)


def saved_by_torch(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),
    "torch.save": saved_by_torch,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_is_attached_to_nothing_and_can_be_attached(copied: Callable[[Any], Any]) -> None:
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    clipping = SpectralClipping(module, limit=LIMIT).attach(optimizer)
    updates = clip_updates(optimizer, 0.1)
    module, optimizer, clipping, updates = copied((module, optimizer, clipping, updates))
    clipping.attach(optimizer)
    updates.attach()
    before = module[0].weight.detach().clone()
    backward(module, 1)
    optimizer.step()
    assert sigma_1(module[0].weight) <= LIMIT * (1 + 2e-6)
    assert updates.report()[0].last_clipped > 0
    assert not torch.equal(module[0].weight, before)


def test_weights_are_clipped_after_the_step_of_each_of_several_optimizers() -> None:
    module = net()
    first, second = (torch.optim.SGD(part.parameters(), lr=10.0) for part in (module[0], module[2]))
    clipping = SpectralClipping(module, limit=LIMIT)
    with pytest.raises(UserError, match=r"no optimizer given trains 2\.weight; pass every one"):
        clipping.attach(first)
    clipping.attach(first, second)
    for optimizer in (first, second):
        backward(module, 0)
        optimizer.step()
        assert all(line.spectral_norm <= LIMIT * (1 + 2e-6) for line in clipping.report())
    clipping.detach()
    backward(module, 1)
    second.step()
    assert sigma_1(module[2].weight) > 2 * LIMIT
    module[2].requires_grad_(False)
    clipping.attach(first)  # a frozen weight needs no optimizer, and is clipped at the start


def test_each_optimizers_counts_stay_until_its_own_next_step() -> None:
    module = net()
    first, second = (torch.optim.SGD(part.parameters(), lr=10.0) for part in (module[0], module[2]))
    clipping = SpectralClipping(module, limit=LIMIT).attach(first, second)
    backward(module, 0)
    first.step()
    counts = clipping.report()[0].last_clipped
    assert counts > 0
    second.step()
    assert [line.last_clipped > 0 for line in clipping.report()] == [True, True]
    assert clipping.report()[0].last_clipped == counts


def test_of_several_optimizers_each_step_looks_at_what_it_has_moved_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module, looked = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(6)]), []
    optimizers = [torch.optim.SGD(layer.parameters(), lr=10.0) for layer in module]
    clipping = SpectralClipping(module, limit=LIMIT).attach(*optimizers)
    stacks = weights.clip_stacks_
    monkeypatch.setattr(weights, "clip_stacks_", lambda some, *one: (looked.append(len(some)), stacks(some, *one))[1])
    module(torch.ones(2, 64)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    assert sum(looked) == len(optimizers)
    assert all(line.spectral_norm <= LIMIT * (1 + 2e-6) for line in clipping.report())


@pytest.mark.parametrize("assign", [False, True])
def test_of_several_optimizers_what_none_trains_is_clipped_after_the_first_ones_step(assign: bool) -> None:
    """A frozen weight that is loaded anew, and all weights where the load replaces the parameters."""
    module = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(3)])
    module[2].requires_grad_(False)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in module[:2]]
    clipping = SpectralClipping(module, limit=LIMIT).attach(*optimizers)
    module.load_state_dict({name: 9 * weight for name, weight in module.state_dict().items()}, assign=assign)
    for optimizer in optimizers:
        optimizer.step()
    assert [line.spectral_norm for line in clipping.report()] == [at(LIMIT)] * 3


@pytest.mark.parametrize("clip", [lambda net, one: SpectralClipping(net, limit=1.0).attach(one), clip_updates])
def test_an_optimizer_that_is_differentiated_through_is_refused(clip: Any) -> None:
    module = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, differentiable=True)
    with pytest.raises(UserError, match="differentiable=True: clipping after a step has no gradient; use clip_sing"):
        clip(module, optimizer) if clip is not clip_updates else clip_updates(optimizer, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_default_device_is_none_of_its_business(dtype: torch.dtype) -> None:
    module = nn.Linear(300, 300, dtype=dtype)
    with torch.no_grad():
        module.weight *= 20
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module.weight.grad = torch.ones_like(module.weight)
    with torch.device("meta"):
        clipping = SpectralClipping(module, limit=LIMIT).attach(optimizer)
        updates = clip_updates(optimizer, 0.1) if dtype != torch.bfloat16 else None
        optimizer.step()
        assert clipping.report()[0].spectral_norm == pytest.approx(LIMIT, rel=1e-3)
        clipping.load_state_dict(clipping.state_dict())
        assert updates is None or updates.report()[0].last_clipped == 1


def test_updates_are_clipped_by_whatever_names_a_loaded_state_brings() -> None:
    module = net()
    optimizer = torch.optim.SGD(module.named_parameters(), lr=1.0)
    clipping = clip_updates(optimizer, 0.1)
    wrapped = torch.optim.SGD([(f"module.{name}", one) for name, one in module.named_parameters()], lr=1.0)
    optimizer.load_state_dict(wrapped.state_dict())
    before = module[0].weight.detach().clone()
    backward(module, 0)
    optimizer.step()
    assert sigma_1(module[0].weight - before) <= 0.1 * (1 + 1e-4)
    assert [line.name for line in clipping.report()] == ["module.0.weight", "module.2.weight"]


def test_a_pattern_that_picks_nothing_is_told_what_there_is() -> None:
    optimizer = torch.optim.SGD(net().parameters(), lr=1.0)
    told = r"weights of two axes or more are 0\.0, 0\.2; for the module's names make the optimizer of model\.named_par"
    with pytest.raises(UserError, match=told):
        clip_updates(optimizer, 0.1, select="2.weight")
    with pytest.raises(UserError, match=r"select='head': picks no parameter; weights .* are 0\.weight, 2\.weight$"):
        SpectralClipping(net(), limit=1.0, select="head")


class Wrapper(torch.optim.Optimizer):
    """As people write one around another."""

    def __init__(self, module: nn.Module) -> None:
        self.inside = torch.optim.SGD(module.parameters(), lr=1.0)
        self.param_groups = self.inside.param_groups


def expanded() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(1, 4).expand(4, 4))
    return layer


def made_under_inference() -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: SpectralClipping(list(net().parameters()), limit=1.0), "module of list: should be a torch.nn.Module"),
        (lambda: SpectralClipping(net(), limit=1.0).attach(net()), "optimizer of Sequential: should be a torch.optim"),
        (lambda: clip_updates(list(net().parameters()), 0.1), "optimizer of list: should be a torch.optim.Optimizer"),
        (lambda: SpectralClipping(net(), limit=True), "limit=True: should be a number"),
        (lambda: SpectralClipping(net(), limit="1.5"), "limit='1.5': should be a number"),
        (lambda: SpectralClipping(net(), limit=10**400), r"limit=1000*: should be a number"),
        (lambda: SpectralClipping(net(), limit=torch.tensor(1j)), r"limit=tensor\(0\.\+1\.j\): should be a number"),
        (lambda: SpectralClipping(net(), limit=torch.tensor(1.0, device="meta")), "limit=tensor.*: should be a number"),
        (lambda: clip_updates(Wrapper(net()), 0.1), r"Wrapper: was made without Optimizer\.__init__ .* inside it"),
        (lambda: SpectralClipping(net(), limit=1.0).attach(Wrapper(net())), "Wrapper: was made without Optimizer"),
        (lambda: SpectralClipping(net(), limit=1.0).load_state_dict(None), "state_dict of NoneType: should be what"),
        (
            lambda: SpectralClipping(nn.Linear(2, 2), limit=1.0).load_state_dict(
                dict.fromkeys(("weight/last_clipped", "weight/total_clipped", "weight/foo"), torch.tensor(1))
            ),
            "state_dict with 'foo': should be what",
        ),
        (lambda: SpectralClipping(expanded(), limit=1.0).clip(), r"weight of shape \(4, 4\): elements share their mem"),
        (lambda: SpectralClipping(made_under_inference(), limit=1.0).clip(), "weight was made under torch.inference"),
        (
            lambda: torch.func.vmap(spectral_norm)(torch.ones(2, 3, 3)),
            "weight is under torch.func.vmap: give the whole",
        ),
        (
            lambda: torch.func.vmap(lambda one: clip_singular_values_(one, 1.0).spectral_norm)(torch.ones(2, 3, 3)),
            "weight is under torch.func.vmap: give the whole",
        ),
    ],
)
def test_what_is_of_another_kind_is_refused(call: Callable[[], Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        call()


def test_an_optimizer_given_twice_is_one() -> None:
    layer = nn.Linear(6, 6)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    clipping = SpectralClipping(layer, limit=0.5).attach(optimizer, optimizer)
    layer.weight.grad = -torch.eye(6)
    optimizer.step()
    assert clipping.last_clipped == [6]


def test_the_norm_of_an_expanded_matrix_is_its_own() -> None:
    assert float(spectral_norm(torch.ones(1, 3).expand(3, 3))) == pytest.approx(3)


@pytest.mark.parametrize("layer", [nn.GRU(3, 4), nn.LSTM(3, 4), nn.RNNCell(3, 4)])
def test_a_scripted_layer_is_refused_by_name(layer: nn.Module) -> None:
    module = nn.ModuleDict({"inner": torch.jit.script(layer), "outer": nn.GRU(4, 4)})
    with pytest.raises(UserError, match=r"^inner: is TorchScript"):
        SpectralClipping(module)
    with pytest.raises(UserError, match=r"^inner\.weight_hh.*: is TorchScript"):
        SpectralClipping(module, delta=None, limit=1.0, select="*weight_hh*")


def test_a_scripted_linear_or_convolution_is_refused_by_name() -> None:
    for layer in (nn.Linear(4, 4), nn.Conv2d(2, 2, 2), nn.ConvTranspose1d(2, 2, 2)):
        scripted = torch.jit.script(layer)
        for module, name in ((scripted, "weight"), (nn.Sequential(nn.Linear(2, 2), scripted), r"1\.weight")):
            with pytest.raises(UserError, match=f"^{name}: is TorchScript"):
                SpectralClipping(module, limit=1.0)
    SpectralClipping(nn.Sequential(nn.Linear(2, 2), torch.jit.script(nn.BatchNorm1d(2))), limit=1.0).clip()


def test_a_cell_of_ones_own_is_none_that_is_known() -> None:
    class Cell(nn.RNNCellBase):
        def __init__(self) -> None:
            super().__init__(3, 5, True, num_chunks=3)

    with pytest.raises(UserError, match="holds no recurrent layer"):
        SpectralClipping(Cell())
    assert len(SpectralClipping(Cell(), limit=1.0, select="weight_hh").parameters[0].limits) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_norm_of_many_equal_numbers_is_right(dtype: torch.dtype, transposed: bool, kernels_or_not: None) -> None:
    """In float32 each addition of such a square rounds the same way: 1 % of 4096 x 4096 were lost."""
    stack = torch.full((1, 4096, 4096), 1.345, dtype=dtype)
    ((norm,),) = norms_of([stack.mT if transposed else stack])
    assert norm == pytest.approx(4096 * float(stack[0, 0, 0]), rel=1e-6)


def test_a_parameter_whose_name_begins_with_that_of_a_computed_one_is_clipped() -> None:
    layer = parametrizations.orthogonal(nn.GRU(4, 8, bidirectional=True), "weight_hh_l0")
    clipping = SpectralClipping(layer, delta=None, limit=1.0, select=["*_reverse"])
    assert [line.name for line in clipping.report()] == ["weight_ih_l0_reverse", "weight_hh_l0_reverse"]
    pruned = prune.l1_unstructured(nn.Linear(8, 8), "weight", amount=0.5)
    pruned.weight_low = nn.Parameter(5 * torch.eye(8))
    clipping = SpectralClipping(pruned, delta=None, limit=1.0, select=["weight_low"])
    clipping.clip()
    assert sigma_1(pruned.weight_low) == at(1.0)
    with pytest.raises(UserError, match="picks no parameter"):
        SpectralClipping(pruned, delta=None, limit=1.0, select=["weight_orig"])
