"""Collected files give the rows, tables and figures that their run folders gave, and refuse what was not written so."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import DATA_SHA256, DEMO, PTB, config, perplexity, steps, summary, timing, write_run

from gruclip.bench import gpu_runs, gpu_study
from gruclip.cli import main
from gruclip.config import ADDED as added
from gruclip.config import RunConfig
from gruclip.errors import UserError
from gruclip.report import collected, curves, reading, tables
from gruclip.report.collecting import collect as collect_runs
from gruclip.report.figures import figure
from gruclip.report.rows import SUMMARY, environment_columns
from gruclip.runs.names import folder_name

#: Columns of a frame that are of the place where a run lies and not of the run.
OF_THE_PLACE = ["folder", "output_dir", "device", "dataset.root", "logger", "trainer.checkpoint_minutes"]


def gather(place: Path, out: Path, *names: str) -> list[tuple[str, int, int]]:
    return [(str(path.relative_to(out)), count, new) for path, count, new, _ in collect_runs([place], [], out, names)]


def write_runs(place: Path, seeds: range = range(3)) -> None:
    """Two methods at two rates: successful, failed, diverged and exploded runs with their curves and times."""
    for seed in seeds:
        for rate in (0.1, 1.0):
            failed = seed == 1 and rate == 1.0
            fast = config(PTB, "gradient_clipping", 5, seed=seed, optimizer__lr=rate)
            result = summary("diverged", max_grad_norm="inf", exploded=True, first_exploded_step=7) if failed else None
            loss = perplexity(100 + seed / 3)
            write_run(place, fast, result or summary(valid=loss, test=loss / 3), steps(40), timing(3))
            slow = config(PTB, "spectral_clipping", 0.2, seed=seed, optimizer__lr=rate)
            result = summary(valid=loss / 7, test=loss / 9, projections_redone=seed)
            write_run(place, slow, result, steps(40), timing(2))


def test_tables_of_a_collected_file_are_those_of_its_run_folders_to_the_byte(tmp_path: Path) -> None:
    write_runs(tmp_path / "outputs")
    assert gather(tmp_path / "outputs", tmp_path / "paper") == [("ptb.csv", 12, 12)]
    from_folders, from_file = (reading.read_runs(tmp_path / place, "ptb") for place in ("outputs", "paper"))
    pd.testing.assert_frame_equal(from_file.drop(columns=OF_THE_PLACE), from_folders.drop(columns=OF_THE_PLACE))
    for which in ("1", "lr", "cells"):
        for kind in ("md", "tex", "csv"):
            assert tables.table(which, from_file, kind) == tables.table(which, from_folders, kind)


def test_a_line_holds_the_whole_summary_the_times_and_the_command(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "o", config(PTB, "sgd"), summary(projections_redone=3), None, timing(4))
    environment = {"processor": "p", "device": "cpu", "threads": 1, "versions": {"torch": "2.13.0"}, "revision": "abc"}
    environment |= {"kernels": {"native": "x"}, "command": ["gruclip train", "-m", "seed=1,2"]}
    (folder / "environment.json").write_text(json.dumps(environment))
    gather(tmp_path / "o", tmp_path / "paper")
    line = collected.line_of(tmp_path / "paper" / "ptb.csv" / folder.name)
    expected = {"summary.projections_redone": "3", "machine": "p, 1 thread", "torch": "2.13.0", "revision": "abc"}
    expected |= {"kernels": '{"native": "x"}', "command": "gruclip train -m seed=1,2", "timing.epochs": "4"}
    expected |= {"seconds.backward": "440.0", "seconds": "804.4", "timing.stack_size": "1", "best_epoch": "5"}
    assert {name: line[name] for name in expected} == expected


def test_a_run_continued_elsewhere_carries_both_origins(tmp_path: Path) -> None:
    folder = write_run(tmp_path, config(PTB, "sgd"), summary())
    first = {"processor": "p", "device": "cpu", "threads": 1, "revision": "abc"}
    (folder / "environment.json").write_text(json.dumps({**first, "revision": "def", "before": [first]}))
    (row,) = reading.read_runs(tmp_path, "ptb").to_dict("records")
    assert (row["revision"], row["machine"]) == ("abc then def", "p, 1 thread")


def test_collecting_again_adds_what_is_new_and_changes_nothing_else(tmp_path: Path) -> None:
    write_runs(tmp_path / "a", range(2))
    gather(tmp_path / "a", tmp_path / "paper")
    files = {path: path.read_bytes() for path in (tmp_path / "paper").rglob("*.*")}
    assert gather(tmp_path / "a", tmp_path / "paper") == [("ptb.csv", 8, 0)]
    assert {path: path.read_bytes() for path in (tmp_path / "paper").rglob("*.*")} == files
    write_runs(tmp_path / "b", range(2, 3))
    assert gather(tmp_path / "b", tmp_path / "paper") == [("ptb.csv", 12, 4)]
    write_runs(tmp_path / "all", range(3))
    gather(tmp_path / "all", tmp_path / "at once")
    assert (tmp_path / "paper/ptb.csv").read_bytes() == (tmp_path / "at once/ptb.csv").read_bytes()


def test_collected_files_of_two_places_are_merged_with_their_curves(tmp_path: Path) -> None:
    for name, seeds in (("a", range(1)), ("b", range(1, 2))):
        write_runs(tmp_path / name, seeds)
        gather(tmp_path / name, tmp_path / f"paper {name}")
    assert gather(tmp_path / "paper b", tmp_path / "paper a") == [("ptb.csv", 8, 4)]
    assert len(curves.read_curves(tmp_path / "paper a" / "ptb.csv", "steps")) == 4  # two of each


def test_what_is_kept_apart_below_is_taken_in_where_it_is_named(tmp_path: Path) -> None:
    paper = tmp_path / "paper"
    for seed, out in enumerate((paper, paper / "next")):
        write_runs(tmp_path / str(seed), range(seed, seed + 1))
        gather(tmp_path / str(seed), out)
    with pytest.raises(UserError, match="no finished runs there"):
        gather(paper, paper)  # all of it is there
    assert gather(paper / "next", paper) == [("ptb.csv", 8, 4)]


def test_what_another_clone_has_kept_goes_where_its_run_folders_go(tmp_path: Path) -> None:
    write_runs(tmp_path / "outputs", range(1))
    gather(tmp_path / "outputs", tmp_path / "outputs" / "paper")
    write_runs(tmp_path / "outputs", range(1, 2))
    assert gather(tmp_path / "outputs", tmp_path / "kept") == [("ptb.csv", 8, 8)]
    assert [path.name for path in (tmp_path / "kept").iterdir() if path.is_dir()] == ["curves"]


def test_what_this_clone_keeps_is_no_source_of_a_folder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_runs(tmp_path / "others", range(1))
    gather(tmp_path / "others", Path("outputs/paper"))
    write_runs(tmp_path / "outputs", range(1, 2))
    assert gather(Path("outputs"), Path("mine")) == [("ptb.csv", 4, 4)]
    assert gather(Path("outputs/paper"), Path("theirs")) == [("ptb.csv", 4, 4)]  # named


def test_a_run_with_other_results_is_left_out_and_what_is_kept_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "o", config(PTB, "sgd"), summary())
    gather(tmp_path / "o", tmp_path / "paper")
    before = (tmp_path / "paper/ptb.csv").read_bytes()
    (folder / "summary.json").write_text(json.dumps(summary(test=4.0)))
    steps(300).to_csv(folder / "steps.csv", index=False)
    write_run(tmp_path / "o" / "other", config(DEMO, "sgd"), summary())
    command = ["collect", "--runs", str(tmp_path / "o"), "--out", str(tmp_path / "paper"), "--curves", folder.name]
    assert main(command) == 0
    assert "1 of these runs have other results than those kept in" in capsys.readouterr().err
    assert (tmp_path / "paper/ptb.csv").read_bytes() == before
    assert not (tmp_path / "paper/curves").exists(), "the curve of another result than the one that is kept"
    assert (tmp_path / "paper/other/demo.csv").exists()
    with pytest.raises(UserError, match="the same run"):
        reading.read_runs([tmp_path / "o", tmp_path / "paper"], "ptb")


def test_a_run_with_other_results_in_two_places_is_refused(tmp_path: Path) -> None:
    places = [tmp_path / "a", tmp_path / "b"]
    folders = [
        write_run(place, config(PTB, "sgd"), summary(test=loss)) for place, loss in zip(places, (4.0, 5.0), strict=True)
    ]
    with pytest.raises(UserError, match="the same run") as refused:
        list(collect_runs(places, [], tmp_path / "paper", []))
    assert all(str(folder) in str(refused.value) for folder in folders)
    assert not (tmp_path / "paper").exists()


OWN = (("text", {"vocabulary": 100}, "1"), ("piano_roll", {"steps_per_beat": 4}, "2"))


@pytest.mark.parametrize(("name", "own", "which"), OWN)
def test_runs_on_a_corpus_of_ones_own_are_kept_without_its_place(
    name: str, own: dict[str, int], which: str, tmp_path: Path
) -> None:
    corpus = {"dataset": {"name": name, "root": str(tmp_path / "somewhere"), **own}, "experiment": "mine"}
    folder = write_run(tmp_path / "o", config(corpus, "sgd"), summary())
    for _ in range(2):
        gather(tmp_path / "o", tmp_path / "paper")
    kept = tmp_path / "paper/mine.csv"
    assert "somewhere" not in kept.read_text()
    both = reading.read_runs([tmp_path / "o", tmp_path / "paper"], "mine")
    assert list(both["folder"]) == [str(folder)]
    of_folders, of_the_file = (
        tables.table(which, reading.read_runs(place, "mine")) for place in (folder.parents[1], kept.parent)
    )
    assert of_the_file == of_folders


def test_runs_of_before_a_setting_was_added_are_what_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = config(PTB, "sgd"), config(PTB, "sgd", trainer__radius_every=49)
    with_it = run.identity(DATA_SHA256)
    monkeypatch.setitem(added, "trainer.radius_every", 50)
    before = {name: value for name, value in run.identity_settings().items() if name != "trainer.radius_every"}
    assert run.identity_settings() == before
    assert len({with_it, run.identity(DATA_SHA256), other.identity(DATA_SHA256)}) == 3
    # Where an experiment's file gives another, both have names.
    assert len({folder_name(one, other, one.identity("")) for one in (run, other)}) == 2
    write_run(tmp_path / "o", run, summary())
    gather(tmp_path / "o", tmp_path / "paper")
    path = tmp_path / "paper/ptb.csv"
    lines = list(collected.csv.reader(path.read_text().splitlines()))
    place = lines[0].index("trainer.radius_every")
    with path.open("w", newline="") as file:
        collected.csv.writer(file, lineterminator="\n").writerows(line[:place] + line[place + 1 :] for line in lines)
    (row,) = reading.read_runs(tmp_path / "paper", "ptb").to_dict("records")
    assert (row["identity"], row["trainer.radius_every"]) == (run.identity(DATA_SHA256), 50)


def test_runs_kept_apart_stay_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "o", config(PTB, "sgd"), summary())
    write_run(tmp_path / "o" / "figure2", config(PTB, "sgd"), summary(steps=50), None, timing(1))
    write_run(tmp_path / "o" / "demo" / "a", config(DEMO, "sgd"), summary())
    made = gather(tmp_path / "o", tmp_path / "paper")
    assert sorted(made) == [("demo.csv", 1, 1), ("figure2/ptb.csv", 1, 1), ("ptb.csv", 1, 1)]
    only = [path.name for path, *_ in collect_runs([tmp_path / "o"], ["demo"], tmp_path / "paper", [])]
    assert only == ["demo.csv"]


def test_a_name_that_stands_twice_in_a_collected_file_is_refused(tmp_path: Path) -> None:
    """By its name a run's line and curves are found again."""
    first, second = (write_run(tmp_path / "o", config(PTB, "sgd", seed=seed), summary()).name for seed in (0, 1))
    gather(tmp_path / "o", tmp_path / "paper")
    path = tmp_path / "paper" / "ptb.csv"
    path.write_text(path.read_text().replace(second, first))
    with pytest.raises(UserError, match="line 3: the run of line 2 once more"):
        reading.read_runs(tmp_path / "paper", "ptb")


def test_unfinished_runs_are_left_out_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path / "o", config(PTB, "sgd"), summary("unfinished"))
    with pytest.raises(UserError, match="no finished runs there; train some"):
        gather(tmp_path / "o", tmp_path / "paper")
    assert not (tmp_path / "paper").exists()
    write_run(tmp_path / "o", config(PTB, "sgd", seed=1), summary())
    assert gather(tmp_path / "o", tmp_path / "paper") == [("ptb.csv", 1, 1)]


def test_two_runs_whose_folders_share_a_name_are_told_apart(tmp_path: Path) -> None:
    for clipping, algorithm in ((1.0, "auto"), (50.0, "full")):
        run = config(PTB, "spectral_clipping", 0.2, optimizer__algorithm=algorithm)
        write_run(tmp_path / "o" / "ptb" / algorithm, run, summary(), None, timing(2, clipping=clipping))
    gather(tmp_path / "o", tmp_path / "paper")
    runs = reading.read_runs(tmp_path / "paper", "ptb")
    seconds = [reading.read_timing(folder)["clipping"].tolist() for folder in runs["folder"]]
    np.testing.assert_allclose(seconds, [[1.0, 1.0], [50.0, 50.0]])


# -- curves and figures -----------------------------------------------------------------------------------


def test_every_figure_is_drawn_of_collected_files_alone(tmp_path: Path) -> None:
    write_runs(tmp_path / "o")
    gather(tmp_path / "o", tmp_path / "paper")
    runs = reading.read_runs(tmp_path / "paper", "ptb")
    for which, chosen in (("1", runs), ("2", runs[runs["optimizer.lr"] == 1.0]), ("lr", runs)):
        assert figure(which, chosen, tmp_path / "figures", ("svg",)) == [tmp_path / f"figures/figure_{which}.svg"]


def test_figure_2_of_a_collected_file_has_the_seconds_of_the_run_folders(tmp_path: Path) -> None:
    table = pd.concat([timing(2, clipping=1.0), timing(1, clipping=9.0), timing(1, iterations=100)], ignore_index=True)
    write_run(tmp_path / "o", config(PTB, "sgd"), summary(), None, table)
    gather(tmp_path / "o", tmp_path / "paper")
    (folder,) = reading.read_runs(tmp_path / "paper", "ptb")["folder"]
    read = reading.read_timing(folder)
    assert read["iterations"].tolist() == [1327, 1327, 1327, 100]
    phases = ["forward", "backward", "update", "clipping"]
    pd.testing.assert_series_equal(
        read[phases].div(read["iterations"], axis="index").median(),
        table[phases].div(table["iterations"], axis="index").median(),
    )


def test_a_run_that_was_timed_in_a_stack_that_shrank_is_kept_as_one_of_a_stack(tmp_path: Path) -> None:
    shrunk = pd.concat([timing(1, stack_size=3), timing(1)])
    folder = write_run(tmp_path / "o", config(PTB, "sgd"), summary(), None, shrunk)
    gather(tmp_path / "o", tmp_path / "paper")
    assert reading.read_timing(tmp_path / "paper" / "ptb.csv" / folder.name)["stack_size"].max() == 3


def test_thinned_steps_keep_every_peak_and_both_ends() -> None:
    whole = steps(20_000, explodes_at=15_000)
    whole.loc[7_777, "grad_norm"] = np.inf
    whole.loc[8_888, "grad_norm"] = np.nan
    whole.loc[9_995, "spectral_radius_l0"] = "7"  # where no norm is large
    radius = pd.to_numeric(whole["spectral_radius_l0"])
    frame = pd.DataFrame({"step": whole["step"], "grad_norm": whole["grad_norm"], "radius": radius})
    frame["measured"] = radius.notna()
    few = curves.thinned(frame)
    assert len(few) <= 2 * curves.BINS + 2
    assert frame["radius"].idxmax() == 9_995
    assert set(few.index) >= {0, 7_777, 8_888, 9_995, 19_999}
    for start in range(0, 20_000, 20):
        bin_ = frame["grad_norm"][start : start + 20].fillna(np.inf)
        assert few["grad_norm"].fillna(np.inf)[few.index.isin(bin_.index)].max() == bin_.max()


def test_short_curves_are_kept_whole_with_six_digits(tmp_path: Path) -> None:
    write_runs(tmp_path / "o", range(1))
    named = "gradient_clipping,threshold=5,lr=0.1,seed=0"
    gather(tmp_path / "o", tmp_path / "paper", named)
    read = reading.read_steps(tmp_path / "paper" / "ptb.csv" / named)
    whole = reading.read_steps(tmp_path / "o" / "ptb" / named)
    pd.testing.assert_frame_equal(read, whole, rtol=1e-5)
    other = "spectral_clipping,delta=0.2,lr=0.1,seed=0"
    with pytest.raises(UserError, match=f"holds no steps of {other}; collect it anew"):
        reading.read_steps(tmp_path / "paper" / "ptb.csv" / other)
    with pytest.raises(UserError, match="--curves nobody: no finished run has this name"):
        gather(tmp_path / "o", tmp_path / "paper", "nobody")


def test_the_curves_of_a_run_that_was_kept_without_them_are_added_from_its_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "o", config(PTB, "sgd"), summary(), steps(30))
    gather(tmp_path / "o", tmp_path / "paper")
    kept = tmp_path / "paper" / "ptb.csv" / folder.name
    with pytest.raises(UserError, match=f"holds no steps of {folder.name}; .*gruclip collect --curves NAME"):
        reading.read_steps(kept)
    gather(tmp_path / "o", tmp_path / "paper", folder.name)
    assert len(reading.read_steps(kept)) == 30


def test_epochs_are_kept_of_every_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "o", config(PTB, "sgd"), summary())
    head = ",".join(curves.EPOCHS)
    (folder / "epochs.csv").write_text(f"{head}\n0,,,9.2123456789,,,\n1,0.1,7.5,nan,26.1,inf,618\n")
    gather(tmp_path / "o", tmp_path / "paper")
    read = reading.read_epochs(tmp_path / "paper" / "ptb.csv" / folder.name)
    pd.testing.assert_frame_equal(pd.DataFrame(read), pd.DataFrame(reading.read_epochs(folder)), rtol=1e-5)
    assert math.isinf(read["grad_norm_max"][1])


def test_curves_are_the_same_bytes_whenever_they_are_packed() -> None:
    content = curves.packed("steps", {"b" * 64: "1,2,3\n", "a" * 64: "1,2,\n"})
    assert content == curves.packed("steps", {"a" * 64: "1,2,\n", "b" * 64: "1,2,3\n"})
    assert content[4:8] == bytes(4)  # no time
    assert gzip.decompress(content).decode() == f"identity,step,grad_norm,radius\n{'a' * 16},1,2,\n{'b' * 16},1,2,3\n"


@pytest.mark.parametrize(("kind", "remedy"), [("steps", "name fewer runs"), ("epochs", "collect fewer runs")])
def test_curves_that_grow_too_large_are_refused(
    kind: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_runs(tmp_path / "o", range(1))
    for folder in (tmp_path / "o").rglob("steps.csv"):
        folder.with_name("epochs.csv").write_text(f"{','.join(curves.EPOCHS)}\n1,0.1,7.5,7.4,26.1,30.2,618\n")
    monkeypatch.setitem(curves.MAX_BYTES, kind, 50)
    with pytest.raises(UserError, match=rf"curves: {kind} would be \d+ bytes, at most 50 are kept; {remedy}"):
        gather(tmp_path / "o", tmp_path / "paper")
    assert not (tmp_path / "paper").exists()


def test_the_epochs_of_all_runs_that_a_lent_gpu_trains_fit_into_what_is_kept() -> None:
    """A tenth of them, of numbers that are all different."""
    generator = np.random.default_rng(0)
    planned = [*gpu_runs.table2(), *gpu_runs.learning_rates()]
    lines = gpu_study.plateau_epochs(planned[0]) + 1
    made = {}
    for run in range(len(planned) // 10):
        columns = generator.random((lines, len(curves.EPOCHS) - 1))
        epochs = pd.DataFrame(columns, columns=list(curves.EPOCHS[1:]))
        epochs.insert(0, "epoch", np.arange(lines))
        # As they are: rates that fall a few times, and whole numbers.
        epochs["lr"], epochs["values_clipped"] = 0.1 / 1.25 ** (epochs["epoch"] // 12), run
        made[hashlib.sha256(str(run).encode()).hexdigest()] = curves.epoch_lines(epochs)
    assert 10 * len(curves.packed("epochs", made)) <= curves.MAX_BYTES["epochs"]
    assert curves.MAX_BYTES["epochs"] <= 16 << 20


@pytest.mark.parametrize(
    "content", [b"", b"no gzip", gzip.compress(b"a,b\n", mtime=0), gzip.compress(b"\xff", mtime=0)]
)
def test_curves_that_are_damaged_are_named(tmp_path: Path, content: bytes) -> None:
    write_runs(tmp_path / "o", range(1))
    gather(tmp_path / "o", tmp_path / "paper")
    path = tmp_path / "paper" / "curves" / "ptb.steps.csv.gz"
    for bad in (content, path.read_bytes()[:-20]):
        path.write_bytes(bad)
        curves._read_curves.cache_clear()
        with pytest.raises(UserError, match=rf"^{path}: .* gruclip collect$"):
            curves.read_curves(tmp_path / "paper" / "ptb.csv", "steps")


# -- what is no collected file ----------------------------------------------------------------------------


def edited(name: str, value: str) -> Callable[[bytes], bytes]:
    """The file with the field `name` of its first run set to `value`."""

    def edit(content: bytes) -> bytes:
        lines = collected.csv.reader(content.decode().splitlines())
        head, first, *rest = list(lines)
        first[head.index(name)] = value
        out = collected.io.StringIO()
        collected.csv.writer(out, lineterminator="\n").writerows([head, first, *rest])
        return out.getvalue().encode()

    return edit


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "foreign column": (lambda c: c.replace(b"run,identity", b"run,foreign,identity", 1), "column 'foreign'"),
    "column twice": (lambda c: c.replace(b"run,identity", b"run,run,identity", 1), "column 'run': twice"),
    "missing column": (lambda c: c.replace(b",seed,", b",", 1), "lacks the column 'seed'"),
    "cut short": (lambda c: c[:-9], "cut short in its last line"),
    "cut in a field": (lambda c: c[: c.rindex(b",")] + b"\n", "line 3: 70 fields of 71"),
    "empty": (lambda _: b"", "lacks the column 'run'"),
    "not UTF-8": (lambda c: c.replace(b"made processor", b"made \xff", 1), "is not UTF-8"),
    "NUL": (lambda c: c.replace(b"made", b"ma\0e", 1), "is NUL"),
    "a quote": (lambda c: c.replace(b"gradient", b'gra"d"ient', 1), "damaged"),
    "duplicated": (lambda c: c + c.splitlines(keepends=True)[-1], "line 4: the run of line 3 once more"),
    "edited setting": (edited("optimizer.lr", "0.3"), "line 2: altered: its settings are not those of its identity"),
    "no number": (edited("test_loss", "low"), "line 2: test_loss=low: should be a number"),
    "no whole number": (edited("epochs", "1.5"), "line 2: epochs=1.5: should be a whole number"),
    "no setting": (edited("seed", "-1"), "line 2: seed=-1: should be a whole number from 0"),
    "no status": (edited("status", "victory"), "status=victory: should be one of"),
    "unfinished": (edited("status", "unfinished"), "only finished runs are collected"),
    "no truth": (edited("exploded", "maybe"), "exploded='maybe': should be true or false"),
    "success without a loss": (edited("test_loss", ""), "a success without test_loss"),
    "no time": (edited("timing.epochs", "x"), "timing.epochs=x: should be a number"),
    "half an iteration": (edited("iterations.below", "1.5"), "iterations.below=1.5: should be a whole number of 0"),
    "no end of epochs": (edited("timing.epochs", "inf"), "timing.epochs=inf: should be a whole number of 0 or more"),
    "less than no time": (edited("iteration.clipping", "-1"), "iteration.clipping=-1: should be a number of 0 or more"),
    "a count alone": (edited("explosions.above", "1"), "explosions.above=1: and iterations.below=, of which one"),
    "a phase without time": (edited("iteration.clipping", ""), "iteration.clipping=: and timing.iterations=1"),
    "epochs without times": (edited("timing.epochs", "0"), "with timing.epochs=0"),
    "kernels of no kind": (edited("kernels", "[]"), "kernels=[]: should be JSON objects"),
    "kernels in no JSON": (edited("kernels", "{"), "line 2: "),
}


def test_no_number_and_no_kernels_that_were_not_written_so_break_a_table(tmp_path: Path) -> None:
    write_runs(tmp_path / "o", range(1))
    gather(tmp_path / "o", tmp_path / "paper")
    path = tmp_path / "paper" / "ptb.csv"
    whole = path.read_bytes()
    for column in (*collected.NUMBERS, "kernels"):
        for value in ("nan", "inf", "-1", "1.5", "1e400", "x", "[]", "null", ""):
            path.write_bytes(edited(column, value)(whole))
            with suppress(UserError):
                runs = reading.read_runs(tmp_path / "paper", "ptb")
                for which in ("1", "explosions", "cost"):
                    tables.table(which, runs)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_was_not_written_so_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    damage, complaint = DAMAGES[name]
    for method in (("gradient_clipping", 5), ("spectral_clipping", 0.2)):
        write_run(tmp_path / "o", config(PTB, *method), summary(), None, timing(1))
    gather(tmp_path / "o", tmp_path / "paper")
    path = tmp_path / "paper" / "ptb.csv"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as refused:
        reading.read_runs(tmp_path / "paper", "ptb")
    assert str(refused.value).startswith(f"{path}: ")
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError):
        gather(tmp_path / "o", tmp_path / "paper")


numbers = st.none() | st.floats()
counts = st.none() | st.integers(0, 2**40)


#: Commands have no other characters: `test_a_command_is_kept_on_one_line`.
PRINTABLE = st.characters().filter(str.isprintable)


@given(st.lists(st.text(), max_size=4))
def test_a_command_is_kept_on_one_line(command: list[str]) -> None:
    environment = {"device": "cpu", "threads": 1, "processor": "p", "command": command}
    kept = environment_columns(environment)["command"]
    assert kept is None or kept.isprintable()


@st.composite
def summaries(draw: st.DrawFn) -> dict[str, Any]:
    status = draw(st.sampled_from(["success", "failed", "diverged"]))
    losses = st.floats(allow_nan=False) if status == "success" else numbers
    values = {"valid_loss": draw(losses), "test_loss": draw(losses), "exploded": draw(st.booleans())}
    values |= {name: draw(numbers) for name in ("initial_valid_loss", "max_grad_norm")}
    values |= {name: draw(counts) for name in ("best_epoch", "first_exploded_step")}
    extra = draw(st.dictionaries(st.text("abc", min_size=1), st.booleans() | st.integers() | st.text(), max_size=2))
    return {**SUMMARY, **extra, "status": status, "epochs": draw(st.integers(0, 999)), **values}


@given(st.lists(summaries(), min_size=1, max_size=4), st.floats(1e-9, 1e9), st.text(PRINTABLE, max_size=9))
def test_any_summary_comes_back_as_it_was(results: list[dict[str, Any]], rate: float, command: str) -> None:
    made = []
    for seed, result in enumerate(results):
        run = RunConfig.from_dict({"seed": seed, "optimizer": {"delta": 0.2, "lr": rate}})
        row = collected.row(run, result, folder=Path(f"o/run{seed}"), identity=run.identity("d"), data_sha256="d",
                            environment={"command": command or None})  # fmt: skip
        made.append((row, collected.record(row, result, {})))
    with pytest.MonkeyPatch.context() as patch:
        content = collected.text(record for _, record in made)
        patch.setattr(Path, "read_bytes", lambda _: content.encode())
        read = collected.read(Path("demo.csv"))
    assert collected.text(record for _, record in read) == content
    for (row, _), (back, _) in zip(made, read, strict=True):
        assert {k: repr(v) for k, v in back.items() if k not in OF_THE_PLACE} == {
            k: repr(v) for k, v in row.items() if k not in OF_THE_PLACE
        }


# -- the command ------------------------------------------------------------------------------------------


def test_a_table_of_a_fresh_clone_is_that_of_the_collected_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_runs(Path("outputs"))
    assert main(["table", "lr"]) == 0
    expected = capsys.readouterr().out
    assert main(["collect"]) == 0
    assert capsys.readouterr().out == "outputs/paper/ptb.csv: 12 runs, 12 of them new\n"
    assert main(["table", "lr"]) == 0  # both, as one
    (tmp_path / "outputs/ptb").rename(tmp_path / "away")
    assert main(["table", "lr"]) == 0
    assert main(["table", "lr", "--runs", "outputs/paper"]) == 0
    assert capsys.readouterr().out == 3 * expected


def test_a_conflict_ends_the_command_with_2_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("a"), config(PTB, "sgd"), summary())
    write_run(Path("b"), config(PTB, "sgd"), summary(test=4.0))
    assert main(["collect", "--runs", "a", "b", "--out", "paper"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("paper").exists()
    assert main(["collect", "--runs", "nowhere"]) == 2
    assert "--runs nowhere: there is no such folder" in capsys.readouterr().err


def test_a_long_run_is_thinned_as_it_is_read_and_keeps_every_explosion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "CHUNK", 5000)
    path, count = tmp_path / "steps.csv", 12_345
    norms = [1e9 if step in (4999, 5001, 12_000) else 3.0 for step in range(1, count + 1)]
    rows = [f"{step},4.5,{norm},1.8,,0" for step, norm in enumerate(norms, start=1)]
    path.write_text("\n".join(["step,loss,grad_norm,spectral_norm_l0,spectral_radius_l0,values_clipped", *rows]) + "\n")
    read = curves.read_steps(path)
    assert list(read["step"][read["grad_norm"] > 1e6]) == [4999, 5001, 12_000]
    assert (read["step"].iloc[0], read["step"].iloc[-1]) == (1, count)
    assert read["step"].is_monotonic_increasing
    assert len(read) < count
