"""What runs without Hydra, omegaconf, pooch, PyYAML and jinja2, which `bare/sitecustomize.py` hides."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from gruclip.bench import gpu
from gruclip.config import OptimizerConfig, RunConfig, ScheduleConfig
from gruclip.errors import UserError
from gruclip.report import collected
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


REPOSITORY = Path(__file__).parents[1]
BARE = os.pathsep.join([str(REPOSITORY / "tests" / "bare"), str(REPOSITORY)])


def called(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """On a bare machine, in `folder`."""
    variables = {**os.environ, "PYTHONPATH": BARE, **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)


def run(folder: Path, *arguments: str, **environment: str) -> str:
    """What Python prints there."""
    done = called(folder, sys.executable, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runs_are_trained_evaluated_collected_and_verified(tmp_path: Path) -> None:
    (tmp_path / "trained.py").write_text(textwrap.dedent(TRAINED))
    out = run(tmp_path, "trained.py")
    assert out.splitlines() == [
        "[('success', False), ('success', False)]",
        "[('success', True), ('success', True)]",
        "[]",
    ]
    [folder] = tmp_path.glob("runs/demo/*seed=0*")
    config, _ = read_config(folder)
    assert config == RunConfig.from_dict({**config.to_dict(), "seed": 0})
    assert "test: " in run(tmp_path, "-m", "gruclip", "eval", str(folder))
    assert "2 runs, 2 of them new" in run(tmp_path, "-m", "gruclip", "collect", "--runs", "runs", "--out", "kept")
    assert "2 runs: as written" in run(tmp_path, "-m", "gruclip", "verify", "runs")


def test_a_corpus_that_is_nowhere_says_that_pooch_is_missing(tmp_path: Path) -> None:
    (tmp_path / "load.py").write_text("from gruclip.data import load\nload('ptb')\n")
    done = called(tmp_path, sys.executable, "load.py", GRUCLIP_DATA="", XDG_CACHE_HOME=str(tmp_path))
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


@pytest.mark.xdist_group("long")  # begun first
def test_scripts_gpu_rehearses_all_its_stages(tmp_path: Path) -> None:
    done = called(REPOSITORY, "scripts/gpu", "--rehearse", OUT=str(tmp_path), PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    tables = {f"{name}.csv" for name in ("nottingham", "ptb")}
    curves = {f"curves/{name}.{kind}.csv.gz" for name in ("nottingham", "ptb") for kind in ("epochs", "steps")}
    assert files == {"gpu.md", "gpu.json", *tables, *curves}
    assert len(files) <= 8
    rows = [run for name in tables for run, _ in collected.read(tmp_path / name)]
    assert {run["status"] for run in rows} == {"success"}
    assert len(rows) == 8
    assert "tests/test_gpu.py::test_a_projection_is_that_of_float64[zero-650]" in (tmp_path / "gpu.md").read_text()
    assert "failed" not in (tmp_path / "gpu.md").read_text()
    benches = [content["bench"] for content in json.loads((tmp_path / "gpu.json").read_text())]
    assert benches == ["stack", "gru", "projection", "transformer"]


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "name stages, of check, bench, short1, table2, table1, lr, or --rehearse"),
    (["check", "tabel2"], "tabel2: no such stage; there are check, bench"),
    (["bench", "--minutes", "0"], "0: should be a number above 0"),
    (["table2"], "torch finds no CUDA device here"),
])  # fmt: skip
def test_what_is_wrong_on_a_lent_gpu_is_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=re.escape(message)):
        gpu.main(arguments)
    assert not list(tmp_path.iterdir())


def test_scripts_gpu_says_it_in_one_line(tmp_path: Path) -> None:
    done = called(REPOSITORY, "scripts/gpu", "check", "tabel2", OUT=str(tmp_path), PYTHON=sys.executable)
    assert (done.returncode, done.stderr) == (2, "scripts/gpu: tabel2: no such stage; there are check, bench, short1, "
                                                 "table2, table1, lr\n")  # fmt: skip
