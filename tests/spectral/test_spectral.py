"""The projection onto {sigma_1 <= limit}, against its definition in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gruclip.errors import NonFiniteError, UserError
from gruclip.spectral import (
    ALGORITHMS,
    SpectralState,
    certificate,
    clip_singular_values_,
    exact,
    single,
    spectral_norm,
    subspace,
)

#: sigma_1 / limit - 1 after clipping in float32, and in float64 for the algorithms that decompose in full.
FLOAT32 = {"full": 2e-6, "auto": 2e-6}
FLOAT64 = {
    "full": 1e-12,
    "gram": 1e-9,
    "truncated": 1e-9,
    "block": 1e-9,
    "products": 1e-9,
    "program": 1e-9,
    "auto": 1e-9,
}


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def orthogonal(generator: torch.Generator, n: int) -> Tensor:
    return torch.linalg.qr(random(generator, n, n))[0]


def with_values(generator: torch.Generator, values: Tensor) -> Tensor:
    n = values.shape[0]
    return orthogonal(generator, n) * values @ orthogonal(generator, n).mT


#: Rows and columns: of matrices that are decomposed whatever the algorithm is, and of those that are not.
SMALL, LARGE = (1, 48), (80, 300)


def size(generator: torch.Generator, sizes: tuple[int, int]) -> int:
    return int(torch.randint(*sizes, (), generator=generator))


def clustered(generator: torch.Generator, sizes: tuple[int, int]) -> Tensor:
    """All values at 1 up to 1e-7."""
    return with_values(generator, 1 + 1e-7 * random(generator, size(generator, sizes)))


def rank_deficient(generator: torch.Generator, sizes: tuple[int, int]) -> Tensor:
    n, rank = size(generator, sizes), size(generator, (0, 5))
    return random(generator, n, rank) @ random(generator, rank, n)


def of_any_shape(generator: torch.Generator, sizes: tuple[int, int]) -> Tensor:
    m, n = size(generator, sizes), size(generator, sizes)
    return random(generator, m, n) / math.sqrt(max(m, n))


def a_thousand_times_above(generator: torch.Generator, sizes: tuple[int, int]) -> Tensor:
    matrix = of_any_shape(generator, sizes)
    return matrix * 1000 / torch.linalg.matrix_norm(matrix, 2)


def toeplitz(generator: torch.Generator, sizes: tuple[int, int]) -> Tensor:
    """A convolution by a few whole numbers: its Gram matrix is a band with equal numbers along each diagonal."""
    n, filters = size(generator, sizes), torch.randint(-2, 3, (4,), generator=generator).double()
    return sum(filters[k] * torch.eye(n + 3, n, dtype=torch.float64).roll(k, 0) for k in range(4)) + torch.zeros(
        n + 3, n
    )


def in_clusters(generator: torch.Generator, sizes: tuple[int, int]) -> Tensor:
    """A fifth of the values lies in groups above 1 whose vectors are hard to tell apart, and all others near zero."""
    n = size(generator, sizes)
    values, first = 0.02 * torch.rand(n, generator=generator, dtype=torch.float64), 0
    while first < 0.2 * n:
        group = values[first : first + size(generator, (1, 7))]
        spread = 1e-3 * torch.rand(len(group), generator=generator, dtype=torch.float64) ** 3
        group.copy_((1 + 3 * torch.rand((), generator=generator, dtype=torch.float64) ** 2) * (1 + spread))
        first += len(group)
    return with_values(generator, values)


def of_equal_numbers(generator: torch.Generator, sizes: tuple[int, int]) -> Tensor:
    """a 1 1^T / n + b I: sums of equal terms, all of which are rounded the same way."""
    n = size(generator, sizes)
    a, b = (float(torch.empty(()).uniform_(*ends, generator=generator)) for ends in ((0.3, 3.4), (0, 0.6)))
    return a * torch.ones(n, n, dtype=torch.float64) / n + b * torch.eye(n, dtype=torch.float64)


def householder(n: int) -> Tensor:
    """An orthogonal matrix whose first column is constant, and others nearly so."""
    v = torch.full((n,), n**-0.5, dtype=torch.float64)
    v[0] -= 1
    return torch.eye(n, dtype=torch.float64) - 2 * torch.outer(v, v) / v.square().sum().clamp(min=1e-300)


def structured(generator: torch.Generator, sizes: tuple[int, int]) -> Tensor:
    """Singular vectors with equal elements or few, and values in groups, many of them above 1 or near it."""
    n = size(generator, sizes)
    bases = [
        householder(n),
        torch.eye(n, dtype=torch.float64)[torch.randperm(n, generator=generator)],
        torch.block_diag(*[householder(min(16, n - i)) for i in range(0, n, 16)]),
        orthogonal(generator, n),
    ]
    left, right = (bases[int(torch.randint(len(bases), (), generator=generator))] for _ in range(2))
    top, share = (float(torch.empty(()).uniform_(*ends, generator=generator)) for ends in ((0, 3), (0, 1.5)))
    values = torch.rand(n, generator=generator, dtype=torch.float64)
    first = 0
    while first < share * n and first < n:
        group = values[first : first + size(generator, (1, 12))]
        group.copy_(1 + top * values[first] ** 2 + 1e-6 * group)
        first += len(group)
    return left * values @ right.mT


def badly_scaled(generator: torch.Generator, sizes: tuple[int, int]) -> Tensor:
    return of_any_shape(generator, sizes) * 10.0 ** float(torch.empty(()).uniform_(-30, 30, generator=generator))


FAMILIES: dict[str, Callable[[torch.Generator, tuple[int, int]], Tensor]] = {
    "of any shape": of_any_shape,
    "orthogonal": lambda generator, sizes: orthogonal(generator, size(generator, sizes)),
    "rank deficient": rank_deficient,
    "zero": lambda generator, sizes: torch.zeros(size(generator, sizes), size(generator, sizes), dtype=torch.float64),
    "1x1": lambda generator, sizes: 3 * random(generator, 1, 1),
    "clustered": clustered,
    "a thousand times above": a_thousand_times_above,
    "badly scaled": badly_scaled,
    "in clusters": in_clusters,
    "of equal numbers": of_equal_numbers,
    "structured": structured,
    "Toeplitz": toeplitz,
}


def sigma_1(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.double(), 2))


def exact_projection(weight: Tensor, limit: float) -> Tensor:
    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return U * S.clamp(max=limit) @ Vh


def assert_projected(before: Tensor, after: Tensor, limit: float, algorithm: str) -> None:
    """The accuracy that the README states."""
    excess = (FLOAT32.get(algorithm, 1e-5) if before.dtype == torch.float32 else FLOAT64[algorithm]) * limit
    assert sigma_1(after) <= limit + excess
    scale = max(float(torch.linalg.matrix_norm(before.double())), limit)
    off = float(torch.linalg.matrix_norm(after.double() - exact_projection(before, limit)))
    assert off <= (2e-6 if before.dtype == torch.float32 else FLOAT64[algorithm]) * scale


def check(family: str, algorithm: str, dtype: torch.dtype, seed: int, sizes: tuple[int, int] = SMALL) -> None:
    generator = torch.Generator().manual_seed(seed)
    before = FAMILIES[family](generator, sizes).to(dtype)
    limit = sigma_1(before) * float(torch.empty(()).uniform_(0.2, 1.2, generator=generator)) or 1.0
    if family in ("clustered", "in clusters", "of equal numbers", "structured", "a thousand times above"):
        limit = 1.0
    after = before.clone()
    result = clip_singular_values_(after, limit, algorithm=algorithm)
    assert_projected(before, after, limit, algorithm)
    assert float(result.spectral_norm) == pytest.approx(sigma_1(after), rel=1e-4)
    again = after.clone()
    clip_singular_values_(again, limit, algorithm=algorithm)
    assert torch.equal(again, after), "clipping is not idempotent"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_algorithm_gives_the_nearest_matrix_inside_the_limit(family, algorithm, dtype):
    for seed in range(30):
        check(family, algorithm, dtype, seed)


@pytest.mark.parametrize("algorithm", ["auto", "block"])
@pytest.mark.parametrize("family", FAMILIES)
def test_so_do_those_that_decompose_small_matrices_only(family, algorithm):
    for seed in range(12):
        check(family, algorithm, torch.float32, seed, LARGE)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_hundred_thousand_matrices(family):
    for seed in range(12_500):
        check(family, "auto", torch.float32, 1000 + seed, LARGE if seed % 5 == 0 else SMALL)


def near_limit(generator: torch.Generator, n: int, above: int, limit: float) -> Tensor:
    values = torch.linspace(0.2 * limit, 0.9 * limit, n, dtype=torch.float64)
    values[:above] = limit * (1 + torch.rand(above, generator=generator, dtype=torch.float64))
    return with_values(generator, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("algorithm", ["auto", "truncated", "block"])
@pytest.mark.parametrize(
    "drift", ["small", "along the leading vectors", "a new direction far above", "another matrix altogether"]
)
def test_a_drifting_matrix_is_projected_at_every_step_whatever_the_drift(drift, algorithm, dtype):
    generator = torch.Generator().manual_seed(1)
    n, limit = 200, 1.8
    weight, state = near_limit(generator, n, 3, limit).to(dtype), SpectralState()
    for step in range(25):
        if drift == "small":
            change = 0.02 * random(generator, n, n) / math.sqrt(n)
        elif drift == "along the leading vectors":
            U, _, Vh = torch.linalg.svd(weight.double())
            change = 0.05 * U[:, :6] @ Vh[:6]
        elif drift == "a new direction far above":
            change = random(generator, n, 1) @ random(generator, 1, n) * (10.0 ** (step % 5 - 2) / n)
        else:
            change = near_limit(generator, n, step % 7, limit) - weight
        before = (weight.double() + change).to(dtype)
        weight = before.clone()
        result = clip_singular_values_(weight, limit, algorithm=algorithm, state=state)
        assert_projected(before, weight, limit, algorithm)
        assert float(result.spectral_norm) == pytest.approx(sigma_1(weight), rel=1e-4)


def test_a_direction_hidden_from_the_tracked_subspace_is_found():
    # Orthogonal to the whole block on both sides: no residual of it shows, only the bookkeeping does.
    generator = torch.Generator().manual_seed(2)
    U, V = orthogonal(generator, 200), orthogonal(generator, 200)
    values = torch.cat((torch.tensor([1.9, 1.85, 1.79]), torch.linspace(1.5, 0.3, 197))).double()
    state = SpectralState()
    for last in (0.3, 0.3, 2.5):
        values[-1] = last
        assert last == 0.3 or "previous" in state.matrices[0], "not tracked"
        before = (U * values @ V.mT).float()
        after = before.clone()
        clip_singular_values_(after, 1.8, algorithm="block", state=state)
        assert_projected(before, after, 1.8, "auto")


def test_the_block_falls_back_to_no_decomposition_while_its_certificate_holds(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    weight, state = near_limit(generator, 200, 3, 1.8).float(), SpectralState()
    clip_singular_values_(weight, 1.8, algorithm="block", state=state)
    monkeypatch.setattr(single, "Spectrum", lambda matrix: pytest.fail("decomposed"))
    monkeypatch.setattr(exact, "gram", lambda weight: pytest.fail("decomposed"))
    for _ in range(20):
        weight += 0.002 * random(generator, 200, 200).float() / math.sqrt(200)
        result = clip_singular_values_(weight, 1.8, algorithm="block", state=state)
        assert result.certified
        assert not result.redone


def followed(first: Tensor, second: Tensor, limit: float) -> Tensor:
    """`second` clipped by ``block`` in float32, from the state that `first` left."""
    state = SpectralState()
    clip_singular_values_(first.float(), limit, algorithm="block", state=state)
    assert "previous" in state.matrices[0], "not tracked"
    after = second.float()
    clip_singular_values_(after, limit, algorithm="block", state=state)
    return after


@pytest.mark.parametrize("live", [9, 11, 12, 14])
def test_a_matrix_of_which_most_is_exactly_zero_is_projected(live):
    """Its tracked subspace has values of zero, by which nothing can be divided."""
    generator = torch.Generator().manual_seed(0)
    U, V = orthogonal(generator, live), orthogonal(generator, live)
    values = torch.cat((torch.tensor([1.2, 0.999, 0.995]), 0.6 * 0.9 ** torch.arange(live - 3))).double()
    first = torch.zeros(200, 200, dtype=torch.float64)
    first[:live, :live] = U * values @ V.mT
    direction = torch.zeros(200, dtype=torch.float64)
    direction[50:] = random(generator, 150)
    second = exact_projection(first, 1.0)
    second[:live] += 0.1 * U[:, 1:2] * direction / direction.norm()
    assert_projected(second.float(), followed(first, second, 1.0), 1.0, "auto")


def test_a_few_values_far_above_the_limit_and_nothing_else_are_clipped():
    """The next value, whose residual says whether there are more, is zero."""
    check("rank deficient", "auto", torch.float32, 1955, LARGE)


@pytest.mark.parametrize("far", [1.05, 3.9, 7.9])
def test_values_far_above_the_limit_cost_no_digits(far):
    generator = torch.Generator().manual_seed(1)
    first = with_values(generator, torch.cat((torch.ones(4), torch.linspace(0.9, 0.2, 296))).double())
    second = first + (far - 0.5) * orthogonal(generator, 300)[:, :6] @ orthogonal(generator, 300)[:6]
    assert_projected(second.float(), followed(first, second, 1.0), 1.0, "auto")


def test_a_value_inside_the_tolerance_leaves_no_room_for_its_residual():
    generator = torch.Generator().manual_seed(2)
    U, V = orthogonal(generator, 200), orthogonal(generator, 200)
    values = torch.linspace(0.7, 0.1, 200, dtype=torch.float64)
    values[:2] = torch.tensor([1.05, 1 + 1.71e-6])
    first = U * values.clamp(max=1) @ V.mT
    # A residual of the second pair, towards the bulk.
    second = U * values @ V.mT + 1.24e-3 * U[:, 40:41] @ V[:, 1:2].mT
    assert_projected(second.float(), followed(first, second, 1.0), 1.0, "auto")


def test_a_state_of_another_version_is_a_new_one():
    state = SpectralState()
    matrix = drifting(1)[0]
    clip_singular_values_(matrix.clone(), 1.8, algorithm="block", state=state)
    del state.matrices[0]["right"]
    after = matrix.clone()
    clip_singular_values_(after, 1.8, algorithm="block", state=state)
    assert_projected(matrix, after, 1.8, "auto")


def test_a_small_matrix_that_moves_far_is_decomposed_at_once_and_not_tracked_near_its_limit(monkeypatch):
    """As 200 units on music: every step moves W by a good part of its norm."""
    generator, state = torch.Generator().manual_seed(12), SpectralState()
    monkeypatch.setattr(exact, "gram", lambda weight: pytest.fail("decomposed in float64"))
    weight = 1.5 * orthogonal(generator, 200).float()
    for _ in range(15):
        weight += (0.5 * random(generator, 200, 2) @ random(generator, 2, 200) / 200).float()
        before = weight.clone()
        result = clip_singular_values_(weight, 1.8, state=state)
        assert_projected(before, weight, 1.8, "auto")
        assert result.certified
        assert not result.redone
        assert ("previous" in state.matrices[0]) == (float(result.spectral_norm) < subspace.NEAR * 1.8)
    assert "previous" not in state.matrices[0]


@pytest.mark.parametrize("shape", [(128, 128), (300, 300), (300, 130), (130, 300)])
@pytest.mark.parametrize("inside", [0.5, 0.9, 0.97])
def test_what_cannot_have_reached_the_limit_is_not_looked_at_but_for_its_norm(shape, inside, monkeypatch):
    """By Weyl's inequality, from a certified bound; and what can is decomposed, tracked or not."""
    generator, state, limit = torch.Generator().manual_seed(15), SpectralState(), 1.8
    r, left, right = min(shape), orthogonal(generator, shape[0]), orthogonal(generator, shape[1])
    values = torch.linspace(inside * limit, 0, r, dtype=torch.float64)
    weight = ((left[:, :r] * values) @ right[:, :r].mT).float()
    clip_singular_values_(weight, limit, state=state)
    looked = 0

    def counted(look):
        def counting(*args, **kwargs):
            nonlocal looked
            looked += 1
            return look(*args, **kwargs)

        return counting

    for module, name in ((certificate, "bound"), (single, "clip"), (exact, "gram")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    for step in range(12):
        largest = (1 + 0.01 * step) * inside * limit
        now = (weight.double() + 0.01 * step * inside * limit * left[:, :1] @ right[:, :1].mT).float()
        before, looks = now.clone(), looked
        result = clip_singular_values_(now, limit, state=state)
        assert result.certified
        assert float(result.spectral_norm) == pytest.approx(min(largest, limit), rel=1e-4)
        assert looked > looks or largest <= limit
        assert_projected(before, now, limit, "auto")
    # Where a tracked matrix is certified, it is up to a bound below the limit.
    assert looked == 0 if inside == 0.5 else looked < 12 or inside > subspace.NEAR


@pytest.mark.parametrize("n", [160, 300])
@pytest.mark.parametrize("steps", [1, 10, 40])
def test_the_norm_of_what_is_inside_follows_a_change_that_no_carried_vector_feels(n, steps):
    """One value outside the carried subspace grows, its vectors orthogonal to all of those."""
    generator, state, limit = torch.Generator().manual_seed(16), SpectralState(), 1.0
    left, right, values = orthogonal(generator, n), orthogonal(generator, n), torch.linspace(0.5, 0, n).double()
    for step in range(3 + steps):
        values[12] += 0.45 / steps if step >= 3 else 0.0
        weight = ((left * values) @ right.mT).float()
        result = clip_singular_values_(weight, limit, state=state)
        assert float(result.spectral_norm) == pytest.approx(float(values.max()), rel=1e-4)


@pytest.mark.parametrize("algorithm", ["block", "full", "gram"])
def test_no_bound_outlives_the_matrix_it_was_of(algorithm, monkeypatch):
    """`truncated` after another algorithm that was given its state."""
    monkeypatch.setattr("gruclip.spectral.one.MIN_SIZE_SEARCHED", 200)  # so that ``block`` searches in this matrix
    generator, state, n = torch.Generator().manual_seed(17), SpectralState(), 260
    left, right, values = orthogonal(generator, n), orthogonal(generator, n), torch.linspace(0.5, 0, n).double()
    weight = ((left * values) @ right.mT).float()
    clip_singular_values_(weight, 1.0, algorithm="truncated", state=state)
    values[:3] = 3.0
    weight.copy_((left * values) @ right.mT)
    clip_singular_values_(weight, 2.8, algorithm=algorithm, state=state)
    before = weight.clone()
    result = clip_singular_values_(weight, 1.0, algorithm="truncated", state=state)
    assert int(result.values_clipped) == 3
    assert_projected(before, weight, 1.0, "truncated")


@pytest.mark.parametrize("scale", [0.0, 1e-20])
def test_a_matrix_too_small_for_single_precision_is_not_counted_as_redone(scale):
    weight = scale * orthogonal(torch.Generator().manual_seed(13), 200).float()
    result = clip_singular_values_(weight, 1.8)
    assert result.certified
    assert not result.redone


def values_near_the_limit(generator: torch.Generator, n: int) -> dict[str, Tensor]:
    """Relative to the limit: spectra of which float32 has to clip many values, and where its precision ends."""
    one = torch.ones(n, dtype=torch.float64)
    return {
        "all above": 1.09 * one,
        "half above by rounding": one + 1e-7 * random(generator, n),
        "half above by the tolerance": one + 2e-6 * random(generator, n),
        "half above by a percent": one + 0.01 * random(generator, n),
        "from zero": torch.linspace(0, 1.09, n, dtype=torch.float64),
        "too far above": torch.linspace(0, 1.2, n, dtype=torch.float64),
        **{f"inside by {x:g}": one - x for x in (0, 1e-7, 1e-6, 1e-3)},
        **{f"above by {x:g}": one + x for x in (1e-7, 1.4e-6, 1.9e-6, 2.4e-6, 1e-5, 1e-3)},
    }


@pytest.mark.parametrize("shape", [(128, 128), (300, 300), (400, 200), (200, 400)])
@pytest.mark.parametrize("limit", [0.6, 1.8, 1e-12, 1e12])
def test_many_values_near_the_limit_are_clipped_to_it_in_float32(shape, limit):
    generator = torch.Generator().manual_seed(8)
    m, n = shape
    r = min(shape)
    for values in values_near_the_limit(generator, r).values():
        U, V = orthogonal(generator, m)[:, :r], orthogonal(generator, n)[:, :r]
        before = (U * (limit * values) @ V.mT).float()
        after, inside = before.clone(), sigma_1(before) <= limit * (1 + 1.8e-6)
        result = clip_singular_values_(after, limit)
        assert_projected(before, after, limit, "auto")
        assert float(result.spectral_norm) == pytest.approx(sigma_1(after), rel=1e-4)
        assert torch.equal(before, after) or not inside
        again = after.clone()
        clip_singular_values_(again, limit)
        assert torch.equal(again, after), "clipping is not idempotent"


def test_float32_is_taken_near_the_limit_and_float64_far_above_it(monkeypatch):
    generator = torch.Generator().manual_seed(9)
    used, reduce, gram = [], single.Spectrum, exact.gram
    monkeypatch.setattr(single, "Spectrum", lambda matrix, unit: used.append(matrix.dtype) or reduce(matrix, unit))
    monkeypatch.setattr(exact, "gram", lambda weight: used.append(torch.float64) or gram(weight))
    for above, dtypes in ((1.0, ["32"]), (1.09, ["32"]), (1.39, ["32"]), (2.1, ["32", "64"])):
        before = above * orthogonal(generator, 230).float()
        after = before.clone()
        clip_singular_values_(after, 1.0)
        assert_projected(before, after, 1.0, "auto")
        assert [str(dtype).removeprefix("torch.float") for dtype in used] == dtypes
        used.clear()


@pytest.mark.parametrize("n", [100, 250])
def test_without_a_certificate_a_few_values_are_taken_off_by_the_difference(n, monkeypatch):
    """Near the limit in float32, (13) of spectral/README.md, and by float64 from far."""
    monkeypatch.setattr(single, "_clip_few", lambda *_: None)
    gram, used = exact.gram, []
    monkeypatch.setattr(exact, "gram", lambda weight: used.append(n) or gram(weight))
    generator = torch.Generator().manual_seed(12)
    for far in (1.001, 1.3, 3.0):
        before = with_values(generator, torch.linspace(0.2, 1, n) ** 2 * far).float()
        after = before.clone()
        clip_singular_values_(after, 1.0)
        assert_projected(before, after, 1.0, "auto")
        assert len(used) == (far > 2)


@pytest.mark.parametrize(("n", "far"), [(200, 1.69), (1000, 1.39)])
def test_values_within_the_tolerance_stay_there_beside_values_far_above_the_limit(n, far):
    """The rounding of W^T W grows with the values, and all are at the limit afterwards."""
    generator = torch.Generator().manual_seed(11)
    values = torch.full((n,), 1 + 1.5e-6, dtype=torch.float64)
    values[: n // 2] = far
    before = with_values(generator, values).float()
    after = before.clone()
    clip_singular_values_(after, 1.0)
    assert_projected(before, after, 1.0, "auto")
    again = after.clone()
    clip_singular_values_(again, 1.0)
    assert torch.equal(again, after)


@pytest.mark.parametrize("n", [200, 300])  # decomposed at once, and after a subspace was of no use
@pytest.mark.parametrize("far", [1.2, 1.8, 2.2, 3.5])
def test_a_few_values_far_above_a_spectrum_near_the_limit_take_no_decomposition_in_float64(far, n, monkeypatch):
    """As an update of few large values leaves an orthogonal start; beyond twice the limit they are taken off first."""
    generator = torch.Generator().manual_seed(10)
    values = 1 - 1e-2 * torch.rand(n, generator=generator, dtype=torch.float64)
    values[:3] = torch.tensor([far, 1.15, 1.003])
    before = with_values(generator, values).float()
    after = before.clone()
    monkeypatch.setattr(exact, "gram", lambda weight: pytest.fail("decomposed in float64"))
    result = clip_singular_values_(after, 1.0)
    assert int(result.values_clipped) == 3
    assert_projected(before, after, 1.0, "auto")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_batch_is_clipped_matrix_by_matrix_each_at_its_own_limit(algorithm):
    generator = torch.Generator().manual_seed(4)
    before = random(generator, 2, 3, 30, 20).float()
    limits = torch.tensor([[1.0, 2.0, 3.0], [4.0, math.inf, 6.0]])
    after = before.clone()
    result = clip_singular_values_(after, limits, algorithm=algorithm)
    assert result.values_clipped.shape == result.spectral_norm.shape == (2, 3)
    assert torch.equal(after[1, 1], before[1, 1])
    for row, column in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2)):
        limit = float(limits[row, column])
        alone = before[row, column].clone()
        clip_singular_values_(alone, limit, algorithm=algorithm)
        assert torch.equal(alone, after[row, column])
        assert_projected(before[row, column], after[row, column], limit, algorithm)
        above = torch.linalg.svdvals(before[row, column].double()) > limit
        assert int(result.values_clipped[row, column]) == int(above.sum())


def test_a_view_into_a_larger_tensor_is_clipped_in_place_and_nothing_else():
    generator = torch.Generator().manual_seed(5)
    stacked = random(generator, 3 * 200, 200).float()
    before, address = stacked.clone(), stacked.data_ptr()
    state = SpectralState()
    for _ in range(3):
        clip_singular_values_(stacked[400:], 1.0, state=state)
    assert stacked.data_ptr() == address
    assert torch.equal(stacked[:400], before[:400])
    assert sigma_1(stacked[400:]) <= 1 + 2e-6


def of_values(U: Tensor, V: Tensor, *leading: float) -> Tensor:
    values = torch.linspace(1.2, 0.01, U.shape[0], dtype=torch.float64)
    values[: len(leading)] = torch.tensor(leading)
    return U * values @ V.mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("measure", ["spectral_norm", "limit=inf"])
def test_to_measure_a_matrix_that_has_moved_far_certifies_nothing_of_what_was_not_looked_at(measure, dtype):
    generator = torch.Generator().manual_seed(14)
    U, V, state = orthogonal(generator, 340), orthogonal(generator, 340), SpectralState()
    clip_singular_values_(of_values(U, V, 1.9, 1.7, 1.6, 1.5).to(dtype), 1.8, state=state)
    assert "previous" in state.matrices[0], "not tracked"
    before = of_values(U, V, 7, 6.8, 6.6, 6.4, 5, 5, 5, 5).to(dtype)
    if measure == "spectral_norm":
        spectral_norm(before, state)
    else:
        clip_singular_values_(before, math.inf, state=state)
    after = before.clone()
    result = clip_singular_values_(after, 1.8, state=state)
    assert int(result.values_clipped) == 8
    assert_projected(before, after, 1.8, "auto")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("n", [60, 100, 200, 300])
@pytest.mark.parametrize("times", [1e6, 1e10, 1e19, 1e30])
def test_a_matrix_any_number_of_times_above_the_limit_is_clipped(times, n, algorithm):
    before = random(torch.Generator().manual_seed(15), n, n).float()
    limit = sigma_1(before) / times
    after = before.clone()
    result = clip_singular_values_(after, limit, algorithm=algorithm)
    assert int(result.values_clipped) > n // 2
    assert sigma_1(after) <= limit * (1 + FLOAT32.get(algorithm, 1e-5))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_matrix_that_is_not_finite_is_named_and_nothing_is_changed(bad):
    weight = 5 * torch.ones(2, 3, 4, 4)
    weight[1, 2, 0, 3] = bad
    before = weight.clone()
    with pytest.raises(NonFiniteError, match=r"matrix \[1, 2\]"):
        clip_singular_values_(weight, 1.0)
    assert torch.equal(weight.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize(
    ("limit", "complaint"),
    [
        (0.0, "limit=0.0: should be a positive number"),
        (-1.0, "limit=-1.0: should"),
        (math.nan, "limit=nan: should"),
        (torch.tensor([1.0, math.nan, 2.0]), "limit=nan: should"),
        (torch.ones(2), r"limit=tensor.*broadcasts to \(3,\)"),
        ("a", "limit='a': should be a number"),
        (None, "limit=None: should be a number"),
    ],
)
def test_a_limit_that_is_no_positive_number_for_each_matrix_is_refused(limit, complaint):
    with pytest.raises(UserError, match=complaint):
        clip_singular_values_(torch.eye(3).repeat(3, 1, 1), limit)


@pytest.mark.parametrize(
    ("weight", "complaint"),
    [
        (torch.eye(3).bfloat16(), "should be float32 or float64"),
        (torch.ones(3), r"shape \(3,\): should be matrices"),
        (torch.ones(2, 0, 5), r"shape \(2, 0, 5\): should be matrices"),
        (torch.ones(3, 3).expand(4, 3, 3), "share their memory, .*; clone it first"),
        (torch.arange(1.0, 11).unfold(0, 4, 1), "share their memory, .*; clone it first"),
        (torch.eye(3).to_sparse(), "should be dense"),
        (torch.eye(3).to_sparse_csr(), "should be dense"),
        (torch.nested.nested_tensor([torch.eye(2), torch.eye(3)]), "should be dense"),
    ],
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_no_batch_of_matrices_is_refused(weight, complaint, algorithm):
    with pytest.raises(UserError, match=complaint):
        clip_singular_values_(weight, 1.0, algorithm=algorithm)


def test_an_empty_batch_is_clipped_at_once():
    assert clip_singular_values_(torch.ones(0, 3, 3), 1.0).values_clipped.shape == (0,)


def test_an_algorithm_there_is_not_is_refused():
    with pytest.raises(UserError, match="algorithm='qr': should be one of auto, full"):
        clip_singular_values_(torch.eye(3), 1.0, algorithm="qr")


def drifting(steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    start = near_limit(generator, 200, 4, 1.8)
    steps_taken = [0.02 * random(generator, 200, 200) / math.sqrt(200) for _ in range(steps)]
    return [(start + sum(steps_taken[:k])).float() for k in range(steps)]


@pytest.mark.parametrize("algorithm", ["truncated", "block"])
def test_a_state_saved_and_loaded_continues_to_the_same_bits(algorithm):
    matrices = drifting(8)

    def clipped(state: SpectralState, matrix: Tensor) -> Tensor:
        weight = torch.stack((matrix, matrix + 0.001))
        clip_singular_values_(weight, 1.8, algorithm=algorithm, state=state)
        return weight

    uninterrupted = SpectralState()
    expected = [clipped(uninterrupted, matrix) for matrix in matrices]
    state = SpectralState()
    for matrix in matrices[:4]:
        clipped(state, matrix)
    resumed = SpectralState()
    for index in (1, 0):
        saved = state.index_select(index).state_dict()
        resumed.load_state_dict(saved, index)
    for matrix, right in zip(matrices[4:], expected[4:], strict=True):
        assert torch.equal(clipped(resumed, matrix), right)


def test_an_empty_saved_state_is_a_new_one():
    state = SpectralState()
    clip_singular_values_(drifting(1)[0], 1.8, state=state)
    state.load_state_dict({}, 0)
    assert state.state_dict() == {}


def test_the_spectral_norm_is_right_along_a_drift_and_after_a_jump():
    state = SpectralState()
    matrices = drifting(10)
    generator = torch.Generator().manual_seed(7)
    spike = random(generator, 200, 1) @ random(generator, 1, 200)
    for scale in (0.01, 1.0, 1e3, 1e8, 1e-3):
        matrices.append((matrices[0].double() + scale * spike).float())
    for matrix in matrices:
        before = matrix.clone()
        norm = spectral_norm(matrix, state)
        assert norm.dtype == torch.float64
        assert float(norm) == pytest.approx(sigma_1(matrix), rel=1e-4)
        assert torch.equal(matrix, before)


@pytest.mark.parametrize("shape", [(1040, 1100), (1100, 1040)])
@pytest.mark.parametrize("above", [0, 5])
def test_a_large_matrix_of_which_nothing_is_known_is_searched_and_not_decomposed(shape, above, monkeypatch):
    generator = torch.Generator().manual_seed(16)
    values = torch.linspace(0.85, 0, 1040, dtype=torch.float64)
    values[:above] = torch.linspace(3.0, 1.01, above)
    U, V = (torch.linalg.qr(random(generator, rows, 1040))[0] for rows in shape)
    before, state = (U * values @ V.mT).float(), SpectralState()
    monkeypatch.setattr(exact, "gram", lambda weight: pytest.fail("decomposed"))
    after = before.clone()
    result = clip_singular_values_(after, 1.0, state=state)
    assert (int(result.values_clipped), bool(result.certified)) == (above, True)
    assert_projected(before, after, 1.0, "auto")
    assert above > 0 or torch.equal(before, after)
    assert "previous" in state.matrices[0], "not tracked from now on"


def test_a_large_matrix_with_many_values_above_is_decomposed():
    generator = torch.Generator().manual_seed(17)
    before = with_values(generator, torch.linspace(1.5, 0.5, 1030)).float()
    after = before.clone()
    clip_singular_values_(after, 1.0)
    assert_projected(before, after, 1.0, "auto")


@pytest.mark.parametrize("above", [0, 3, 100])
@pytest.mark.parametrize("shape", [(100, 900), (250, 700), (400, 500)])
def test_a_wide_matrix_is_projected_as_its_transpose_is(shape, above):
    generator = torch.Generator().manual_seed(18)
    rows, columns = shape
    values = torch.linspace(0.9, 0.1, rows, dtype=torch.float64)
    values[:above] = torch.linspace(1.3, 1.001, above)
    before = (orthogonal(generator, rows) * values @ torch.linalg.qr(random(generator, columns, rows))[0].mT).float()
    state = SpectralState()
    for step in range(3):
        after = before.clone()
        result = clip_singular_values_(after, 1.0, state=state)
        assert_projected(before, after, 1.0, "auto")
        assert int(result.values_clipped) == above or step > 0
        before = after + 0.05 * (random(generator, rows, 2) @ random(generator, 2, columns)).float() / rows


@pytest.mark.parametrize("n", [2, 40, 64, 100])
@pytest.mark.parametrize("far", [1.01, 3.9, 4.1, 30.0])
def test_a_small_matrix_is_projected_however_far_it_is_above(n, far):
    generator = torch.Generator().manual_seed(19)
    before = with_values(generator, torch.linspace(far, 0, n)).float()
    after = before.clone()
    clip_singular_values_(after, 1.0)
    assert_projected(before, after, 1.0, "auto")


@pytest.mark.parametrize("n", [100, 230])
@pytest.mark.parametrize("far", [5e3, 1e4])
def test_a_value_so_far_above_the_others_that_filtered_columns_pass_float32_s_numbers_is_clipped(n, far):
    generator = torch.Generator().manual_seed(20)
    for others in (0.2, 1.0):
        values = torch.cat((torch.tensor([far]), torch.linspace(others, 0, n - 1))).double()
        before, state = with_values(generator, values).float(), SpectralState()
        quiet = with_values(generator, torch.linspace(1.1, 0, n).double()).float()
        for first in (before, quiet, before):  # of nothing known, and from a step that moved little
            after = first.clone()
            clip_singular_values_(after, 1.0, state=state)
            assert_projected(first, after, 1.0, "auto")


@pytest.mark.parametrize("shape", [(20, 20), (30, 20), (20, 30)])
def test_where_lapack_does_not_converge_the_transposed_matrix_is_decomposed(shape, monkeypatch):
    generator, svd, calls = torch.Generator().manual_seed(16), torch.linalg.svd, []

    def first_fails(matrix, full_matrices):
        calls.append(tuple(matrix.shape))
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("linalg.svd: The algorithm failed to converge")
        return svd(matrix, full_matrices=full_matrices)

    weight = random(generator, *shape).float()
    before = weight.clone()
    with monkeypatch.context() as patched:
        patched.setattr(torch.linalg, "svd", first_fails)
        assert clip_singular_values_(weight, 1.5, algorithm="full").certified
    tall = max(shape), min(shape)
    assert calls == [tall, tall[::-1]]
    assert_projected(before, weight, 1.5, "full")
