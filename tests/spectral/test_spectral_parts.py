"""What the projection is made of: the leading eigenpairs of a symmetric matrix, and the random bound of a norm."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gruclip.kernels import compiled
from gruclip.spectral import bound as bounds
from gruclip.spectral import eigen, thin
from gruclip.spectral.eigen import LAST_TIMES, TRIED_AGAIN, Pace, Spectrum
from gruclip.spectral.thin import LARGE, subtract_low_rank_


def random(n: int, m: int, seed: int) -> Tensor:
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(random(n, n, seed))[0]


def with_values(values: Tensor, seed: int) -> Tensor:
    V = orthogonal(len(values), seed)
    return V * values @ V.mT


def almost_decoupled(n: int, seed: int) -> Tensor:
    """Float32 loses the digits of the squares of the last row."""
    matrix = random(n, n, seed) + random(n, n, seed).mT
    matrix[-1, :-1] = matrix[:-1, -1] = 2.5e-23 * torch.arange(1, n) / n
    return matrix


def banded(n: int, seed: int) -> Tensor:
    """Whole numbers beside a diagonal of zeros: bisection's first shift is zero, and so are pivots there."""
    generator = torch.Generator().manual_seed(seed)
    below = sum(
        torch.randint(-1, 2, (n - d,), generator=generator).double().diag(-d) for d in range(1, min(5, n))
    ) + torch.zeros(n, n, dtype=torch.float64)
    return below + below.mT


def toeplitz(n: int, seed: int) -> Tensor:
    diagonals = (torch.ones(n - d, dtype=torch.float64).diag(-d) for d in range(1, min(3 + seed % 3, n)))
    below = sum(diagonals) + torch.zeros(n, n, dtype=torch.float64)
    return below + below.mT


SYMMETRIC: dict[str, Callable[[int, int], Tensor]] = {
    "random": lambda n, seed: random(n, n, seed) + random(n, n, seed).mT,
    "zero": lambda n, seed: torch.zeros(n, n, dtype=torch.float64),
    "a multiple of the identity": lambda n, seed: -0.3 * torch.eye(n, dtype=torch.float64),
    "diagonal": lambda n, seed: random(n, 1, seed).flatten().diag(),
    "of rank one": lambda n, seed: random(n, 1, seed) @ random(n, 1, seed).mT,
    "clustered at zero": lambda n, seed: with_values(1e-7 * random(n, 1, seed).flatten(), seed),
    "two clusters": lambda n, seed: with_values(1e-6 * random(n, 1, seed).flatten() - (torch.arange(n) % 2), seed),
    "a last row of nearly nothing": lambda n, seed: almost_decoupled(n, seed),
    "banded": banded,
    "Toeplitz": toeplitz,
    "tiny": lambda n, seed: 1e-25 * (random(n, n, seed) + random(n, n, seed).mT),
}


def leading(spectrum: Spectrum, count: int, rough: bool = False) -> tuple[Tensor, Tensor]:
    """The pairs, the values as a tensor."""
    values, vectors = spectrum.leading(count, rough)
    return torch.tensor(values, dtype=torch.float64), vectors


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("family", SYMMETRIC)
def test_the_leading_eigenpairs_are_those_of_float64(family: str) -> None:
    for seed, n in enumerate((1, 2, 3, 8, 17, 33, 64, 131, 200)):
        matrix = SYMMETRIC[family](n, seed).float()
        expected = torch.linalg.eigvalsh(matrix.double()).flip(0)
        size = float(expected.abs().max())
        # What is above the diagonal is not looked at.
        spectrum = Spectrum(torch.where(torch.ones(n, n).tril() > 0, matrix, torch.nan))
        for count in {1, max(1, n // 5), n}:
            values, vectors = leading(spectrum, count)
            assert vectors.shape == (n, count)
            assert (values - expected[:count]).abs().max() <= 4e-6 * size
            wide = vectors.double()
            assert (wide.mT @ wide - torch.eye(count)).abs().max() <= 1e-5
            assert (matrix.double() @ wide - wide * values).norm(dim=0).max() <= 1e-5 * size


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("family", SYMMETRIC)
def test_the_eigenvalues_above_a_number_are_counted(family: str) -> None:
    for seed, n in enumerate((1, 2, 7, 64, 130)):
        matrix = SYMMETRIC[family](n, seed).float()
        expected = torch.linalg.eigvalsh(matrix.double())
        size = float(expected.abs().max())
        shares = (-0.7, -0.4, 0.0, 0.1, 0.3, 0.9, 2)
        thresholds = [-2 * size - 1e-6, *(share * size for share in shares)]
        for count in range(1, len(thresholds) + 1):
            for threshold, found in zip(thresholds, Spectrum(matrix).count_above(*thresholds[:count]), strict=False):
                at_least, at_most = (int((expected > threshold + side * 4e-6 * size).sum()) for side in (1, -1))
                assert at_least <= found <= at_most


def test_pairs_that_inverse_iteration_did_not_find_come_from_a_full_decomposition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrix = SYMMETRIC["random"](60, 0).float()
    call = compiled.call

    def broken(name: str, tensors: list[Tensor | None], counts: list[int], *flags: int) -> None:
        call(name, tensors, counts, *flags)
        if name == "gruclip_eigenpairs":
            tensors[1][:, 1] = tensors[1][:, 0]  # type: ignore[index]

    monkeypatch.setattr(eigen.compiled, "call", broken)
    values, vectors = leading(Spectrum(matrix), 4)
    assert (matrix @ vectors - vectors * values).abs().max() < 1e-4
    assert (vectors.mT @ vectors - torch.eye(4)).abs().max() < 1e-5


@pytest.mark.parametrize("n", [90, 331])  # a band made by one thread, and by as many as there are
def test_a_thread_more_changes_no_bit_of_the_eigenpairs(n: int) -> None:
    matrix, found = SYMMETRIC["random"](n, 0).float(), []
    for count in range(1, 6):
        torch.set_num_threads(count)
        found.append(leading(Spectrum(matrix.clone()), 20))
    assert all(torch.equal(one, other) for pairs in found[1:] for one, other in zip(pairs, found[0], strict=True))


def test_a_reduction_takes_the_number_of_threads_that_was_faster_and_sees_when_that_changes() -> None:
    pace, taken = Pace(), []

    def reduce(alone: float, all_threads: float) -> None:
        taken.append(pace.all_threads())
        pace.took(taken[-1], all_threads if taken[-1] else alone)

    for _ in range(2 * TRIED_AGAIN):
        reduce(2.3, 1.7)
    assert taken[:3] == [False, True, True]
    assert taken.count(False) == 3  # first, and each time that it was tried again
    taken.clear()
    reduce(2.3, 40.0)  # once, for whatever reason
    reduce(2.3, 1.7)
    assert taken == [True, True]
    taken.clear()
    for _ in range(TRIED_AGAIN):  # from now on the second core is another's
        reduce(2.3, 3.8)
    assert taken.count(True) <= LAST_TIMES + 1
    taken.clear()
    for _ in range(2 * TRIED_AGAIN):
        reduce(2.3, 1.7)
    assert taken.count(True) >= TRIED_AGAIN - 1


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("family", ["random", "clustered at zero", "two clusters", "of rank one", "banded", "Toeplitz"])
def test_what_is_found_roughly_spans_the_leading_eigenvectors(family: str) -> None:
    for seed, n in enumerate((8, 64, 131, 300) * 6):
        matrix, count = SYMMETRIC[family](n, seed).float(), n // 4
        every = torch.linalg.eigvalsh(matrix.double()).flip(0)
        expected, size = every[:count], float(every.abs().max())
        values, vectors = leading(Spectrum(matrix), count, rough=True)
        assert (values - expected).abs().max() <= 1e-5 * size
        basis = torch.linalg.qr(vectors.double())[0]
        # Ritz values on it are from below, and as near as the eigenvectors' squares.
        assert (torch.linalg.eigvalsh(basis.mT @ matrix.double() @ basis).flip(0) - expected).abs().max() <= 1e-5 * size


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("layout", ["rows", "columns", "a part of more columns", "every second column", "float64"])
@pytest.mark.parametrize("width", [1, 15, 40, 300])
def test_a_few_columns_are_taken_off_where_the_matrix_lies(layout: str, width: int) -> None:
    m, n = 601, 520
    assert m * n > LARGE
    wide = random(m, 2 * n, 0) if layout == "float64" else random(m, 2 * n, 0).float()
    weight = {
        "columns": wide[:, :n].mT.contiguous().mT,
        "a part of more columns": wide[:, 3 : n + 3],
        "every second column": wide[:, ::2],
    }.get(layout, wide[:, :n].clone())
    left, right = random(m, width, 1).to(wide.dtype), random(n, 2 * width, 2).to(wide.dtype)[:, :width]
    expected = weight.double() - left.double() @ right.double().mT
    subtract_low_rank_(weight, left, right)
    assert (weight.double() - expected).abs().max() <= 1e-6 * width


@settings(deadline=None, max_examples=60)
@given(m=st.integers(1, 200), n=st.integers(1, 200), width=st.integers(1, 70), turned=st.tuples(*[st.booleans()] * 3))
def test_columns_are_taken_off_a_matrix_of_any_shape(m: int, n: int, width: int, turned: tuple[bool, ...]) -> None:
    made = [random(rows, columns, rows).float() for rows, columns in ((m, n), (m, width), (n, width))]
    weight, left, right = (x.mT.contiguous().mT if turn else x for x, turn in zip(made, turned, strict=True))
    expected = weight.double() - left.double() @ right.double().mT
    sizes = weight.abs() + left.abs() @ right.abs().mT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thin, "LARGE", 0)
        subtract_low_rank_(weight, left, right)
    assert bool(((weight.double() - expected).abs() <= (width + 1) * 6e-8 * sizes).all())


@settings(deadline=None, max_examples=100)
@given(
    m=st.integers(30, 150),
    n=st.integers(30, 150),
    tracked=st.integers(0, 10),
    guess=st.floats(0.3, 1.5),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_the_bound_holds_whatever_was_guessed(
    m: int, n: int, tracked: int, guess: float, scale: float, dtype: torch.dtype, seed: int
) -> None:
    r = min(m, n)
    values = scale * torch.linspace(2.0, 0.0, r, dtype=torch.float64)
    U, V = orthogonal(m, seed)[:, :r], orthogonal(n, seed + 1)[:, :r]
    rest, norm = (U[:, tracked:] * values[tracked:] @ V[:, tracked:].mT).to(dtype), float(values[tracked])
    target = 1.6 * norm
    found = bounds.bound(rest, guess * norm, target, bounds.probes(n, rest, seed))
    assert found >= norm
    # Where the guess is right, so is the target.
    assert found <= target or not 1 <= guess <= 1.3


def test_the_bound_is_wrong_as_seldom_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two vectors and a miss in ten: a single eigenvalue, far above the guess, is overlooked nearly so often."""
    monkeypatch.setattr(bounds, "ALPHA", math.sqrt(math.pi / 2) * 0.1**0.5)
    weight = torch.zeros(20, 20, dtype=torch.float64)
    weight[3, 7] = 1.0
    overlooked = 0
    for draw in range(2000):
        vectors = bounds.probes(20, weight, draw)[:, :2]
        overlooked += bounds.bound(weight, 0.1, 0.95, vectors) < 1
    assert 0.05 <= overlooked / 2000 <= 0.12


def test_a_bound_misses_as_seldom_as_is_promised() -> None:
    # A Gaussian number is within ALPHA of zero with a probability below sqrt(2 / pi) ALPHA, and so must be all of them.
    assert (math.sqrt(2 / math.pi) * bounds.ALPHA) ** bounds.PROBES <= 1e-13 * (1 + 1e-9)


def test_a_bound_that_cannot_be_had_is_infinite() -> None:
    weight = torch.eye(30)
    for guess, target in ((1.0, 0.99), (0.0, 1.0), (2.0, 1.0), (0.9, 0.95)):
        assert bounds.bound(weight, guess, target, bounds.probes(30, weight, 0)) == math.inf
    broken = torch.full((30, 30), torch.nan)
    assert bounds.bound(broken, 1.0, 2.0, bounds.probes(30, broken, 0)) == math.inf


def test_a_column_that_is_no_number_makes_the_largest_none() -> None:
    for column in range(3):
        x, before, largest = torch.ones(5, 3), torch.empty(5, 3), torch.empty(1, dtype=torch.float64)
        x[0, column] = math.nan
        scale = torch.ones(1, dtype=torch.float64)
        compiled.call("gruclip_chebyshev", [x, before, largest, torch.eye(5), scale], [5, 5, 3, 0, 1, 5], 1)
        assert largest.isnan()


def test_a_distance_is_as_precise_however_wide_the_matrices_are() -> None:
    matrix = torch.full((2, 1 << 20), 0.1)
    exact = float(matrix[0, 0].double()) * math.sqrt(matrix.numel())
    assert abs(thin.distance(matrix) / exact - 1) < 2e-6


@pytest.mark.parametrize("width", [1, 3, 20])
@pytest.mark.parametrize("turned", [False, True])
def test_many_equal_terms_are_summed_as_well_as_few(turned: bool, width: int) -> None:
    matrix = torch.full((1 << 16, 40), 0.1).mT if turned else torch.full((40, 1 << 16), 0.1)
    found = thin.thin_product(matrix, torch.full((1 << 16, width), 0.1)).double()
    exact = float(matrix[0, 0].double()) ** 2 * (1 << 16)
    assert (found / exact - 1).abs().max() < 1e-6
