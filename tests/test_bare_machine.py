"""What runs where torch and a few more packages are, and neither Hydra nor pooch nor PyYAML: `bare_machine.HIDDEN`."""

from __future__ import annotations

import os
import subprocess
import textwrap
from pathlib import Path

import bare_machine
import pytest

from gruclip.config import OptimizerConfig, RunConfig, ScheduleConfig
from gruclip.runs import records
from gruclip.runs.records import read_config, read_yaml, yaml_text

TRAINED = """
    import sys
    from gruclip.config import ModelConfig, RunConfig, TrainerConfig
    from gruclip.training.runner import train

    short = TrainerConfig(max_steps=3)
    runs = [RunConfig(model=ModelConfig(hidden_size=8), trainer=short, seed=seed, output_dir="runs") for seed in (0, 1)]
    for stack in (False, True):
        print([(result.status, result.skipped) for result in train(runs, quiet=True, stack=stack)])
    print(sorted({"hydra", "omegaconf", "pooch", "yaml"} & set(sys.modules)))
"""


def run(folder: Path, *arguments: str, **environment: str) -> str:
    """What a module prints on a bare machine, in `folder`."""
    done = subprocess.run(
        bare_machine.command(*arguments), cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runs_are_trained_evaluated_collected_and_verified(tmp_path: Path) -> None:
    (tmp_path / "trained.py").write_text(textwrap.dedent(TRAINED))
    out = run(tmp_path, "trained", PYTHONPATH=str(tmp_path))
    assert out.splitlines() == [
        "[('success', False), ('success', False)]",
        "[('success', True), ('success', True)]",
        "[]",
    ]
    [folder] = tmp_path.glob("runs/demo/*seed=0*")
    config, _ = read_config(folder)
    assert config == RunConfig.from_dict({**config.to_dict(), "seed": 0})
    assert "test: " in run(tmp_path, "gruclip", "eval", str(folder))
    assert "2 runs, 2 of them new" in run(tmp_path, "gruclip", "collect", "--runs", "runs", "--out", "kept")
    assert "2 runs: as they were written" in run(tmp_path, "gruclip", "verify", "runs")


def test_a_corpus_that_is_nowhere_says_that_pooch_is_missing(tmp_path: Path) -> None:
    (tmp_path / "load.py").write_text("from gruclip.data import load\nload('ptb')\n")
    done = subprocess.run(
        bare_machine.command("load"),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "GRUCLIP_DATA": "", "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "ptb/ptb.train.txt: cannot be downloaded without pooch" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("lr", [1e-5, 2.5e-7, 1e22, 0.1, 3.0])
def test_a_configuration_written_without_yaml_is_the_same_to_yaml(
    lr: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(optimizer=OptimizerConfig("sgd", lr=lr), schedule=ScheduleConfig(min_lr=1e-5))
    path = tmp_path / "config.yaml"
    with monkeypatch.context() as patch:
        patch.setattr(records, "yaml", None)
        path.write_text(yaml_text(config.to_dict()))
        assert read_yaml(path) == config.to_dict()
    assert read_yaml(path) == config.to_dict()
    assert RunConfig.from_dict(read_yaml(path)) == config
