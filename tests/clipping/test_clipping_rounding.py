"""Matrices of every floating dtype: inside their limits after rounding, and close to the exact projection."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gruclip.clipping import SpectralClipping
from gruclip.clipping.rounding import clip_matrices_, is_finite, norms_of, surely_inside

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-6, torch.bfloat16: 2e-6, torch.float16: 2e-6}


def sigma_1(matrices: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrices.double(), 2)


def exact(matrices: Tensor, limits: Tensor) -> Tensor:
    left, middle, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    return left @ torch.diag_embed(torch.minimum(middle, limits[:, None])) @ right


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(list(TOLERANCE)),
    rows=st.integers(1, 70),
    columns=st.integers(1, 70),
    blocks=st.integers(1, 3),
    exponent=st.integers(-6, 3),
    share=st.floats(0.02, 1.3),
    kind=st.sampled_from(["normal", "orthogonal", "one value", "zero"]),
    seed=st.integers(0, 10**6),
)
def test_what_is_clipped_is_inside_in_the_numbers_that_are_kept(
    dtype, rows, columns, blocks, exponent, share, kind, seed
) -> None:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(blocks, rows, columns, generator=generator, dtype=torch.float64)
    if kind == "orthogonal":
        left, _, right = torch.linalg.svd(made, full_matrices=False)
        made = left @ right
    elif kind == "one value":
        made = made[:, :, :1] @ made[:, :1, :]
    elif kind == "zero":
        made.zero_()
    matrices = (made * 10.0**exponent).to(dtype)
    scale = float(sigma_1(matrices).max()) or 1.0
    limits = torch.linspace(share, 1.5 * share, blocks, dtype=torch.float64) * scale
    before = matrices.clone()
    count = sum(clip_matrices_(matrices, limits.tolist()))
    assert (sigma_1(matrices) <= limits * (1 + TOLERANCE[dtype])).all()
    near = torch.linalg.vector_norm(matrices.double() - exact(before, limits), dim=(-2, -1))
    # Rounding each element, and the room that is left for it: at most as much again for each direction.
    rank = min(rows, columns)
    half_unit = torch.finfo(dtype).eps / 2 if dtype.itemsize < 4 else 0.0
    room = half_unit * (1 + rank**0.5) * torch.minimum(limits, sigma_1(before)) * rank**0.5
    below_normal = (
        torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * (rows * columns) ** 0.5 * (1 + rank**0.5)
    )
    bulk = torch.maximum(torch.linalg.vector_norm(before.double(), dim=(-2, -1)), limits)
    assert (near <= 2e-6 * bulk + 1.01 * room + below_normal).all()
    inside = sigma_1(before) <= limits
    assert torch.equal(matrices[inside], before[inside])
    assert count > 0 or torch.equal(matrices, before)
    # A second time finds nothing to do.
    again = matrices.clone()
    assert not any(clip_matrices_(again, limits.tolist()))
    assert torch.equal(again, matrices)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [60, 256])
def test_of_a_matrix_just_above_its_limit_no_more_than_a_percent_is_given_up(dtype, n) -> None:
    """What is to be taken off is less than the spacing of its elements."""
    made = torch.randn(1, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for above in (1e-5, 1e-4, 3e-4, 1e-3, 1e-2):
        matrix = (made / sigma_1(made) * (1 + above)).to(dtype)
        clip_matrices_(matrix, [1.0])
        assert 0.99 <= float(sigma_1(matrix)[0]) <= 1 + 2e-6


@pytest.mark.parametrize("n", [64, 128, 180])
def test_of_a_nearly_orthogonal_matrix_no_more_than_a_percent_is_given_up(n: int) -> None:
    """Each try takes off half of what is outside, and less in the end than rounding feels."""
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        made = (torch.randn(n, n, generator=generator, dtype=torch.float64) for _ in range(2))
        left, right = (torch.linalg.qr(one)[0] for one in made)
        matrix = (left * torch.linspace(0.97, 1 + 1e-4, n) @ right)[None].bfloat16()
        clip_matrices_(matrix, [1.0])
        assert 0.99 <= float(sigma_1(matrix)[0]) <= 1 + 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["few above", "all above"])
def test_little_is_given_up_for_the_rounding(dtype, kind) -> None:
    """At n = 256 the norm ends within a tenth of a percent of the limit, or, with all values there, within 8 units."""
    matrix = torch.randn(1, 256, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    limit = 0.97 if kind == "few above" else 0.01
    matrix = (matrix / sigma_1(matrix)).to(dtype)
    clip_matrices_(matrix, [limit])
    lost = 1 - float(sigma_1(matrix)[0]) / limit
    assert -2e-6 <= lost <= (1e-3 if kind == "few above" else 4 * torch.finfo(dtype).eps)


def test_a_limit_below_what_the_dtype_resolves_leaves_a_matrix_inside_it() -> None:
    for limit in (3e-8, 1e-6, 1.2e-6, 1.28e-6):
        matrices = torch.ones(1, 40, 40, dtype=torch.float16)
        clip_matrices_(matrices, [limit])
        assert float(sigma_1(matrices)) <= limit * (1 + 2e-6)


def test_a_frobenius_norm_below_the_limit_spares_the_rest_and_a_huge_one_is_finite() -> None:
    huge = torch.full((1, 2, 2), 3e38)
    (norms,) = norms_of([huge])
    assert norms == [torch.inf]
    assert is_finite(norms, lambda: huge)
    assert not is_finite([torch.inf], lambda: huge * torch.inf)
    stacks = [torch.eye(3)[None].repeat(2, 1, 1), 2 * torch.eye(4, dtype=torch.bfloat16)[None]]
    (first, second) = norms_of(stacks)
    assert first == pytest.approx([3**0.5] * 2)
    assert second == pytest.approx([4.0])
    assert surely_inside(first, [1.74, 1.74])
    assert not surely_inside(first, [1.74, 1.73])
    assert norms_of([]) == []


@pytest.mark.parametrize(("number", "limit"), [(1e200, 1.0), (1e-165, 1e-170), (1e160, 1e-160), (0.0, 1.0)])
@pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
def test_a_vector_whose_squares_pass_float64s_range_keeps_its_direction(
    number: float, limit: float, shape: tuple[int, int]
) -> None:
    layer = torch.nn.Linear(*shape, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(layer.weight, number)
    SpectralClipping(layer, limit=limit).clip()
    expected = torch.full_like(layer.weight, min(limit / 5**0.5, number))
    torch.testing.assert_close(layer.weight / limit, expected / limit, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("size", [1, 300])
def test_numbers_whose_squares_come_to_nothing_are_clipped_all_the_same(size: int) -> None:
    layer = torch.nn.Linear(size, size, bias=False)
    torch.nn.init.constant_(layer.weight, 1e-24)
    SpectralClipping(layer, limit=1e-24).clip()
    assert float(sigma_1(layer.weight.detach()[None])) <= 1e-24 * (1 + 2e-6)
