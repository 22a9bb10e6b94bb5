"""A configuration is checked before anything runs, and its identity is what can change a number."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gruclip.config import DatasetConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.errors import ConfigError
from gruclip.runs.folder import folder_name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": {"name": "wikitext"}}, "dataset.name=wikitext: should be one of pydoc, ptb"),
        ({"model": {"cell": "sru"}}, "model.cell=sru: should be one of gru, gru_reset_after, lstm, tanh_rnn"),
        ({"model": {"hidden_size": 0}}, "model.hidden_size=0"),
        ({"model": {"hidden_size": 12.5}}, "model.hidden_size=12.5: should be a whole number"),
        ({"model": {"dropout": 1.0}}, "model.dropout=1.0"),
        ({"optimizer": {"name": "adam"}}, "optimizer.name=adam: should be one of gradient_clipping"),
        ({"optimizer": {"lr": -1, "delta": 0.2}}, "optimizer.lr=-1.0: should be a positive number"),
        ({"optimizer": {"lr": float("nan"), "delta": 0.2}}, "optimizer.lr=nan"),
        ({"optimizer": {"lr": "fast", "delta": 0.2}}, "optimizer.lr=fast: should be a number"),
        ({"optimizer": {"delta": 2.0}}, r"optimizer.delta=2.0: should be inside \(0, 2\)"),
        ({"optimizer": {"delta": 0.0}}, "optimizer.delta=0.0"),
        (
            {"optimizer": {"delta": 1.0}, "model": {"cell": "tanh_rnn"}},
            r"inside \(0, 1\), the stability limit of tanh_rnn",
        ),
        ({"optimizer": {"delta": None}}, "optimizer.delta=null: spectral_clipping needs a delta"),
        ({"optimizer": {"delta": 0.2, "threshold": 5.0}}, "optimizer.threshold=5: spectral_clipping has no threshold"),
        ({"optimizer": {"name": "gradient_clipping"}}, "optimizer.threshold=null: gradient_clipping needs a threshold"),
        ({"optimizer": {"name": "gradient_clipping", "threshold": float("inf")}}, "optimizer.threshold=inf"),
        (
            {"optimizer": {"name": "gradient_clipping", "threshold": 5.0, "delta": 0.2}},
            "optimizer.delta=0.2: gradient_clipping has no delta",
        ),
        ({"optimizer": {"delta": 0.2, "algorithm": "magic"}}, "optimizer.algorithm=magic"),
        ({"schedule": {"name": "cosine"}}, "schedule.name=cosine"),
        ({"schedule": {"factor": 0.5}}, "schedule.factor=0.5: should be a number of at least 1"),
        ({"trainer": {"budget": "tiny"}}, "trainer.budget=tiny: should be one of full, short, smoke"),
        ({"trainer": {"batch_size": 0}}, "trainer.batch_size=0"),
        ({"trainer": {"bptt": 0}}, "trainer.bptt=0"),
        ({"trainer": {"max_steps": -3}}, "trainer.max_steps=-3"),
        ({"trainer": {"max_epochs": None}}, "trainer.max_epochs=null: the constant schedule never stops"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": True}, "seed=True: should be a whole number"),
        ({"device": "tpu"}, "device=tpu"),
        ({"precision": "fp8"}, "precision=fp8"),
        ({"logger": ["printer"]}, "logger=printer"),
        ({"output_dir": ""}, "output_dir=: should be a folder's path"),
        ({"colour": "blue"}, "colour: no such setting"),
        ({"trainer": {"epochs": 3}}, "trainer.epochs: no such setting"),
        ({"trainer": 3}, "trainer=3: should be a group of settings"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_that_names_it(settings: dict[str, Any], message: str) -> None:
    settings = {"optimizer": {"delta": 0.2}, **settings}
    with pytest.raises(ConfigError, match=message) as error:
        RunConfig.from_dict(settings)
    assert "\n" not in str(error.value)


def test_a_configuration_survives_the_way_through_a_dict() -> None:
    config = RunConfig(seed=3, logger=("csv", "tensorboard"))
    assert RunConfig.from_dict(dataclasses.asdict(config)) == config


def test_one_and_one_point_zero_are_one_run() -> None:
    one = RunConfig.from_dict({"optimizer": {"lr": 1, "delta": 0.2}})
    assert one.identity("data") == RunConfig.from_dict({"optimizer": {"lr": 1.0, "delta": 0.2}}).identity("data")


@pytest.mark.parametrize(
    "change",
    [{"device": "cpu"}, {"output_dir": "elsewhere"}, {"logger": ("csv", "wandb")}, {"experiment": "mine"}],
)
def test_where_a_run_is_made_is_no_part_of_its_identity(change: dict[str, Any]) -> None:
    assert dataclasses.replace(RunConfig(), **change).identity("data") == RunConfig().identity("data")


def test_settings_precision_and_data_are_parts_of_the_identity() -> None:
    identities = {
        RunConfig().identity("data"),
        RunConfig().identity("other data"),
        RunConfig(seed=1).identity("data"),
        RunConfig(precision="bf16").identity("data"),
        RunConfig(trainer=TrainerConfig(max_steps=400)).identity("data"),
        RunConfig(trainer=TrainerConfig(budget="short")).identity("data"),
        RunConfig(optimizer=OptimizerConfig(delta=0.2, algorithm="full")).identity("data"),
    }
    assert len(identities) == 7


def test_a_folder_is_named_by_the_optimizer_its_rate_its_seed_and_what_differs_from_the_experiment() -> None:
    default = RunConfig()
    plain = RunConfig(seed=3)
    assert folder_name(plain, default, "0" * 64) == "spectral_clipping,delta=0.2,lr=1,seed=3"
    other = RunConfig(
        optimizer=OptimizerConfig("gradient_clipping", lr=0.1, threshold=5.0), precision="bf16",
        trainer=TrainerConfig(max_steps=400),
    )  # fmt: skip
    expected = "gradient_clipping,threshold=5,lr=0.1,seed=0,max_steps=400,precision=bf16"
    assert folder_name(other, default, "0" * 64) == expected


def test_values_of_many_digits_stand_whole_in_a_folder_s_name() -> None:
    names = [
        folder_name(RunConfig(optimizer=OptimizerConfig(delta=0.2, lr=lr)), RunConfig(), "") for lr in (0.1, 0.1000001)
    ]
    assert names == ["spectral_clipping,delta=0.2,lr=0.1,seed=0", "spectral_clipping,delta=0.2,lr=0.1000001,seed=0"]


def test_a_corpus_of_ones_own_is_named_by_its_folder_also_from_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "songs").mkdir()
    monkeypatch.chdir(tmp_path / "songs")
    for root in (".", "../songs", str(tmp_path / "songs")):
        run = RunConfig(dataset=DatasetConfig("text", root))
        assert ",root=songs" in folder_name(run, RunConfig(), "")


def test_a_long_name_is_cut_and_told_apart_by_the_identity() -> None:
    far = RunConfig.from_dict(
        {
            "optimizer": {"delta": 0.123456789012345, "lr": 0.987654321098765},
            "model": {"hidden_size": 123, "num_layers": 4, "dropout": 0.123456789, "input_scale": 0.123456789},
            "trainer": {"bptt": 77, "batch_size": 33, "radius_every": 11},
        }
    )
    name = folder_name(far, RunConfig(), "abcdef0123" + "0" * 54)
    assert len(name) == 150 + 1 + 8
    assert name.endswith("-abcdef01")


def test_a_short_budget_puts_its_own_epochs_and_patience_and_smoke_is_twenty_iterations() -> None:
    short = RunConfig(trainer=TrainerConfig(budget="short", max_epochs=75, short_epochs=10))
    assert (short.max_epochs, short.patience, short.max_steps) == (10, 3, None)
    assert RunConfig(trainer=TrainerConfig(budget="smoke")).max_steps == 20
