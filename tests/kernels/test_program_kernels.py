"""The program's kernels compute what torch's operations do: by Triton's interpreter, on a GPU as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gruclip.kernels import program
from gruclip.spectral import SubspaceState, clip_singular_values_deferred_
from gruclip.spectral.program import ROOT, SHIFT, SIGN

INTERPRETED = not torch.cuda.is_available()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
Q = program.SIDE
V = TypeVar("V")
#: Each shape is a kernel of its own, which a GPU compiles in half a second.
EXAMPLES = 6 if INTERPRETED else 3

pytestmark = [
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.skipif(
        not INTERPRETED and torch.cuda.get_device_capability() not in program.CARDS,
        reason="the tensor cores of this card have no float64",
    ),
]


@contextmanager
def torch_s_operations() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRUCLIP_TRITON", "0")
        yield


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype).to(DEVICE)


def symmetric(values: Tensor, seed: int) -> Tensor:
    """Matrices with these eigenvalues (R, q), float64."""
    turn = torch.linalg.qr(normal(*values.shape, values.shape[-1], seed=seed, dtype=torch.float64))[0]
    return turn @ (values.to(DEVICE)[..., None] * turn.mT)


@given(
    st.integers(1, 3), st.sampled_from([(19, 101), (80, 64), (150, 176)]), st.sampled_from([16, 64, 80, 128]),
    st.booleans(), st.floats(1e-3, 1e3), st.sampled_from([1, 1 << 30]), st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_step_of_the_filter_is_chebyshev_s_recurrence(
    runs: int, shape: tuple[int, int], columns: int, first: bool, scale: float, few: int, seed: int
) -> None:
    m, n = shape
    W, x = normal(runs, m, n, seed=seed), normal(runs, n, columns, seed=seed + 1)
    before = None if first else normal(runs, n, columns, seed=seed + 2)
    scales = scale * (1 + torch.arange(runs, dtype=torch.float32, device=DEVICE))
    assert program.takes(W)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "FEW_PROGRAMS", few)
        made = program.filter_step(W, x, before, scales)
    wide = scales.double()[:, None, None] * (W.double().mT @ (W.double() @ x.double())) - x.double()
    expected = wide if before is None else 2 * wide - before.double()
    torch.testing.assert_close(made.double(), expected, rtol=0, atol=3e-6 * float(expected.abs().max()))
    with torch_s_operations():
        assert not program.takes(W)
        plain = program.filter_step(W, x, before, scales)
    torch.testing.assert_close(plain.double(), expected, rtol=0, atol=3e-6 * float(expected.abs().max()))


@given(
    st.integers(1, 3), st.sampled_from([(19, 101), (80, 64), (150, 176)]), st.sampled_from([64, 72, 128]),
    st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
@settings(max_examples=EXAMPLES, deadline=None)
def test_an_exact_product_is_rounded_once(
    runs: int, shape: tuple[int, int], columns: int, equal: bool, seed: int
) -> None:
    m, n = shape
    W, x = normal(runs, m, n, seed=seed), normal(runs, n, columns, seed=seed + 1)
    if equal:  # terms, of which each addition in float32 would be rounded the same way
        W, x = W[:, :1, :1].expand_as(W).contiguous(), x[:, :1, :1].expand_as(x).contiguous()
    expected = W.double() @ x.double()
    sizes = W.double().abs() @ x.double().abs()
    for made in both_ways(lambda: program.exact_product(W, x)):
        assert bool(((made.double() - expected).abs() <= 0.6e-7 * expected.abs() + 1e-14 * sizes).all())


@given(
    st.integers(1, 3), st.sampled_from([1, 150, 176]), st.sampled_from([64, 192]), st.booleans(), st.integers(0, 2**31)
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_gram_matrices_are_summed_in_float64(runs: int, rows: int, columns: int, wide: bool, seed: int) -> None:
    x = normal(runs, rows, columns, seed=seed, dtype=torch.float64 if wide else torch.float32)
    expected = x.double().mT @ x.double()
    torch.testing.assert_close(program.gram(x), expected, rtol=1e-13, atol=1e-13 * rows)
    with torch_s_operations():
        torch.testing.assert_close(program.gram(x), expected, rtol=1e-13, atol=1e-13 * rows)


@given(st.integers(1, 3), st.floats(0, 8), st.floats(-8, 8), st.integers(0, 2**31))
@settings(max_examples=EXAMPLES, deadline=None)
def test_columns_become_orthonormal_by_the_factor_of_their_gram_matrix(
    runs: int, range_: float, size: float, seed: int
) -> None:
    lengths = 10 ** (size + range_ * torch.rand(runs, 1, Q, generator=generator(seed), dtype=torch.float64))
    columns = normal(runs, 150, Q, seed=seed + 1, dtype=torch.float64) * lengths.to(DEVICE)
    columns[0, :, 3] = 0.0  # one that has come to nothing stays so, and changes none of the others
    identity = torch.eye(Q, dtype=torch.float64, device=DEVICE).expand(runs, Q, Q).clone()
    identity[0, 3, 3] = 0.0
    matrix = program.gram(columns)

    def check() -> None:
        spread = columns @ program.inverse_factor(matrix, SHIFT)
        torch.testing.assert_close(spread.mT @ spread, identity, rtol=0, atol=1e-9)

    check()
    with torch_s_operations():
        check()


@given(st.integers(1, 3), st.floats(1, 8), st.integers(0, 2**31))
@settings(max_examples=EXAMPLES, deadline=None)
def test_the_inverse_factor_of_a_positive_definite_matrix(runs: int, exponent: float, seed: int) -> None:
    values = 10 ** (-exponent * torch.rand(runs, Q, generator=generator(seed), dtype=torch.float64))
    matrix = symmetric(values, seed + 1)
    for inverse in both_ways(lambda: program.inverse_factor(matrix)):
        assert torch.equal(inverse, inverse.triu())
        identity = torch.eye(Q, dtype=torch.float64, device=DEVICE).expand_as(matrix)
        torch.testing.assert_close(inverse.mT @ matrix @ inverse, identity, rtol=0, atol=1e-14 * 10**exponent * Q)


def both_ways(compute: Callable[[], V]) -> Iterator[V]:
    yield compute()
    with torch_s_operations():
        yield compute()


@pytest.mark.parametrize("least", [1e-9, -1e-9, -1.0, float("nan")])
def test_a_matrix_is_positive_definite_if_its_least_eigenvalue_is(least: float) -> None:
    values = torch.linspace(0.5, 1, 2 * Q, dtype=torch.float64).view(2, Q)
    values[0, 7] = least
    matrix = symmetric(values, 3)
    for answer in both_ways(lambda: program.is_positive_definite(matrix)):
        assert answer.tolist() == [least > 0, True]


@pytest.mark.parametrize("place", [0, 31, Q - 1])
def test_a_pivot_of_zero_is_not_positive(place: int) -> None:
    matrix = torch.eye(Q, dtype=torch.float64, device=DEVICE).repeat(2, 1, 1)
    matrix[1, place, place] = 0.0
    for answer in both_ways(lambda: program.is_positive_definite(matrix)):
        assert answer.tolist() == [True, False]


@given(st.integers(1, 3), st.integers(0, 2**31))
@settings(max_examples=EXAMPLES, deadline=None)
def test_the_sign_of_a_matrix(runs: int, seed: int) -> None:
    sizes = 10 ** (-8.9 * torch.rand(runs, Q, generator=generator(seed), dtype=torch.float64))
    signs = torch.where(torch.rand(runs, Q, generator=generator(seed + 1)) < 0.5, -1.0, 1.0).double()
    matrix = symmetric(signs * sizes, seed + 2)
    for made in both_ways(lambda: program.sign(matrix, SIGN)):
        torch.testing.assert_close(made, symmetric(signs, seed + 2), rtol=0, atol=1e-6)


@given(st.integers(1, 3), st.integers(0, 2**31))
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_root_and_its_inverse(runs: int, seed: int) -> None:
    values = 16 ** (-2 * torch.rand(runs, Q, generator=generator(seed), dtype=torch.float64)) / 1.003
    matrix = symmetric(values, seed + 1)
    for root, inverse in both_ways(lambda: program.coupled_roots(matrix, ROOT)):
        torch.testing.assert_close(root, symmetric(values.sqrt(), seed + 1), rtol=0, atol=1e-10)
        torch.testing.assert_close(inverse, symmetric(values.rsqrt(), seed + 1), rtol=0, atol=2e-9)


@given(st.integers(1, 3), st.sampled_from([0, 4, 14]), st.floats(-20, 20), st.integers(0, 2**31))
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_high_power_and_the_norm_by_it(runs: int, squarings: int, exponent: float, seed: int) -> None:
    values = 10**exponent * torch.rand(runs, Q, generator=generator(seed), dtype=torch.float64).clamp(min=0.1)
    matrix = symmetric(values, seed + 1)
    powers = (values / values.amax(-1, keepdim=True)) ** 2**squarings
    for power, norm in both_ways(lambda: program.high_power(matrix, squarings)):
        expected = symmetric(powers / torch.linalg.vector_norm(powers, dim=-1, keepdim=True), seed + 1)
        torch.testing.assert_close(power, expected, rtol=0, atol=1e-14 * 4**squarings if squarings < 9 else 1e-4)
        assert bool((norm.cpu() >= values.amax(-1).sqrt() * (1 - 1e-12)).all())
        if squarings < 9:
            exact = values.amax(-1) * torch.linalg.vector_norm(powers, dim=-1) ** (0.5**squarings)
            torch.testing.assert_close(norm.cpu() ** 2, exact, rtol=1e-12, atol=0)
        else:
            torch.testing.assert_close(norm.cpu(), values.amax(-1).sqrt(), rtol=2e-4, atol=0)


def test_what_is_no_number_has_no_norm() -> None:
    matrices = torch.eye(Q, dtype=torch.float64, device=DEVICE).repeat(2, 1, 1)
    matrices[1, 3, 5] = torch.nan
    for _, norm in both_ways(lambda: program.high_power(matrices, 4)):
        assert norm.isfinite().tolist() == [True, False]


def test_arrays_of_zeros_have_a_norm_of_nearly_zero() -> None:
    for power, norm in both_ways(
        lambda: program.high_power(torch.zeros(2, Q, Q, dtype=torch.float64, device=DEVICE), 14)
    ):
        assert not power.any()
        assert float(norm.max()) < 1e-100


def test_the_program_gives_the_same_with_and_without_these_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "FEW_PROGRAMS", 1)  # larger tiles, of which the interpreter takes fewer
    (by_kernels, flags), (by_torch, plain) = both_ways(lambda: walk(120, 2))
    torch.testing.assert_close(by_kernels, by_torch, rtol=0, atol=3e-6)
    assert flags == plain
    assert flags[-1] == [True]


def walk(n: int, steps: int) -> tuple[Tensor, list[list[bool]]]:
    """Steps that each carry some values of a matrix over its limit, and what was certified."""
    weight, limit = normal(1, n, n, seed=0) / (3 * n**0.5), torch.ones(1, dtype=torch.float64, device=DEVICE)
    state, flags = SubspaceState(weight), []
    for step in range(steps):
        weight += 0.6 * normal(1, n, 4, seed=2 * step + 1) @ normal(1, n, 4, seed=2 * step + 2).mT / n
        flags.append(clip_singular_values_deferred_(weight, limit, state).certified.tolist())
    assert float(torch.linalg.matrix_norm(weight.double(), 2).max()) <= 1 + 2e-6
    return weight, flags
