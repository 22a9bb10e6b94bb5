"""Sums of thousands of equal terms, all of which are rounded the same way: no certificate may count on their digits."""

from __future__ import annotations

import pytest
import torch

from gruclip.kernels.products import lower_gram
from gruclip.spectral import clip_singular_values_


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("excess", [2.2e-6, 3e-6, 1e-5, 1.5e-5, 1e-2])
def test_a_tall_matrix_of_equal_numbers_is_clipped_to_its_limit(excess: float) -> None:
    """Its Gram matrix in float32 is added up from hundreds of parts."""
    before = torch.full((1 << 16, 128), (1 + excess) / 2**11.5)
    size = float(before.double().norm())
    after = before.clone()
    assert clip_singular_values_(after, 1.0).certified
    assert float(after.double().norm()) <= 1 + 2e-6
    assert float((after.double() - before.double() / size).norm()) <= 2e-6


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("rows", [1025, 4096, 1 << 16])
def test_a_gram_matrix_of_many_rows_is_as_precise_as_one_of_few(rows: int) -> None:
    for entry in (1.0268, 1.3, 1.9998):
        x = torch.full((rows, 80), entry)
        exact = rows * x[0, 0].double() ** 2
        assert float((lower_gram(x) / exact - 1).tril().abs().max()) <= 1e-6
