"""The compiled kernels compute what torch's operations compute, to float32's precision, in any number of threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gruclip.errors import UserError
from gruclip.gru import gru_layer, plain_gru
from gruclip.kernels import build, compiled
from gruclip.kernels.gru_layer import is_compiled
from gruclip.model import losses
from gruclip.model.losses import softmax_nll

shapes = {
    "steps": st.integers(1, 5),
    "batch": st.integers(1, 41),
    "k": st.integers(1, 9),
    "n": st.integers(1, 70),
    "seed": st.integers(0, 2**31),
    "bias": st.booleans(),
    "resets": st.booleans(),
}


def made_layer(
    steps: int, batch: int, k: int, n: int, seed: int, bias: bool, resets: bool
) -> tuple[list[Tensor], Tensor | None]:
    """Float32 arguments of `gru_layer` with gradients, and a keep mask."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).requires_grad_()

    arguments = [
        normal(1, steps, batch, k),
        normal(1, batch, n),
        normal(1, 3 * n, k, scale=k**-0.5),
        normal(1, 3 * n, n, scale=n**-0.5),
    ]
    if bias:
        arguments.append(normal(1, 3 * n))
    keep = (torch.rand(1, steps, batch, generator=generator) > 0.3).float() if resets else None
    return arguments, keep


def passed(layer: object, arguments: list[Tensor], keep: Tensor | None, **options: object) -> list[Tensor]:
    """The states and the gradients of all arguments of a layer."""
    bias = arguments[4] if len(arguments) > 4 else None
    states = layer(*arguments[:4], bias, keep, **options)  # type: ignore[operator]
    weight = torch.randn(states.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return [states, *torch.autograd.grad(states, arguments, weight.to(states))]


def test_this_machine_compiles_the_kernels() -> None:
    # Where it has no compiler, the tests below cannot say anything, and should not pass for it.
    assert compiled.library() is not None, compiled.description()


@settings(deadline=None, max_examples=80)
@given(**shapes)
def test_the_layer_equals_the_equations_outputs_and_every_gradient(**shape: object) -> None:
    arguments, keep = made_layer(**shape)  # type: ignore[arg-type]
    found = passed(gru_layer, arguments, keep)
    assert is_compiled(None, *arguments, keep)
    exact = [argument.detach().double().requires_grad_() for argument in arguments]
    expected = passed(plain_gru, exact, None if keep is None else keep.double())
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).abs().max() <= 4e-6 * max(1.0, other.abs().max().item())


@settings(deadline=None, max_examples=60)
@given(**shapes)
def test_in_bf16_every_output_and_gradient_is_that_of_the_equations_to_its_precision(**shape: object) -> None:
    arguments, keep = made_layer(**shape)  # type: ignore[arg-type]
    found = passed(gru_layer, arguments, keep, compute=torch.bfloat16)
    exact = [argument.detach().double().requires_grad_() for argument in arguments]
    expected = passed(plain_gru, exact, None if keep is None else keep.double())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one.double() - other).abs().max() <= 0.03 * max(1.0, other.abs().max().item())


@pytest.mark.parametrize("compute", [None, torch.bfloat16])
@pytest.mark.parametrize("n", [13, 200])
def test_a_thread_more_changes_no_bit_of_the_recurrence(n: int, compute: torch.dtype | None) -> None:
    arguments, keep = made_layer(7, 20, 5, n, 0, True, True)
    arguments[0].data.zero_()  # the input's product is torch's, and may be summed in another order
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        with torch.no_grad():
            results.append(gru_layer(*arguments, keep, compute))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_bf16_rounds_the_operands_of_the_recurrent_products_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    batch, n = 3, 40
    h0, weight_hh = torch.randn(batch, n, generator=generator), torch.randn(3 * n, n, generator=generator) / n**0.5
    x, weight_ih = torch.zeros(1, 1, batch, 1), torch.zeros(1, 3 * n, 1)
    found = gru_layer(x, h0[None], weight_ih, weight_hh[None], compute=torch.bfloat16)[0, 0]

    def rounded(a: Tensor) -> Tensor:
        return a.bfloat16().double()

    W_r, W_z, W_h = rounded(weight_hh).chunk(3)
    r, z = torch.sigmoid(rounded(h0) @ W_r.T), torch.sigmoid(rounded(h0) @ W_z.T)
    # The product r * h is rounded as float32, before it is rounded to bf16.
    c = torch.tanh(rounded((r * h0).float()) @ W_h.T)
    torch.testing.assert_close(found.double(), z * h0 + (1 - z) * c, rtol=0, atol=1e-4)
    exact = plain_gru(x[None].double(), h0[None].double(), weight_ih[None].double(), weight_hh[None].double())[0, 0]
    assert (found.double() - exact).abs().max() > 1e-4


#: A NaN that is told from infinity by the half of it that bfloat16 has not.
LOW_NAN = torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32).item()


@pytest.mark.parametrize("compute", [None, torch.bfloat16])
@pytest.mark.parametrize("n", [20, 15])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(value: float, n: int, compute: torch.dtype | None) -> None:
    arguments, _ = made_layer(2, 3, 4, n, 0, False, False)
    broken = arguments[1].detach().clone()
    broken[0, 1, 3] = value
    if value == float("inf"):
        arguments[3].data.zero_()  # so that inf * weight is NaN
    states = gru_layer(arguments[0], broken, *arguments[2:4], compute=compute)[0]
    assert not torch.isfinite(states[-1, 1]).all()
    assert torch.isfinite(states[-1, 0]).all()


@pytest.mark.parametrize("n", [15, 16])
def test_an_infinite_state_is_one_in_bf16_too_and_spoils_no_other(n: int) -> None:
    h0 = torch.ones(1, 2, n)
    h0[0, 0, 0] = float("inf")
    x, weight_ih, weight_hh = torch.zeros(1, 1, 2, 3), torch.zeros(1, 3 * n, 3), torch.zeros(1, 3 * n, n)
    weight_hh[:, :, 0] = 1
    single, half = (gru_layer(x, h0, weight_ih, weight_hh, compute=compute)[0, 0] for compute in (None, torch.bfloat16))
    assert torch.equal(single.isfinite(), half.isfinite())
    torch.testing.assert_close(single, half, rtol=0.01, atol=0.01)


def test_a_weight_that_is_not_a_number_is_none_in_bf16() -> None:
    n = 15
    weight_hh = torch.zeros(1, 3 * n, n)
    for row in (2 * n, 2 * n + 1):
        weight_hh[0, row, row - 2 * n] = LOW_NAN
    states = gru_layer(
        torch.zeros(1, 1, 2, 3), torch.ones(1, 2, n), torch.zeros(1, 3 * n, 3), weight_hh, compute=torch.bfloat16
    )
    assert states[0, 0].isnan().tolist() == [[True, True] + [False] * (n - 2)] * 2


@pytest.mark.parametrize("bad", [-1, 5])
@pytest.mark.parametrize("compute", [None, torch.bfloat16])
def test_a_target_there_is_no_logit_of_is_refused(bad: int, compute: torch.dtype | None) -> None:
    targets = torch.tensor([[0, bad, 4]])
    with pytest.raises(IndexError, match="should be from 0 to 4"):
        softmax_nll(torch.ones(1, 3, 2), torch.ones(1, 2, 5), torch.ones(1, 5), targets, compute=compute)


def test_outputs_changed_in_place_do_not_disturb_the_gradient() -> None:
    arguments, _ = made_layer(2, 3, 4, 8, 0, False, False)
    expected = torch.autograd.grad(2 * gru_layer(*arguments).sum(), arguments)
    found = torch.autograd.grad(gru_layer(*arguments).mul_(2).sum(), arguments)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 9),
    width=st.integers(2, 3000),
    scale=st.sampled_from([0.1, 3.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_the_softmax_equals_the_definition(rows: int, width: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(1, rows, 4, generator=generator).requires_grad_()
    weight = (scale * torch.randn(1, 4, width, generator=generator)).requires_grad_()
    bias = torch.randn(1, width, generator=generator).requires_grad_()
    targets = torch.randint(width, (1, rows), generator=generator)
    found = softmax_nll(h, weight, bias, targets)
    assert "Compiled" in type(found.grad_fn.next_functions[0][0]).__name__  # type: ignore[union-attr]
    wide = [a.detach().double().requires_grad_() for a in (h, weight, bias)]
    logits = wide[0] @ wide[1] + wide[2].unsqueeze(1)
    expected = torch.nn.functional.cross_entropy(logits[0], targets[0], reduction="sum").unsqueeze(0)
    torch.testing.assert_close(found.double(), expected, rtol=3e-6, atol=3e-6 * scale)
    gradients = zip(
        torch.autograd.grad(3 * found, (h, weight, bias)), torch.autograd.grad(3 * expected, wide), strict=True
    )
    for one, other in gradients:
        assert (one.double() - other).abs().max() <= 2e-5 * max(1.0, other.abs().max().item())
    with torch.no_grad():
        assert torch.equal(softmax_nll(h, weight, bias, targets), found)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 40), width=st.integers(1, 300), seed=st.integers(0, 2**31))
def test_the_softmax_of_logits_in_bf16_is_that_of_the_same_logits(rows: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    half = (3 * torch.randn(rows, width, generator=generator)).bfloat16()
    bias, targets = torch.randn(width, generator=generator), torch.randint(width, (rows,), generator=generator)
    single, results = half.float(), []
    for logits in (half, single):
        nll, d_bias = torch.empty(rows), torch.empty(width)
        in_bf16 = logits.dtype == torch.bfloat16
        compiled.call("gruclip_softmax_nll", [logits, bias, targets, nll, d_bias], [rows, width], in_bf16, 2)
        results.append((nll, d_bias))
    # All that is summed is summed as float32; only the gradient is rounded, at the end.
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(half, single.bfloat16())


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 40), n=st.integers(1, 80), width=st.integers(2, 300), seed=st.integers(0, 2**31))
def test_the_softmax_in_bf16_has_the_gradients_of_the_definition_to_its_precision(
    rows: int, n: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(1, rows, n, generator=generator).requires_grad_()
    weight = (torch.randn(1, n, width, generator=generator) / n**0.5).requires_grad_()
    bias = torch.randn(1, width, generator=generator).requires_grad_()
    targets = torch.randint(width, (1, rows), generator=generator)
    mask = 2 * (torch.rand(1, rows, n, generator=generator) > 0.5).float()
    found = softmax_nll(h, weight, bias, targets, compute=torch.bfloat16, mask=mask)
    wide = [a.detach().double().requires_grad_() for a in (h, weight, bias)]
    logits = (wide[0] * mask.double()) @ wide[1] + wide[2].unsqueeze(1)
    expected = torch.nn.functional.cross_entropy(logits[0], targets[0], reduction="sum").unsqueeze(0)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.05 * rows)
    gradients = zip(torch.autograd.grad(found, (h, weight, bias)), torch.autograd.grad(expected, wide), strict=True)
    for one, other in gradients:
        assert one.dtype == torch.float32
        assert (one.double() - other).abs().max() <= 0.05 * max(1.0, other.abs().max().item())


def test_the_softmax_of_a_row_that_is_not_finite_is_not_finite() -> None:
    h, weight, bias = torch.ones(1, 2, 3), torch.zeros(1, 3, 50), torch.zeros(1, 50)
    weight[0, 1, 40] = float("nan")
    assert softmax_nll(h, weight, bias, torch.zeros(1, 2, dtype=torch.int64)).isnan().all()
    weight[0, 1, 40] = float("inf")
    assert softmax_nll(h, weight, bias, torch.zeros(1, 2, dtype=torch.int64)).isnan().all()


def test_a_view_of_the_opposite_numbers_is_not_for_the_kernels() -> None:
    view = torch.complex(torch.zeros(1), torch.ones(1)).conj().imag
    assert compiled.takes(torch.ones(1))
    assert not compiled.takes(view)


def test_without_a_compiler_there_is_one_warning_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiled.loaded.cache_clear()
    try:
        with pytest.warns(
            compiled.NativeWarning, match="no-such-compiler.*install a C\\+\\+ compiler, or set GRUCLIP_NATIVE=0"
        ):
            assert compiled.library() is None
        assert compiled.description().startswith("not compiled")
        arguments, keep = made_layer(2, 3, 4, 5, 0, True, True)
        assert gru_layer(*arguments, keep).shape == (1, 2, 3, 5)
    finally:
        monkeypatch.undo()
        compiled.loaded.cache_clear()
    assert compiled.library() is not None


@pytest.mark.parametrize("compiler", ['"c++', "false"])
def test_a_compiler_that_is_none_is_a_warning(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler)
    compiled.loaded.cache_clear()
    try:
        with pytest.warns(compiled.NativeWarning, match="are not compiled: "):
            assert compiled.library() is None
    finally:
        monkeypatch.undo()
        compiled.loaded.cache_clear()


def test_a_compiler_that_is_ended_from_outside_is_no_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run would begin without the kernels that it is continued with."""
    compiler = tmp_path / "killed"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\nkill -TERM $$\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled.loaded.cache_clear()
    try:
        with pytest.raises(
            UserError, match=r"killed was ended by signal 15 as it compiled gruclip's kernels; start the"
        ):
            compiled.library()
    finally:
        monkeypatch.undo()
        compiled.loaded.cache_clear()


def test_a_terminal_s_interrupt_does_not_reach_the_compiler() -> None:
    assert int(build._run(["sh", "-c", "ps -o sid= $$"])) != os.getsid(0)


def test_an_empty_name_of_a_compiler_is_the_usual_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "")
    compiled.loaded.cache_clear()
    try:
        assert compiled.library() is not None
    finally:
        monkeypatch.undo()
        compiled.loaded.cache_clear()


def test_a_switch_that_is_neither_0_nor_1_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRUCLIP_NATIVE", "off")
    compiled.loaded.cache_clear()
    try:
        with pytest.raises(UserError, match="GRUCLIP_NATIVE=off: should be 0 or 1"):
            compiled.library()
    finally:
        monkeypatch.undo()
        compiled.loaded.cache_clear()


def test_the_kernels_can_be_turned_off_and_the_numbers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, keep = made_layer(4, 20, 30, 50, 0, True, True)
    h, weight, bias, targets = torch.randn(1, 6, 5), torch.randn(1, 5, 99), torch.randn(1, 99), torch.arange(6)[None]
    on = [*passed(gru_layer, arguments, keep), softmax_nll(h, weight, bias, targets)]
    monkeypatch.setenv("GRUCLIP_NATIVE", "0")
    compiled.loaded.cache_clear()
    try:
        assert compiled.description() == "off: GRUCLIP_NATIVE=0"
        off = [*passed(gru_layer, arguments, keep), softmax_nll(h, weight, bias, targets)]
    finally:
        monkeypatch.undo()
        compiled.loaded.cache_clear()
    assert losses.compiled.library() is not None
    for one, other in zip(on, off, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
