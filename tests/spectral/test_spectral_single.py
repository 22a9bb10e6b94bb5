"""One decomposition in single precision: of a few values above the limit, however far, and of many near it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_spectral import exact_projection
from test_spectral_parts import orthogonal
from torch import Tensor

from gruclip.spectral import SpectralState, clip_singular_values_, exact, single
from gruclip.spectral.eigen import Spectrum
from gruclip.spectral.exact import Clipped
from gruclip.spectral.subspace import Target
from gruclip.spectral.tracked import tracked_in


def with_values(values: Tensor, seed: int, rows: int | None = None) -> Tensor:
    n = len(values)
    left = orthogonal(rows or n, seed + 1000)[:, :n]
    return (left * values.double() @ orthogonal(n, seed).mT).float()


def spread(n: int, far: list[float]) -> Tensor:
    """Some values above 1, and the others down to 0 as late in training."""
    return torch.cat((torch.tensor(far), torch.linspace(1.02, 0.0, n - len(far))))


def clip(weight: Tensor, limit: float = 1.0, wanted: int = 0) -> Clipped | None:
    target = Target(limit, 1.9e-6, float(weight.norm()))
    return single.clip_near(weight, target, single.spread_of(weight, limit), lambda near: wanted)


def clip_far(weight: Tensor) -> int:
    target = Target(1.0, 1.9e-6, float(weight.norm()))
    return single.clip_far_values_(weight, target, single.spread_of(weight, 1.0))


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize(
    "far",
    [
        [1.05, 1.3],
        [1.5] * 12,
        [1.6, 1.8, 3.0],
        [3.9, 4.1],
        [7.0] + [1.1] * 5,
        [2.0 - 0.02 * i for i in range(40)],
    ],
    ids=["near", "one value twelvefold", "far", "around four limits", "beyond", "forty"],
)
@pytest.mark.parametrize("shape", [(300, 300), (500, 260)])
def test_a_few_values_are_clipped_by_one_decomposition_however_far_they_are(
    shape: tuple[int, int], far: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "gram", lambda *_: pytest.fail("decomposed in full"))
    for seed in range(3):
        before = with_values(spread(shape[1], far), seed, shape[0])
        weight = before.clone()
        result = clip_singular_values_(weight, 1.0)
        assert result.certified
        assert int(result.values_clipped) == int((torch.linalg.svdvals(before.double()) > 1 + 1.9e-6).sum())
        assert float(torch.linalg.svdvals(weight.double())[0]) <= 1 + 2e-6
        assert float((weight - exact_projection(before, 1.0)).norm()) <= 2e-6 * float(before.norm())


@settings(deadline=None, max_examples=60)
@given(
    few=st.integers(1, 60),
    farthest=st.floats(0.001, 6.0),
    edge=st.sampled_from([0.9, 0.98, 0.9800001, 0.985, 0.9999999, 1.0, 1.000001]),
    at_edge=st.integers(0, 20),
    scale=st.sampled_from([1e-10, 1.0, 1e10]),
    seed=st.integers(0, 2**31 - 10000),
)
def test_wherever_the_values_are_the_result_is_exact(
    few: int, farthest: float, edge: float, at_edge: int, scale: float, seed: int
) -> None:
    """Gathered at an edge of the certificate or of the limit, too, and at any scale."""
    far = 1 + farthest * torch.rand(few, generator=torch.Generator().manual_seed(seed)) ** 2
    values = torch.cat((far, torch.full((at_edge,), edge), torch.linspace(0.97, 0, 240 - few - at_edge)))
    before = scale * with_values(values, seed)
    weight = before.clone()
    result = clip_singular_values_(weight, scale)
    assert result.certified
    assert float(torch.linalg.svdvals(weight.double())[0]) <= scale * (1 + 2e-6)
    assert float((weight - exact_projection(before, scale)).norm()) <= 2e-6 * max(float(before.norm()), scale)


def test_values_that_are_returned_bound_the_leading_ones() -> None:
    before = with_values(spread(300, [1.2, 1.1]), 0)
    result = clip(before.clone(), wanted=24)
    assert result is not None
    values = torch.tensor(result.values, dtype=torch.float64)
    assert len(values) >= 24
    expected = torch.linalg.svdvals(before.double())[: len(values)]
    torch.testing.assert_close(values, expected.clamp(max=1.0), rtol=2e-5, atol=0)
    assert (values >= expected.clamp(max=1.0)).all()
    along = (before.double() @ result.right.double()).norm(dim=0)
    torch.testing.assert_close(along, expected, rtol=1e-5, atol=0)


def lose_a_vector(lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As inverse iteration may: one comes out as the one before it."""
    leading = Spectrum.leading

    def broken(self: Spectrum, count: int, rough: bool = False) -> tuple[list[float], Tensor]:
        values, vectors = leading(self, count, rough)
        vectors[:, lost] = vectors[:, lost - 1]
        return values, vectors

    monkeypatch.setattr(Spectrum, "leading", broken)


@pytest.mark.parametrize("lost", [7, 12, 20])
def test_a_vector_that_is_lost_beyond_those_that_are_needed_is_in_no_bound(
    lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of a matrix says how many of its values are above a number: all of them are counted."""
    lose_a_vector(lost, monkeypatch)
    values = torch.cat((torch.tensor([1.3, 1.2, 1.1, 1.003, 1.002]), torch.linspace(0.93, 0, 295)))
    weight, state = with_values(values, 0), SpectralState()
    result = clip_singular_values_(weight, 1.0, state=state)
    assert not result.redone
    kept = tracked_in(state.matrices[0])
    assert kept is not None
    assert int((torch.linalg.svdvals(weight.double()) > kept.shown.rest).sum()) <= kept.shown.pairs


@pytest.mark.parametrize("lost", [0, 5, 11])
def test_a_vector_that_was_not_found_leaves_no_certificate(lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the eigenvectors came out: the spectrum's count says how many there are."""
    lose_a_vector(lost, monkeypatch)
    monkeypatch.setattr(single.subspace, "MAX_ROUNDS", 1)  # which would find it again
    before = with_values(spread(300, [1.5 - 0.04 * i for i in range(12)]), 0)
    weight = before.clone()
    assert clip(weight) is None
    assert torch.equal(weight, before)
    result = clip_singular_values_(weight, 1.0)
    assert result.certified
    assert float((weight - exact_projection(before, 1.0)).norm()) <= 2e-6 * float(before.norm())


@pytest.mark.usefixtures("kernels_or_not")
@pytest.mark.parametrize("size", [1.5, 2.0, 3.0])
def test_values_far_above_the_limit_alone_are_clipped_where_the_others_gather_at_it(size: float) -> None:
    # As in training at a small limit: a step pushes values far, the others lie near the limit, some far below.
    values = torch.cat((torch.linspace(0.95, 1.02, 340), torch.linspace(0.1, 0.9, 8), torch.tensor([1.2, size])))
    for seed in range(10):
        weight = with_values(values, seed)
        before = weight.clone()
        assert clip(weight) is None
        assert torch.equal(weight, before)
        assert clip_far(weight) == 2
        left, found, right = torch.linalg.svd(before.double())
        found[:2] = 1.0
        assert float((weight - (left * found) @ right).norm()) <= 2e-6 * float(before.norm())


@pytest.mark.usefixtures("kernels_or_not")
def test_where_most_values_are_far_above_the_limit_none_are_sought() -> None:
    weight = 2 * orthogonal(350, 0).float()
    before = weight.clone()
    assert clip_far(weight) == 0
    assert torch.equal(weight, before)


@pytest.mark.parametrize("n", [80, 128])
def test_a_small_matrix_whose_norm_says_that_most_values_are_above_the_limit_is_not_looked_at_first(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked_at(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(single, "clip", looked_at)
    values = torch.linspace(1.4, 0.9, n)
    weight = with_values(values, 0, rows=200)
    expected = exact_projection(weight, 1.0)
    result = clip_singular_values_(weight, 1.0)
    assert torch.linalg.matrix_norm(weight - expected) <= 2e-6 * torch.linalg.matrix_norm(expected)
    assert (int(result.values_clipped), bool(result.redone)) == (int((values > 1).sum()), False)
    half = torch.cat((torch.linspace(1.3, 1.001, n // 2), torch.linspace(0.9, 0.0, n // 2)))
    for others in (spread(n, [1.2]), half):
        with pytest.raises(AssertionError):
            clip_singular_values_(with_values(others, 0), 1.0)
