"""The losses are the textbook's, value and gradient."""

from __future__ import annotations

import pytest
import torch

from gruclip.model.losses import logistic_nll, softmax_nll


@pytest.mark.parametrize("runs", [1, 3])
def test_softmax_nll_and_its_gradients_equal_cross_entropy_in_float64(runs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(runs, 6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(runs, 4, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(runs, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(9, (runs, 6), generator=generator)
    scale = torch.rand(runs, generator=generator, dtype=torch.float64)
    found = softmax_nll(h, weight, bias, targets)
    logits = h @ weight + bias.unsqueeze(1)
    expected = torch.stack(
        [torch.nn.functional.cross_entropy(logits[r], targets[r], reduction="sum") for r in range(runs)]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for one, other in zip(
        torch.autograd.grad(found @ scale, (h, weight, bias)),
        torch.autograd.grad(expected @ scale, (h, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_softmax_nll_of_a_hopeless_word_is_large_and_finite() -> None:
    # The word's probability underflows in float32; its loss must not.
    h, bias = torch.tensor([[[1.0]]]), torch.zeros(1, 2)
    weight = torch.tensor([[[500.0, -500.0]]])
    assert softmax_nll(h, weight, bias, torch.tensor([[1]])).item() == pytest.approx(1000)


def test_softmax_nll_leaves_out_what_has_no_weight() -> None:
    h, weight, bias = torch.randn(1, 3, 2), torch.randn(1, 2, 5), torch.randn(1, 5)
    targets = torch.tensor([[1, 2, 3]])
    padded = softmax_nll(h, weight, bias, targets, torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(padded, softmax_nll(h[:, :2], weight, bias, targets[:, :2]))


def test_softmax_nll_in_bf16_is_within_a_hundredth_of_a_nat_a_word() -> None:
    generator = torch.Generator().manual_seed(0)
    h, weight = torch.randn(1, 400, 64, generator=generator), torch.randn(1, 64, 300, generator=generator) / 8
    bias, targets = torch.zeros(1, 300), torch.randint(300, (1, 400), generator=generator)
    exact = softmax_nll(h, weight, bias, targets)
    rounded = softmax_nll(h, weight, bias, targets, compute=torch.bfloat16)
    assert (exact - rounded).abs().item() / 400 < 0.01


def test_logistic_nll_is_the_sum_over_the_notes_of_the_binary_cross_entropy() -> None:
    h, weight, bias = torch.randn(2, 3, 4).double(), torch.randn(2, 4, 5).double(), torch.randn(2, 5).double()
    targets = (torch.rand(2, 3, 5) > 0.5).double()
    p = torch.sigmoid(h @ weight + bias.unsqueeze(1))
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum((1, 2))
    torch.testing.assert_close(logistic_nll(h, weight, bias, targets), expected, rtol=1e-12, atol=0)
