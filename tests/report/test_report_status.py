"""The status of a sweep names every state, and never writes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from made_runs import DEMO, config, summary, timing, write_run

from gruclip.cli import main
from gruclip.errors import UserError
from gruclip.report.status import Status, Training, _seconds_left, status, text
from gruclip.runs import ownership
from gruclip.runs.ownership import OWNER, Ownership
from gruclip.runs.sweeps import record_sweeps

SWEEP = ["-m", "seed=0,1,2,3", "model.hidden_size=64", "trainer.max_steps=400", "hydra/launcher=stacked"]


def test_every_state_of_a_sweep_that_is_killed_stopped_and_continued(tmp_path: Path) -> None:
    """Two run side by side, two wait; one of the workers is killed; the sweep is stopped."""
    outputs = tmp_path / "outputs"
    command = [sys.executable, "-m", "gruclip", "train", *SWEEP, "hydra.launcher.stack_size=2", f"output_dir={outputs}"]
    sweep = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        found = _until(outputs, lambda found: len(found.training) == 2 and min(run.step for run in found.training) > 3)
        assert (found.total, len(found.waiting), found.finished.total()) == (4, 2, 0)
        assert {run.host for run in found.training} == {os.uname().nodename}
        assert "2 in training" in text(found)
        assert "2 waiting" in text(found)
        victim = found.training[0]
        os.kill(victim.pid, signal.SIGKILL)
        found = _until(outputs, lambda found: len(found.training) == 1)
        sweep.send_signal(signal.SIGTERM)
        sweep.wait(timeout=60)
    finally:
        sweep.kill()
        sweep.communicate()
    found = status(outputs)
    assert not found.training
    assert not found.waiting
    assert len(found.unfinished) + len(found.not_begun) + found.finished.total() == 4
    assert victim.name in dict(found.unfinished)
    assert "unfinished and not in training; the same command continues them" in text(found)
    assert "not begun, and their sweep does not run" in text(found)


def _until(outputs: Path, holds: object) -> Status:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        if outputs.is_dir() and holds(found := status(outputs)):  # type: ignore[operator]
            return found
        time.sleep(0.05)
    raise AssertionError(text(status(outputs)))


def test_finished_runs_are_counted_by_their_status_wherever_they_lie(tmp_path: Path) -> None:
    for seed, kind in enumerate(("success", "success", "failed", "diverged")):
        write_run(tmp_path / "o", config(DEMO, "sgd", seed=seed), summary(kind), None, timing(2))
    expected = {"success": 2, "failed": 1, "diverged": 1}
    assert status(tmp_path / "o").finished == expected
    assert status(tmp_path / "o" / "demo").finished == expected
    assert main(["collect", "--runs", str(tmp_path / "o"), "--out", str(tmp_path / "kept")]) == 0
    assert status(tmp_path / "kept").finished == expected
    assert text(status(tmp_path / "kept")).endswith("4 of 4 runs finished (2 success, 1 failed, 1 diverged)")


def test_the_end_of_the_sweep_is_reckoned_from_runs_under_way_and_those_finished(tmp_path: Path) -> None:
    (folder, *_), outputs = _begun(tmp_path), tmp_path / "o"
    owner = Ownership(folder)
    owner.take()
    found = status(outputs)
    assert [run.epoch for run in found.training] == [2]
    (run,) = found.training
    assert (run.step, run.valid_loss) == (250, 5.25)
    assert run.seconds_left == pytest.approx(21)  # three epochs of five are left, at seven seconds each
    assert "all done in 0:00:21" in text(found)
    owner.release()
    assert status(outputs).unfinished == [(f"demo/{folder.name}", 2)]


def test_all_is_done_when_the_slowest_run_is_and_not_before_what_waits_has_had_its_turn() -> None:
    def left(*seconds: float | None, waiting: int = 0, taken: Sequence[float] = (50.0, 70.0)) -> float | None:
        training = [Training("", 1, 1, None, one, "", 1) for one in seconds]
        return _seconds_left(Status(Path(), training=training, waiting=[""] * waiting), taken)

    assert left(10.0, 100.0) == 100.0
    assert left(10.0, 100.0, waiting=5) == (10 + 100 + 5 * 60) / 2
    assert left(10.0, None) == 60.0  # as long as a finished one took
    assert left(10.0, waiting=1, taken=[]) is None


def _begun(tmp_path: Path) -> list[Path]:
    folders = []
    for seed, kind in enumerate(("unfinished", "success")):
        made = write_run(tmp_path / "o", config(DEMO, "sgd", seed=seed), summary(kind), None, timing(2))
        folders.append(Path(made))
    (folders[0] / "epochs.csv").write_text(
        "epoch,lr,train_loss,valid_loss,grad_norm_mean,grad_norm_max,values_clipped\n"
        "0,,,9.0,,,\n1,1.0,6.0,5.5,1.0,2.0,0\n2,1.0,5.0,5.25,1.0,2.0,0\n3,1.0,5.0,5."
    )
    (folders[0] / "timing.csv").write_text(
        "epoch,iterations,data,forward,backward,update,clipping,metrics,evaluation,stack_size\n"
        "1,125,1,1,1,1,1,1,1,1\n2,125,1,1,1,1,1,1,1,1\n"
    )
    (folders[0] / "steps.csv").write_text("step,loss\n249,1.0\n250,1.0\n25")
    return folders


def test_a_run_that_has_only_its_config_yet_is_in_training(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "o", config(DEMO, "sgd"), None)
    owner = Ownership(folder)
    owner.take()
    (run,) = status(tmp_path / "o").training
    owner.release()
    assert (run.epoch, run.step, run.seconds_left) == (0, 0, None)


def test_a_run_that_cannot_be_read_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    unfinished, folder = _begun(tmp_path)
    (folder / "summary.json").write_text("{")
    found = status(tmp_path / "o")
    assert found.finished.total() == 0
    assert len(found.unreadable) == 1
    assert "1 that cannot be read" in text(found)
    (unfinished / "config.yaml").unlink()
    found = status(tmp_path / "o")
    assert len(found.unreadable) == 2
    assert any("without its config.yaml" in one for one in found.unreadable)


def test_runs_of_a_sweep_that_have_no_folder_wait_only_while_it_runs(tmp_path: Path) -> None:
    outputs = tmp_path / "o"
    (outputs / "demo").mkdir(parents=True)
    record_sweeps([outputs / "demo/a", outputs / "demo/b"], [outputs, outputs])
    assert status(outputs).waiting == ["demo/a", "demo/b"]
    assert status(outputs / "demo").waiting == ["a", "b"]
    (record,) = (outputs / ".sweeps").iterdir()
    record.write_text(record.read_text().replace(f'"pid": {os.getpid()}', '"pid": 99999999'))
    assert status(outputs).not_begun == ["demo/a", "demo/b"]
    # A number that another process has by now.
    record.write_text(record.read_text().replace('"pid": 99999999', f'"pid": {os.getppid()}'))
    assert status(outputs).not_begun == ["demo/a", "demo/b"]
    record.write_text("{}")
    with pytest.raises(UserError, match="not the record of a sweep"):
        status(outputs)


def test_status_writes_nothing(tmp_path: Path) -> None:
    _begun(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("*")}
    text(status(tmp_path / "o"))
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "o").rglob("*")}


def test_places_without_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"gruclip: {tmp_path}: no runs there; train some first\n"
    assert main(["status", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_watch_ends_when_nothing_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _begun(tmp_path)
    assert main(["status", "--watch", str(tmp_path / "o")]) == 0
    assert "1 of 2 runs finished" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "o")


def test_a_run_waits_while_any_sweep_that_lists_it_runs(tmp_path: Path) -> None:
    outputs = tmp_path / "o"
    outputs.mkdir()
    record_sweeps([outputs / "demo/a", outputs / "demo/b"], [outputs, outputs])
    record_sweeps([outputs / "demo/b", outputs / "demo/c"], [outputs, outputs])
    stopped = next(path for path in (outputs / ".sweeps").iterdir() if "demo/c" in path.read_text())
    stopped.write_text(stopped.read_text().replace(f'"pid": {os.getpid()}', '"pid": 99999999'))
    found = status(outputs)
    assert (found.waiting, found.not_begun) == (["demo/a", "demo/b"], ["demo/c"])


def test_what_is_called_csv_and_is_no_file_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "o", config(DEMO, "sgd"), summary(), None, timing(2))
    (tmp_path / "o" / "x.csv").mkdir()
    (tmp_path / "o" / "y.csv").symlink_to("nowhere")
    os.mkfifo(tmp_path / "o" / "z.csv")
    assert main(["status", str(tmp_path / "o")]) == 0
    assert "1 of 1 runs finished" in capsys.readouterr().out
    assert main(["collect", "--runs", str(tmp_path / "o"), "--out", str(tmp_path / "kept")]) == 0


def test_a_process_that_began_after_the_run_was_last_seen_is_not_its_owner(tmp_path: Path) -> None:
    (folder, *_), outputs = _begun(tmp_path), tmp_path / "o"
    owner = Ownership(folder)
    owner.take()
    try:
        assert len(status(outputs).training) == 1
        an_hour_ago = time.time() - 3600
        os.utime(folder / OWNER, (an_hour_ago, an_hour_ago))
        began = ownership._began(os.getpid())
        assert 0 < began < time.time()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ownership, "_began", lambda pid: time.time() - 60)
            assert not status(outputs).training
            patch.setattr(ownership, "_began", lambda pid: an_hour_ago - 60)
            assert len(status(outputs).training) == 1
    finally:
        owner.release()
