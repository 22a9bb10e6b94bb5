"""Differences between methods: each at its best rate, paired by seed, with an interval or "open"."""

from __future__ import annotations

import math

import pytest
from made_runs import DEMO, config, frame, perplexity, summary

from gruclip.errors import UserError
from gruclip.report.differences import table_differences


def made(spectral_less: list[float], seeds: int) -> list[dict[str, str]]:
    """Gradient clipping at two rates, of which 1 is best; spectral clipping lower by so much at each seed there."""
    runs = []
    for seed in range(seeds):
        base = 150.0 + 10 * seed  # seeds differ far more than methods
        runs.append((config(DEMO, "gradient_clipping", 5, seed=seed), summary(valid=5.0, test=math.log(base))))
        worse = config(DEMO, "gradient_clipping", 5, seed=seed, optimizer__lr=0.1)
        runs.append((worse, summary(valid=5.5, test=math.log(2 * base))))
        loss = math.log(base - spectral_less[seed])
        runs.append((config(DEMO, "spectral_clipping", 0.2, seed=seed), summary(valid=4.9, test=loss)))
    (table,) = table_differences(frame(runs))
    return table.cells.to_dict("records")


def test_a_difference_the_same_for_all_seeds_is_found_though_the_seeds_differ_more() -> None:
    reference, spectral = made([3.0, 2.5, 3.5, 3.0, 3.0], 5)
    assert (reference["verdict"], reference["best rate"]) == ("reference", "1")
    assert spectral["difference"].startswith("-3 [-3.")
    assert (spectral["seeds"], spectral["verdict"]) == ("5", "lower loss")


@pytest.mark.parametrize(("less", "verdict"), [([-3.0] * 5, "higher loss"), ([3.0, -3.0, 3.0, -3.0, 0.0], "open")])
def test_the_verdict_is_the_intervals(less: list[float], verdict: str) -> None:
    assert made(less, 5)[1]["verdict"] == verdict


def test_of_few_seeds_the_differences_stand_and_the_verdict_is_open() -> None:
    spectral = made([3.0] * 4, 4)[1]
    assert (spectral["difference"], spectral["verdict"]) == ("-3, -3, -3, -3", "open")


@pytest.mark.parametrize("failing", ["gradient_clipping", "spectral_clipping"])
def test_a_verdict_says_where_one_of_the_two_failed_with_a_seed(failing: str) -> None:
    runs = [
        (
            config(DEMO, name, value, seed=seed),
            summary("failed" if (name, seed) == (failing, 5) else "success", test=test),
        )
        for seed in range(6)
        for name, value, test in (("gradient_clipping", 5, 5.0), ("spectral_clipping", 0.2, 4.9))
    ]
    (table,) = table_differences(frame(runs))
    assert list(table.cells["verdict"]) == ["reference", "lower loss where both succeed"]


def test_only_seeds_with_which_both_succeeded_are_compared() -> None:
    runs = [(config(DEMO, "gradient_clipping", 5, seed=seed), summary(test=5.0)) for seed in range(6)]
    runs += [(config(DEMO, "gradient_clipping", 5, seed=0, optimizer__lr=0.1), summary(valid=9.0, test=9.0))]
    runs += [
        (config(DEMO, "spectral_clipping", 0.2, seed=seed), summary("failed" if seed == 9 else "success", test=4.9))
        for seed in range(1, 10)
    ]
    (table,) = table_differences(frame(runs))
    assert list(table.cells["seeds"]) == ["", "5"]
    assert list(table.cells["success there"]) == ["6/6", "8/9"]
    assert list(table.cells["verdict"]) == ["reference", "lower loss where both succeed"]


def test_a_method_that_never_succeeds_has_its_line() -> None:
    runs = [(config(DEMO, "gradient_clipping", 5, seed=seed), summary()) for seed in range(3)]
    runs += [(config(DEMO, "gradient_clipping", 10, seed=seed), summary("failed")) for seed in range(3)]
    runs += [(config(DEMO, "gradient_clipping", 10, optimizer__lr=2), summary("diverged"))]
    (table,) = table_differences(frame(runs))
    assert table.cells.to_dict("records")[1] == {
        "method": "gradient clipping",
        "setting": "threshold 10",
        "best rate": "none",
        "success there": "0/4",
        "seeds": "",
        "difference": "N/A",
        "verdict": "never succeeds",
    }


def test_a_best_rate_at_the_edge_is_said() -> None:
    runs = [(config(DEMO, "gradient_clipping", 5, optimizer__lr=lr), summary(valid=4 + lr)) for lr in (0.1, 1, 2)]
    runs += [(config(DEMO, "sgd", optimizer__lr=lr), summary(valid=4 + abs(lr - 1))) for lr in (0.1, 1, 2)]
    (table,) = table_differences(frame(runs))
    assert "The best rate is at the edge of those tried: threshold 5." in table.notes


def test_the_reference_is_a_setting_with_the_most_seeds() -> None:
    runs = [(config(DEMO, "gradient_clipping", 5, seed=seed), summary(valid=5.0, test=5.0)) for seed in range(5)]
    runs.append((config(DEMO, "gradient_clipping", 1, seed=0), summary(valid=4.9, test=4.9)))
    runs += [(config(DEMO, "spectral_clipping", 0.2, seed=seed), summary(valid=4.8, test=4.8)) for seed in range(5)]
    (table,) = table_differences(frame(runs))
    assert list(table.cells["setting"]) == ["threshold 1", "threshold 5", "delta 0.2"]
    assert list(table.cells["verdict"]) == ["open", "reference", "lower loss"]


def test_without_gradient_clipping_there_is_nothing_to_compare_with() -> None:
    runs = [(config(DEMO, "spectral_clipping", 0.2, optimizer__lr=lr), summary()) for lr in (0.1, 1.0)]
    (table,) = table_differences(frame(runs))
    assert list(table.cells["verdict"]) == ["nothing to compare with"]
    assert "less that of gradient clipping, of which no run succeeded" in table.caption


def test_runs_at_one_rate_give_no_such_table() -> None:
    with pytest.raises(UserError, match="no two methods among these 1 runs have otherwise equal settings"):
        table_differences(frame([(config(DEMO, "sgd"), summary())]))


def test_methods_that_were_run_at_one_rate_are_compared_there() -> None:
    runs = [
        (config(DEMO, name, value, seed=seed), summary(test=perplexity(100 + more + seed)))
        for name, value, more in (("gradient_clipping", 5, 0), ("spectral_clipping", 0.2, 3))
        for seed in range(5)
    ]
    (table,) = table_differences(frame(runs))
    assert "Each method at its best rate: the only rate run." in table.caption
    assert list(table.cells["difference"]) == ["", "+3 [+3, +3]"]
    assert list(table.cells["verdict"]) == ["reference", "higher loss"]
