"""Rayleigh-Ritz's parts: orthonormal columns, thin products, and the triplets they make, compiled and by torch."""

from __future__ import annotations

import pytest
import torch

from gruclip.spectral import subspace as ritz
from gruclip.spectral.thin import column_squares, distance, there_and_back, thin_product


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize(("rows", "count", "others"), [(1, 1, 0), (9, 9, 0), (40, 3, 5), (650, 16, 30), (7, 3, 4)])
def test_the_columns_become_an_orthonormal_basis_of_what_is_apart_from_the_others(
    rows: int, count: int, others: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    against = torch.linalg.qr(torch.randn(rows, others, generator=generator))[0] if others else None
    columns = torch.randn(rows, count, generator=generator) * 10.0 ** torch.arange(-count, 0)
    columns[:, 0] *= 1e-15  # its square is no float32 number
    found = ritz.orthonormal(columns, against)
    whole = found if against is None else torch.cat((against, found), 1)
    torch.testing.assert_close(whole.mT @ whole, torch.eye(others + count), rtol=0, atol=3e-6)
    # Their span is that of the columns less the others'.
    left = columns if against is None else columns - against @ (against.mT @ columns)
    assert ((left - found @ (found.mT @ left)).norm(dim=0) <= 1e-5 * columns.norm(dim=0)).all()


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("kind", ["zero", "twice the same", "among the others", "more than dimensions"])
def test_columns_without_a_part_of_their_own_are_replaced_and_never_awaited(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    against = torch.linalg.qr(torch.randn(20, 4, generator=generator))[0]
    columns = torch.randn(20, 3, generator=generator)
    if kind == "zero":
        columns[:, 1] = 0
    elif kind == "twice the same":
        columns[:, 2] = columns[:, 0]
    elif kind == "among the others":
        columns[:, 0] = against[:, 1]
    else:
        columns, against = torch.randn(20, 25, generator=generator), None
    found = ritz.orthonormal(columns, against)
    whole = found if against is None else torch.cat((against, found), 1)
    torch.testing.assert_close(whole.mT @ whole, torch.eye(whole.shape[1]), rtol=0, atol=3e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_basis_comes_of_what_is_not_finite(bad: float) -> None:
    columns = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    columns[3, 1] = bad
    assert not torch.isfinite(ritz.orthonormal(columns)).all()


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 9), (130, 61), (300, 1200), (1200, 300)])
@pytest.mark.parametrize("width", [1, 3, 16, 21])
def test_thin_products_are_those_of_float64(m: int, n: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(m, n, generator=generator) / n**0.5
    columns, rows = torch.randn(n, width, generator=generator), torch.randn(m, width, generator=generator)
    image, back = there_and_back(weight, columns)
    exact = weight.double() @ columns.double()
    torch.testing.assert_close(image.double(), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(back.double(), weight.double().mT @ exact, rtol=0, atol=2e-5 * (m / n + 1))
    turned = thin_product(weight.mT, rows)
    torch.testing.assert_close(turned.double(), weight.double().mT @ rows.double(), rtol=0, atol=2e-5 * (m / n + 1))


@pytest.mark.parametrize("width", [1, 5, 21])
def test_a_thread_more_changes_no_bit_of_a_thin_product(width: int, threads: None) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, columns = torch.randn(300, 1100, generator=generator), torch.randn(1100, width, generator=generator)
    made = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        image, back = there_and_back(weight, columns)
        # A single column's product is the library's, and Intel's divides its sums among the threads.
        products = (thin_product(weight, columns), thin_product(weight.mT, image)) if width > 1 else ()
        made.append((image, back, *products))
    for others in made[1:]:
        assert all(torch.equal(one, other) for one, other in zip(made[0], others, strict=True))


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize(("m", "n"), [(1, 1), (17, 9), (130, 61)])
def test_distances_are_frobenius_norms_of_differences_and_of_a_matrix_alone(m: int, n: int) -> None:
    a, b = torch.randn(2, m, n + 3, generator=torch.Generator().manual_seed(0))[..., :n]
    assert distance(a, b) == pytest.approx(float((a.double() - b.double()).norm()), rel=1e-6)
    assert distance(a) == pytest.approx(float(a.double().norm()), rel=1e-6)


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("width", [1, 5, 16, 19])
def test_ritz_triplets_are_those_of_the_matrix_on_the_basis(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(70, 60, generator=generator) / 8
    basis = ritz.Basis.of(weight, ritz.orthonormal(torch.randn(60, width, generator=generator)))
    values, Y = ritz.ritz_values(basis)
    block = ritz.ritz_triplets(weight, basis, values[: max(1, width - 2)], Y)
    exact = torch.linalg.svdvals(weight.double() @ basis.columns.double())
    torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), exact, rtol=0, atol=1e-6)
    theta = torch.tensor(block.values)
    torch.testing.assert_close(weight @ block.right, block.left * theta, rtol=0, atol=3e-6)
    residual = weight.mT @ block.left - block.right * theta
    torch.testing.assert_close(block.residual, residual, rtol=0, atol=3e-6)
    torch.testing.assert_close(torch.tensor(block.size), residual.norm(dim=0), rtol=0, atol=3e-6)


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize(("width", "steps"), [(1, 1), (1, 4), (3, 2)])
@pytest.mark.parametrize("scale", [1.0, 0.0])  # of zeros, the Krylov space is exhausted at once
def test_a_basis_grows_by_the_krylov_space_that_begins_with_some_columns(width: int, steps: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = scale * torch.randn(70, 60, generator=generator) / 8
    basis = ritz.Basis.of(weight, ritz.orthonormal(torch.randn(60, 5, generator=generator)))
    start = torch.randn(60, width, generator=generator)
    grown = ritz._expanded(weight, basis, start, steps)
    assert grown.columns.shape == (60, 5 + steps * width)
    assert torch.equal(grown.columns[:, :5], basis.columns)
    Q, W, block = grown.columns.double(), weight.double(), start.double()
    torch.testing.assert_close(Q.mT @ Q, torch.eye(Q.shape[1]).double(), rtol=0, atol=3e-6)
    torch.testing.assert_close(grown.image.double(), W @ Q, rtol=0, atol=3e-6)
    torch.testing.assert_close(grown.back.double(), W.mT @ (W @ Q), rtol=0, atol=1e-5)
    for _ in range(steps):
        block = block - Q[:, :5] @ (Q[:, :5].mT @ block)
        assert (block - Q @ (Q.mT @ block)).norm() <= 1e-4 * block.norm()
        block = W.mT @ (W @ block)


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize(("m", "n"), [(1, 1), (7, 3), (650, 650), (90, 129)])
def test_the_columns_squares_are_those_of_float64(m: int, n: int) -> None:
    wide = torch.randn(m, n + 1, generator=torch.Generator().manual_seed(m))
    for matrix in (wide[:, :n], wide[:, 1:].mT.contiguous().mT):  # rows that lie apart; columns that are contiguous
        expected = matrix.double().square().sum(0)
        torch.testing.assert_close(column_squares(matrix), expected, rtol=1e-14, atol=0)


def test_a_thread_more_changes_no_bit_of_gram_matrix_and_triplets(threads: None) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(700, 650, generator=generator)
    basis = ritz.Basis.of(weight, ritz.orthonormal(torch.randn(650, 50, generator=generator)))
    made = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        values, Y = ritz.ritz_values(basis)
        block = ritz.ritz_triplets(weight, basis, values, Y)
        sizes = torch.tensor(block.size, dtype=torch.float64)
        made.append((ritz.gram(basis.image), block.left, block.right, block.residual, sizes))
    wide = basis.image.double()
    torch.testing.assert_close(made[0][0], wide.mT @ wide, rtol=1e-12, atol=1e-10)
    for others in made[1:]:
        assert all(torch.equal(one, other) for one, other in zip(made[0], others, strict=True))
