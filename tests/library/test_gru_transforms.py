"""gruclip.GRU under torch's transforms computes what plain calls of it compute, and is what people do to modules."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations

from gruclip.errors import UserError
from gruclip.gru import GRU, gru_layer, plain_gru
from gruclip.kernels import compiled
from gruclip.kernels.gru_operator import operator, operator_backward

DTYPES = [torch.float32, torch.float64]
#: Float32 sums of some hundred terms of size one, in another order.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture
def fresh_compiler() -> None:
    torch._dynamo.reset()


def loss(gru: GRU, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    states, last = functional_call(gru, parameters, (x,))
    return states.square().sum() + last.sum()


def passed(call: Callable[..., Any], module: nn.Module, x: Tensor) -> list[Tensor]:
    """Results and the gradients of input and parameters."""
    states, last = call(x)
    return [states, last, *torch.autograd.grad(states.square().sum() + last.sum(), [x, *module.parameters()])]


def assert_close(found: Any, expected: Any, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_it_has_the_same_bits_whatever_batch_and_length(dtype: torch.dtype, fresh_compiler: None) -> None:
    gru = GRU(5, 7, num_layers=2, dtype=dtype)
    call = torch.compile(gru, fullgraph=True, dynamic=True, backend="aot_eager")
    for steps, batch in ((4, 3), (6, 9), (1, 3)):
        x = torch.randn(steps, batch, 5, dtype=dtype, requires_grad=True)
        assert all(map(torch.equal, passed(call, gru, x), passed(gru, gru, x)))
        with torch.no_grad():
            assert torch.equal(call(x)[0], gru(x)[0])


def test_a_model_trained_through_inductor_is_the_model_with_dropouts_masks_too(fresh_compiler: None) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.out = GRU(5, 7, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(7, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.gru(x)[0])

    model, x = Model(), torch.randn(3, 6, 5)
    results = []
    with torch._inductor.config.patch(fallback_random=True):  # without it inductor draws masks of its own
        for wrap in (lambda module: module, lambda module: torch.compile(module, fullgraph=True)):
            trained = copy.deepcopy(model)
            call, optimizer = wrap(trained), torch.optim.SGD(trained.parameters(), lr=0.1)
            torch.manual_seed(0)
            for _ in range(3):
                optimizer.zero_grad()
                call(x).square().sum().backward()
                optimizer.step()
            results.append(list(trained.parameters()))
    assert_close(*results, torch.float32)
    assert not torch.equal(results[0][0], next(model.parameters()))


def test_compiled_under_autocast_it_rounds_as_it_does_by_itself(fresh_compiler: None) -> None:
    gru, x = GRU(5, 7), torch.randn(4, 3, 5, requires_grad=True)
    call = torch.compile(gru, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, passed(call, gru, x), passed(gru, gru, x)))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_saved_and_loaded_it_computes_and_trains_the_same(strict: bool, fresh_compiler: None) -> None:
    gru, steps, batch = GRU(5, 7, num_layers=2), torch.export.Dim("steps"), torch.export.Dim("batch")
    shapes = ({0: steps, 1: batch}, {1: batch})
    arguments = torch.randn(4, 3, 5), torch.randn(2, 3, 7)
    file = io.BytesIO()
    torch.export.save(torch.export.export(gru, arguments, dynamic_shapes=shapes, strict=strict), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    x, hx = torch.randn(6, 8, 5, requires_grad=True), torch.randn(2, 8, 7)
    found, expected = passed(lambda x: loaded(x, hx), loaded, x), passed(lambda x: gru(x, hx), gru, x)
    assert all(map(torch.equal, found, expected))


def test_a_process_that_loads_an_exported_program_imports_the_class(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(GRU(5, 7), (torch.zeros(4, 3, 5),)), tmp_path / "gru.pt2")
    load = f"from gruclip import GRU; import torch; torch.export.load({str(tmp_path / 'gru.pt2')!r}).module()"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", load], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@settings(deadline=None, max_examples=25)
@given(
    dims=st.sampled_from([(0, 0), (0, None), (None, 0), (None, 2)]),
    count=st.integers(1, 3),
    steps=st.integers(1, 4),
    batch=st.integers(1, 3),
    n=st.integers(1, 5),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_of_many_calls_at_once_each_is_a_call_results_and_gradients(
    dims: tuple[int | None, int | None], count: int, steps: int, batch: int, n: int, bias: bool, dtype: torch.dtype
) -> None:
    grus = [GRU(3, n, num_layers=2, bias=bias, dtype=dtype) for _ in range(count)]
    stacked, _ = stack_module_state(grus)  # type: ignore[arg-type]
    parameters = dict(grus[0].named_parameters()) if dims[0] is None else stacked
    xs = torch.randn(count, steps, batch, 3, dtype=dtype)
    x = xs[0] if dims[1] is None else xs.movedim(0, dims[1])

    def of_one(parameters: dict[str, Tensor], x: Tensor) -> tuple[Any, Any]:
        one = functional_call(grus[0], parameters, (x,))
        return one, grad(lambda p, x: loss(grus[0], p, x), argnums=(0, 1))(parameters, x)

    (states, last), (of_parameters, of_x) = vmap(of_one, dims)(parameters, x)
    for index in range(count):
        gru = grus[0] if dims[0] is None else grus[index]
        one = (xs[0] if dims[1] is None else xs[index]).clone().requires_grad_()
        found = [states, last, of_x, *(of_parameters[name] for name, _ in gru.named_parameters())]
        assert_close([tensor[index] for tensor in found], passed(gru, gru, one), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [(None, 0), (0, None), (None, None)])
def test_many_calls_of_many_calls_too(dims: tuple[int | None, int | None], dtype: torch.dtype) -> None:
    grus = [GRU(3, 4, dtype=dtype) for _ in range(2)]
    stacked, _ = stack_module_state(grus)  # type: ignore[arg-type]
    x = torch.randn(3, 2, 4, 5, 3, dtype=dtype)  # outer, inner, T, B, k
    outer, inner = dims
    parameters = stacked if 0 in dims else dict(grus[0].named_parameters())
    each = vmap(grad(lambda p, x: loss(grus[0], p, x)), (inner, 0))
    found = vmap(each, (outer, 0))(parameters, x[:2])
    for i in range(2):
        for j in range(2):
            gru = grus[i] if outer == 0 else grus[j] if inner == 0 else grus[0]
            expected = passed(gru, gru, x[i, j].requires_grad_())[3:]
            assert_close([of[i, j] for of in found.values()], expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("runs", [1, 2])
def test_resets_are_mapped_over_with_the_rest(runs: int, dtype: torch.dtype) -> None:
    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype)

    many = [normal(4, runs, 5, 3, 2), normal(4, runs, 3, 6), (normal(4, runs, 5, 3) > -0.5).to(dtype)]
    weights = [normal(runs, 18, 2), normal(runs, 18, 6), normal(runs, 18)]

    def of_one(layer: Any, x: Tensor, h0: Tensor, keep: Tensor, *weights: Tensor) -> Any:
        return grad(lambda *w: layer(x, h0, *w, keep).square().sum(), argnums=(0, 1, 2))(*weights)

    found = vmap(lambda *one: of_one(gru_layer, *one, *weights))(*many)
    for index in range(4):
        expected = of_one(plain_gru, *(tensor[index] for tensor in many), *weights)
        torch.testing.assert_close([of[index] for of in found], list(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_jacobians_are_rows_of_gradients_whatever_they_are_taken_with(dtype: torch.dtype) -> None:
    gru, x = GRU(2, 3, dtype=dtype), torch.randn(3, 2, 2, dtype=dtype)
    expected = torch.autograd.functional.jacobian(lambda x: gru(x)[0], x)
    assert_close(jacrev(lambda x: gru(x)[0])(x), expected, dtype)
    assert_close(torch.autograd.functional.jacobian(lambda x: gru(x)[0], x, vectorize=True), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_calls_at_all_have_results_and_gradients_of_none(dtype: torch.dtype) -> None:
    gru = GRU(3, 5, num_layers=2).to(dtype)
    parameters, x = dict(gru.named_parameters()), torch.zeros(0, 7, 2, 3, dtype=dtype)
    assert vmap(lambda one: gru(one)[0])(x).shape == (0, 7, 2, 5)
    one_each = vmap(grad(lambda p, one: loss(gru, p, one)), (None, 0))(parameters, x)
    assert {name: one.shape for name, one in one_each.items()} == {
        name: (0, *one.shape) for name, one in parameters.items()
    }
    stacked = {name: one.new_zeros(0, *one.shape) for name, one in parameters.items()}
    assert vmap(lambda p: loss(gru, p, x.new_zeros(7, 2, 3)))(stacked).shape == (0,)


def test_in_a_compiled_function_a_transform_is_left_to_python(fresh_compiler: None) -> None:
    gru = GRU(3, 4)
    parameters, xs = dict(gru.named_parameters()), torch.randn(5, 4, 1, 3)
    each = vmap(grad(lambda p, x: loss(gru, p, x)), (None, 0))
    assert_close(torch.compile(each, backend="aot_eager")(parameters, xs), each(parameters, xs), torch.float32)


@pytest.mark.parametrize(
    ("transform", "named"),
    [
        (hessian, "jvp"),
        (jacfwd, "jvp"),
        (lambda f: lambda x: torch.func.linearize(f, x), "jvp"),
        (lambda f: jacrev(grad(f)), "create_graph"),
        (lambda f: grad(lambda x: grad(f)(x).sum()), "create_graph"),
    ],
)
def test_second_and_forward_derivatives_are_refused_by_name(transform: Any, named: str) -> None:
    gru = GRU(2, 3)
    with pytest.raises(UserError, match=named):
        transform(lambda x: gru(x)[0].sum())(torch.randn(3, 2, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("runs", [1, 2])
def test_torch_finds_the_operators_sound(runs: int, dtype: torch.dtype) -> None:
    arguments = [
        torch.randn(shape, dtype=dtype, requires_grad=True)
        for shape in ((runs, 4, 3, 5), (runs, 3, 7), (runs, 21, 5), (runs, 21, 7), (runs, 21))
    ]
    keep = torch.ones(runs, 4, 3, dtype=dtype)
    torch.library.opcheck(operator, (*arguments, keep, None))
    x, _, weight_ih, weight_hh, _ = (argument.detach() for argument in arguments)
    result, states, gates = (tensor.detach() for tensor in operator(*arguments, keep, None))
    for wants, groups in ((True, 1), (False, 3)):
        saved = x, weight_ih, weight_hh, keep, states, gates
        torch.library.opcheck(operator_backward, (result, *saved, None, wants, wants, groups))


def test_forward_and_backward_may_be_of_different_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    # An exported layer may be loaded where the compiled ones are not.
    arguments = [torch.randn(shape) for shape in ((1, 4, 6, 5), (1, 6, 7), (1, 21, 5), (1, 21, 7), (1, 21))]
    x, _, weight_ih, weight_hh, _ = arguments
    assert compiled.takes(*arguments)
    results = []
    for _ in range(2):
        result, states, gates = operator(*arguments, None, None)
        of = operator_backward(
            torch.ones_like(result), x, weight_ih, weight_hh, None, states, gates, None, True, True, 3
        )
        results.append((result, states, gates, *of))
        monkeypatch.setattr(compiled, "takes", lambda *_: False)
    assert_close(*results, torch.float32)


def traced(gru: GRU, x: Tensor) -> Any:
    return torch.jit.trace(gru, (x,))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "remake",
    [
        lambda gru, x: copy.deepcopy(gru),
        lambda gru, x: pickle.loads(pickle.dumps(gru)),
        lambda gru, x: torch.optim.swa_utils.AveragedModel(gru),
        lambda gru, x: lambda y: functional_call(gru, dict(gru.named_parameters()), (y,)),
        lambda gru, x: make_fx(lambda y: gru(y))(x),
        traced,
    ],
    ids=["deepcopy", "pickle", "AveragedModel", "functional_call", "make_fx", "jit.trace"],
)
def test_what_is_made_of_it_computes_the_same(remake: Any) -> None:
    gru, y = GRU(5, 7, num_layers=2), torch.randn(4, 3, 5)
    made = remake(gru, torch.randn(4, 3, 5))
    assert all(map(torch.equal, made(y), gru(y)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_it_computes_and_trains_within_the_dtypes_precision(dtype: torch.dtype) -> None:
    gru, x = GRU(5, 7, num_layers=2), torch.randn(4, 3, 5, requires_grad=True)
    half, y = copy.deepcopy(gru).to(dtype), x.detach().to(dtype).requires_grad_()
    for one, other in zip(passed(half, half, y), passed(gru, gru, x), strict=True):
        assert one.dtype == dtype
        assert (one.float() - other).norm() <= 0.03 * other.norm()


@pytest.mark.parametrize("parametrize", [parametrizations.orthogonal, parametrizations.weight_norm])
def test_a_parametrised_weight_is_the_weight_and_is_trained(parametrize: Any) -> None:
    gru, x = GRU(5, 7), torch.randn(4, 3, 5)
    parametrize(gru, "weight_hh_l0")
    plain = GRU(5, 7)
    plain.load_state_dict({name: getattr(gru, name) for name in plain.state_dict()})
    assert torch.equal(gru(x)[0], plain(x)[0])
    gru(x)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in gru.parameters())


def test_it_is_made_on_the_meta_device_and_filled_elsewhere() -> None:
    with torch.device("meta"):
        gru = GRU(5, 7)
        assert gru(torch.empty(4, 3, 5))[0].is_meta
    gru = gru.to_empty(device="cpu")
    gru.reset_parameters()
    assert gru(torch.randn(4, 3, 5))[0].isfinite().all()
