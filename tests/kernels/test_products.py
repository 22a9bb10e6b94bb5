"""The compiled dense product is the product, of any layout, to the same bits on any number of threads."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_matrices import made_matrix

from gruclip.kernels import compiled, products
from gruclip.kernels.products import lower_gram, matmul, our_product, product

sizes = {"m": st.integers(1, 230), "depth": st.integers(1, 800), "n": st.integers(1, 120)}


@settings(max_examples=150)
@given(
    **sizes,
    left_turned=st.booleans(),
    right_turned=st.booleans(),
    margin=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_it_is_the_product_of_both_and_touches_nothing_beside_its_place(
    m: int, depth: int, n: int, left_turned: bool, right_turned: bool, margin: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = made_matrix(m, depth, left_turned, generator)
    right = made_matrix(depth, n, right_turned, generator)
    place = torch.full((m + 2, n + 2 * margin), 7.0)
    found = place[1:-1, margin : margin + n]
    assert our_product(left, right, out=found) is found
    expected = left.double() @ right.double()
    # Each sum of products is rounded at every step, by half a unit of what it may have reached.
    assert bool(((found.double() - expected).abs() <= depth * 6e-8 * (left.abs() @ right.abs())).all())
    place[1:-1, margin : margin + n] = 7.0
    assert bool((place == 7.0).all())


@settings(max_examples=40)
@given(m=st.integers(1, 300), n=st.integers(1, 230), turned=st.booleans(), seed=st.integers(0, 2**31))
def test_the_lower_half_of_a_product_is_the_products(m: int, n: int, turned: bool, seed: int) -> None:
    x = made_matrix(m, n, turned, torch.Generator().manual_seed(seed))
    y = made_matrix(m, 120, not turned, torch.Generator().manual_seed(seed + 1))
    # Bit by bit, of parts of equal depth that are added up one after the other.
    deep = math.ceil(m / math.ceil(m / 64))
    parts = [our_product(one.mT, other) for one, other in zip(x.split(deep), y.split(deep), strict=True)]
    assert torch.equal(our_product(x.mT, y, lower=True).tril(), functools.reduce(torch.add, parts).tril())
    lower = our_product(x.mT, x, lower=True).tril()
    assert torch.equal(lower, functools.reduce(torch.add, [our_product(one.mT, one) for one in x.split(deep)]).tril())
    assert (lower.double() - (x.double().mT @ x.double()).tril()).abs().max() <= m * 6e-8 * x.square().sum(0).max()


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("entry", [1 / 3, 0.7, 1.1, 1 / 1023])
def test_the_error_of_a_gram_matrix_does_not_grow_with_the_number_of_equal_terms(entry: float) -> None:
    """All of which are rounded the same way: one after the other, 4096 of them lose 5e-5."""
    x = torch.full((4096, 130), entry)
    exact = x.double().mT @ x.double()
    assert float(((lower_gram(x) - exact) / exact).tril().abs().max()) <= 2e-6


def test_a_thread_more_changes_no_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = made_matrix(500, 700, True, generator), made_matrix(700, 333, False, generator)
    made = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        made.append((our_product(left, right), our_product(right.mT, right, lower=True).tril()))
    for one, lower in made[1:]:
        assert torch.equal(one, made[0][0])
        assert torch.equal(lower, made[0][1])


def test_a_factor_that_no_cache_holds_is_multiplied_as_well() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = made_matrix(193, 50_000, False, generator), made_matrix(50_000, 31, True, generator)
    thin = made_matrix(4_000, 401, True, generator)
    made = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        made.append((our_product(left, right), our_product(thin.mT, thin, lower=True).tril()))
    both = left.double() @ right.double(), (thin.double().mT @ thin.double()).tril()
    for found, exact in zip(made[0], both, strict=True):
        assert (found - exact).norm() <= 1e-6 * exact.norm()
    for others in made[1:]:
        assert all(torch.equal(one, other) for one, other in zip(made[0], others, strict=True))


def test_infinities_and_nan_stay() -> None:
    left, right = torch.ones(20, 30), torch.ones(30, 20)
    left[3, 5], left[7, 2] = torch.inf, torch.nan
    found = our_product(left, right)
    assert bool((found[3] == torch.inf).all())
    assert bool(found[7].isnan().all())
    assert int(found.isfinite().sum()) == 18 * 20


@pytest.mark.parametrize("processor", ["AVX512", "AVX2", ""])
def test_every_rule_computes_the_same(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = made_matrix(600, 600, False, generator)
    used = []
    call = compiled.call
    monkeypatch.setattr(compiled, "call", lambda name, *rest: (used.append(name), call(name, *rest)))
    monkeypatch.setattr(products, "processor", lambda: processor)
    batch = torch.stack([x[:300], x[300:]])
    products.onednn_is_faster.cache_clear()
    try:
        found, small, turned, lower = matmul(x, x), matmul(x[:5], x), matmul(x.mT, x), lower_gram(x).tril()
        several = matmul(batch.mT, batch)
    finally:
        products.onednn_is_faster.cache_clear()
    # Large ones by our kernel where the rule says so, half of one wherever there are kernels.
    assert used == ["gruclip_product"] * {"AVX2": 3, "AVX512": 4, "": 1}[processor]
    exact = x.double()
    pairs = (found, exact @ exact), (small, exact[:5] @ exact), (turned, exact.mT @ exact)
    halves = batch.double().mT @ batch.double()
    for one, other in (*pairs, (lower, (exact.mT @ exact).tril()), (several, halves)):
        assert (one - other).abs().max() <= 1e-3


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_a_product_has_its_gradient(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, *size, dtype=torch.float64, generator=generator) for size in ((5, 7), (7, 3)))
    assert torch.autograd.gradcheck(product, (a.requires_grad_(), b.requires_grad_()))
    assert torch.autograd.gradcheck(product, (a.detach(), b))
