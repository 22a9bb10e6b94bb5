"""What the commands do, the runner put aside where it is not what is tested."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gruclip
from gruclip.cli import arguments, commands, main, reproduce
from gruclip.cli.training import planned_runs
from gruclip.config import RunConfig
from gruclip.kernels import compiled
from gruclip.training.jobs import Job
from gruclip.training.runner import RunResult

TINY = ("model.hidden_size=4", "trainer.max_steps=1", "trainer.batch_size=2", "trainer.bptt=3")


class Calls(list[tuple[list[RunConfig], Mapping[str, RunConfig], bool]]):
    """What `gruclip.train.train` was called with, in the place of training."""

    stack_sizes: list[int | None]

    def __call__(
        self,
        runs: Sequence[RunConfig],
        *,
        defaults: Mapping[str, RunConfig],
        stack: bool = False,
        stack_size: int | None = None,
    ) -> list[RunResult]:
        self.append((list(runs), defaults, stack))
        self.stack_sizes.append(stack_size)
        return [RunResult(Path("folder"), "success", False, {}) for _ in runs]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    monkeypatch.chdir(tmp_path)
    recorded = Calls()
    recorded.stack_sizes = []
    runner = importlib.import_module("gruclip.training.runner")

    def one_by_one(jobs: Sequence[Job], *, part_of_sweep: bool) -> list[RunResult]:
        return recorded([job.config for job in jobs], defaults={})

    monkeypatch.setattr(runner, "train", recorded)
    monkeypatch.setattr(runner, "train_jobs", one_by_one)
    return recorded


# -- train ----------------------------------------------------------------------------------------------


def test_train_trains_one_run_and_names_it_by_its_experiment(calls: Calls, tmp_path: Path) -> None:
    assert main(["train", "+experiment=jsb_chorales", "seed=3"]) == 0
    (((run,), defaults, stack),) = calls
    assert (run.dataset.name, run.seed, run.optimizer.lr, stack) == ("jsb_chorales", 3, 0.1, False)
    assert defaults == {"jsb_chorales": dataclasses.replace(run, seed=0)}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_multirun_trains_its_runs_one_after_another_and_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", "optimizer=gradient_clipping,sgd", "optimizer.lr=0.3,1", *TINY]) == 0
    begun = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert [line.split("outputs/demo/")[0] for line in begun] == ["[1/4] ", "[2/4] ", "[3/4] ", "[4/4] "]
    names = [",".join(line.split("outputs/demo/")[1].split(",")[:-5]) for line in begun]
    assert names == [
        "gradient_clipping,threshold=5,lr=0.3",
        "gradient_clipping,threshold=5,lr=1",
        "sgd,lr=0.3",
        "sgd,lr=1",
    ]
    assert len(list(tmp_path.rglob("summary.json"))) == 4
    assert len(list((tmp_path / "outputs/.sweeps").iterdir())) == 1


def test_the_stacked_launcher_hands_over_all_runs_at_once(calls: Calls, tmp_path: Path) -> None:
    assert main(["train", "-m", "hydra/launcher=stacked", "+sweep=quickstart", "optimizer=sgd,spectral_clipping"]) == 0
    ((runs, defaults, stack),) = calls
    assert [(run.optimizer.delta, run.seed) for run in runs] == [
        (0.2, 0), (0.2, 1), (0.8, 0), (0.8, 1), (1.4, 0), (1.4, 1),
    ]  # fmt: skip
    assert stack
    assert calls.stack_sizes == [None]
    assert defaults == {"demo": RunConfig()}
    assert {path.parent.name for path in tmp_path.rglob("*") if path.is_file()} == {".sweeps"}


def test_the_stacked_launcher_hands_over_its_size(calls: Calls) -> None:
    assert main(["train", "-m", "hydra/launcher=stacked", "hydra.launcher.stack_size=2", "+sweep=quickstart"]) == 0
    assert calls.stack_sizes == [2]


def test_help_of_train_lists_the_groups_and_every_setting(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["train", "--help"])
    assert not done.value.code
    out = capsys.readouterr().out
    assert "experiment: demo, jsb_chorales, musedata, nottingham, piano_midi, ptb" in out
    assert all(f"{name.rpartition('.')[2]}:" in out for name in RunConfig().flat())


def test_an_experiment_and_a_sweep_need_no_plus(calls: Calls) -> None:
    assert main(["train", "experiment=demo", "seed=1"]) == 0
    assert main(["train", "-m", "hydra/launcher=stacked", "sweep=quickstart", "optimizer=combined_clipping"]) == 0
    assert [len(runs) for runs, _, _ in calls] == [1, 2]


def test_other_launchers_train_the_same_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own, to which the task must be picklable."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *TINY]) == 0
    summaries = sorted(tmp_path.rglob("summary.json"))
    assert len(summaries) == 2
    assert all(json.loads(path.read_text())["steps"] == 1 for path in summaries)


def test_a_run_is_trained_evaluated_and_skipped_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY]) == 0
    (folder,) = (tmp_path / "outputs/demo").iterdir()
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    assert main(["train", *TINY]) == 0
    assert "skipped" in "".join(capsys.readouterr())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == written
    assert main(["eval", str(folder), "--split", "valid"]) == 0
    valid = json.loads((folder / "summary.json").read_text())["valid_loss"]
    assert capsys.readouterr().out.startswith(f"valid: {valid:.4f} nats per token, perplexity ")
    assert main(["eval", str(folder), "--root", str(tmp_path)]) == 2
    assert f"--root {tmp_path}: does nothing for a run on pydoc, which comes with Python" in capsys.readouterr().err
    # What this run lacks is told, and not that there is none of Penn Treebank.
    assert main(["table", "lr"]) == 2
    assert "optimizer.lr=1: the only rate among these 1 runs; make a sweep over rates" in capsys.readouterr().err
    assert main(["figure", "1"]) == 2
    assert "figure 1: demo has no finished runs of gradient_clipping and spectral" in capsys.readouterr().err


# -- reproduce, table, figure ---------------------------------------------------------------------------


def test_reproduce_trains_what_is_missing_and_shows_the_table_and_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["optimizer.threshold=10", "optimizer.delta=1.4", "optimizer=gradient_clipping,spectral_clipping", *TINY]
    assert main(["reproduce", "quickstart", "seed=0", "trainer.radius_every=1", *typed]) == 0
    out = capsys.readouterr().out
    assert "| gradient clipping | threshold 10 " in out
    assert "| spectral clipping | delta 1.4 " in out
    for figure in ("figure 1: outputs/demo/figure_1.png", "figure 2: outputs/figure2/demo/figure_2.png"):
        assert figure in out
        assert (tmp_path / figure.split()[-1]).exists()
    assert len(list((tmp_path / "outputs/demo").rglob("summary.json"))) == 2

    assert main(["table", "1", "--experiment", "demo", "--format", "csv", "--out", "table.csv"]) == 0
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 3
    assert main(["figure", "1", "--experiment", "demo", "--format", "pdf", "--out", "drawn"]) == 0
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["figure_1.pdf"]


@pytest.mark.parametrize(
    ("typed", "experiment", "stacked"),
    [
        ("lr +experiment=demo", "demo", True),
        ("table2 seed=0,1", "nottingham", True),
        ("figure2 +experiment=demo output_dir=mine", "demo", False),  # alone, one after another
    ],
)
def test_reproduce_launches_the_sweep_of_an_experiment(
    typed: str, experiment: str, stacked: bool, calls: Calls, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = [] if "demo" in typed else [f"dataset.root={data_root}"]
    assert main(["reproduce", *typed.split(), *root]) == 2  # no runs, since nothing trains here
    folder = "mine/figure2" if typed.startswith("figure2") else "outputs"
    assert f"{folder}/{experiment}: no runs there" in capsys.readouterr().err
    ((runs, _, stack),) = calls
    assert stack == stacked
    assert {(run.output_dir, run.experiment) for run in runs} == {(folder, experiment)}


@pytest.mark.parametrize(
    ("typed", "places"),
    [('"a b"', {"a b/figure2"}), ("'a,b'", {"a,b/figure2"}), ("a,b", {"a/figure2", "b/figure2"})],
)
def test_runs_for_times_lie_apart_in_every_place_that_may_be_typed(typed: str, places: set[str]) -> None:
    command = reproduce._arguments(reproduce.TIMES, "demo", [f"output_dir={typed}"])
    assert {run.output_dir for run in planned_runs(command)} == places


def test_a_sweep_of_ones_own_is_reproduced_with_the_table_of_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``cells`` would be if it had been added to conf/sweep and nowhere else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(arguments, "REPRODUCTIONS", tuple(set(arguments.REPRODUCTIONS) - {"cells"}))
    monkeypatch.delitem(reproduce.REPRODUCTIONS, "cells")
    assert arguments.own_sweeps() == ["cells"]
    assert (
        main(["reproduce", "cells", "model.cell=gru", "optimizer.threshold=5", "optimizer.delta=0.2", "seed=0", *TINY])
        == 0
    )
    table = capsys.readouterr().out
    assert "**Table 1.** Python's pydoc topics, gru 1 x 4" in table
    assert main(["reproduce", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


# -- the rest -------------------------------------------------------------------------------------------


def test_what_is_written_goes_to_the_file_that_a_link_names(tmp_path: Path) -> None:
    link = tmp_path / "link.md"
    link.symlink_to(tmp_path / "table.md")
    commands._write(link, "text")
    assert link.is_symlink()
    assert (tmp_path / "table.md").read_text() == "text"


def test_data_tells_where_the_corpora_are(data_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "verify", "pydoc", "nottingham", "--root", str(data_root)]) == 0
    assert main(["data", "fetch", "nottingham", "--root", str(data_root)]) == 0
    place = data_root / "music/Nottingham.mat"
    assert capsys.readouterr().out.splitlines() == [
        "pydoc: in Python's own library, no file needed",
        f"nottingham: music/Nottingham.mat: verified at {place}",
        f"nottingham: {place}",
    ]


def test_bench_passes_its_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setitem(sys.modules, "gruclip.bench.gru", SimpleNamespace(main=lambda argv: seen.append(argv) or 0))
    assert main(["bench", "gru", "--threads", "1"]) == 0
    assert seen == [["--threads", "1"]]


def test_help_and_version_import_nothing_slow() -> None:
    code = """
import sys
from gruclip.cli import main
for flag in ("--version", "--help"):
    try:
        main([flag])
    except SystemExit as done:
        assert done.code == 0
assert not {"torch", "pandas", "matplotlib", "hydra", "numpy"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("gruclip 0.")


@pytest.mark.parametrize("flags", [["--version", "-v"], ["-v", "--version"], ["--verbose", "--version"]])
def test_the_long_version_says_what_would_compute(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line[0] != " ")
    found = compiled.loaded()
    assert lines["gruclip"] == gruclip.__version__
    assert lines["python"] == platform.python_version()
    assert lines["torch"] == torch.__version__
    assert lines["threads"] == str(torch.get_num_threads())
    assert (lines["kernels"], lines["file"]) == ("compiled for this processor", str(found.file))
    assert lines["sha256"] == hashlib.sha256(Path(lines["file"]).read_bytes()).hexdigest()[:16]
    assert lines["record"] == compiled.description()


def test_the_long_version_says_why_there_are_no_kernels() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "gruclip", "--version", "-v"]
    environment = os.environ | {"CXX": "no-such-compiler"}
    lines = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "kernels    none: torch's operations in their place" in lines
    assert "not compiled: [Errno 2] No such file or directory: 'no-such-compiler'" in lines[-1]


def test_a_reader_that_leaves_early_is_no_error_of_ours() -> None:
    command = [sys.executable, "-m", "gruclip", "data", "list", "pydoc"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141  # as a shell reports SIGPIPE
