"""The study's runs for a lent GPU are those that Hydra composes, to the identity."""

from __future__ import annotations

from gruclip.bench.gpu_runs import DEFAULTS, learning_rates, short1, table1, table2
from gruclip.cli.training import planned_runs
from gruclip.config import RunConfig


def identities(runs: list[RunConfig]) -> set[str]:
    found = {run.identity("data") for run in runs}
    assert len(found) == len(runs)
    return found


def composed(*arguments: str) -> set[str]:
    return identities(planned_runs(list(arguments)))


def test_an_experiment_s_default_is_its_file() -> None:
    for name, default in DEFAULTS.items():
        assert planned_runs([f"+experiment={name}"]) == [default.check()]


def test_table_2_is_the_paper_s_nine_settings_and_combined_clipping() -> None:
    both = "optimizer=combined_clipping", "optimizer.threshold=30", "optimizer.delta=0.2", "seed=range(10)"
    methods = "optimizer=gradient_clipping,spectral_clipping"
    expected = composed("+experiment=nottingham", "+sweep=table2", methods) | composed("+experiment=nottingham", *both)
    assert identities(table2()) == expected
    assert len(expected) == 100


def test_table_1_is_the_paper_s_nine_settings_in_bf16() -> None:
    methods = "optimizer=gradient_clipping,spectral_clipping"
    typed = ("+experiment=ptb", "+sweep=table1", methods, "seed=0,1", "precision=bf16")
    assert identities(table1()) == composed(*typed)


def test_the_first_ten_epochs_are_those_of_the_budget_named_short() -> None:
    typed = ("+experiment=ptb", "+sweep=table1", "trainer.budget=short", "precision=bf16", "seed=range(5)")
    rates = "optimizer.lr=1,0.5,0.2"
    methods = composed(*typed, "optimizer=gradient_clipping,spectral_clipping", rates)
    both = composed(*typed, "optimizer=combined_clipping", "optimizer.threshold=5", "optimizer.delta=0.2", rates)
    assert identities(short1()) == methods | both
    assert len(methods) == 135
    assert [run.optimizer.lr for run in short1()[:50]] == [1.0] * 50


def test_the_learning_rates_are_the_sweep_s() -> None:
    assert identities(learning_rates()) == composed("+experiment=nottingham", "+sweep=learning_rate")


def test_the_settings_of_a_seed_stand_together() -> None:
    assert [run.seed for run in table1()] == [0] * 9 + [1] * 9
