"""The filtered subspace and what it is made of, compiled and by torch: bases, thin products, Ritz triplets."""

from __future__ import annotations

import math

import pytest
import torch

from gruclip.spectral import subspace
from gruclip.spectral.thin import (
    column_gram,
    column_squares,
    distance,
    normal_product,
    subtract_low_rank_,
    thin_product,
)


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (9, 9), (40, 3), (650, 16), (7, 3)])
def test_the_columns_become_an_orthonormal_basis_of_their_span(rows: int, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(rows, count, generator=generator) * 10.0 ** torch.arange(-count, 0)
    columns[:, 0] *= 1e-15  # its square is no float32 number
    found = subspace.orthonormal(columns)
    torch.testing.assert_close(found.mT @ found, torch.eye(count), rtol=0, atol=3e-6)
    assert ((columns - found @ (found.mT @ columns)).norm(dim=0) <= 1e-5 * columns.norm(dim=0)).all()


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("growth", [1.0, 1e2, 1e4, 1e6])
def test_one_round_keeps_the_span_and_leaves_a_condition_near_one(growth: float) -> None:
    """Columns as a filter leaves them: of one size each, and all leaning to the first."""
    generator = torch.Generator().manual_seed(0)
    columns = torch.linalg.qr(torch.randn(650, 40, generator=generator).double())[0]
    leaning = (columns + growth * columns[:, :1]).float()
    found = subspace.orthonormal(leaning, rounds=1).double()
    assert torch.linalg.cond(found) <= 1.5
    # What the rounding of the columns has left of the others' directions.
    lost = columns - found @ torch.linalg.lstsq(found, columns)[0]
    assert float(lost.norm(dim=0).max()) <= 1e-6 * growth


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("kind", ["zero", "twice the same", "more than dimensions"])
def test_columns_without_a_part_of_their_own_are_replaced_and_never_awaited(kind: str) -> None:
    columns = torch.randn(20, 25 if kind == "more than dimensions" else 3, generator=torch.Generator().manual_seed(0))
    if kind == "zero":
        columns[:, 1] = 0
    elif kind == "twice the same":
        columns[:, 2] = columns[:, 0]
    found = subspace.orthonormal(columns)
    assert found.shape == (20, min(columns.shape[1], 20))
    torch.testing.assert_close(found.mT @ found, torch.eye(found.shape[1]), rtol=0, atol=3e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_basis_comes_of_what_is_not_finite(bad: float) -> None:
    columns = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    columns[3, 1] = bad
    assert not torch.isfinite(subspace.orthonormal(columns)).all()


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 9), (130, 61), (300, 1200), (1200, 300)])
@pytest.mark.parametrize("width", [0, 1, 2, 3, 4, 16, 21])
def test_thin_products_are_those_of_float64(m: int, n: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(m, n, generator=generator) / n**0.5
    columns, rows = torch.randn(n, width, generator=generator), torch.randn(m, width, generator=generator)
    image, back = normal_product(weight, columns)
    exact = weight.double() @ columns.double()
    torch.testing.assert_close(image.double(), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(back.double(), weight.double().mT @ exact, rtol=0, atol=2e-5 * (m / n + 1))
    turned = thin_product(weight.mT, rows)
    torch.testing.assert_close(turned.double(), weight.double().mT @ rows.double(), rtol=0, atol=2e-5 * (m / n + 1))


@pytest.mark.parametrize("width", [1, 2, 5, 21])
def test_a_thread_more_changes_no_bit_of_a_thin_product(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, columns = torch.randn(300, 1100, generator=generator), torch.randn(1100, width, generator=generator)
    made = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        image, back = normal_product(weight, columns)
        made.append((image, back, thin_product(weight, columns), thin_product(weight.mT, image)))
    for others in made[1:]:
        assert all(torch.equal(one, other) for one, other in zip(made[0], others, strict=True))


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize(("m", "n"), [(1, 1), (17, 9), (130, 61)])
def test_distances_are_frobenius_norms_of_differences_and_of_a_matrix_alone(m: int, n: int) -> None:
    a, b = torch.randn(2, m, n + 3, generator=torch.Generator().manual_seed(0))[..., :n]
    assert distance(a, b) == pytest.approx(float((a.double() - b.double()).norm()), rel=1e-6)
    assert distance(a) == pytest.approx(float(a.double().norm()), rel=1e-6)


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("width", [1, 2, 3, 10, 24, 40, 100])
def test_the_error_of_a_product_does_not_grow_with_the_number_of_equal_terms(width: int, turned: bool) -> None:
    """All of which are rounded the same way: one after the other, 4096 of them lose 5e-5."""
    most = 3.5e-7 if width <= 64 else 1.2e-6
    for entry in (1 / 3, 0.7, 1.1, 1 / 1023):
        weight, columns = torch.full((300, 4096), entry), torch.full((4096, width), 1 / 64)
        if turned:
            weight = weight.mT.contiguous().mT
        exact = weight.double() @ columns.double()
        for product in (thin_product(weight, columns), normal_product(weight, columns)[0]):
            assert float((product / exact - 1).abs().max()) <= most


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("width", [1, 17, 33, 300])
@pytest.mark.parametrize(("m", "n"), [(300, 310), (600, 610)])
def test_what_is_taken_off_is_exact_for_equal_terms(m: int, n: int, width: int) -> None:
    for entry in (1 / 3, 0.7, 1.1):
        weight = torch.full((m, n), 3.0 * width)
        left, right = torch.full((m, width), entry), torch.full((n, width), 1.7)
        exact = weight.double() - left.double() @ right.double().mT
        subtract_low_rank_(weight, left, right)
        assert float((weight - exact).abs().max()) <= 2e-6 * width * entry * 1.7


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("value", [1.1, 1.3, 1.5])
def test_a_distance_is_as_precise_for_many_columns(value: float) -> None:
    """Equal squares are all rounded the same way, and a certificate by Weyl's inequality counts on their sum."""
    a = torch.full((3, 40_000), value)
    assert distance(a) == pytest.approx(float(a.double().norm()), rel=1e-6)
    assert distance(a, -a) == pytest.approx(2 * float(a.double().norm()), rel=1e-6)


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("width", [1, 5, 16, 19])
def test_ritz_triplets_are_those_of_the_matrix_on_the_basis(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(70, 60, generator=generator) / 8
    columns = torch.randn(60, width, generator=generator)
    block = subspace.rayleigh_ritz(weight, columns)
    exact = torch.linalg.svdvals(weight.double() @ torch.linalg.qr(columns.double())[0])
    torch.testing.assert_close(torch.tensor(block.values, dtype=torch.float64), exact, rtol=0, atol=1e-6)
    theta = torch.tensor(block.values)
    torch.testing.assert_close(weight @ block.right, block.left * theta, rtol=0, atol=3e-6)
    residual = weight.mT @ block.left - block.right * theta
    torch.testing.assert_close(block.residual, residual, rtol=0, atol=3e-6)
    torch.testing.assert_close(torch.tensor(block.size), residual.norm(dim=0), rtol=0, atol=3e-6)


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-2])
def test_the_left_vectors_are_orthonormal_however_near_the_columns_are_to_ritz_vectors(angle: float) -> None:
    """Two of 18 right vectors are turned into each other; U is taken off as an orthonormal basis."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(80, 80, generator=generator).double())[0] for _ in range(2))
    values = torch.cat((torch.linspace(3.2, 1, 18), torch.full((62,), 0.01))).double()
    weight = (left * values @ right.mT).float()
    columns = right[:, :18].clone()
    columns[:, 3] += angle * right[:, 16]
    columns[:, 16] -= angle * right[:, 3]
    found = subspace.rayleigh_ritz(weight, columns.float()).left.double()
    assert float(torch.linalg.matrix_norm(found.mT @ found - torch.eye(18), 2)) <= 1.2e-6


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize(("m", "n", "width"), [(1, 1, 1), (70, 60, 5), (60, 70, 17), (300, 310, 33)])
def test_the_filter_is_chebyshevs_polynomial(m: int, n: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(m, n, generator=generator) / n**0.5, torch.randn(n, width, generator=generator)
    A, end = weight.double().mT @ weight.double(), 1.3
    expected = [x.double(), 2 / end**2 * A @ x.double() - x]
    while len(expected) < 8:
        expected.append(2 * (2 / end**2 * A @ expected[-1] - expected[-1]) - expected[-2])
    first, last, largest = subspace.chebyshev(weight, x.clone(), end, 3)
    scale = float(max(one.norm(dim=0).max() for one in expected))
    torch.testing.assert_close(first.double(), expected[3], rtol=0, atol=3e-6 * scale)
    torch.testing.assert_close(last.double(), expected[2], rtol=0, atol=3e-6 * scale)
    # And from where it stands on.
    further, _, largest = subspace.chebyshev(weight, first, end, 4, last, 3)
    torch.testing.assert_close(further.double(), expected[7], rtol=0, atol=3e-6 * scale)
    assert largest == pytest.approx(float(further.double().norm(dim=0).max()), rel=1e-5)


def test_a_thread_more_changes_no_bit_of_the_filter() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(700, 650, generator=generator) / 25
    columns, made = torch.randn(650, 21, generator=generator), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        made.append(subspace.chebyshev(weight, columns.clone(), 1.5, 4))
    for others in made[1:]:
        assert all(torch.equal(one, other) for one, other in zip(made[0][:2], others[:2], strict=True))
        assert made[0][2] == others[2]


@pytest.mark.usefixtures("kernels_or_not")
def test_what_is_asked_of_the_leading_pairs_is_reached_and_no_more_than_rounding_away() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(300, 300, generator=generator).double())[0] for _ in range(2))
    values = torch.cat((torch.tensor([5.0, 1.2, 1.01]), torch.linspace(0.98, 0, 297))).double()
    weight = (left * values @ right.mT).float()
    start = torch.randn(300, 24, generator=generator)
    found = subspace.converge(weight, start, lambda block: [size / 3e-5 for size in block.size[:3]])
    assert found is not None
    block = found.block
    torch.testing.assert_close(torch.tensor(block.values[:3]).double(), values[:3], rtol=2e-6, atol=0)
    assert (block.right[:, :3].double().mT @ right[:, :3]).diagonal().abs().min() > 1 - 1e-6


def test_a_subspace_that_never_gets_there_ends_and_one_that_may_give_up_does() -> None:
    weight, start = torch.eye(60), torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    assert subspace.converge(weight, start, lambda block: [1e9]) is None
    assert subspace.converge(weight, start, lambda block: [math.inf]) is None
    assert subspace.converge(torch.zeros(60, 60), start, lambda block: [2.0]) is None
    assert subspace.converge(weight, start, lambda block: None) is None


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize(("m", "n"), [(1, 1), (7, 3), (650, 650), (90, 129)])
def test_the_columns_squares_are_those_of_float64(m: int, n: int) -> None:
    wide = torch.randn(m, n + 1, generator=torch.Generator().manual_seed(m))
    for matrix in (wide[:, :n], wide[:, 1:].mT.contiguous().mT):  # rows that lie apart; columns that are contiguous
        expected = matrix.double().square().sum(0)
        torch.testing.assert_close(column_squares(matrix), expected, rtol=1e-14, atol=0)


def test_a_thread_more_changes_no_bit_of_gram_matrix_and_triplets() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(700, 650, generator=generator)
    columns = torch.randn(650, 50, generator=generator)
    image = weight @ columns
    made = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        block = subspace.rayleigh_ritz(weight, columns)
        sizes = torch.tensor(block.size, dtype=torch.float64)
        made.append((column_gram(image), block.left, block.right, block.residual, sizes))
    wide = image.double()
    torch.testing.assert_close(made[0][0], wide.mT @ wide, rtol=1e-12, atol=1e-10)
    for others in made[1:]:
        assert all(torch.equal(one, other) for one, other in zip(made[0], others, strict=True))
