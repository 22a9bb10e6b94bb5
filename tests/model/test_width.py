"""Layers stored some units wider than the model's train the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from gruclip.config import DatasetConfig, ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.data import load
from gruclip.model.width import WHOLE, Width
from gruclip.training.engine import Engine

CPU = torch.device("cpu")


def runs(data_root: Path, dataset: str) -> list[RunConfig]:
    """Two, of ten units, in float64."""
    own = dataset == "pydoc"
    base = RunConfig(
        dataset=DatasetConfig(dataset, None if own else str(data_root)),
        model=ModelConfig(hidden_size=10, num_layers=1 if own else 2),
        optimizer=OptimizerConfig("spectral_clipping", lr=0.3, delta=1.2),
        trainer=TrainerConfig(max_epochs=None, max_steps=40, bptt=10),
        precision="fp64",
        device="cpu",
    )
    return [dataclasses.replace(base, seed=seed) for seed in range(2)]


@pytest.mark.parametrize("dataset", ["pydoc", "jsb_chorales"])
def test_units_that_are_added_stay_zero_and_change_nothing(data_root: Path, dataset: str) -> None:
    configs = runs(data_root, dataset)
    corpus = load(dataset, configs[0].dataset.root)
    # What an iteration is captured with decides of the width: `list` repeats it as it is.
    plain, padded = Engine(configs, corpus, CPU), Engine(configs, corpus, CPU, list)
    for engine in (plain, padded):
        engine.begin_epoch([1, 1])
    for iteration in range(12):
        one, other = (engine.step(iteration, with_radius=True) for engine in (plain, padded))
        for name in ("loss", "grad_norm", "spectral_norm", "spectral_radius", "values_clipped"):
            torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=1e-9, atol=1e-12)
    assert padded.evaluate("valid") == pytest.approx(plain.evaluate("valid"), rel=1e-9)
    assert plain.parameters["output"].shape[1] == 10
    for name, parameter in padded.parameters.items():
        stored = parameter.detach().clone()
        width = Width(configs[0].model, padded=True)
        assert stored.numel() == 0 or 10 not in stored.shape[1:]
        width.cut(name, stored).zero_()
        assert not stored.any(), name
    for state in padded.states:
        assert state.shape[-1] == 2 * WHOLE
        assert not state[..., 10:].any()


@pytest.mark.parametrize("dataset", ["pydoc", "jsb_chorales"])
def test_the_state_of_a_run_is_the_model_s_at_any_width(data_root: Path, dataset: str) -> None:
    configs = runs(data_root, dataset)
    corpus = load(dataset, configs[0].dataset.root)
    plain, padded = Engine(configs, corpus, CPU), Engine(configs, corpus, CPU, list)
    padded.begin_epoch([1, 1])
    for iteration in range(5):
        padded.step(iteration, with_radius=False)
    saved = padded.run_state(1)
    for name, tensor in plain.run_state(0).items():
        assert saved[name].shape == tensor.shape
    for engine in (plain, padded):
        engine.load_run_state(0, saved)
        for name, tensor in engine.run_state(0).items():
            assert torch.equal(tensor, saved[name]), name
