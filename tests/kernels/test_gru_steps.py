"""The paper's GRU with Triton's kernels between its products is the one by torch's operations: on the CPU by Triton's
interpreter, on a GPU as it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gruclip.gru import gru_layer, plain_gru
from gruclip.kernels import compiled, fused, gru_steps
from gruclip.kernels import products as products_module
from gruclip.kernels.gru_steps import Recurrence

INTERPRETED = not torch.cuda.is_available()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

#: On a lent GPU a minute is for all tests.
EXAMPLES = 8 if INTERPRETED else 5


@pytest.fixture(autouse=True, scope="module")
def by_triton(interpreted: None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "takes", lambda *_: False)
        # Slow where the processor has none, and the same everywhere.
        patch.setattr(products_module, "has_bf16_products", lambda _: True)
        yield


def layer(inputs: list[Tensor | None], grad: Tensor, compute: torch.dtype | None, kernels: bool) -> list[Tensor]:
    """The states, and the gradients of all that are given but for `keep`, in float64."""
    fused.takes(grad)  # on a GPU a kernel is tried first, once in a process
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRUCLIP_TRITON", str(int(kernels)))
        launches = []
        real = fused.launch
        patch.setattr(
            fused, "launch", lambda name, *rest, **options: (launches.append(name), real(name, *rest, **options))
        )
        *others, keep = inputs
        leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in others]
        states = gru_layer(*leaves, keep, compute)  # type: ignore[arg-type]
        gradients = torch.autograd.grad(states, [leaf for leaf in leaves if leaf is not None], grad)
    steps = grad.shape[1]
    if compute == torch.bfloat16:
        expected = ["gates_by_product", "state_by_product"] * steps + ["candidate_gradient"]
        expected += ["reset_gradient_by_product", "candidate_gradient_by_product"] * steps
    else:
        expected = ["gates_of_step", "state_of_step"] * steps + ["candidate_gradient", "reset_gradient"] * steps
    assert launches == (expected if kernels else [])
    return [tensor.double() for tensor in (states.detach(), *gradients)]


def inputs_of(
    runs: int, steps: int, batch: int, k: int, n: int, biased: bool, resets: str, scale: float, seed: int
) -> list[Tensor | None]:
    """x, h0, weight_ih, weight_hh, bias, keep; and the gradient of the states."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE)

    keep = {
        "none": None,
        "some": (draw(runs, steps, batch) > 0).float(),
        "shared": (draw(1, steps, batch) > 0).float(),
        "all": torch.zeros(1, 1, 1, device=DEVICE).expand(runs, steps, batch),
    }[resets]
    weights = scale * draw(runs, 3 * n, k) / k**0.5, scale * draw(runs, 3 * n, n) / n**0.5
    bias = draw(runs, 3 * n) if biased else None
    return [draw(runs, steps, batch, k), draw(runs, batch, n), *weights, bias, keep, draw(runs, steps, batch, n)]


shapes = {
    "runs": st.integers(1, 3), "steps": st.integers(1, 5), "batch": st.integers(1, 3), "k": st.integers(1, 5),
    "n": st.sampled_from([1, 2, 5, 16, 130]), "biased": st.booleans(),
    "resets": st.sampled_from(["none", "some", "shared", "all"]), "scale": st.sampled_from([0.01, 1.0, 10.0]),
    "seed": st.integers(0, 2**30),
}  # fmt: skip


@given(**shapes)
@settings(max_examples=EXAMPLES)
def test_states_and_gradients_are_those_of_float64(**shape: Any) -> None:
    *inputs, grad = inputs_of(**shape)
    assert grad is not None
    found, by_torch = (layer(inputs, grad, None, kernels) for kernels in (True, False))
    leaves = [None if tensor is None else tensor.double().requires_grad_() for tensor in inputs[:-1]]
    keep = None if inputs[-1] is None else inputs[-1].double()
    states = plain_gru(*leaves, keep)  # type: ignore[arg-type]
    exact = torch.autograd.grad(states, [leaf for leaf in leaves if leaf is not None], grad.double())
    for one, other, expected in zip(found, by_torch, (states.detach(), *exact), strict=True):
        # As near as torch's operations, but for the luck of a few roundings.
        allowed = 4 * float((other - expected).abs().max()) + 4e-6 * float(expected.abs().max())
        assert float((one - expected).abs().max()) <= allowed


@given(**shapes)
@settings(max_examples=EXAMPLES)
def test_in_bf16_the_same_factors_are_rounded(**shape: Any) -> None:
    *inputs, grad = inputs_of(**{**shape, "scale": min(shape["scale"], 1.0)})
    assert grad is not None
    found, by_torch, exact = (
        layer(inputs, grad, compute, kernels)
        for compute, kernels in ((torch.bfloat16, True), (torch.bfloat16, False), (None, False))
    )
    for one, other, expected in zip(found, by_torch, exact, strict=True):
        # The interpreter's casts cut off where torch and a GPU round: twice the error, and with a sign.
        allowed = 4 * float((other - expected).abs().max()) + 0.03 * float(expected.abs().max())
        assert float((one - other).abs().max()) <= allowed


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("batch", [20, 70])
def test_in_bf16_a_batch_is_taken_in_blocks_of_rows(batch: int, biased: bool) -> None:
    *inputs, grad = inputs_of(2, 3, batch, 4, 70, biased, "some", 1.0, 0)
    assert grad is not None
    found, by_torch = (layer(inputs, grad, torch.bfloat16, kernels) for kernels in (True, False))
    for one, other in zip(found, by_torch, strict=True):
        torch.testing.assert_close(one, other, rtol=0.03, atol=0.03 * float(other.abs().max()))


@pytest.mark.parametrize("runs", [1, 2])
def test_copies_of_the_weights_in_bf16_have_gradients_in_bf16(runs: int) -> None:
    *inputs, grad = inputs_of(runs, 3, 2, 4, 6, False, "some", 1.0, 0)
    assert grad is not None
    inputs[2:4] = [tensor.bfloat16() for tensor in inputs[2:4] if tensor is not None]
    found, by_torch = (layer(inputs, grad, torch.bfloat16, kernels) for kernels in (True, False))
    for one, other in zip(found, by_torch, strict=True):
        torch.testing.assert_close(one, other, rtol=0.03, atol=0.03 * float(other.abs().max()))


@pytest.mark.parametrize("resets", ["none", "some"])
@pytest.mark.parametrize("runs", [1, 2])
def test_a_state_that_is_not_finite_stays_so(runs: int, resets: str) -> None:
    *inputs, grad = inputs_of(runs, 3, 2, 4, 6, False, resets, 1.0, 0)
    assert grad is not None
    assert inputs[0] is not None
    inputs[0][0, 1, 1, 2] = torch.nan
    found, by_torch = (layer(inputs, grad, None, kernels) for kernels in (True, False))
    for one, other in zip(found, by_torch, strict=True):
        assert torch.equal(one.isnan(), other.isnan())


def test_large_sums_saturate() -> None:
    x = torch.tensor([-3e38, -100.0, -20.0, 20.0, 100.0, 3e38], device=DEVICE).expand(1, 1, 1, 6)
    weight_ih = torch.cat([torch.zeros(12, 6), torch.eye(6)]).unsqueeze(0).to(DEVICE)
    h0, weight_hh = torch.zeros(1, 1, 6, device=DEVICE), torch.zeros(1, 18, 6, device=DEVICE)
    states = layer([x, h0, weight_ih, weight_hh, None, None], torch.ones_like(h0[None]), None, kernels=True)[0]
    torch.testing.assert_close(states.flatten(), x.flatten().double().tanh() / 2, rtol=1e-6, atol=0)


def test_a_candidate_s_small_sums_keep_their_digits() -> None:
    x = torch.logspace(-30, 0.5, 400, device=DEVICE).view(1, 1, 1, -1)
    x = torch.cat((x, -x), -1)
    n = x.shape[-1]
    weight_ih = torch.cat([torch.zeros(2 * n, n), torch.eye(n)]).unsqueeze(0).to(DEVICE)
    h0, weight_hh = torch.zeros(1, 1, n, device=DEVICE), torch.zeros(1, 3 * n, n, device=DEVICE)
    states = layer([x, h0, weight_ih, weight_hh, None, None], torch.ones_like(h0[None]), None, kernels=True)[0]
    torch.testing.assert_close(
        states.flatten(), x.flatten().double().tanh() / 2, rtol=2e-6, atol=0
    )  # a GPU's exp is a quick one


def test_float64_half_precision_and_what_is_not_contiguous_are_left_to_torch() -> None:
    def are(compute: torch.dtype | None = None, weights: torch.dtype = torch.float32, **other: Any) -> bool:
        gates, c, states = (
            torch.zeros(2, 3, size, **{"dtype": torch.float32, **other}).to(DEVICE) for size in (8, 4, 4)
        )
        recurrence = Recurrence(gates, c, states, torch.zeros(12, 4, dtype=weights), None)
        return gru_steps._is_fused(recurrence, compute)

    assert are()
    assert are(torch.float32)
    assert are(torch.bfloat16)
    assert are(torch.bfloat16, weights=torch.bfloat16)
    assert not are(weights=torch.bfloat16)
    assert not are(torch.float16)
    assert not are(dtype=torch.float64)
    assert not are(dtype=torch.bfloat16)
    transposed = torch.zeros(4, 3, 2, device=DEVICE).mT
    recurrence = Recurrence(transposed, transposed, transposed, torch.zeros(12, 4), None)
    assert not gru_steps._is_fused(recurrence, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "MAX_UNITS", 3)
        assert not are(torch.bfloat16)


def test_where_a_kernel_cannot_be_compiled_torch_s_operations_are_taken_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("Failed to find C compiler")

    fused._works.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fused._works(DEVICE)
    fused._works.cache_clear()
    monkeypatch.setattr(fused, "launch", fails)
    with pytest.warns(RuntimeWarning, match="do not work on .*: Failed to find C compiler"):
        assert not fused._works(DEVICE)
    monkeypatch.setattr(fused, "INTERPRETED", False)
    assert not fused.takes(torch.ones(2, device=DEVICE))
    fused._works.cache_clear()
