"""The fast layer is the paper's cell: held to the plain one in float64, outputs and every gradient."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gruclip.errors import UserError
from gruclip.gru import GRU, gru_layer, plain_gru
from gruclip.model.losses import softmax_nll

FLOAT64_TOLERANCE = 1e-12


def made_layer(
    runs: int, steps: int, batch: int, k: int, n: int, seed: int, bias: bool = True, resets: bool = True
) -> tuple[list[Tensor], Tensor | None]:
    """Random float64 arguments of `plain_gru`, of moderate size, and a keep mask."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    arguments = [normal(runs, steps, batch, k), normal(runs, batch, n), normal(runs, 3 * n, k), normal(runs, 3 * n, n)]
    if bias:
        arguments.append(normal(runs, 3 * n))
    keep = (torch.rand(runs, steps, batch, generator=generator) > 0.3).double() if resets else None
    return arguments, keep


shapes = {
    "runs": st.integers(1, 3),
    "steps": st.integers(1, 6),
    "batch": st.integers(1, 4),
    "k": st.integers(1, 5),
    "n": st.integers(1, 6),
    "seed": st.integers(0, 2**31),
    "bias": st.booleans(),
    "resets": st.booleans(),
}


@settings(deadline=None, max_examples=60)
@given(**shapes)
def test_fast_layer_equals_the_equations_outputs_and_every_gradient(
    runs: int, steps: int, batch: int, k: int, n: int, seed: int, bias: bool, resets: bool
) -> None:
    arguments, keep = made_layer(runs, steps, batch, k, n, seed, bias, resets)
    b = arguments[4] if bias else None
    expected = plain_gru(*arguments[:4], b, keep)
    found = gru_layer(*arguments[:4], b, keep)
    assert (expected - found).abs().max() <= FLOAT64_TOLERANCE
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    for one, other in zip(
        torch.autograd.grad(expected, arguments, weight), torch.autograd.grad(found, arguments, weight), strict=True
    ):
        assert (one - other).abs().max() <= FLOAT64_TOLERANCE * max(1.0, one.abs().max().item())


@pytest.mark.parametrize("runs", [1, 2])
def test_fast_layer_passes_gradcheck(runs: int) -> None:
    arguments, keep = made_layer(runs, 3, 2, 2, 3, seed=0)
    assert torch.autograd.gradcheck(lambda *a: gru_layer(*a, keep), arguments)


@pytest.mark.parametrize("n", [200, 650])
def test_float32_layer_is_as_exact_as_float32_allows_on_every_kernel_of_this_machine(n: int) -> None:
    # n = 650 takes packed oneDNN products where they are faster, n = 200 takes torch's.
    arguments, _ = made_layer(1, 5, 20, n, n, seed=1, bias=False, resets=False)
    exact = [a.detach() / n**0.5 if i >= 2 else a.detach() for i, a in enumerate(arguments)]
    single = [a.float().requires_grad_() for a in exact]
    double = [a.requires_grad_() for a in exact]
    found, expected = gru_layer(*single), plain_gru(*double)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-6)
    found.sum().backward()
    expected.sum().backward()
    for one, other in zip(single, double, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert (one.grad - other.grad).norm() <= 1e-5 * other.grad.norm()


def test_bf16_products_leave_the_layer_within_a_percent() -> None:
    arguments, _ = made_layer(1, 5, 20, 64, 64, seed=2, bias=False, resets=False)
    exact = [a.detach() / 8 if i >= 2 else a.detach() for i, a in enumerate(arguments)]
    found = gru_layer(*[a.float() for a in exact], compute=torch.bfloat16)
    assert found.dtype == torch.float32
    assert (found - plain_gru(*exact)).abs().max() < 0.02


def test_a_reset_state_is_a_zero_state() -> None:
    arguments, _ = made_layer(1, 6, 2, 3, 4, seed=3, resets=False)
    keep = torch.ones(1, 6, 2, dtype=torch.float64)
    keep[:, 2] = 0
    whole = gru_layer(*arguments, keep)
    second = gru_layer(arguments[0][:, 2:], torch.zeros_like(arguments[1]), *arguments[2:])
    assert torch.equal(whole[:, 2:], second)


def test_module_has_torchs_parameters_shapes_and_states() -> None:
    ours, theirs = GRU(5, 7, num_layers=2), nn.GRU(5, 7, num_layers=2)
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
    x = torch.randn(4, 3, 5)
    for one, other in zip(ours(x), theirs(x), strict=True):
        assert one.shape == other.shape


def test_module_agrees_with_torch_where_the_reset_gate_is_open_and_no_bias_is_in_its_product() -> None:
    # With r = 1 and no candidate bias inside the reset product the two cells are one.
    ours, theirs = GRU(5, 7, num_layers=2).double(), nn.GRU(5, 7, num_layers=2).double()
    with torch.no_grad():
        for layer in range(2):
            getattr(theirs, f"bias_ih_l{layer}")[:7] = 1e3
            getattr(theirs, f"bias_hh_l{layer}")[14:] = 0
    ours.load_state_dict(theirs.state_dict())
    x, h_0 = torch.randn(4, 3, 5, dtype=torch.float64), torch.randn(2, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(ours(x, h_0), theirs(x, h_0), rtol=0, atol=1e-12)


def test_module_takes_batch_first_and_unbatched_input() -> None:
    layer = GRU(5, 7).double()
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    expected = layer(x)[0]
    layer.batch_first = True
    torch.testing.assert_close(layer(x.transpose(0, 1))[0].transpose(0, 1), expected, rtol=0, atol=1e-13)
    layer.batch_first = False
    torch.testing.assert_close(layer(x[:, 0])[0], expected[:, 0], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: GRU(5, 7, bidirectional=True), "bidirectional"),
        (lambda: GRU(5, 0), "hidden_size=0"),
        (lambda: GRU(5, 7.0), r"hidden_size=7\.0: should be a whole number"),
        (lambda: GRU(5, 7, dropout=1.1), "dropout=1.1"),
        (lambda: GRU(5, 7, dropout=True), "dropout=True"),
        (lambda: GRU(5, 7, dropout="0.5"), "dropout='0.5': should be a number"),
        (lambda: GRU(5, 7, dtype="float32"), "dtype='float32': should be a floating dtype, e.g. torch.float32"),
        (lambda: GRU(5, 7)(torch.zeros(2, 3, 4)), r"\(2, 3, 4\): should be \(T, B, k\) with k = 5"),
        (lambda: GRU(5, 7)(torch.zeros(0, 3, 5)), r"\(0, 3, 5\): should have at least one step"),
        (
            lambda: GRU(5, 7)(torch.zeros(2, 3, 5), torch.zeros(1, 2, 7)),
            r"hx of shape \(1, 2, 7\): should be \(1, 3, 7\)",
        ),
        (lambda: GRU(5, 7)(torch.zeros(2, 5), torch.zeros(1, 1, 7)), r"hx of shape \(1, 1, 7\): should be \(1, 7\)"),
        (lambda: GRU(5, 7).double()(torch.zeros(2, 3, 5)), r"input of torch\.float32: should be .* torch\.float64"),
        (lambda: GRU(5, 7)(torch.zeros(2, 5), torch.zeros(1, 7).half()), r"hx of torch\.float16: should be .*float32"),
        (lambda: GRU(5, 7)(nn.utils.rnn.pack_sequence([torch.zeros(2, 5)])), "PackedSequence"),
        (lambda: GRU(5, 7)(torch.nested.nested_tensor([torch.zeros(2, 5)])), "input is a nested tensor"),
        (lambda: GRU(5, 7)(torch.zeros(2, 3, 5).to_sparse()), r"layout torch\.sparse_coo"),
        (lambda: GRU(5, 7)(torch.zeros(2, 3, 5), (torch.zeros(1, 3, 7),) * 2), "hx is a tuple"),
        (lambda: GRU(5, 7)(torch.zeros(2, 3, 5, device="meta")), "input on meta: should be on the parameters' cpu"),
        (lambda: GRU(5, 7, device="meta")(torch.zeros(2, 3, 5)), "input on cpu: should be on the parameters' meta"),
        (lambda: GRU(5, 7, dtype=torch.complex64), r"dtype=torch\.complex64: should be a floating dtype"),
        (lambda: GRU(5, 7).to(torch.complex64)(torch.zeros(2, 3, 5)), r"parameters of torch\.complex64"),
    ],
)
def test_what_the_module_does_not_take_is_refused_by_name(call: object, named: str) -> None:
    with pytest.raises(UserError, match=named):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "other", "named"),
    [
        ("weight_hh_l0", lambda one: one.double(), r"weight_hh_l0 of torch\.float64: should be of torch\.float32, as"),
        ("bias_hh_l1", lambda one: one.double(), r"bias_hh_l1 of torch\.float64: should be of torch\.float32, as"),
        ("weight_ih_l1", lambda one: one[:, :3], r"weight_ih_l1 of shape \(21, 3\): should be \(21, 7\)"),
        ("bias_ih_l0", lambda one: one[:7], r"bias_ih_l0 of shape \(7,\): should be \(21,\)"),
    ],
)
def test_a_parameter_that_does_not_fit_the_others_is_named(name: str, other: Any, named: str) -> None:
    module = GRU(5, 7, num_layers=2)
    setattr(module, name, nn.Parameter(other(getattr(module, name).detach())))
    with pytest.raises(UserError, match=named):
        module(torch.zeros(2, 3, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_nothing_has_outputs_and_gradients_of_nothing(dtype: torch.dtype) -> None:
    layer, x = GRU(5, 7, num_layers=2).to(dtype), torch.zeros(4, 0, 5, dtype=dtype, requires_grad=True)
    outputs, h_n = layer(x)
    assert (outputs.shape, h_n.shape) == ((4, 0, 7), (2, 0, 7))
    outputs.sum().backward()
    assert x.grad is not None
    assert all(not parameter.grad.any() for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("runs", [1, 2])
def test_second_derivatives_are_refused_and_not_dropped(runs: int, dtype: torch.dtype) -> None:
    arguments, _ = made_layer(runs, 3, 2, 3, 4, seed=4, bias=False, resets=False)
    x, *others = (argument.detach().to(dtype).requires_grad_() for argument in arguments)
    h, targets = x[:, 0], torch.zeros(runs, 2, dtype=torch.long)
    for outputs in (gru_layer(x, *others), softmax_nll(h, h.new_ones(runs, 3, 5), h.new_ones(runs, 5), targets)):
        with pytest.raises(UserError, match="create_graph=True"):
            torch.autograd.grad(outputs.sum(), x, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("in_forward", [True, False])
@pytest.mark.parametrize("in_backward", [True, False])
def test_autocast_rounds_the_products_operands_and_nothing_else(
    dtype: torch.dtype, in_forward: bool, in_backward: bool
) -> None:
    torch.manual_seed(0)
    layer, x = GRU(8, 16).to(dtype), torch.randn(5, 3, 8, dtype=dtype)

    def passed(forward: bool, backward: bool, x: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=forward):
            outputs, h_n = layer(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=backward):
            return [outputs, h_n, *torch.autograd.grad(outputs.sum() + h_n.sum(), list(layer.parameters()))]

    expected, found = passed(False, False, x), passed(in_forward, in_backward, x)
    for one, other in zip(expected, found, strict=True):
        assert other.dtype == dtype
        assert torch.equal(one, other) or (in_forward and (one - other).norm() < 0.02 * one.norm())
    if in_forward:
        half = passed(True, in_backward, x.bfloat16())
        assert all(torch.equal(one, other) for one, other in zip(found, half, strict=True))


@pytest.mark.parametrize("batch", [0, 3])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)])
def test_autocast_to_another_16_bits_leaves_the_parameters_dtype(dtypes: tuple[torch.dtype, ...], batch: int) -> None:
    torch.manual_seed(0)
    layer, x = GRU(8, 16, num_layers=2, dtype=dtypes[0]), torch.randn(5, batch, 8, dtype=dtypes[0])
    expected = layer(x)
    with torch.autocast("cpu", dtypes[1]):
        found = layer(x)
    for one, other in zip(expected, found, strict=True):
        assert other.dtype == dtypes[0]
        assert (one - other).norm() <= 0.02 * one.norm()


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_so_does_it_where_products_are_torchs_own(capability: str) -> None:
    """A subprocess, since torch reads what processor it is to take itself for once."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "autocast_rounds", __file__]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_gradient_that_is_a_view_of_the_opposite_numbers_has_its_sign():
    one, gradients = torch.ones(1, 1, 1), []
    view = torch.complex(torch.zeros_like(one), -one).conj().imag
    assert view.is_neg()
    assert view.is_contiguous()  # what is not is copied, and has its sign
    for grad in (view, one):
        torch.manual_seed(0)
        layer = GRU(1, 1)
        layer(one)[0].backward(grad)
        gradients.append([parameter.grad for parameter in layer.parameters()])
    for view, plain in zip(*gradients, strict=True):
        assert torch.equal(view, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("changed", ["weight_ih_l0", "weight_hh_l0"])
def test_a_weight_changed_before_the_backward_pass_is_refused_by_its_shape(changed: str, dtype: torch.dtype) -> None:
    layer = GRU(5, 7, dtype=dtype)
    loss, weight = layer(torch.ones(4, 3, 5, dtype=dtype))[0].sum(), getattr(layer, changed)
    with torch.no_grad():
        weight.mul_(2)
    shape = ", ".join(map(str, weight.shape))
    with pytest.raises(RuntimeError, match=rf"modified by an inplace operation: \[torch\.\w+ \[1, {shape}\]\]"):
        loss.backward()
