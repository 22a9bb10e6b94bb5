"""What Hydra would take and gruclip does not: code, other configurations, folders of Hydra's own; and odd values."""

from __future__ import annotations

from pathlib import Path

import pytest

from gruclip.cli.main import main

REFUSED = [
    ("--experimental-rerun", "job.pickle"),
    ("--experimental-rerun",),
    ("--config-dir", "/etc"),
    ("--config-path", "/etc"),
    ("--config-name", "other"),
    ("+hydra.callbacks.x._target_=os.system",),
    ("hydra.run.dir=/tmp/x",),
    ("hydra.output_subdir=../x",),
    ("hydra.sweep.dir=/tmp/x",),
    ("hydra.searchpath=[file:///tmp]",),
    ("hydra.job_logging.version=1",),
    ("hydra.launcher._target_=os.system",),
    ("hydra.sweeper._target_=os.system",),
    ("hydra/launcher=ray",),
    ("hydra/sweeper=basic",),
    ("hydra/job_logging=default",),
    ("hydra.launcher.stack_size={_target_:os.system}",),
    ("output_dir=${oc.env:HOME}",),
    ("experiment=${hydra:runtime.cwd}",),
    ("~seed",),
    ("~trainer",),
    ("~trainer.bptt",),
    ("dataset@model=ptb",),
    ("+experiment=../ptb",),
    ("+experiment=/etc/passwd",),
    ("optimizer=[1,2]",),
    ("experiment=..",),
    ("experiment=a/b",),
    (f"output_dir={'x' * 2000}",),
    ("output_dir=a\0b",),
    ("output_dir='a\x1b[31mb'",),
    ("schedule.factor=1e200",),
    ("optimizer.lr=1e308",),
    ("optimizer.lr=nan",),
    ("model.hidden_size=1e300",),
    ("model.hidden_size=100000000",),
    ("optimizer.delta=1e-300",),
    ("optimizer.delta=1.9999999999",),
    ("logger.csv=false",),
    ("output_dir=/proc/nope",),
    ("output_dir=/dev/null/x",),
]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("arguments", REFUSED, ids=lambda arguments: " ".join(arguments)[:40].replace("\0", "NUL"))
@pytest.mark.parametrize("mode", [(), ("-m", "seed=0,1")], ids=["run", "sweep"])
def test_what_is_not_gruclip_s_is_refused_in_one_line_and_nothing_written(
    arguments: tuple[str, ...], mode: tuple[str, ...], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *mode, *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("gruclip: ")
    assert err.count("\n") == 1
    assert all(character.isprintable() for character in err.rstrip("\n"))
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("override", ["hydra.run.dir=/tmp/x", "~seed", "output_dir=${oc.env:HOME}"])
def test_a_reproduction_refuses_the_same(override: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "quickstart", override]) == 2
    assert override in capsys.readouterr().err
    assert list(work.iterdir()) == []


def test_a_sweep_over_nothing_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", "seed=range(0)"]) == 2
    assert "seed=range(0): no values" in capsys.readouterr().err


def test_a_table_is_not_written_to_a_name_that_cannot_be(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a\0b", "x" * 300, "no/such/folder/t.md"):
        assert main(["table", "1", "--experiment", "demo", "--out", name]) == 2
        assert capsys.readouterr().err.count("\n") == 1
