"""The optimizers, schedules and the detector of explosions do what the protocol says."""

from __future__ import annotations

import dataclasses
import math
from statistics import median

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from gruclip.config import OptimizerConfig, RunConfig, ScheduleConfig
from gruclip.training.explosions import ExplosionDetector
from gruclip.training.optimizers import clipping_factors, gradient_norms, row_gradient, sgd_step_
from gruclip.training.schedule import Schedule


def test_the_gradient_norm_is_global_over_all_parameters_and_separate_for_each_run() -> None:
    dense = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    sparse = torch.sparse_coo_tensor([[1, 2]], [[4.0], [12.0]], (4, 1)).coalesce()  # rows 0, 1: run 0
    assert gradient_norms([dense, sparse], 2).tolist() == [5.0, 13.0]


@given(st.floats(0.1, 1.0), st.integers(1, 2), st.integers(1, 3), st.integers(1, 70_000))
@example(1.0, 1, 2, 2048)
@example(1.0, 2, 1, 4096)
def test_the_gradient_norm_is_that_of_float64_however_many_numbers_are_equal(
    value: float, runs: int, rows: int, size: int
) -> None:
    weights = torch.arange(1.0, runs + 1)  # so that no run's is another's
    dense = torch.full((runs, rows, size), value) * weights[:, None, None]
    exact = torch.linalg.vector_norm(dense.flatten(1), dim=1, dtype=torch.float64)
    assert gradient_norms([dense], runs).tolist() == pytest.approx(exact.tolist(), rel=2e-6)
    sparse = torch.sparse_coo_tensor([[*range(runs * rows)]], dense.flatten(0, 1), (runs * rows, size)).coalesce()
    assert gradient_norms([sparse], runs).tolist() == pytest.approx(exact.tolist(), rel=2e-6)


def test_the_gradient_norm_does_not_overflow_before_the_gradient_does() -> None:
    assert gradient_norms([torch.full((1, 4), 1e30)], 1).item() == pytest.approx(2e30)


def test_clipping_scales_to_the_threshold_only_what_is_above_it() -> None:
    factors = clipping_factors(torch.tensor([10.0, 2.0, 7.0]), torch.tensor([5.0, 5.0, torch.inf]))
    assert factors.tolist() == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("runs", [1, 2])
def test_a_step_is_plain_sgd_dense_and_sparse(runs: int) -> None:
    dense, table = torch.ones(runs, 3), torch.ones(runs * 2, 1)
    gradients = torch.full((runs, 3), 2.0), torch.sparse_coo_tensor([[0]], [[4.0]], table.shape).coalesce()
    sgd_step_([dense, table], gradients, torch.full((runs,), 0.25, dtype=torch.float64))
    assert torch.equal(dense, torch.full((runs, 3), 0.5))
    assert table.flatten().tolist() == [0.0] + [1.0] * (2 * runs - 1)


def test_each_run_of_a_stack_has_its_own_rate() -> None:
    parameter, table = torch.zeros(2, 1), torch.zeros(4, 1)  # rows 0, 1: run 0
    rates = torch.tensor([1.0, 0.5], dtype=torch.float64)
    sgd_step_([parameter, table], [torch.ones(2, 1), torch.ones(4, 1)], rates)
    assert parameter.flatten().tolist() == [-1.0, -0.5]
    assert table.flatten().tolist() == [-1.0, -1.0, -0.5, -0.5]


def run_with(schedule: ScheduleConfig, lr: float) -> RunConfig:
    return dataclasses.replace(RunConfig(), schedule=schedule, optimizer=OptimizerConfig(lr=lr, delta=0.2))


def test_the_language_models_rate_falls_by_1_1_an_epoch_after_the_first_ten() -> None:
    config, schedule, rates = run_with(ScheduleConfig("exponential", 1.1, hold_epochs=10), 1.0), Schedule(1.0), []
    for epoch in range(1, 14):
        rates.append(schedule.lr)
        assert not schedule.after_epoch(config, epoch, 5.0)
    assert rates[:10] == [1.0] * 10
    assert rates[10:] == pytest.approx([1 / 1.1, 1 / 1.1**2, 1 / 1.1**3])


def test_the_music_models_rate_falls_after_ten_epochs_in_a_row_that_are_not_better_and_training_stops_below_1e_4() -> (
    None
):
    config = run_with(ScheduleConfig("plateau", 1.25, patience=10, min_lr=1e-4), 0.1)
    schedule, epoch = Schedule(0.1), 1
    schedule.after_epoch(config, epoch, 4.0)
    while not schedule.is_exhausted(config):
        epoch += 1
        schedule.after_epoch(config, epoch, 4.0)
        if schedule.is_exhausted(config):
            break
        assert schedule.lr == pytest.approx(0.1 / 1.25 ** ((epoch - 1) // 10))
    assert not Schedule(1e-4).is_exhausted(config)
    # 0.1 / 1.25**31 < 1e-4: 31 falls of ten epochs each, after the first epoch.
    assert epoch == 311


def test_a_better_epoch_starts_the_count_again() -> None:
    config, schedule = run_with(ScheduleConfig("plateau", 1.25, patience=2), 1.0), Schedule(1.0)
    for epoch, loss in enumerate([4.0, 4.0, 3.9, 3.9], start=1):
        schedule.after_epoch(config, epoch, loss)
    assert schedule.lr == 1.0
    schedule.after_epoch(config, 5, 3.9)
    assert schedule.lr == 0.8


def test_an_explosion_is_a_norm_above_a_hundred_times_the_median_of_those_before() -> None:
    detector = ExplosionDetector()
    for step in range(1, 20):
        detector.observe(step, 1.0)
    detector.observe(20, 1e6)  # nineteen before it: too few to tell
    assert detector.first_step is None
    detector.observe(21, 100.0)
    assert detector.first_step is None
    detector.observe(22, 100.5)
    assert detector.first_step == 22
    assert detector.max_norm == 1e6


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_is_an_explosion_at_once(norm: float) -> None:
    detector = ExplosionDetector()
    detector.observe(1, norm)
    assert detector.first_step == 1
    assert detector.max_norm == math.inf


def test_the_detector_looks_back_200_iterations() -> None:
    detector = ExplosionDetector()
    for step in range(1, 202):
        detector.observe(step, 1.0)
    for step in range(202, 402):
        detector.observe(step, 50.0)
    detector.observe(402, 150.0)
    assert detector.first_step is None


@given(st.lists(st.sampled_from([0.0, 1.0, 2.5, 150.0, 400.0, math.inf]), max_size=450), st.integers(0, 450))
def test_the_detector_s_median_is_that_of_the_last_200_norms_also_of_one_that_is_continued(
    norms: list[float], saved: int
) -> None:
    detector = ExplosionDetector()
    for step, norm in enumerate(norms):
        recent = norms[max(0, step - 200) : step]
        expected = math.isinf(norm) or (len(recent) >= 20 and norm > 100 * median(recent))
        assert detector.observe(step, norm) is expected
        if step == saved:
            detector = ExplosionDetector.from_state(detector.state_dict())


@given(st.integers(1, 3), st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(0, 2**31))
def test_a_gradient_by_rows_is_the_dense_one(runs: int, words: list[int], seed: int) -> None:
    """Also where a word stands more than once."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(runs * 6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor(words) + 6 * torch.arange(runs)[:, None]
    weights = torch.randn(runs, len(words), 3, generator=generator, dtype=torch.float64)
    [dense] = torch.autograd.grad((table[rows] * weights).sum(), table)
    few = row_gradient(rows, weights)
    torch.testing.assert_close(gradient_norms([few], runs), gradient_norms([dense.view(runs, 6, 3)], runs))
    steps = torch.rand(runs, generator=generator, dtype=torch.float64)
    expected, found = table.detach().clone(), table.detach().clone()
    sgd_step_([expected.view(runs, 6, 3)], [dense.view(runs, 6, 3)], steps)
    sgd_step_([found], [few], steps)
    torch.testing.assert_close(found, expected)


def test_a_rounded_copy_is_written_with_the_update() -> None:
    parameter, gradient = torch.full((2, 3), 1.0), torch.full((2, 3), 0.3, dtype=torch.bfloat16)
    copy = torch.zeros(2, 3, dtype=torch.bfloat16)
    sgd_step_([parameter], [gradient], torch.tensor([1.0, 0.5], dtype=torch.float64), [copy])
    torch.testing.assert_close(parameter[:, 0], torch.tensor([1.0, 1.0]) - torch.tensor([1.0, 0.5]) * gradient[:, 0])
    assert torch.equal(copy, parameter.bfloat16())
