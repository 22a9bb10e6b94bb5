"""A certificate of one step serves the next ones, by Weyl's inequality, and no longer than that allows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_spectral import assert_projected, orthogonal
from torch import Tensor

from gruclip.bench.sequences import late
from gruclip.spectral import SpectralState, certificate, clip_singular_values_, single, tracked
from gruclip.spectral.state import NUMBERS
from gruclip.spectral.subspace import Block, Target


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each bound by random vectors."""
    bound, calls = certificate.bound, []
    monkeypatch.setattr(certificate, "bound", lambda *args: calls.append(1) or bound(*args))
    return calls


def spectrum(n: int, above: int) -> Tensor:
    """Some values at 1, and a gap below them."""
    return torch.cat((torch.ones(above), torch.linspace(0.9, 0, n - above))).double()


def test_a_slow_drift_is_certified_without_random_vectors_for_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, calls, state = torch.Generator().manual_seed(0), counted(monkeypatch), SpectralState()
    U, V = orthogonal(generator, 300), orthogonal(generator, 300)
    weight = ((U * spectrum(300, 5)) @ V.mT).float()
    for step in range(40):
        noise = torch.randn(300, 300, generator=generator)
        weight += (2e-3 * U[:, :5] @ V[:, :5].mT).float() + 2e-3 * noise / noise.norm()
        before = weight.clone()
        result = clip_singular_values_(weight, 1.0, state=state)
        assert result.certified
        assert not result.redone
        assert int(result.values_clipped) == 5, step
        assert_projected(before, weight, 1.0, "auto")
    # ||W - W_old||_F is 5e-3, and the gap 0.1.
    assert 1 <= len(calls) <= 6


def test_a_large_step_is_certified_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, calls, state = torch.Generator().manual_seed(0), counted(monkeypatch), SpectralState()
    U, V = orthogonal(generator, 300), orthogonal(generator, 300)
    weight = ((U * spectrum(300, 5)) @ V.mT).float()
    clip_singular_values_(weight, 1.0, state=state)
    for step in range(5):
        weight += (0.2 * U[:, :5] @ V[:, :5].mT).float()
        result = clip_singular_values_(weight, 1.0, state=state)
        assert result.certified
        assert len(calls) == step + 1


@settings(deadline=None, max_examples=40)
@given(
    rise=st.floats(1e-3, 0.05),
    start=st.floats(0.3, 0.95),
    above=st.integers(0, 8),
    restarts=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_what_rises_where_no_carried_vector_feels_it_never_passes_the_limit(
    rise: float, start: float, above: int, restarts: bool, seed: int
) -> None:
    """One direction of the bulk, by steps so small that nothing is sought in them, beside values held at the limit."""
    generator, state = torch.Generator().manual_seed(seed), SpectralState()
    U, V = orthogonal(generator, 200), orthogonal(generator, 200)
    values = torch.cat((torch.ones(above), torch.linspace(0.8, 0.7, 30), torch.linspace(0.6, 0, 170 - above))).double()
    values[60] = start
    weight = ((U * values) @ V.mT).to(torch.float32)
    for step in range(30):
        weight += (rise * U[:, 60:61] @ V[:, 60:61].mT + 1e-3 * U[:, :above] @ V[:, :above].mT).float()
        before = weight.clone()
        result = clip_singular_values_(weight, 1.0, state=state, algorithm="block")
        assert result.certified
        assert_projected(before, weight, 1.0, "auto")
        if restarts and step % 7 == 3:
            copied = SpectralState()
            copied.load_state_dict(state.state_dict())
            state = copied


@settings(deadline=None, max_examples=200)
@given(
    values=st.lists(st.floats(0.9, 3.0), min_size=1, max_size=8),
    beta=st.floats(0.0, 0.98),
    size=st.floats(1e-4, 2.0),
    alike=st.booleans(),
    seed=st.integers(0, 2**31),
)
@example(values=[1.001], beta=0.0, size=0.5, alike=False, seed=0)  # the ceiling itself
def test_what_is_certified_is_inside_whatever_the_rest_is(
    values: list[float], beta: float, size: float, alike: bool, seed: int
) -> None:
    """Equation (8) against the matrix (5) itself, its rest as bad as beta allows; residuals near what has room."""
    generator, n, k = torch.Generator().manual_seed(seed), 30, len(values)
    values, ceiling = sorted(values, reverse=True), 1 + 1e-3
    clipped = [min(value, 1.0) if value > ceiling else value for value in values]
    room = torch.tensor([1 - (value / ceiling) ** 2 for value in clipped], dtype=torch.float64)
    kappa = ceiling**2 / (ceiling**2 - beta**2)
    V = orthogonal(generator, n)
    along = V[:, k : k + 1].expand(n, k) if alike else V[:, k : 2 * k]
    residual = along * ceiling * (size * room / kappa).sqrt()
    block = Block(values, torch.empty(0), V[:, :k], residual, residual.norm(dim=0).tolist())
    # sigma_1 <= ceiling for every M M^T <= beta^2 I, and this is the largest.
    A = torch.zeros(2 * n, n, dtype=torch.float64)
    A[:k, :k], A[:k, k:], A[n : 2 * n - k, k:] = (
        torch.tensor(clipped).diag(),
        (V.mT @ residual).mT[:, k:],
        beta * torch.eye(n - k),
    )
    largest = float(torch.linalg.svdvals(A)[0])
    certified = certificate.certifies(block, Target(1.0, 1e-3, 1.0), k, beta)
    assert largest <= ceiling * (1 + 1e-12) or not certified
    # Residuals take a share each, of which the trace is asked, however they lie.
    total = size * k
    # A value at the ceiling leaves no room, for no residual either.
    assert certified == (total <= 1) or abs(total - 1) < 1e-6 or float(room.min()) < 1e-9


@pytest.mark.parametrize("shape", [(256, 256), (256, 640), (640, 256)])
def test_where_the_subspace_costs_more_than_a_decomposition_the_next_steps_are_decomposed(shape, monkeypatch):
    """And then it is tried again: a matrix that moves far in every step, and comes to rest."""
    generator, state, limit = torch.Generator().manual_seed(3), SpectralState(), 1.0
    steps: list[str] = []

    def seen(name, function):
        def called(*args, **kwargs):
            steps.append(name)
            return function(*args, **kwargs)

        return called

    # Few steps, so that not too many values come near the limit.
    monkeypatch.setattr(tracked, "UNTRACKED_STEPS", 16)
    monkeypatch.setattr(tracked, "clip", seen("tracked", tracked.clip))
    monkeypatch.setattr(single, "clip", seen("decomposed", single.clip))
    few = min(shape)
    left, right = (torch.linalg.qr(torch.randn(size, few, generator=generator))[0] for size in shape)
    weight = (left * torch.linspace(1, 0, few)) @ right.mT
    for step in range(4 * tracked.UNTRACKED_STEPS):
        far = step < tracked.UNTRACKED_STEPS + 3
        u, v = (torch.randn(size, generator=generator) / size**0.5 for size in shape)
        before = weight + (0.4 if far else 1e-6) * torch.outer(u, v)
        weight = before.clone()
        result = clip_singular_values_(weight, limit, state=state)
        assert result.certified
        assert not result.redone
        assert_projected(before, weight, limit, "auto")
    # One look at the subspace between the decompositions, the last of which starts it anew.
    around = ["tracked", *["decomposed"] * tracked.UNTRACKED_STEPS]
    assert steps[: tracked.UNTRACKED_STEPS + 3] == ["decomposed", *around, "tracked"]
    assert steps[-tracked.UNTRACKED_STEPS :] == ["tracked"] * tracked.UNTRACKED_STEPS


def test_a_state_is_saved_and_goes_on_to_the_bit_whether_the_matrix_is_tracked_or_rests() -> None:
    sequence, state, kinds = late(256, tracked.UNTRACKED_STEPS + 10), SpectralState(), set()
    for matrix in sequence.matrices:
        saved, weight, again = SpectralState(), matrix.clone(), matrix.clone()
        saved.load_state_dict(state.state_dict())
        clip_singular_values_(weight, sequence.limit, state=state)
        clip_singular_values_(again, sequence.limit, state=saved)
        assert torch.equal(weight, again)
        one, other = state.matrices[0], saved.matrices[0]
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        kinds.add("rests" if "rests" in one else "tracked" if "right" in one else "unknown")
    assert {"rests", "tracked"} <= kinds


@pytest.mark.parametrize("far", [1.2, 3.0])
def test_a_value_left_inside_the_tolerance_rises_no_further(far: float) -> None:
    """Beside one that was clipped, whose limit was taken for a bound of both."""
    values, state = torch.linspace(0.9, 0.1, 225).double(), SpectralState()
    values[:2] = torch.tensor([far, 1 + 1.75e-6])
    weight = values.diag().float()
    clip_singular_values_(weight, 1.0, state=state)
    assert torch.equal(weight[1, 1], values[1].float())
    before = weight.clone()
    clip_singular_values_(weight, 1.0, state=state)
    assert torch.equal(weight, before)
    weight[1, 1] += 0.85e-6
    before = weight.clone()
    assert clip_singular_values_(weight, 1.0, state=state).certified
    assert_projected(before, weight, 1.0, "auto")


@pytest.mark.parametrize("excess", [2.1e-6, 2.2e-6, 2.3e-6])
def test_a_step_of_equal_numbers_is_not_underestimated(excess: float) -> None:
    """Its squares are all rounded the same way."""
    for step in (1.7905693, 1.9579413, 1.4204725):
        first, state = torch.full((1024, 1024), 2.0**-9), SpectralState()
        second = first + step
        limit = float(second.double().norm()) / (1 + excess)
        clip_singular_values_(first, limit, state=state)
        assert clip_singular_values_(second, limit, state=state).certified
        assert float(second.double().norm()) <= limit * (1 + 2e-6)


def test_a_value_that_no_carried_vector_feels_costs_no_precision_where_it_is_coupled_to_one_above_the_limit() -> None:
    """No Ritz value is near it, so that (7) with one of them is too low; with the bound it is not."""
    generator, state = torch.Generator().manual_seed(0), SpectralState()
    U, V = orthogonal(generator, 300), orthogonal(generator, 300)
    values = torch.cat((torch.ones(1), torch.linspace(0.85, 0.6, 299))).double()
    weight = ((U * values) @ V.mT).float()
    clip_singular_values_(weight, 1.0, state=state)
    # As by many steps in which nothing is sought.
    weight += ((0.95 - values[200]) * U[:, 200:201] @ V[:, 200:201].mT).float()
    entries = state.matrices[0]
    entries["previous"].copy_(weight)
    entries[NUMBERS][1:4] = torch.tensor(certificate.NONE)
    weight += (U[:, :1] @ (0.014 * V[:, :1] + 2e-4 * V[:, 200:201]).mT).float()
    before = weight.clone()
    assert clip_singular_values_(weight, 1.0, state=state).certified
    assert_projected(before, weight, 1.0, "auto")
