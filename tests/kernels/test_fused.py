"""The Triton kernels compute what torch's operations do: on the CPU by Triton's interpreter, on a GPU as they are."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gruclip.config import ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.data import WordCorpus
from gruclip.kernels import dropout, fused
from gruclip.training.engine import WARM_UP, Engine

INTERPRETED = not torch.cuda.is_available()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

pytestmark = pytest.mark.usefixtures("interpreted")

dtypes = st.sampled_from([torch.float32, torch.bfloat16])


@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(2, 70), dtypes, st.booleans(), st.floats(0.1, 100),
    st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=8)
def test_one_pass_over_the_logits_gives_the_loss_and_its_gradient(
    runs: int, rows: int, words: int, dtype: torch.dtype, shared: bool, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(runs, rows, words, generator=generator)).to(dtype).to(DEVICE)
    bias = torch.randn(runs, words, generator=generator).to(DEVICE)
    targets = torch.randint(words, (1 if shared else runs, rows), generator=generator).to(DEVICE).expand(runs, rows)
    exact = (logits.double() + bias.double().unsqueeze(1)).requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact.flatten(0, 1), targets.flatten(), reduction="none")
    [gradient] = torch.autograd.grad(expected.sum(), exact)
    before = logits.clone()
    assert fused.takes_logits(logits)
    nll = fused.softmax_nll_(logits, bias, targets, gradient=False)
    torch.testing.assert_close(nll.double(), expected.detach().view(runs, rows), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits, before)
    assert torch.equal(fused.softmax_nll_(logits, bias, targets, gradient=True), nll)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(logits.double(), gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_gives_a_loss_that_is_not(value: float) -> None:
    logits = torch.zeros(1, 2, 5, device=DEVICE)
    logits[0, 0, 3] = value
    nll = fused.softmax_nll_(logits, torch.zeros(1, 5, device=DEVICE), torch.zeros(1, 2, device=DEVICE).long(), True)
    assert not bool(nll[0, 0].isfinite())
    assert float(nll[0, 1]) == pytest.approx(1.6094379)


@given(st.integers(1, 3), st.integers(1, 3000), st.floats(0, 0.95), dtypes, st.integers(-(2**63), 2**63 - 1))
@settings(max_examples=8)
def test_the_masks_are_those_of_the_plain_operations_to_the_bit(
    runs: int, numbers: int, share: float, dtype: torch.dtype, seed: int
) -> None:
    seeds = torch.tensor([seed, 5, -7][:runs], device=DEVICE)
    threshold, like = round((1 - share) * 2**16) - 2**15, torch.empty(0, dtype=dtype, device=DEVICE)
    bits = dropout.random_bits(seeds, -(-numbers // 4)).view(torch.int16)[:, :numbers]
    expected = dropout.factors(bits, threshold, 1.25, like)
    assert torch.equal(fused.random_factors(seeds, (numbers,), threshold, 1.25, like), expected)


@given(st.integers(1, 3), st.integers(1, 2500), dtypes, st.booleans(), st.integers(0, 2**31))
@settings(max_examples=8)
def test_the_update_and_its_rounded_copy_are_those_of_float64(
    runs: int, size: int, dtype: torch.dtype, with_copy: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    parameter = torch.randn(runs, size, generator=generator).to(DEVICE)
    gradient = torch.randn(runs, size, generator=generator).to(dtype).to(DEVICE)
    steps = torch.rand(runs, generator=generator, dtype=torch.float64).to(DEVICE)
    copy = torch.zeros(runs, size, dtype=torch.bfloat16, device=DEVICE) if with_copy else None
    expected = parameter.double() - steps[:, None] * gradient.double()
    fused.update_(parameter, gradient, steps, copy)
    torch.testing.assert_close(parameter.double(), expected, rtol=1e-6, atol=1e-6)
    if copy is not None:
        # A GPU rounds to the nearest; the interpreter cuts off.
        torch.testing.assert_close(copy.float(), parameter, rtol=2**-7 if INTERPRETED else 2**-8, atol=0)


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 2500), dtypes, st.integers(0, 2**31))
@settings(max_examples=8)
def test_the_norms_of_rows_are_those_of_float64(
    runs: int, rows: int, width: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    array = (1e20 * torch.randn(runs, rows, width, generator=generator)).to(dtype).to(DEVICE)  # no float32 squares
    torch.testing.assert_close(fused.row_norms(array), array.double().norm(dim=-1), rtol=1e-14, atol=0)
    array[0, 0, -1] = torch.nan
    assert bool(fused.row_norms(array)[0, 0].isnan())


def test_kernels_are_for_gpus_unless_they_are_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.ones(2, 3)
    assert fused.takes(one, one.bfloat16()) is INTERPRETED
    assert not fused.takes(one.double())
    assert not fused.takes(one.T)
    monkeypatch.setenv("GRUCLIP_TRITON", "0")
    assert not fused.takes(one)
    monkeypatch.delenv("GRUCLIP_TRITON")
    monkeypatch.setattr(fused, "INTERPRETED", False)
    assert not fused.takes(one)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_iteration_with_the_kernels_is_the_one_without(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = RunConfig(
        model=ModelConfig(hidden_size=12), trainer=TrainerConfig(bptt=4, batch_size=3), precision=precision
    )
    optimizers = OptimizerConfig("spectral_clipping", lr=0.2, delta=1.05), OptimizerConfig("sgd", lr=0.1)
    configs = [dataclasses.replace(base, seed=seed, optimizer=one) for seed, one in enumerate(optimizers)]
    text = torch.randint(40, (120,), generator=torch.Generator().manual_seed(0))
    words = tuple(str(number) for number in range(40))
    corpus = WordCorpus("made", "made", dict.fromkeys(("train", "valid", "test"), text), words)
    found = []
    for kernels in (True, False):
        monkeypatch.setenv("GRUCLIP_TRITON", str(int(kernels)))
        engine = Engine(configs, corpus, DEVICE, capture=list)
        assert fused.takes(engine.parameters["output"].detach()) is kernels
        engine.begin_epoch([1, 1])
        losses = [engine.step(iteration, with_radius=False).loss.tolist() for iteration in range(WARM_UP + 2)]
        found.append([losses, engine.evaluate("valid")])
    tolerance = 1e-5 if precision == "fp32" else 1e-3
    torch.testing.assert_close(torch.tensor(found[0][0]), torch.tensor(found[1][0]), rtol=tolerance, atol=0)
    torch.testing.assert_close(torch.tensor(found[0][1]), torch.tensor(found[1][1]), rtol=tolerance, atol=0)
