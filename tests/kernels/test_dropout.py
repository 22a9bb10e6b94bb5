"""What dropout set to zero takes no part in a product, and the product is the same."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_matrices import made_matrix
from torch import Tensor

from gruclip.gru import gru_layer
from gruclip.kernels import compiled, dropout
from gruclip.kernels import products as products_module
from gruclip.kernels.dropout import product_of_kept, product_where_kept
from gruclip.model.losses import softmax_nll

products = {
    "m": st.integers(1, 90),
    "depth": st.integers(1, 300),
    "n": st.integers(1, 400),
    "kept": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    "left_turned": st.booleans(),
    "right_turned": st.booleans(),
    "seed": st.integers(0, 2**31),
}


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are called from now on."""
    called: list[str] = []
    call = compiled.call
    monkeypatch.setattr(compiled, "call", lambda name, *rest: (called.append(name), call(name, *rest))[1])
    return called


def mask_of(*shape: int, kept: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(*shape, generator=generator) < kept).float() / max(kept, 0.1)


@settings(deadline=None, max_examples=120)
@given(**products)
def test_the_product_of_kept_elements_is_the_product(
    m: int, depth: int, n: int, kept: float, left_turned: bool, right_turned: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = made_matrix(m, depth, left_turned, generator)
    left *= mask_of(m, depth, kept=kept, generator=generator)
    right = made_matrix(depth, n, right_turned, generator)
    expected = left.double() @ right.double()
    # The bound of a sum in float32, each term rounded once and the sum `depth` times at most.
    bound = 1e-6 * depth**0.5 * (left.abs() @ right.abs()).clamp(min=1e-3)
    found = product_of_kept(left, right)
    assert ((found - expected).abs() <= bound).all()
    turned = torch.full((n, m), torch.nan).mT
    assert torch.equal(product_of_kept(left, right, out=turned), found)


@settings(deadline=None, max_examples=120)
@given(**products)
def test_the_product_where_kept_is_the_masked_product(
    m: int, depth: int, n: int, kept: float, left_turned: bool, right_turned: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = made_matrix(m, depth, left_turned, generator), made_matrix(depth, n, right_turned, generator)
    mask = mask_of(m, n, kept=kept, generator=generator)
    expected = mask * (left.double() @ right.double())
    bound = 1e-6 * depth**0.5 * mask * (left.abs() @ right.abs())
    assert ((product_where_kept(left, right, mask) - expected).abs() <= bound).all()


@settings(deadline=None, max_examples=80)
@given(**products, to_bf16=st.booleans())
def test_in_bf16_the_product_of_kept_elements_is_the_product(
    m: int, depth: int, n: int, kept: float, left_turned: bool, right_turned: bool, seed: int, to_bf16: bool
) -> None:
    depth += depth % 2
    generator = torch.Generator().manual_seed(seed)
    left = made_matrix(m, depth, left_turned, generator)
    left *= mask_of(m, depth, kept=kept, generator=generator)
    left, right = left.bfloat16(), made_matrix(depth, n, right_turned, generator).bfloat16()
    assert right.is_contiguous() or right.mT.is_contiguous()
    expected = left.double() @ right.double()
    bound = 1e-6 * depth**0.5 * (left.abs().double() @ right.abs().double()).clamp(min=1e-3)
    found = product_of_kept(left, right, out=None if to_bf16 else torch.empty(m, n))
    assert found.dtype == (torch.bfloat16 if to_bf16 else torch.float32)
    assert ((found - expected).abs() <= bound + (2**-8 * expected.abs() if to_bf16 else 0)).all()
    turned = torch.full((n, m), torch.nan, dtype=found.dtype).mT
    assert torch.equal(product_of_kept(left, right, out=turned), found)


@settings(deadline=None, max_examples=80)
@given(**products)
def test_in_bf16_the_product_where_kept_is_the_masked_product(
    m: int, depth: int, n: int, kept: float, left_turned: bool, right_turned: bool, seed: int
) -> None:
    depth += depth % 2
    generator = torch.Generator().manual_seed(seed)
    left = made_matrix(m, depth, left_turned, generator).bfloat16()
    right = made_matrix(depth, n, True, generator).bfloat16()
    mask = mask_of(m, n, kept=kept, generator=generator)
    expected = mask * (left.double() @ right.double())
    bound = 1e-6 * depth**0.5 * mask * (left.abs().double() @ right.abs().double())
    found = product_where_kept(left, right, mask)
    assert found.dtype == torch.float32
    assert ((found - expected).abs() <= bound).all()


def test_a_pair_of_zeros_is_skipped_and_a_zero_beside_a_number_is_not() -> None:
    left = torch.tensor([[0.0, -0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]]).bfloat16()
    right = torch.tensor([[float("inf")], [1.0], [2.0], [3.0]]).bfloat16()
    found = product_of_kept(left, right)
    assert found[0].tolist() == [2.0]
    assert found[1].isnan().all()


@pytest.mark.parametrize(
    ("processor", "pairs", "shape", "words", "pays"),
    [
        ("AVX512", True, (30, 256), 300, True),
        ("AVX512", False, (30, 256), 300, False),
        ("", True, (30, 256), 300, False),
        ("AVX2", True, (30, 256), 300, False),
        ("AVX512", True, (31, 256), 300, False),
        ("AVX512", True, (30, 257), 300, False),
        ("AVX512", True, (30, 256), 301, False),
        ("AVX512", True, (30, 192), 300, True),
        ("AVX512", True, (30, 190), 300, False),
    ],
)
def test_in_bf16_zeros_are_skipped_where_the_kernels_have_pairs_and_the_library_no_tiles(
    monkeypatch: pytest.MonkeyPatch, processor: str, pairs: bool, shape: tuple[int, int], words: int, pays: bool
) -> None:
    monkeypatch.setattr(products_module, "processor", lambda: processor)
    monkeypatch.setattr(compiled, "has_pairs", lambda: pairs)
    mask = mask_of(1, *shape, kept=0.5, generator=torch.Generator().manual_seed(0))
    assert dropout.pays_in_bf16(mask, torch.empty(1, shape[1], words)) == pays


@pytest.mark.parametrize(
    ("processor", "units", "pays"),
    [("AVX512", 192, True), ("AVX512", 191, False), ("AVX2", 256, True), ("", 255, False)],
)
def test_zeros_are_skipped_from_fewer_units_on_where_two_rows_share_what_they_load(
    monkeypatch: pytest.MonkeyPatch, processor: str, units: int, pays: bool
) -> None:
    monkeypatch.setattr(products_module, "processor", lambda: processor)
    assert dropout.pays(mask_of(1, 30, units, kept=0.5, generator=torch.Generator().manual_seed(0))) == pays


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("rows", [30, 31])
def test_in_bf16_the_softmax_of_masked_states_is_that_of_their_products(
    monkeypatch: pytest.MonkeyPatch, rows: int, turned: bool
) -> None:
    """With pairs and, where the rows are odd, without: what both round is rounded alike. States and weights lie in
    memory as they are or, `turned`, transposed."""
    monkeypatch.setattr(products_module, "processor", lambda: "AVX512")
    monkeypatch.setattr(compiled, "has_pairs", lambda: True)
    generator = torch.Generator().manual_seed(0)
    n, words = 256, 300
    h = made_matrix(rows, n, turned, generator)[None]
    weight = made_matrix(n, words, turned, generator)[None] / n**0.5
    bias = torch.randn(1, words, generator=generator)
    mask = mask_of(1, rows, n, kept=0.5, generator=generator)
    targets = torch.randint(words, (1, rows), generator=generator)
    called = count_calls(monkeypatch)

    def gradients(dtype: torch.dtype, compute: torch.dtype | None) -> list[Tensor]:
        leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in (h, weight, bias)]
        total = softmax_nll(leaves[0], leaves[1], leaves[2], targets, mask=mask.to(dtype), compute=compute)
        return [total, *torch.autograd.grad(total.sum(), leaves)]

    for found, expected in zip(gradients(torch.float32, torch.bfloat16), gradients(torch.float64, None), strict=True):
        assert float((found - expected).detach().norm() / expected.detach().norm()) < 0.01
    pairs = products_module.has_bf16_products(torch.device("cpu")) and rows % 2 == 0
    assert ("gruclip_product_of_kept_pairs" in called) == ("gruclip_product_where_kept_pairs" in called) == pairs


@pytest.mark.parametrize("compute", [None, torch.bfloat16])
def test_of_a_mask_that_is_multiplied_by_nobody_asks_what_it_leaves(
    monkeypatch: pytest.MonkeyPatch, compute: torch.dtype | None
) -> None:
    """That reads all of it: of a stack's, which is not skipped, once more than is needed."""
    monkeypatch.setattr(dropout, "pays", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(dropout, "pays_in_bf16", lambda *_: pytest.fail("asked"))
    h, weight, bias = torch.ones(2, 4, 256), torch.zeros(2, 256, 8), torch.ones(2, 8)
    targets = torch.zeros(2, 4, dtype=torch.int64)
    found = softmax_nll(h, weight, bias, targets, compute=compute, mask=torch.full_like(h, 2.0))
    torch.testing.assert_close(found, torch.full((2,), 4 * math.log(8)))


@pytest.mark.parametrize("compute", [None, torch.bfloat16])
def test_a_softmax_of_no_rows_takes_a_mask(compute: torch.dtype | None) -> None:
    h, weight, bias = torch.ones(1, 0, 256), torch.ones(1, 256, 6).requires_grad_(), torch.ones(1, 6)
    found = softmax_nll(h, weight, bias, torch.zeros(1, 0, dtype=torch.int64), compute=compute, mask=h)
    assert found.tolist() == [0.0]
    assert not torch.autograd.grad(found.sum(), weight)[0].any()


def test_more_rows_than_a_block_holds() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = mask_of(1500, 300, kept=0.5, generator=generator)
    left, right = torch.randn(1500, 130, generator=generator), torch.randn(130, 300, generator=generator)
    torch.testing.assert_close(product_where_kept(left, right, mask), mask * (left @ right), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(product_of_kept(mask, right.mT), mask @ right.mT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("depth", [1200, 10_000])
def test_a_sum_over_all_words_is_added_up_from_parts_of_several_panels(depth: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(rows, depth, generator=generator).to(dtype) for rows in (5, 70))
    mask = mask_of(5, 70, kept=0.5, generator=generator)
    expected = mask * (left.double() @ right.double().mT)
    bound = 1e-6 * depth**0.5 * mask * (left.double().abs() @ right.double().abs().mT)
    assert ((product_where_kept(left, right.mT, mask) - expected).abs() <= bound).all()


def test_what_is_not_a_number_is_kept_and_an_infinity_that_meets_zero_is_not() -> None:
    left, right = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 2.0], [float("inf"), 3.0]])
    found = product_of_kept(left, right)
    assert found[0].isnan().all()
    assert found[1].tolist() == [1.0, 2.0]


def test_a_thread_more_changes_no_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = mask_of(700, 650, kept=0.5, generator=generator)
    right, left = torch.randn(650, 334, generator=generator), torch.randn(700, 334, generator=generator)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found = []
        for dtype in (torch.float32, torch.bfloat16):
            rows, columns = left.to(dtype), right.to(dtype)
            found.append(product_of_kept(mask.to(dtype), columns, out=torch.empty(700, 334)))
            found.append(product_where_kept(rows, columns.mT, mask))
        results.append(torch.cat(found, 1))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("n", [40, 256])
def test_layer_and_softmax_with_a_mask_are_those_of_the_masked_input(n: int, kept: float) -> None:
    generator = torch.Generator().manual_seed(0)
    steps, batch, words = 4, 7, 300

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).requires_grad_()

    x, h0, w_ih, w_hh = normal(1, steps, batch, n), normal(1, batch, n), normal(1, 3 * n, n), normal(1, 3 * n, n)
    output, bias = normal(1, n, words), normal(1, words)
    inside, outside = (mask_of(1, steps, batch, n, kept=kept, generator=generator) for _ in range(2))
    targets = torch.randint(words, (1, steps * batch), generator=generator)
    assert dropout.pays(inside, x) == (n == 256 and kept < dropout.MAX_KEPT)

    def loss(masked: bool) -> list[Tensor]:
        h = gru_layer(x, h0, w_ih, w_hh, mask=inside) if masked else gru_layer(x * inside, h0, w_ih, w_hh)
        if masked:
            total = softmax_nll(h.flatten(1, 2), output, bias, targets, mask=outside.flatten(1, 2))
        else:
            total = softmax_nll((h * outside).flatten(1, 2), output, bias, targets)
        return [total, *torch.autograd.grad(total.sum(), (x, h0, w_ih, w_hh, output, bias))]

    for found, expected in zip(loss(True), loss(False), strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6 * expected.abs().max().item())


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.usefixtures("kernels_or_not")
def test_the_random_bits_are_splitmix64_s() -> None:
    # The first numbers that its authors' own program gives for the seed 1234567.
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    bits = dropout.random_bits(torch.tensor([1234567, -1]), 5)
    assert [number % 2**64 for number in bits[0].tolist()] == published
    assert torch.equal(bits[1], dropout.random_bits(torch.tensor([-1]), 5)[0])


@pytest.mark.usefixtures("kernels_or_not")
def test_every_random_bit_is_as_often_set_as_not_and_independent_of_the_others() -> None:
    bits = dropout.random_bits(torch.arange(3), 20_000).flatten()
    ones = (bits[:, None] >> torch.arange(64) & 1).double()
    assert (ones.mean(0) - 0.5).abs().max() < 5 * 0.5 / 60_000**0.5
    correlation = torch.corrcoef(ones.T).fill_diagonal_(0)
    assert correlation.abs().max() < 5.5 / 60_000**0.5


@pytest.mark.parametrize("threshold", [-(2**15), 100, 2**15])
def test_a_mask_has_its_factor_where_the_bits_are_below_the_threshold(threshold: int, kernels_or_not: None) -> None:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16).view(1, 2, -1)
    found = dropout.factors(bits, threshold, 2.5, torch.empty(0))
    assert found.shape == bits.shape
    assert torch.equal(found, torch.where(bits.int() < threshold, 2.5, 0.0))


def test_the_kernels_are_compiled_here() -> None:
    # Where they are not, the tests above say nothing.
    assert compiled.library() is not None, compiled.description()
