"""The study's runs for a lent GPU, as the files in ``conf`` compose them, written without Hydra, which it may lack.

``tests/bench/test_gpu_runs.py`` holds them against what Hydra composes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from gruclip.config import DatasetConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainerConfig

DELTAS = (0.2, 0.5, 0.8, 1.1, 1.4)
THRESHOLDS = (5, 10, 15, 20)  #: of Penn Treebank
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

#: What an experiment's file alone gives: folders are named by what differs from it.
DEFAULTS = {
    "nottingham": RunConfig(
        dataset=DatasetConfig("nottingham"),
        model=ModelConfig(hidden_size=200, num_layers=2),
        optimizer=OptimizerConfig("spectral_clipping", lr=0.1, delta=0.2),
        schedule=ScheduleConfig("plateau", factor=1.25),
        trainer=TrainerConfig(max_epochs=None, short_epochs=40),
        experiment="nottingham",
    ),
    "ptb": RunConfig(
        dataset=DatasetConfig("ptb"),
        model=ModelConfig(hidden_size=650),
        optimizer=OptimizerConfig("spectral_clipping", lr=1.0, delta=0.2),
        schedule=ScheduleConfig("exponential"),
        trainer=TrainerConfig(max_epochs=75),
        experiment="ptb",
    ),
}


def settings(lr: float, thresholds: Iterable[float], combined: Iterable[tuple[float, float]]) -> list[OptimizerConfig]:
    """Gradient clipping at each threshold, spectral clipping at each of the paper's deltas, and both at once."""
    return [
        *(OptimizerConfig("gradient_clipping", lr=lr, threshold=float(threshold)) for threshold in thresholds),
        *(OptimizerConfig("spectral_clipping", lr=lr, delta=delta) for delta in DELTAS),
        *(OptimizerConfig("combined_clipping", lr=lr, threshold=threshold, delta=d) for threshold, d in combined),
    ]


def table2(seeds: int = 10) -> list[RunConfig]:
    """Nottingham: the paper's nine settings and combined clipping, all of a seed after another."""
    return _seeds(DEFAULTS["nottingham"], settings(0.1, (15, 30, 45, 60), [(30.0, 0.2)]), seeds)


def table1(seeds: int = 2) -> list[RunConfig]:
    """Penn Treebank in bf16: the paper's nine settings."""
    return _seeds(replace(DEFAULTS["ptb"], precision="bf16"), settings(1.0, THRESHOLDS, []), seeds)


def short1(seeds: int = 5) -> list[RunConfig]:
    """The same and combined clipping in the paper's first ten epochs, where explosions are; then at half the rate and
    at a fifth of it."""
    short = replace(DEFAULTS["ptb"].trainer, budget="short")
    base = replace(DEFAULTS["ptb"], precision="bf16", trainer=short)
    return [run for lr in (1.0, 0.5, 0.2) for run in _seeds(base, settings(lr, THRESHOLDS, [(5.0, 0.2)]), seeds)]


def learning_rates(seeds: int = 5) -> list[RunConfig]:
    """Nottingham: every method over two decades around the paper's rate."""
    chosen = [one for lr in RATES for one in settings(lr, (15, 30, 45, 60), [(15.0, 0.2)])]
    return _seeds(DEFAULTS["nottingham"], chosen, seeds)


def _seeds(base: RunConfig, optimizers: list[OptimizerConfig], seeds: int) -> list[RunConfig]:
    # A checkpoint would be lost with the machine that wrote it.
    base = replace(base, trainer=replace(base.trainer, checkpoint_minutes=1e4))
    return [replace(base, optimizer=optimizer, seed=seed) for seed in range(seeds) for optimizer in optimizers]
