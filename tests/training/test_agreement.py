"""Training with the fast projection is training with the exact one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gruclip.bench import agreement as bench
from gruclip.bench.agreement import BASE, agreement, parting
from gruclip.config import DatasetConfig, ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.spectral import clip


def small(delta: float) -> RunConfig:
    """Large enough that `auto` is not ``gram`` in float32, and small enough that rounding does not grow beyond measure.

    The inputs have their full size: at the protocol's 0.01 the first losses hardly depend on W_hh, and a limit wrong
    by a percent moves them by 5e-7.
    """
    return replace(
        BASE,
        dataset=DatasetConfig("pydoc"),
        model=ModelConfig(hidden_size=136, input_scale=1.0),
        optimizer=OptimizerConfig("spectral_clipping", lr=1.0, delta=delta),
        trainer=TrainerConfig(bptt=10),
    )


@pytest.mark.parametrize("delta", [0.98, 1.4])
def test_in_float64_sixty_iterations_agree_to_1e_6_while_values_are_clipped(delta, monkeypatch):
    counts: dict[str, list[int]] = {"auto": [], "full": []}
    clip_one = clip.clip_one

    def counting(*arguments):
        done = clip_one(*arguments)
        counts[arguments[4]].append(done[0])
        return done

    monkeypatch.setattr(clip, "clip_one", counting)
    losses = agreement(60, "fp64", small(delta))
    assert len(losses) == len(counts["auto"]) == 60
    assert min(counts["full"]) > 0
    # Their tolerances differ: a value between the two may count for one and not for the other.
    assert all(abs(one - other) <= 1 for one, other in zip(counts["auto"], counts["full"], strict=True))
    assert parting(losses)[-1] <= 1e-6


def test_in_float32_the_first_ten_iterations_agree_to_1e_5():
    assert parting(agreement(10, "fp32", small(1.4)))[-1] <= 1e-5


def test_a_limit_wrong_by_1e_5_would_be_found(monkeypatch):
    clip_one = clip.clip_one

    def wrong(weight, norm, limit, held, algorithm, followed):
        return clip_one(weight, norm, limit * (1 + 1e-5 * (algorithm == "auto")), held, algorithm, followed)

    monkeypatch.setattr(clip, "clip_one", wrong)
    assert parting(agreement(60, "fp64", small(1.4)))[-1] > 1e-5


def test_the_command_prints_how_the_losses_part(monkeypatch, capsys):
    monkeypatch.setattr(bench, "BASE", small(1.4))
    monkeypatch.setattr(bench, "prepare", lambda threads: None)
    assert bench.main(["--iterations", "12"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["10", "12"]
    assert all(float(row[-1]) <= 1e-6 for row in rows)
