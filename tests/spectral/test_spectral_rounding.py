"""Sums of thousands of equal terms, all of which are rounded the same way: no certificate may count on their digits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gruclip.kernels.products import lower_gram
from gruclip.spectral import SpectralState, clip_singular_values_
from gruclip.spectral.thin import normal_product


def leading(matrix: Tensor) -> tuple[float, Tensor, Tensor]:
    """sigma_1 of a matrix of which it is apart from the others, and its vectors, in float64."""
    wide = matrix.double()
    v = wide.mT @ (wide @ wide[-1])
    for _ in range(20):
        v = wide.mT @ (wide @ (v / v.norm()))
    u = wide @ (v / v.norm())
    return float(u.norm()), u / u.norm(), v / v.norm()


def rows_alike(m: int, n: int, largest: float) -> Tensor:
    """All rows are one, of two numbers that are rounded to either side, but for forty of values below 0.9."""
    generator = torch.Generator().manual_seed(1)
    row = 1 + torch.rand(n, generator=generator)
    matrix = (row * (largest / float(row.norm() * m**0.5))).repeat(m, 1)
    # Those for which W^T (W row) is the furthest from the sum of its terms.
    image, back = normal_product(matrix, matrix[:1].mT.contiguous())
    apart = (back.double() / (matrix.double().mT @ image.double()))[:, 0]
    ends = matrix[0, [int(apart.argmin()), int(apart.argmax())]]
    matrix = ends[torch.randint(2, (n,), generator=generator)].repeat(m, 1)
    others = torch.linalg.qr(torch.randn(n, 40, generator=generator))[0]
    matrix[:40] += torch.linspace(0.2, 0.9, 40)[:, None] * others.mT
    return matrix


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("columns", [80, 128])
@pytest.mark.parametrize("excess", [2.2e-6, 2.4e-6, 3e-6, 1e-5, 1.5e-5, 1e-2])
def test_a_tall_matrix_of_equal_numbers_is_clipped_to_its_limit(excess: float, columns: int) -> None:
    """Its Gram matrix in float32 is added up from hundreds of parts, and LAPACK's eigenvalue of it is 1e-6 off."""
    before = torch.full((1 << 16, columns), (1 + excess) / (2**8 * columns**0.5))
    size = float(before.double().norm())
    after = before.clone()
    assert clip_singular_values_(after, 1.0).certified
    assert float(after.double().norm()) <= 1 + 2e-6
    assert float((after.double() - before.double() / size).norm()) <= 2e-6


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize(
    ("rows", "columns", "few", "first", "excess"),
    [
        (1024, 160, 40, 1.5, 2.2e-6),
        (1024, 200, 50, 1.0, 2.1e-6),
        (1024, 200, 50, 1.0, 2.3e-6),
        (2048, 224, 112, 3.5, 2.6e-6),
        (2048, 228, 114, 3.5, 2.2e-6),
    ],
)
def test_a_second_value_is_clipped_to_the_limit_as_the_first_is(
    rows: int, columns: int, few: int, first: float, excess: float
) -> None:
    """Of two blocks of equal numbers: of the second eigenvalue, too, LAPACK's float32 one is 1e-6 off, and so are the
    Ritz values on its float32 bases."""
    blocks = (slice(rows), slice(few)), (slice(rows, None), slice(few, None))
    after = torch.zeros(2 * rows, columns)
    for block, size in zip(blocks, (max(first, 1 + excess), 1 + excess), strict=True):
        after[block] = size / after[block].numel() ** 0.5
    assert clip_singular_values_(after, 1.0).certified
    for block in blocks:
        assert float(after[block].double().norm()) <= 1 + 2e-6


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("rows", [1025, 4096, 1 << 16])
def test_a_gram_matrix_of_many_rows_is_as_precise_as_one_of_few(rows: int) -> None:
    for entry in (1.0268, 1.3, 1.9998):
        x = torch.full((rows, 80), entry)
        exact = rows * x[0, 0].double() ** 2
        assert float((lower_gram(x) / exact - 1).tril().abs().max()) <= 1e-6


def test_where_all_rows_are_alike_no_residual_is_hidden_by_rounding() -> None:
    """Filter and residual agreed on vectors that are those of other numbers, and the result was 2.3e-6 off."""
    before = rows_alike(4096, 820, 3.9)
    size, u, v = leading(before)
    exact = before.double() - torch.outer(u, v) * (size - 1)
    state = SpectralState()
    for _ in range(2):
        after = before.clone()
        assert clip_singular_values_(after, 1.0, state=state).certified
        assert float((after.double() - exact).norm()) <= 2e-6 * size
