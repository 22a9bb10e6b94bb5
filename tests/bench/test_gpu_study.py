"""Runs on a lent GPU: how many are begun, what is kept of them, and what becomes of the tests that it needs."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest
import torch

from gruclip.bench import gpu, gpu_check, gpu_probe, gpu_study
from gruclip.bench.gpu_runs import DEFAULTS
from gruclip.bench.gpu_study import Deadline, fitting, plateau_epochs, train_study
from gruclip.config import ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.errors import ConfigError
from gruclip.report import collected
from gruclip.training.jobs import Job


def runs(tmp_path: Path, seeds: int = 2, **trainer: int) -> list[RunConfig]:
    """Of the demo, two settings a seed."""
    base = RunConfig(
        model=ModelConfig(hidden_size=8), trainer=TrainerConfig(**{"max_steps": 3, **trainer}), device="cpu",
        output_dir=str(tmp_path / "runs"),
    )  # fmt: skip
    methods = OptimizerConfig("sgd", lr=0.5), OptimizerConfig("spectral_clipping", lr=0.5, delta=0.2)
    return [dataclasses.replace(base, seed=seed, optimizer=one) for seed in range(seeds) for one in methods]


def seeds_kept(out: Path) -> list[tuple[str, int]]:
    return [(run["optimizer.name"], run["seed"]) for run, _ in collected.read(out / "demo.csv")]


@pytest.fixture
def a_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack of R runs 10 + R seconds."""

    def stack_seconds(configs: Sequence[RunConfig], job: Job) -> float:
        return 10.0 + len(configs)

    monkeypatch.setattr(gpu_study, "stack_seconds", stack_seconds)


@pytest.mark.usefixtures("a_run_takes")
@pytest.mark.parametrize(
    ("seconds", "count"), [(100, 8), (18, 8), (17.5, 6), (14, 4), (12.5, 2), (11, 1), (10, 0), (-5, 0)]
)
def test_as_many_runs_are_begun_as_end_in_time_and_whole_seeds_first(
    seconds: float, count: int, tmp_path: Path
) -> None:
    jobs = [Job(run, RunConfig()) for run in runs(tmp_path, seeds=4)]
    found = fitting(jobs, seconds)
    assert found == count
    assert found == 0 or 10 + found <= seconds


def test_the_measured_iteration_is_that_of_the_whole_run(tmp_path: Path) -> None:
    short, long = ([Job(run, RunConfig()) for run in runs(tmp_path, 1, max_steps=steps)] for steps in (10, 10**6))
    assert fitting(short, 600.0) == 2
    assert fitting(long, 0.5) == 0


def test_a_plateau_takes_its_patience_for_each_fall_of_the_rate() -> None:
    # 31 falls by 1.25 from 0.1 to below 1e-4, after 10 epochs each; of the kept runs the longest had 649 epochs.
    assert 649 <= plateau_epochs(DEFAULTS["nottingham"]) <= 660


def test_what_ended_is_kept_and_another_day_goes_on_from_there(tmp_path: Path) -> None:
    configs = runs(tmp_path)
    first, second, third = (tmp_path / day for day in ("first", "second", "third"))
    assert train_study(configs[:2], Deadline(600), first, tmp_path / "nothing", batched=True) == 2
    assert seeds_kept(first) == [("spectral_clipping", 0), ("sgd", 0)]
    elsewhere = [dataclasses.replace(run, output_dir=str(tmp_path / "elsewhere")) for run in configs]
    assert train_study(elsewhere, Deadline(600), second, first, batched=True) == 2
    assert seeds_kept(second) == [("spectral_clipping", 1), ("sgd", 1)]
    # Folders of an earlier call on the same machine, of which nothing was kept.
    assert train_study(elsewhere, Deadline(600), third, first, batched=True) == 0
    assert seeds_kept(third) == seeds_kept(second)


def test_nothing_is_begun_without_time_and_what_is_late_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_study(runs(tmp_path), Deadline(1), tmp_path / "out", tmp_path, batched=True) == 0
    assert "4 missing; none ends in the" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(gpu_study, "stack_seconds", lambda *_: 0.0)
    monkeypatch.setattr(gpu_study, "RESERVE", 1.0)
    assert train_study(runs(tmp_path, max_steps=10**6), Deadline(4), tmp_path / "out", tmp_path, batched=True) == 0
    assert "stopped before its runs ended" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


TESTS = """
    import os, time
    import pytest

    def test_small(): pass
    def test_wrong(): assert 1 == 2, "one is not two"
    @pytest.mark.parametrize("n", [700, 3])
    def test_of_a_size(n): pass
    def test_device_1(): raise RuntimeError("CUDA error: an illegal memory access was encountered")
    def test_gone_2(): os._exit(3)
    @pytest.mark.parametrize("n", [5])
    def test_hangs(n): time.sleep(60)
"""


def test_no_failure_of_a_test_hides_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "test_made.py"
    path.write_text(textwrap.dedent(TESTS))
    monkeypatch.setenv("GRUCLIP_TEST_HANGS_AFTER", "2")
    told: list[str] = []
    assert not gpu_check.check(60.0, tmp_path, told.append, [path.name], tmp_path)
    outcomes = [
        line.splitlines()[0].split(": ")[0].split(" in ")[0] + line.splitlines()[0].rpartition("::")[2] for line in told
    ]
    assert outcomes == [
        "passedtest_small", "failedtest_wrong", "failedtest_device_1", "failedtest_gone_2", "passedtest_of_a_size[3]",
        "failedtest_hangs[5]", "passedtest_of_a_size[700]",
    ]  # fmt: skip
    assert "one is not two" in told[1]
    lines = [
        json.loads(line) for path in sorted(tmp_path.glob("check-*.jsonl")) for line in path.read_text().splitlines()
    ]
    assert sum("collected" in line for line in lines) == 4  # a process after each that was lost


def test_tests_that_do_not_pass_in_time_are_named(tmp_path: Path) -> None:
    path = tmp_path / "test_made.py"
    path.write_text("import time\ndef test_slow(): time.sleep(60)\ndef test_next(): pass\n")
    told: list[str] = []
    assert not gpu_check.check(9.0, tmp_path, told.append, [path.name], tmp_path)
    assert "test_slow" in told[0]
    assert told[1].startswith("not begun in 9 s: ")
    assert told[1].endswith("::test_next")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU they would run")
@pytest.mark.parametrize("arguments", gpu.BENCHES)
def test_the_benches_take_the_arguments_that_they_are_given(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Up to the device, which is looked for once they are read."""
    bench, *rest = arguments
    with pytest.raises(ConfigError, match="torch finds no CUDA device here"):
        import_module(f"gruclip.bench.{bench}").main([*rest, "--out", str(tmp_path)])


def test_a_question_that_fails_without_a_word_ends_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> str:
        raise AssertionError

    gpu_probe._tell("one", fails)
    gpu_probe._tell("another", lambda: "yes")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["one:", "FAILED,", "AssertionError:"],
        ["another:", "yes"],
    ]
