"""Everything wrong on a command line: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

import gruclip
from gruclip.cli import main
from gruclip.cli.explain import explain
from gruclip.config import RunConfig
from gruclip.errors import ConfigError
from hydra_plugins.gruclip.settings import check_typed, to_run

#: The runs that the repository keeps.
PAPER = Path(__file__).parents[2] / "outputs" / "paper"

#: What is typed after ``gruclip``, and what the one line must hold.
BAD_COMMANDS = [
    # commands
    ("", "the following arguments are required: COMMAND"),
    ("tabel 1", "invalid choice: 'tabel'"),
    ("-v train", "-v: cannot stand before train; leave it out"),
    ("--verbose bench step", "--verbose: cannot stand before bench; leave it out"),
    ("table", "the following arguments are required: which"),
    ("table 7", "invalid choice: '7'"),
    ("table 1", "outputs/ptb and outputs/paper/ptb: no runs there; make them with: gruclip reproduce table1"),
    (
        "table 2",
        "outputs/nottingham and outputs/paper/nottingham: no runs there; make them with: gruclip reproduce table2\n",
    ),
    ("table cells", "outputs/ptb and outputs/paper/ptb: no runs there; make them with: gruclip reproduce cells\n"),
    ("table 1 --runs elsewhere --experiment demo", "--runs elsewhere: there is no such folder\n"),
    ("table 1 --runs . --experiment demo", "demo: no runs there; make them with: gruclip reproduce "),
    ("table 2 --experiment musedata", "make them with: gruclip reproduce table2 +experiment=musedata\n"),
    (
        "table 1 --experiment nope",
        "outputs/nope and outputs/paper/nope: no runs there; there is no such experiment; there are demo, jsb",
    ),
    ("table 1 --experiment /", "argument --experiment: '/': should be a plain name"),
    ("report --experiment ../x", "argument --experiment: '../x': should be a plain name"),
    ("data convert nosuch.pickle b.mat", "nosuch.pickle: cannot be read (No such file or directory); name a file that"),
    ("table 1 --format pdf", "invalid choice: 'pdf'"),
    (
        "figure 2",
        "outputs/figure2/ptb and outputs/paper/figure2/ptb: no runs there; make them with: gruclip reproduce figure2\n",
    ),
    ("figure lr --experiment demo", "outputs/demo and outputs/paper/demo: no runs there"),
    ("reproduce table3", "invalid choice: 'table3'"),
    ("reproduce table1 -m +experiment=demo", "-m: gruclip reproduce sweeps without it; leave it out"),
    ("reproduce table1 --fast", "--fast: no such option of gruclip reproduce; see gruclip reproduce --help"),
    ("reproduce table1 +sweep=cells", "sweep=cells: this trains the sweep table1; gruclip reproduce NAME trains NAME"),
    ("reproduce table1 +experiment=nottingham", "table 1: is of words, these runs are of nottingham; take gruclip tab"),
    ("reproduce table2 +experiment=demo", "table 2: is of music, these runs are of pydoc; take gruclip table 1"),
    ("reproduce lr +experiment=demo optimizer.lr=1", "optimizer.lr=1: the only rate among these"),
    ("reproduce figure1 +experiment=demo trainer.max_steps=2", "figure 1: in these runs of demo no radius is computed"),
    ("reproduce figure1 +experiment=demo optimizer=spectral_clipping", "figure 1: demo has no finished runs of gradie"),
    ("reproduce figure2 model.hidden_size=4,8", "figure 2: the runs differ in model.hidden_size"),
    ("reproduce figure2 hydra/launcher=stacked", "hydra/launcher=stacked: Figure 2 shows times of runs alone; leave"),
    ("reproduce figure2 +experiment=demo output_dir=", "output_dir=: should be a folder's path"),
    ("reproduce quickstart seed=-1", "seed=-1: should be a whole number from 0"),
    ("reproduce quickstart optimizer=sgd", "optimizer=sgd: not in this sweep, which has gradient_clipping, spectral"),
    ("eval nowhere", "nowhere: not a run's folder"),
    ("eval nowhere --split tset", "invalid choice: 'tset'"),
    ("data list imagenet", "imagenet: no such dataset; there are pydoc, ptb"),
    ("data list --root", "expected one argument"),
    *(
        (command.format("a" * 300), "aaa")
        for command in (
            "eval {}",
            "sample {}",
            "status {}",
            "table 1 --runs {}",
            "report --runs {}",
            "collect --runs {}",
            "verify {}",
        )
    ),
    ("train experiment=my.csv", "experiment=my.csv"),
    ("train -m ++hydra.launcher.foo=1", "hydra.launcher.foo: no such setting of this launcher"),
    ("train +experiment=null", "an option of a group is no word"),
    ("data list --root /nowhere", "dataset.root=/nowhere: no such folder"),
    ("bench speed", "invalid choice: 'speed'"),
    ("bench projection --seconds nan", "argument --seconds: nan: should be a number above 0"),
    ("bench projection --record nowhere", "nowhere: not a run's folder (no config.yaml)"),
    # Hydra's grammar
    ("train --colour", "--colour: no such option; see gruclip train --help"),
    ("train optimizer.lr", "optimizer.lr: cannot be read; write setting=value"),
    ("train optimizer.lr=[1", "optimizer.lr=[1: cannot be read; write setting=value, and with -m setting=value,value"),
    ("train optimizer.lr='1", "optimizer.lr='1: cannot be read"),
    ("train seed=foo(3)", "seed=foo(3): cannot be read"),
    ("train seed=${foo}", "seed=${foo}: there is no setting foo; write the value out"),
    ("train =3", "=3: without a name; write setting=value"),
    ("train -m +sweep=cells +sweep=table1", "+sweep=cells and +sweep=table1: one option of the group sweep; leave one"),
    ("train optimizer=sgd optimizer=sgd", "optimizer=sgd and optimizer=sgd: one option of the group optimizer"),
    ("train dataset.root=.", "dataset.root=.: does nothing here (pydoc comes with Python; a corpus of your own is"),
    ("train +experiment=ptb dataset.root=.", "dataset.root=.: holds nothing of ptb, such as ptb/ptb.train.txt; name a"),
    ("train -m seed=0,", "seed=0,: cannot be read; write setting=value, and with -m setting=value,value"),
    ("train output_dir=a=b", """output_dir=a=b: cannot be read; write 'output_dir="a=b"'"""),
    ("train output_dir=~/runs", "output_dir=~/runs: cannot be read; write output_dir=$HOME/runs"),
    ('train output_dir="~/runs"', "output_dir=~/runs: should be a folder's path of at most 1,000 printable"),
    (
        'train +experiment=ptb dataset.root="~nosuch/x"',
        "dataset.root=~nosuch/x: there is no such user; write the folder out",
    ),
    ("data list --root ~nosuch/x", "there is no such user; write the folder out"),
    ("train hydra/launcher=stacked", "hydra/launcher=stacked: is for a sweep; add -m"),
    ("train hydra.launcher.stack_size=2", "hydra.launcher.stack_size=2: is for a sweep; add -m"),
    ("train -sc install=bash", "-sc: Hydra's completion is for programs of one command"),
    ("train -m hydra/launcher=stacked hydra.launcher.stack_size=0 seed=0,1", "stack_size=0: should be a whole number"),
    ("train -m model.hidden_size=8,60000 model.num_layers=30", "hidden_size=60000,num_layers=30: a run on cpu: needs"),
    ("train -m hydra/launcher=joblib hydra.launcher.n_jobs=0 seed=0,1", "hydra.launcher.n_jobs=0: should be a number"),
    ("train -m hydra/launcher=local hydra.launcher.timeout_min=0 seed=0,1", "hydra.launcher.timeout_min=0: should be"),
    ("train -m hydra/launcher=local hydra.launcher.timeout_min=-3 seed=0,1", "timeout_min=-3: should be above 0"),
    ("train -m hydra.sweeper.grids=5", "hydra.sweeper.grids=5: should be a list of mappings"),
    ("train -m hydra.sweeper.grids=null", "hydra.sweeper.grids=None: should be a list of mappings"),
    ("train -m hydra.sweeper.grids=[1]", "hydra.sweeper.grids=[1]: should be a list of mappings"),
    ("train seed=1" + 400 * "0", "0: should be a whole number from 0 to 2**32 - 1"),
    ("train precision=bf16 model.cell=lstm", "precision=bf16: is for model.cell=gru, this is lstm; leave it out"),
    ("train schedule.factor=2", "schedule.factor=2.0: does nothing here (schedule=constant has none); leave it out"),
    (
        "train +experiment=ptb schedule.min_lr=1",
        "schedule.min_lr=1.0: does nothing here (schedule=exponential",
    ),
    (
        "train trainer.budget=short trainer.max_epochs=1",
        "trainer.max_epochs=1: does nothing here (trainer.bud",
    ),
    ("train trainer.budget=short schedule=plateau schedule.patience=7", "schedule.patience=7: does nothing here"),
    ("train trainer.short_epochs=2", "trainer.short_epochs=2: does nothing here (is for trainer.budget=short)"),
    ("train +experiment=nottingham schedule.factor=1", "schedule.factor=1: the rate never falls"),
    ("train seed=0,1", "seed=0,1: several values; add -m to sweep over them"),
    ("train -m seed=interval(0,1)", "seed=interval(0,1): an interval is no grid; give the values"),
    ("train +seed=1", "An item is already at 'seed'"),
    ("train ~seed=3", "seed"),
    # groups
    ("train optimizer=adam", "optimizer=adam: no such option; there are combined_clipping, gradient_clipping, sgd"),
    ("train -m optimizer=adam,sgd", "optimizer=adam: no such option; there are combined_clipping"),
    ("train dataset=imagenet", "dataset=imagenet: no such option; there are jsb_chorales"),
    ("train dataset=null", "an option of a group is no word (a number, true, null)"),
    ("train experiment=mnist", "experiment=mnist: no such option; there are demo"),
    ("train experiment=mnist", "; your own is a file conf/experiment/mnist.yaml"),
    ("train -m +sweep=table3", "sweep=table3: no such option; there are cells, figure1"),
    ("train +sweep=quickstart", "+sweep=quickstart: a sweep needs -m, as in gruclip train -m +sweep=quickstart"),
    ("train hydra/launcher=cloud", "hydra/launcher=cloud: should be one of basic"),
    (
        "train -m seed=0,1 hydra/sweeper=basic",
        "hydra/sweeper=basic: should be one of grids",
    ),
    # settings
    ("train optimizer.momentum=0.9", "optimizer.momentum: no such setting; there are optimizer.name, optimizer.lr"),
    ("train optimzer.lr=1", "optimzer.lr: no such setting; did you mean optimizer.lr?"),
    ("train optimiser=sgd", "optimiser: no such setting; did you mean optimizer?"),
    ("train protocol.treshold=3", "protocol.treshold: no such setting; did you mean optimizer.threshold?"),
    ("train delta=0.3", "delta: no such setting; did you mean optimizer.delta?"),
    ("train colour=red", "colour: no such setting; there are dataset, model, optimizer"),
    ("train +colour=red", "colour: no such setting; there are dataset, model, optimizer"),
    ("train -m colour=red,blue", "colour: no such setting"),
    ("train dataset.name=imagenet", "dataset.name=imagenet: should be one of pydoc, ptb"),
    ("train optimizer.name=adam", "optimizer.name=adam: should be one of gradient_clipping"),
    ("train optimizer.lr=fast", "optimizer.lr=fast: should be a number"),
    ("train optimizer.lr=-1", "optimizer.lr=-1.0: should be a positive number"),
    ("train optimizer.lr=0", "optimizer.lr=0.0: should be a positive number"),
    ("train optimizer.lr=inf", "optimizer.lr=inf: should be a positive number"),
    ("train optimizer.lr=nan", "optimizer.lr=nan: should be a positive number"),
    ("train optimizer.lr=null", "optimizer.lr=None: should be a number"),
    ("train optimizer=gradient_clipping optimizer.threshold=-5", "optimizer.threshold=-5.0: should be a positive"),
    ("train optimizer=gradient_clipping optimizer.threshold=inf", "optimizer.threshold=inf: should be a positive"),
    ("train optimizer=gradient_clipping optimizer.threshold=null", "gradient_clipping needs a threshold"),
    ("train optimizer=gradient_clipping optimizer.delta=0.2", "optimizer.delta=0.2: gradient_clipping has no delta"),
    ("train optimizer.threshold=5", "optimizer.threshold=5: spectral_clipping has no threshold"),
    ("train optimizer=sgd optimizer.threshold=5", "optimizer.threshold=5: sgd has no threshold"),
    ("train optimizer.delta=0", "optimizer.delta=0.0: should be inside (0, 2)"),
    ("train optimizer.delta=2", "optimizer.delta=2.0: should be inside (0, 2)"),
    ("train optimizer.delta=nan", "optimizer.delta=nan: should be inside (0, 2)"),
    (
        "train optimizer.delta=1 model.cell=tanh_rnn",
        "inside (0, 1), the stability limit of tanh_rnn",
    ),
    ("train optimizer.algorithm=magic", "optimizer.algorithm=magic: should be one of auto"),
    (
        "train optimizer=sgd optimizer.algorithm=full",
        "optimizer.algorithm=full: does nothing here (sgd projects nothing); leave it out",
    ),
    (
        "train trainer.budget=smoke trainer.max_steps=5",
        "trainer.budget=smoke: does nothing here (trainer.max_steps=5 takes its place)",
    ),
    ("train model.cell=sru", "model.cell=sru: should be one of gru"),
    ("train model.hidden_size=0", "model.hidden_size=0: should be a whole number of at least 1"),
    ("train model.dropout=1", "model.dropout=1.0: should be a number from 0 up to, not including, 1"),
    ("train schedule.name=cosine", "schedule.name=cosine: should be one of exponential"),
    ("train trainer.budget=tiny", "trainer.budget=tiny: should be one of full, short, smoke"),
    ("train trainer.bptt=0", "trainer.bptt=0: should be a whole number of at least 1"),
    ("train trainer.batch_size=0", "trainer.batch_size=0: should be a whole number of at least 1"),
    ("train trainer.bptt=100000", "trainer.bptt=100000: longer than a lane"),
    ("train trainer.max_epochs=null", "trainer.max_epochs=null: the constant schedule never stops"),
    ("train seed=1.5", "seed=1.5: should be a whole number"),
    ("train seed=-1", "seed=-1: should be a whole number from 0"),
    ("train precision=fp8", "precision=fp8: should be one of fp32"),
    ("train device=cpu precision=tf32", "precision=tf32: not on the CPU, which supports fp32"),
    ("train device=cuda", "device=cuda: torch finds no CUDA device here"),
    ("train output_dir=", "output_dir=: should be a folder's path"),
    ("train output_dir=/dev/null/runs", "output_dir=/dev/null/runs: /dev/null is not a folder that can be written to"),
    ("train -m seed=0,1 output_dir=/dev/null/runs", "/dev/null is not a folder that can be written to"),
    ("train model={a:1}", "model.a: no such setting; there are model.cell"),
    # data
    ("train +experiment=ptb", "ptb/ptb.train.txt: could not be downloaded from https://raw.githubusercontent.com"),
    # the last of several runs is the wrong one
    ("train -m seed=0,1,-1", "seed=-1: should be a whole number from 0"),
    ("train -m dataset=pydoc,nottingham", "music/Nottingham.mat: could not be downloaded from https://"),
    ("train -m hydra/launcher=stacked trainer.bptt=35,100000", "trainer.bptt=100000: longer than a lane"),
]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder on a machine without corpora, network and CUDA."""

    def no_network(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("GRUCLIP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return folder


@pytest.mark.parametrize(("typed", "message"), BAD_COMMANDS, ids=[typed or "nothing" for typed, _ in BAD_COMMANDS])
def test_bad_input_is_told_in_one_line_with_exit_code_2_and_nothing_written(
    typed: str, message: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed.split()) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.startswith("gruclip: ")
    assert err.count("\n") == 1
    assert out == ""
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"optimizer: {lr: [1,\n", "mine.yaml, line 2: is no YAML (expected the node content"),
        (b"\toptimizer:\n", "mine.yaml, line 1: is no YAML (found character"),
        (b"seed: 1\nseed: 2\n", "mine.yaml, line 2: is no YAML (found duplicate key seed)"),
        (b"seed: *last\n", "mine.yaml, line 1: is no YAML (found undefined alias 'last')"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (b"\x01", "is no text in UTF-8"),
    ],
)
def test_a_file_that_is_no_configuration_is_told_by_its_place(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with (
        hydra.initialize_config_dir(str(tmp_path), version_base="1.3"),
        pytest.raises((UnicodeDecodeError, yaml.YAMLError)) as refused,
    ):
        hydra.compose("mine")
    assert message in (explain(refused.value) or "")


@pytest.mark.parametrize("typed", ["+experiment=ptb,mine", "experiment=mine"])
def test_an_experiment_whose_file_gives_its_runs_another_s_name_is_told(typed: str) -> None:
    """It was trained into the demo's folder."""
    runs = [RunConfig(experiment="ptb"), RunConfig(experiment="demo")]
    with pytest.raises(ConfigError, match="experiment=mine: its file should hold the line experiment: mine"):
        check_typed(runs, [typed])
    check_typed(runs, ["+experiment=ptb,demo", "+experiment=glob(*)"])


def test_an_experiment_that_is_not_at_the_top_is_told_what_its_file_lacks() -> None:
    composed = OmegaConf.create({**RunConfig().to_dict(), "experiment": {"seed": 1}})
    with pytest.raises(ConfigError, match="should begin with the line # @package _global_"):
        to_run(composed)


@pytest.mark.parametrize(
    "typed",
    [
        ["collect", "--out", ""],
        ["table", "1", "--out", ""],
        ["figure", "1", "--runs", ""],
        ["verify", ""],
        ["status", ""],
        ["sample", "run", "--out", ""],
    ],
)
def test_an_empty_name_as_of_an_unset_variable_is_refused(
    typed: list[str], work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed) == 2
    assert "is empty; give a name, or leave it out" in capsys.readouterr().err
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("report --out a.pdf", "argument --out: a.pdf: should end with .html or .htm"),
        ("table lr --out a.pdf", "argument --out: a.pdf: should end with .md or .tex or .csv or .txt"),
        ("table lr --out a.tex --format md", "--out a.tex: --format md is another format; leave out one of the two"),
    ],
)
def test_a_name_that_says_another_format_is_refused(
    typed: str, told: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*typed.split(), "--experiment", "demo", "--runs", str(PAPER)]) == 2
    assert capsys.readouterr().err.startswith(f"gruclip: {told}")
    assert list(work.iterdir()) == []


def test_a_table_has_the_format_of_its_file_s_name(work: Path) -> None:
    begins = {"t.tex": r"\begin{table}", "T.CSV": "dataset.name,", "t.md": "**", "t.txt": "**", "t": "**"}
    for name, beginning in begins.items():
        assert main(["table", "lr", "--experiment", "demo", "--runs", str(PAPER), "--out", name]) == 0
        assert (work / name).read_text().startswith(beginning), name


@pytest.mark.parametrize(
    ("redirected", "code", "told"),
    [
        (">&-", 0, ""),
        ("> /dev/full", 2, "gruclip: standard output: cannot be written (No space left on device); give it another"),
    ],
)
def test_output_that_is_closed_or_full_is_no_bug(redirected: str, code: int, told: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m gruclip data list {redirected}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert told in done.stderr


def test_a_terminal_without_the_characters_and_a_notebook_s_backend_take_nothing_away(tmp_path: Path) -> None:
    kept = Path(__file__).parents[2] / "outputs/paper"
    command = [sys.executable, "-m", "gruclip", "table", "1", "--runs", str(kept), "--experiment", "demo"]
    environment = {"PYTHONIOENCODING": "ascii", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    environment = {**os.environ, **environment}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| gradient clipping |" in done.stdout


def test_a_folder_of_another_configuration_is_left_alone(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = work / "outputs/demo/spectral_clipping,delta=0.2,lr=1,seed=1/config.yaml"
    config.parent.mkdir(parents=True)
    other = RunConfig(seed=7)
    config.write_text(yaml.safe_dump({**other.to_dict(), "identity": other.identity("sum"), "data_sha256": "sum"}))
    assert main(["train", "-m", "seed=0,1"]) == 2
    assert "seed=1: belongs to another configuration or other data" in capsys.readouterr().err
    assert [path for path in work.rglob("*") if path.is_file()] == [config]


def test_a_missing_corpus_is_named_with_its_address_and_the_two_ways_to_provide_it(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "+experiment=musedata"]) == 2
    err = capsys.readouterr().err
    for part in ("music/MuseData.mat", "https://", "gruclip data fetch", "dataset.root", "$GRUCLIP_DATA"):
        assert part in err


def test_verify_fails_where_files_are_missing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "verify", "nottingham"]) == 2
    out, err = capsys.readouterr()
    assert out == "nottingham: music/Nottingham.mat: missing\n"
    assert err.startswith("gruclip: data verify: music/Nottingham.mat (missing)")


def test_another_clones_configuration_is_refused(tmp_path: Path) -> None:
    """The installed one's would be taken silently, whatever the files beside the code say."""
    left_out = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(Path(gruclip.__file__).parent, tmp_path / "clone/gruclip", ignore=left_out)
    (tmp_path / "clone/conf").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "clone")}
    command = [sys.executable, "-m", "gruclip", "train", "trainer.max_steps=1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert f"gruclip is run from {tmp_path}/clone/gruclip, its configuration from" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_a_bug_comes_with_its_traceback(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: object, **__: object) -> None:
        raise ZeroDivisionError("ours")

    for name in ("train", "train_jobs"):
        monkeypatch.setattr(importlib.import_module("gruclip.training.runner"), name, train)
    with pytest.raises(ZeroDivisionError, match="ours"):
        main(["train"])
    with pytest.raises(ZeroDivisionError, match="ours"):
        main(["train", "-m", "seed=0,1"])


def test_an_interrupted_run_says_that_it_can_be_continued(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name in ("train", "train_jobs"):
        monkeypatch.setattr(importlib.import_module("gruclip.training.runner"), name, train)
    for mode in ([], ["-m", "seed=0,1"], ["-m", "hydra/launcher=stacked", "seed=0,1"]):
        assert main(["train", *mode]) == 130
        assert capsys.readouterr().err == "gruclip: interrupted; the same command continues where it stopped\n"
