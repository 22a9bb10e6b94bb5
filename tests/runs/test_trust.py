"""A run's folder under attack: what was altered, cut, swapped or refused is noticed, named, and never trained on."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from gruclip.config import DatasetConfig, ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.errors import Interrupted, UserError
from gruclip.model import evaluation
from gruclip.model.stacked import nll
from gruclip.report.reading import read_runs
from gruclip.runs import files, ownership
from gruclip.runs.checkpoints import DamagedCheckpoint, before, read_checkpoint
from gruclip.runs.folder import RunFolder
from gruclip.runs.ownership import read_owner
from gruclip.runs.records import read_config, read_environment, read_json, read_summary, read_yaml
from gruclip.runs.sums import SUMS, sums_of
from gruclip.runs.trained import evaluate_run
from gruclip.runs.verify import faults
from gruclip.training import active_run
from gruclip.training.engine import Engine
from gruclip.training.jobs import Job
from gruclip.training.runner import RunResult, train

RESULTS = ("epochs.csv", "steps.csv", "summary.json", "checkpoint/best.safetensors")


def config(path: Path, **changes: Any) -> RunConfig:
    """Thirty iterations of eight units, a checkpoint after each."""
    base = RunConfig(
        model=ModelConfig(hidden_size=8),
        optimizer=OptimizerConfig("spectral_clipping", lr=1.0, delta=1.05),
        trainer=TrainerConfig(max_epochs=None, max_steps=30, bptt=5, radius_every=10, checkpoint_minutes=1e-9),
        output_dir=str(path),
        device="cpu",
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """The run as nobody disturbed it."""
    (result,) = train([config(tmp_path_factory.mktemp("whole"))], quiet=True)
    return result


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run stopped at its fifteenth iteration."""
    path, steps = tmp_path_factory.mktemp("half"), 0

    def step(engine: Engine, *arguments: Any, step: Any = Engine.step) -> Any:
        nonlocal steps
        steps += 1
        if steps == 16:
            raise Interrupted(15)
        return step(engine, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", step)
        with pytest.raises(Interrupted):
            train([config(path)], quiet=True)
    return Job(config(path), RunConfig()).folder.path


@pytest.fixture
def broken(half: Path, tmp_path: Path) -> Path:
    """A copy of `half` to be attacked."""
    copy = tmp_path / "demo" / half.name
    shutil.copytree(half, copy)
    return copy


def same_as(folder: Path, whole: RunResult) -> bool:
    """Whether a run left what `whole` left, but for the seconds it took."""
    identity = read_config(folder)[1]["identity"]
    one, other = (read_checkpoint(last(path), identity).tensors for path in (folder, whole.folder))
    files_are = all((folder / name).read_bytes() == (whole.folder / name).read_bytes() for name in RESULTS)
    return files_are and one.keys() == other.keys() and all(tensor.equal(other[name]) for name, tensor in one.items())


def last(folder: Path) -> Path:
    return folder / "checkpoint" / "last.safetensors"


# -- checkpoints ------------------------------------------------------------------------------------------


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def flip(path: Path, where: float, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[min(len(content) - 1, int(where * len(content)))] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize(
    "attack",
    [
        lambda path: cut(path, 0.0),
        lambda path: cut(path, 0.5),
        lambda path: cut(path, 0.999),
        lambda path: flip(path, 0.0),
        lambda path: flip(path, 0.05),
        lambda path: flip(path, 0.5),
        lambda path: flip(path, 1.0),
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
    ],
    ids=["empty", "half", "nearly whole", "first byte", "header", "payload", "last byte", "dangling link"],
)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_gives_the_same_bits(
    attack: Callable[[Path], object], broken: Path, tmp_path: Path, whole: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    attack(last(broken))
    (result,) = train([config(tmp_path)])
    assert "continued from the checkpoint before it" in capsys.readouterr().err
    assert same_as(result.folder, whole)
    assert faults(result.folder) == []


def test_a_folder_in_the_place_of_a_checkpoint_is_named(broken: Path, tmp_path: Path) -> None:
    last(broken).unlink()
    last(broken).mkdir()
    with pytest.raises(UserError, match=r"last\.safetensors: cannot be written"):
        train([config(tmp_path)], quiet=True)


@hypothesis.given(where=st.floats(0, 1), bit=st.integers(0, 7))
@hypothesis.settings(max_examples=150)
def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(where: float, bit: int, half: Path) -> None:
    identity = read_config(half)[1]["identity"]
    attacked = half / "attacked" / "last.safetensors"
    attacked.parent.mkdir(exist_ok=True)
    shutil.copyfile(last(half), attacked)
    flip(attacked, where, bit)
    try:
        found = read_checkpoint(attacked, identity)
    except UserError:
        return
    # A bit of the header that changes nothing, such as the place of a space.
    intact = read_checkpoint(last(half), identity)
    assert found.progress == intact.progress
    assert all(bool((found.tensors[name] == tensor).all()) for name, tensor in intact.tensors.items())


def test_a_checkpoint_whose_tensors_are_read_in_another_shape_or_type_is_damaged(half: Path, tmp_path: Path) -> None:
    """Of the same bytes under the same names."""
    identity = read_config(half)[1]["identity"]
    with safe_open(last(half), framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    path, weight = tmp_path / "last.safetensors", tensors["parameters/weight_hh_l0"]
    for altered in (weight, weight.reshape(8, -1), weight.view(torch.int32)):
        save_file({**tensors, "parameters/weight_hh_l0": altered}, path, metadata)
        if altered is weight:
            read_checkpoint(path, identity)
        else:
            with pytest.raises(DamagedCheckpoint, match="its SHA-256 is not the one in its header"):
                read_checkpoint(path, identity)


def test_a_run_s_best_checkpoint_is_not_taken_for_its_last(broken: Path, tmp_path: Path, whole: RunResult) -> None:
    shutil.copytree(whole.folder, broken, dirs_exist_ok=True)
    (broken / "summary.json").unlink()
    shutil.copyfile(broken / "checkpoint" / "best.safetensors", last(broken))
    before(last(broken)).unlink(missing_ok=True)
    with pytest.raises(
        UserError, match=r"last\.safetensors: the checkpoint is best of this run; no checkpoint is left"
    ):
        train([config(tmp_path)], quiet=True)


def test_the_last_file_of_a_finished_run_is_its_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a kill leaves no finished run without the sums of its files."""
    written: list[tuple[str, bool]] = []

    def write(path: Path, content: str | bytes) -> None:
        files.write_whole(path, content)
        written.append((path.name, job.folder.is_finished()))

    job = Job(config(tmp_path), RunConfig())
    monkeypatch.setattr("gruclip.runs.folder.write_whole", write)
    train([config(tmp_path)], quiet=True)
    assert written[-2:] == [(SUMS, False), ("summary.json", True)]


def test_a_kill_while_the_checkpoint_before_is_named_leaves_nothing_behind(
    broken: Path, tmp_path: Path, whole: RunResult
) -> None:
    """The last checkpoint has two names then, and the next rename would do nothing."""
    before(last(broken)).unlink()
    os.link(last(broken), before(last(broken)))
    (result,) = train([config(tmp_path)], quiet=True)
    assert same_as(result.folder, whole)
    assert not list(result.folder.rglob("*.partial"))


def test_two_damaged_checkpoints_are_refused_and_nothing_is_changed(broken: Path, tmp_path: Path) -> None:
    for path in (last(broken), before(last(broken))):
        cut(path, 0.5)
    held = {path: path.read_bytes() for path in broken.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(UserError, match="no checkpoint is left to continue from: move the folder away"):
        train([config(tmp_path)], quiet=True)
    assert held == {path: path.read_bytes() for path in broken.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"precision": "fp64"},
        {"model": ModelConfig(hidden_size=8, num_layers=2)},
        {"model": ModelConfig(hidden_size=8, cell="lstm")},
    ],
    ids=["another seed", "fp64", "two layers", "another cell"],
)
def test_a_checkpoint_of_another_run_is_not_taken(
    other: dict[str, Any], whole: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delta = OptimizerConfig("spectral_clipping", lr=1.0, delta=1.05)
    (stranger,) = train([config(tmp_path / "other", optimizer=delta, **other)], quiet=True)
    (result,) = train([config(tmp_path)], quiet=True)
    best = result.folder / "checkpoint" / "best.safetensors"
    shutil.copyfile(stranger.folder / "checkpoint" / "best.safetensors", best)
    with pytest.raises(UserError, match="best of another run"):
        evaluate_run(result.folder, "valid")
    shutil.copyfile(stranger.folder / "checkpoint" / "last.safetensors", last(result.folder))
    (result.folder / "summary.json").unlink()
    with pytest.raises(UserError, match="last of another run"):
        train([config(tmp_path)], quiet=True)
    assert any("altered since" in fault or "another run" in fault for fault in faults(result.folder))


def test_best_that_is_gone_is_refused_before_any_training(broken: Path, tmp_path: Path, whole: RunResult) -> None:
    shutil.copytree(whole.folder, broken, dirs_exist_ok=True)
    (broken / "summary.json").unlink()
    (broken / "checkpoint" / "best.safetensors").unlink()
    with pytest.raises(UserError, match=r"checkpoint/best, of epoch 1, is gone or damaged; move the folder away"):
        train([config(tmp_path)], quiet=True)


# -- a run that is over -----------------------------------------------------------------------------------


def test_a_finished_run_whose_summary_is_gone_is_not_trained_on(tmp_path: Path, whole: RunResult) -> None:
    (result,) = train([config(tmp_path)], quiet=True)
    (result.folder / "summary.json").unlink()
    (result.folder / "checkpoint" / ".best.safetensors.partial").write_bytes(b"half of what a kill cut short")
    (again,) = train([config(tmp_path)], quiet=True)
    assert same_as(again.folder, whole)
    assert not list(result.folder.rglob("*.partial"))


def test_a_run_that_another_process_finishes_between_the_look_and_the_lock_is_left_alone(
    tmp_path: Path, whole: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(tmp_path)
    real, calls = Job.__init__, []

    def finished_meanwhile(job: Job, *arguments: Any) -> None:
        real(job, *arguments)
        calls.append(job)
        if len(calls) == 1:
            train([made], quiet=True)

    monkeypatch.setattr(Job, "__init__", finished_meanwhile)
    # The first job believes the run to be pending; when it looks again, the run is over.
    monkeypatch.setattr("gruclip.runs.folder.RunFolder.is_finished", _once_unfinished())
    (result,) = train([made], quiet=True)
    assert same_as(result.folder, whole)


def _once_unfinished() -> Callable[..., bool]:
    from gruclip.runs.folder import RunFolder

    real, looks = RunFolder.is_finished, iter([False, False])
    return lambda folder: next(looks, None) is None and real(folder)


# -- CSV files, records -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["steps.csv", "epochs.csv", "timing.csv"])
@pytest.mark.parametrize("how", ["removed", "emptied", "cut"])
def test_csv_files_that_end_before_the_checkpoint_are_never_padded(
    name: str, how: str, broken: Path, tmp_path: Path
) -> None:
    path = broken / name
    if how == "removed":
        path.unlink()
    else:
        cut(path, 0.0 if how == "emptied" else 0.4)
    with pytest.raises(UserError, match=rf"{name}: \d+ bytes long, and had \d+ at the checkpoint"):
        train([config(tmp_path)], quiet=True)


def test_a_row_cut_short_after_the_last_checkpoint_is_trained_again(
    broken: Path, tmp_path: Path, whole: RunResult
) -> None:
    with (broken / "steps.csv").open("a") as file:
        file.write("16,3.2")
    (result,) = train([config(tmp_path)], quiet=True)
    assert same_as(result.folder, whole)


@pytest.mark.parametrize("leftover", [".config.yaml.partial", ".lock"])
def test_a_folder_in_which_a_kill_left_the_first_file_half_written_is_used(
    leftover: str, tmp_path: Path, whole: RunResult
) -> None:
    folder = Job(config(tmp_path), RunConfig()).folder.path
    folder.mkdir(parents=True)
    (folder / leftover).write_text("half")
    (result,) = train([config(tmp_path)], quiet=True)
    assert same_as(result.folder, whole)
    assert not list(result.folder.rglob("*.partial"))


def test_a_folder_with_files_and_no_configuration_is_refused(tmp_path: Path) -> None:
    folder = Job(config(tmp_path), RunConfig()).folder.path
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"holds files and no config\.yaml"):
        train([config(tmp_path)], quiet=True)


def test_an_edited_setting_is_refused_wherever_the_run_is_read(broken: Path, tmp_path: Path) -> None:
    path = broken / "config.yaml"
    path.write_text(path.read_text().replace("delta: 1.05", "delta: 0.2"))
    for read in (lambda: train([config(tmp_path)], quiet=True), lambda: evaluate_run(broken, "valid")):
        with pytest.raises(UserError, match=r"config\.yaml: altered after the run was begun"):
            read()


DAMAGES: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("an empty object", b"{}"),
    ("a list", b"[1, 2]"),
    ("not UTF-8", b'{"status": "success\xff"}'),
    ("NUL bytes", b"\0\0\0\0"),
    ("cut short", b'{"status": "succ'),
    ("nested too deeply", b"[" * 100_000),
    ("a tag that would run code", b"!!python/object/apply:os.system ['touch ran']"),
    ("a status of somebody else", b'{"status": "perfect"}'),
]


@pytest.mark.parametrize("content", [content for _, content in DAMAGES], ids=[name for name, _ in DAMAGES])
@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "environment.json"])
def test_a_damaged_record_is_told_in_one_line(
    name: str, content: bytes, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (broken / name).write_bytes(content)
    reader = {"config.yaml": read_config, "summary.json": read_summary}.get(name)
    if name == "environment.json" and content.startswith((b"{}", b'{"status": "p')):
        content = b'{"versions": null}'  # without what is asked of it nothing is known; but this is nobody's record
        (broken / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        reader(broken) if reader else read_environment(broken)
    assert "\n" not in str(caught.value)
    assert str(broken) in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_record_that_must_not_be_read_is_not_to_be_removed(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    for read, name in ((read_yaml, "config.yaml"), (read_json, "summary.json"), (read_json, "environment.json")):
        told = rf"^{broken / name}: cannot be read \(Permission denied\); mend its permissions$"
        with pytest.raises(UserError, match=told):
            read(broken / name)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: os.truncate(folder / "steps.csv", 50), "steps.csv: 50 bytes long, and had"),
        (lambda folder: (folder / "steps.csv").unlink(), "steps.csv: 0 bytes long, and had"),
        (lambda folder: (folder / "environment.json").write_text("{"), "environment.json"),
        (lambda folder: (folder / ".owner").write_text("xx"), ".owner: damaged"),
    ],
)
def test_what_keeps_an_unfinished_run_from_being_continued_is_no_run_as_it_was_written(
    damage: Callable[[Path], object], told: str, broken: Path
) -> None:
    assert faults(broken) == []
    damage(broken)
    (fault,) = faults(broken)
    assert told in fault


# -- finished runs ----------------------------------------------------------------------------------------


def test_on_a_disk_that_can_only_be_read_finished_runs_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [config(tmp_path), config(tmp_path, seed=5)]
    train(runs, quiet=True)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and access(path, mode))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert [result.skipped for result in train(runs, quiet=True)] == [True, True]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(UserError, match="is not a folder that can be written to"):
        train([config(tmp_path, seed=6)], quiet=True)


@pytest.mark.parametrize("name", [*RESULTS, "config.yaml", "timing.csv", "environment.json"])
def test_what_was_altered_in_a_finished_run_is_named(name: str, whole: RunResult, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole.folder, copy)
    assert faults(copy) == []
    with (copy / name).open("ab") as file:
        file.write(b"\n")
    assert any(str(copy / name) in fault for fault in faults(copy))
    (copy / name).unlink()
    (fault,) = faults(copy)
    assert str(copy) in fault


@pytest.mark.parametrize(
    ("name", "row"), [("steps.csv", "31,,,,,\n"), ("steps.csv", "30,,,,,\n"), ("epochs.csv", "3,,\n")]
)
def test_rows_that_are_not_the_run_s_are_named_where_their_sum_was_written_anew(
    name: str, row: str, whole: RunResult, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole.folder, copy)
    with (copy / name).open("a") as file:
        file.write(row)
    (copy / SUMS).write_text(sums_of(copy, {}))
    (fault,) = faults(copy)
    assert "rows that do not count" in fault


def test_the_sums_of_a_finished_run_are_read_by_sha256sum(whole: RunResult) -> None:
    assert os.system(f"cd '{whole.folder}' && sha256sum --quiet -c {SUMS}") == 0


def taken_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host has taken the folder, while this process was stopped for longer than the lease."""
    record = read_owner(folder)
    (folder / ".owner").write_text(json.dumps({**record, "host": "another", "token": "another's"}))
    now = ownership._now()
    monkeypatch.setattr(ownership, "_now", lambda: now + ownership.LEASE)


def test_a_run_shows_that_it_lives_in_evaluations_longer_than_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, shown, silences = 0.0, [0.0], []

    def window(*arguments: Any, **options: Any) -> Any:
        nonlocal now
        now += 100
        silences.append(now - shown[-1])
        return nll(*arguments, **options)

    monkeypatch.setattr(ownership, "_now", lambda: now)
    monkeypatch.setattr(os, "utime", lambda path: shown.append(now))
    monkeypatch.setattr(evaluation, "nll", window)
    train([config(tmp_path, trainer=TrainerConfig(max_epochs=None, max_steps=1, bptt=5))], quiet=True)
    assert now > 3 * ownership.LEASE
    assert max(silences) <= 100


@pytest.mark.parametrize("where", [(Engine, "step"), (active_run, "evaluate_weights")], ids=["training", "at the end"])
def test_a_run_that_another_host_has_taken_over_is_not_written_to(
    where: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even by the rows that wait in a buffer."""
    rarely = config(tmp_path, trainer=TrainerConfig(max_epochs=None, max_steps=5, bptt=5))
    folder, real, calls = Job(rarely, RunConfig()).folder.path, getattr(*where), itertools.count(1)
    held: dict[Path, bytes] = {}

    def stopped(*arguments: Any) -> Any:
        if next(calls) == (4 if where[1] == "step" else 1):
            taken_over(folder, monkeypatch)
            held.update({path: path.read_bytes() for path in folder.rglob("*") if path.is_file()})
        return real(*arguments)

    monkeypatch.setattr(*where, stopped)
    with pytest.raises(UserError, match="was taken over by another process after 300 seconds"):
        train([rarely], quiet=True)
    assert held == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_best_checkpoint_that_no_last_one_came_after_does_not_displace_the_one_in_use(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of runs that are killed, or find the disk full, between the two files of the same epoch time and again."""
    music = config(
        tmp_path,
        dataset=DatasetConfig("jsb_chorales", str(data_root)),
        optimizer=OptimizerConfig("gradient_clipping", lr=0.1, threshold=15.0),
        trainer=TrainerConfig(max_epochs=2),
    )

    def save(folder: RunFolder, which: str, *content: Any, save: Any = RunFolder.save) -> None:
        if which == "last" and content[1]["best_epoch"] == 2:
            raise UserError("no space left")
        save(folder, which, *content)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", save)
        for _ in range(3):
            with pytest.raises(UserError, match="no space left"):
                train([music], quiet=True)
    (result,) = train([music], quiet=True)
    assert result.summary["best_epoch"] == 2
    assert faults(result.folder) == []


def test_a_damaged_checkpoint_does_not_displace_the_one_that_was_continued_from(
    broken: Path, tmp_path: Path, whole: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(last(broken), 0.5)
    with monkeypatch.context() as patch:  # killed while the first checkpoint after it is written
        patch.setattr("gruclip.runs.checkpoints.write_whole", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train([config(tmp_path)], quiet=True)
    (result,) = train([config(tmp_path)], quiet=True)
    assert same_as(result.folder, whole)


# -- disks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", range(0, 40, 3))
def test_a_disk_that_is_full_is_told_in_one_line_and_the_run_goes_on_from_where_it_was(
    failing: int, tmp_path: Path, whole: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = files.sync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("gruclip.runs.files.sync", full)
        patch.setattr("gruclip.runs.folder.sync", full)
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); mend that") as caught:
            train([config(tmp_path)], quiet=True)
    assert "\n" not in str(caught.value)
    (result,) = train([config(tmp_path)], quiet=True)
    assert same_as(result.folder, whole)
    assert faults(result.folder) == []


def test_a_folder_that_vanishes_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(engine: Engine, *arguments: Any, step: Any = Engine.step) -> Any:
        shutil.rmtree(tmp_path / "demo", ignore_errors=True)
        return step(engine, *arguments)

    monkeypatch.setattr(Engine, "step", step)
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
        train([config(tmp_path)], quiet=True)


# -- versions ---------------------------------------------------------------------------------------------


def test_a_run_begun_with_another_torch_is_continued_only_when_asked(
    broken: Path, tmp_path: Path, whole: RunResult
) -> None:
    path = broken / "environment.json"
    record = json.loads(path.read_text())
    record["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"torch 1.0 is .* now\).*resume=anyway"):
        train([config(tmp_path)], quiet=True)
    (result,) = train([config(tmp_path, resume="anyway")], quiet=True)
    assert [one["versions"]["torch"] for one in json.loads(path.read_text())["before"]] == ["1.0"]
    assert (result.folder / "steps.csv").read_bytes() == (whole.folder / "steps.csv").read_bytes()


@pytest.mark.parametrize(
    ("name", "other"),
    [("processor", "another"), ("device", "cuda"), ("threads", 7), ("revision", "abc"), ("kernels", {"native": "no"})],
)
def test_what_a_run_was_begun_with_is_kept_where_its_bits_may_depend_on_it(
    name: str, other: Any, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = broken / "environment.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, name: other, "host": "another"}))
    train([config(tmp_path)])
    assert [one[name] for one in json.loads(path.read_text())["before"]] == [other]
    assert "not all of it with one machine, revision, kernels, threads and versions" in capsys.readouterr().err


def test_another_host_of_the_same_kind_is_no_other_origin(broken: Path, tmp_path: Path) -> None:
    path = broken / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "another", "command": ["another"]}))
    train([config(tmp_path)], quiet=True)
    assert "before" not in json.loads(path.read_text())


def test_the_configuration_written_is_the_configuration_read(whole: RunResult) -> None:
    settings = yaml.safe_load((whole.folder / "config.yaml").read_text())
    assert read_config(whole.folder)[0].identity(settings["data_sha256"]) == settings["identity"]


def test_the_same_command_twice_leaves_identical_files(whole: RunResult, tmp_path: Path) -> None:
    """All files but those that hold times; checkpoint/last has the seconds so far, its weights are the same."""
    (again,) = train([config(tmp_path)], quiet=True)
    differing = {
        path.name for path in again.folder.rglob("*")
        if path.is_file() and path.read_bytes() != (whole.folder / path.relative_to(again.folder)).read_bytes()
    }  # fmt: skip
    settings = read_yaml(again.folder / "config.yaml"), read_yaml(whole.folder / "config.yaml")
    assert {name for name in settings[0] if settings[0][name] != settings[1][name]} == {"output_dir"}
    assert differing <= {"config.yaml", "environment.json", "timing.csv", SUMS, "last.safetensors"}
    assert same_as(again.folder, whole)


@pytest.mark.parametrize("jump", [-(10**9), 10**9], ids=["backwards", "forwards"])
def test_a_clock_that_jumps_by_thirty_years_changes_nothing(
    jump: int, whole: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints go by the monotonic clock; what has been read of folders is kept for files that are surely old."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + jump * 10**9)
    (run,) = train([config(tmp_path)], quiet=True)
    assert same_as(run.folder, whole)
    assert list(read_runs(tmp_path, "demo")["valid_loss"]) == [run.summary["valid_loss"]]
    summary = json.loads((run.folder / "summary.json").read_text())
    (run.folder / "summary.json").write_text(json.dumps(summary | {"valid_loss": 1.0}))
    assert list(read_runs(tmp_path, "demo")["valid_loss"]) == [1.0]
