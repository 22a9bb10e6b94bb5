"""When training follows more directions of its matrices: where it redoes too many, and more of them would help."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gruclip.spectral import SubspaceState
from gruclip.training.projections import Projections
from gruclip.training.widening import directions

N = 600


def with_values_near(count: int) -> Tensor:
    """So many values that the filter lifts at a limit of 1 (`NEAR`); what bases they have does not matter."""
    return torch.diag(torch.cat((torch.full((count,), 0.96), torch.linspace(0.94, 0.0, N - count))))


def stack_of(counts: list[int], missed: list[float], carried: int = 56) -> tuple[list[Tensor], list[SubspaceState]]:
    weights = [torch.stack([with_values_near(count) for count in counts])]
    states = [SubspaceState(weights[0], carried)]
    states[0].missed.copy_(torch.tensor(missed))
    return weights, states


ONES = torch.ones(5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("counts", "missed", "carried", "expected"),
    [
        ([60] * 4, [1.0] * 4, 56, 120),
        ([110] * 4, [1.0] * 4, 56, 184),  # not by way of 120
        ([100] * 4, [1.0] * 4, 120, 184),
        ([60] * 4, [0.09] * 4, 56, 56),  # few are redone
        ([60] * 4, [0.5, 0.0, 0.0, 0.0], 56, 120),
        ([60] * 4, [0.3, 0.0, 0.0, 0.0], 56, 56),
        ([150] * 4, [1.0] * 4, 184, 184),  # there is none wider
        ([N] * 4, [1.0] * 4, 56, 56),  # the orthogonal start
        ([300] * 4, [1.0] * 4, 56, 56),
        ([5] * 4, [1.0] * 4, 56, 56),  # for another reason than many values
        ([N, N, 60, 60], [1.0, 1.0, 0.9, 0.9], 56, 120),  # half are hopeless
        ([N, N, N, 60], [1.0, 1.0, 1.0, 0.3], 56, 120),
        ([N, N, N, 60], [0.5, 0.5, 0.0, 0.0], 56, 56),
        ([60, N, N, N, N], [0.2, 1.0, 1.0, 1.0, 1.0], 56, 56),  # the one least often redone is not looked at
    ],
)
def test_the_next_width_that_helps(counts: list[int], missed: list[float], carried: int, expected: int) -> None:
    weights, states = stack_of(counts, missed, carried)
    assert directions(weights, ONES[: len(counts)], states) == expected


def test_what_is_only_measured_or_not_finite_needs_no_columns() -> None:
    weights, states = stack_of([60] * 4, [1.0, 1.0, 0.3, 0.3])
    assert directions(weights, ONES[:4] * math.inf, states) == 56
    # 0.15 of all steps.
    assert directions(weights, torch.tensor([torch.inf, torch.inf, 1.0, 1.0]).double(), states) == 120
    weights[0][:, 3, 4] = math.nan
    assert directions(weights, ONES[:4], states) == 56
    weights[0][0] = with_values_near(60)
    assert directions(weights, ONES[:4], states) == 120


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.integers(0, 192), min_size=3, max_size=3),
    missed=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    carried=st.sampled_from([56, 100, 120, 184]),
)
def test_never_narrower_nor_for_nothing(counts: list[int], missed: list[float], carried: int) -> None:
    weights = [torch.stack([torch.diag((torch.arange(400) < count).float()) for count in counts])]
    states = [SubspaceState(weights[0], carried)]
    states[0].missed.copy_(torch.tensor(missed))
    found = directions(weights, ONES[:3], states)
    assert found in (carried, 120)
    assert found >= carried
    if found > carried:
        assert sum(missed) / 3 > 0.1


def test_all_layers_are_widened_together_and_what_is_captured_is_told_once() -> None:
    weights, _ = stack_of([60] * 2, [0.0] * 2)
    weights.append(weights[0] / 2)
    projections = Projections([1.0, 1.0], weights, "program")
    projections.adapt(weights)
    assert not projections.pop_moved()
    first, second = projections.states
    assert isinstance(first, SubspaceState)
    assert isinstance(second, SubspaceState)
    first.missed.fill_(0.5)
    projections.adapt(weights)
    assert [first.carried, second.carried] == [120, 120]
    assert projections.pop_moved()
    assert not projections.pop_moved()
    # A run that comes with more.
    saved = Projections([1.0], [weight[:1] for weight in weights], "program")
    for state in saved.states:
        assert isinstance(state, SubspaceState)
        state.widen(184)
    projections.load_run_state(1, saved.run_state(0))
    assert [first.carried, second.carried] == [184, 184]
    assert projections.pop_moved()
