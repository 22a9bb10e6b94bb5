"""Numbers over runs, on made frames with known answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_runs import DEMO, NOTTINGHAM, PTB, config, frame, perplexity, summary

from gruclip.report.sections import METHOD, sections
from gruclip.report.statistics import (
    best,
    bootstrap_interval,
    is_at_edge,
    mean_and_std,
    reported,
    succeeding_rates,
    summarise,
)


def test_perplexity_is_of_each_run_and_the_mean_is_over_runs() -> None:
    runs = frame(
        (config(PTB, "sgd", seed=seed), summary(test=perplexity(value))) for seed, value in enumerate((100.0, 400.0))
    )
    np.testing.assert_allclose(reported(runs, "test"), [100, 400])
    mean, std = mean_and_std(reported(runs, "test"))
    assert mean == pytest.approx(250)  # not exp of the mean loss, 200
    assert std == pytest.approx(300 / math.sqrt(2))  # n - 1


def test_music_is_reported_in_nats() -> None:
    runs = frame([(config(NOTTINGHAM, "sgd"), summary(test=3.5))])
    assert reported(runs, "test").tolist() == [3.5]


def test_one_run_has_no_deviation_and_none_has_no_mean() -> None:
    assert mean_and_std(np.array([7.0]))[0] == 7
    assert math.isnan(mean_and_std(np.array([7.0]))[1])
    assert all(map(math.isnan, mean_and_std(np.array([]))))


def test_failed_and_diverged_runs_count_against_the_rate_and_enter_no_mean() -> None:
    statuses = ("success", "failed", "diverged", "unfinished")
    runs = frame(
        (config(PTB, "sgd", seed=seed), summary(status, 4.0 + seed, 5.0 + seed, max_grad_norm=10.0 + seed))
        for seed, status in enumerate(statuses)
    )
    (row,) = summarise(runs, METHOD).to_dict("records")
    assert (row["succeeded"], row["finished"], row["unfinished"]) == (1, 3, 1)
    assert row["test_mean"] == pytest.approx(math.exp(5))
    assert row["max_grad_norm"] == 12  # the unfinished run's 13 is in no number


@pytest.mark.parametrize(("norms", "largest"), [((3.0, "inf"), "inf"), (("nan", "inf"), "nan"), ((3.0, 8e6), "8e+06")])
def test_the_largest_gradient_norm_keeps_what_is_not_finite(norms: tuple[float | str, ...], largest: str) -> None:
    runs = frame((config(PTB, "sgd", seed=seed), summary(max_grad_norm=norm)) for seed, norm in enumerate(norms))
    (row,) = summarise(runs, METHOD).to_dict("records")
    assert f"{row['max_grad_norm']:g}" == largest


def test_an_unfinished_run_counts_in_no_number() -> None:
    """Not even where it exploded: an unfinished run's explosions would stand over a number of finished ones."""
    outcomes = ("success", False, 3.0), ("unfinished", True, 9.0)
    runs = frame(
        (config(PTB, "sgd", seed=seed), summary(status, exploded=exploded, max_grad_norm=norm))
        for seed, (status, exploded, norm) in enumerate(outcomes)
    )
    (row,) = summarise(runs, METHOD).to_dict("records")
    assert [row[name] for name in ("finished", "unfinished", "succeeded", "exploded")] == [1, 1, 1, 0]
    assert row["max_grad_norm"] == 3.0


def test_the_bootstrap_interval_is_that_of_a_mean_and_the_same_every_time() -> None:
    values = np.random.default_rng(1).normal(100, 2, size=50)
    low, high = bootstrap_interval(values)
    half = 2.01 * values.std(ddof=1) / math.sqrt(50)  # Student's t with 49 degrees of freedom
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(np.full(5, 3.0)) == (3, 3)


@pytest.mark.parametrize(("count", "least"), [(5, 0.90), (10, 0.92)])
def test_an_interval_of_few_seeds_holds_the_mean_nearly_as_often_as_it_says(count: int, least: float) -> None:
    draws = np.random.default_rng(2).normal(size=(1000, count))
    intervals = [bootstrap_interval(values, resamples=2000) for values in draws]
    held = np.mean([low <= 0 <= high for low, high in intervals])
    assert least < held < 0.98  # the plain percentiles: 0.84 and 0.90


def best_rate(rates: pd.DataFrame) -> float | None:
    row = best(rates)
    return None if row is None else row["optimizer.lr"]


def _rates(outcomes: dict[float, list[tuple[str, float, float]]]) -> pd.DataFrame:
    runs = frame(
        (config(DEMO, "gradient_clipping", 5, seed=seed, optimizer__lr=rate), summary(status, valid, test))
        for rate, results in outcomes.items()
        for seed, (status, valid, test) in enumerate(results)
    )
    return summarise(runs, (*METHOD, "optimizer.lr"))


def test_the_best_rate_has_the_highest_success_rate_then_the_lowest_validation_loss() -> None:
    rates = _rates(
        {
            0.1: [("success", 5.0, 1.0), ("success", 5.0, 1.0)],  # the lowest test loss plays no part
            0.3: [("success", 4.5, 9.0), ("success", 4.7, 9.0)],
            1.0: [("success", 4.0, 4.0), ("failed", 4.0, 4.0)],
        }
    )
    assert best_rate(rates) == 0.3


def test_of_rates_that_are_equally_good_the_lowest_is_the_best() -> None:
    good = [("success", 5.0, 5.0)]
    assert best_rate(_rates({1.0: good, 0.3: good, 2.0: good})) == 0.3


def test_one_lucky_seed_makes_no_rate_the_best() -> None:
    good, better, bad = ("success", 5.0, 5.0), ("success", 4.0, 4.0), ("failed", 9.0, 9.0)
    assert best_rate(_rates({1.0: [good] * 5, 2.0: [better]})) == 1
    assert best_rate(_rates({1.0: [good] * 4 + [bad], 2.0: [better]})) == 1
    assert best_rate(_rates({1.0: [good] * 10, 2.0: [better] * 5})) == 2  # five are enough
    assert best_rate(_rates({1.0: [good] * 2, 2.0: [better]})) == 1  # of fewer the most


def test_there_is_no_best_rate_where_nothing_succeeds() -> None:
    assert best_rate(_rates({0.1: [("failed", 5.0, 5.0)], 1.0: [("diverged", 0.0, 0.0)]})) is None


def test_a_best_rate_at_the_edge_of_those_tried_is_known_as_such() -> None:
    rates = _rates({rate: [("success", 5.0, 5.0)] for rate in (0.1, 1.0, 2.0)})
    assert [is_at_edge(rates, rate) for rate in (0.1, 1.0, 2.0, None)] == [True, False, True, False]
    assert not is_at_edge(rates[:1], 0.1)  # the only one
    unknown = _rates({0.1: [("success", 5.0, 5.0)], 1.0: [("success", 4.0, 4.0)], 2.0: [("unfinished", 0.0, 0.0)]})
    assert is_at_edge(unknown, 1.0)  # of what lies beyond nothing is known yet


def test_a_range_of_success_ends_at_a_failure_and_at_a_rate_of_which_nothing_is_known() -> None:
    good, bad, open_ = ("success", 4.0, 4.0), ("failed", 4.0, 4.0), ("unfinished", 0.0, 0.0)
    outcomes = {0.1: [good], 0.2: [good, open_], 0.5: [good, bad], 1.0: [good], 2.0: [open_], 5.0: [good], 10.0: [bad]}
    assert succeeding_rates(_rates(outcomes)) == [(0.1, 0.2), (1.0, 1.0), (5.0, 5.0)]


@pytest.mark.parametrize(
    "other",
    [
        {"trainer__budget": "short"},
        {"trainer__max_steps": 400},
        {"precision": "bf16"},
        {"optimizer__lr": 0.5},
        {"optimizer__algorithm": "full"},
        {"model__hidden_size": 300},
        {"model__dropout": 0.0},
        {"trainer__radius_every": 5},
    ],
)
def test_runs_of_different_settings_are_never_averaged_together(other: dict[str, Any]) -> None:
    runs = frame([(config(PTB, "sgd"), summary()), (config(PTB, "sgd", seed=1, **other), summary())])
    parts = sections(runs, METHOD)
    assert [len(part.runs) for part in parts] == [1, 1]
    assert parts[0].caption != parts[1].caption


def test_runs_on_different_data_are_never_averaged_together() -> None:
    runs = frame((config(DEMO, "sgd", seed=seed), summary()) for seed in range(2))
    runs.loc[1, "data_sha256"] = "e" * 64
    assert [part.others for part in sections(runs, METHOD)] == [["data_sha256=dddddddd"], ["data_sha256=eeeeeeee"]]
