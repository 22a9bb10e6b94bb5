"""One process at a time writes a folder, on every host that sees it, whether or not the file system has locks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gruclip.runs import ownership, scheduler
from gruclip.runs.ownership import LEASE, LockedError, Ownership, living_owner, read_owner


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system whose locks hold on one host only: each of two hosts gets its own."""
    monkeypatch.setattr(ownership.fcntl, "flock", lambda *arguments: None)


def another_host(monkeypatch: pytest.MonkeyPatch, host: str = "b") -> None:
    monkeypatch.setattr(ownership, "this_host", lambda: {"host": host, "boot": f"boot of {host}"})


def show_no_sign_of_life(folder: Path) -> None:
    long_ago = time.time() - LEASE - 1
    os.utime(folder / ".owner", (long_ago, long_ago))


def owned_and_silent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], Ownership]:
    """The owner's clock, to be set, and the owner, which showed no sign of life for longer than the lease."""
    now = [1000.0]
    monkeypatch.setattr(ownership, "_now", lambda: now[0])
    owner = Ownership(folder)
    owner.take()
    show_no_sign_of_life(folder)
    return now, owner


def test_a_folder_belongs_to_one_process_until_it_is_released(tmp_path: Path) -> None:
    first, second = Ownership(tmp_path), Ownership(tmp_path)
    first.take()
    with pytest.raises(LockedError, match="another process is writing this run"):
        second.take()
    first.release()
    second.take()
    second.release()
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def test_another_host_waits_while_the_owner_shows_signs_of_life(
    tmp_path: Path, no_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Ownership(tmp_path)
    here.take()
    another_host(monkeypatch)
    with pytest.raises(LockedError, match=rf"process {os.getpid()} on .*, last seen \d seconds ago"):
        Ownership(tmp_path).take()
    here.release()
    there = Ownership(tmp_path)
    there.take()
    assert read_owner(tmp_path)["host"] == "b"


def test_another_host_takes_over_what_showed_none_and_the_first_stops_before_it_writes(
    tmp_path: Path, no_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, here = owned_and_silent(tmp_path, monkeypatch)
    another_host(monkeypatch)
    there = Ownership(tmp_path)
    there.take()
    now[0] += LEASE + 1
    with pytest.raises(LockedError, match="was taken over by another process after 301 seconds"):
        here.beat()
    there.beat()
    here.release()
    assert read_owner(tmp_path)["host"] == "b", "the first one's release left the second one's mark"


def test_a_beat_keeps_the_folder(tmp_path: Path, no_locks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    now, here = owned_and_silent(tmp_path, monkeypatch)
    now[0] += ownership.BEAT + 1
    here.beat()
    another_host(monkeypatch)
    with pytest.raises(LockedError):
        Ownership(tmp_path).take()


def test_signs_of_life_go_on_where_the_clock_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Ownership(tmp_path)
    here.take()
    show_no_sign_of_life(tmp_path)
    shown, real = (tmp_path / ".owner").stat().st_mtime, time.clock_gettime
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "clock_gettime", lambda clock: real(clock) + ownership.BEAT)
    here.beat()
    assert (tmp_path / ".owner").stat().st_mtime > shown + LEASE


@pytest.mark.parametrize("has_locks", [True, False])
def test_what_a_killed_process_of_this_host_left_is_taken_at_once(
    has_locks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"""
import os
from pathlib import Path
from gruclip.runs.ownership import Ownership
Ownership(Path({str(tmp_path)!r})).take()
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert (tmp_path / ".owner").exists()
    assert living_owner(tmp_path) is None
    if not has_locks:

        def refused(*arguments: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(ownership.fcntl, "flock", refused)
    mine = Ownership(tmp_path)
    mine.take()
    assert read_owner(tmp_path)["token"] == mine.record["token"]
    if not has_locks:
        with pytest.raises(LockedError):
            Ownership(tmp_path).take()


def test_of_two_that_find_a_left_mark_one_gets_the_folder(
    tmp_path: Path, no_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower one has read the mark that was left, and moves away the faster one's: it gives it back."""
    another_host(monkeypatch, "gone")
    Ownership(tmp_path).take()
    show_no_sign_of_life(tmp_path)
    another_host(monkeypatch, "fast")
    fast, replace = Ownership(tmp_path), os.replace

    def fast_one_comes_between(source: Path, target: Path) -> None:
        if source == tmp_path / ".owner":  # and not where a mark of one's own is written
            monkeypatch.setattr(ownership.os, "replace", replace)
            fast.take()
            another_host(monkeypatch, "slow")
        replace(source, target)

    monkeypatch.setattr(ownership.os, "replace", fast_one_comes_between)
    slow = Ownership(tmp_path)
    with pytest.raises(LockedError):
        slow.take()
    assert read_owner(tmp_path)["token"] == fast.record["token"]
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".owner"}


def test_two_hosts_never_both_get_a_folder(tmp_path: Path) -> None:
    """Eight processes, each a host of its own without locks, take and release one folder for two seconds."""
    code = f"""
import os, sys, time
from pathlib import Path
from gruclip.runs import ownership, scheduler
ownership.fcntl.flock = lambda *a: None
ownership.this_host = lambda: {{"host": sys.argv[1], "boot": sys.argv[1]}}
folder, taken, end = Path({str(tmp_path)!r}), 0, time.monotonic() + 2
while time.monotonic() < end:
    mine = ownership.Ownership(folder)
    try:
        mine.take()
    except ownership.LockedError:
        continue
    os.close(os.open(folder / "held", os.O_CREAT | os.O_EXCL))
    os.unlink(folder / "held")
    taken += 1
    mine.release()
print(taken)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(number)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for number in range(4)
    ]
    outputs = [process.communicate() for process in processes]
    assert not [error for _, error in outputs if error]
    assert sum(int(out) for out, _ in outputs) > 10


def test_a_mark_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut would else leave an empty one, which names nobody and keeps everybody out."""
    synced: list[int] = []
    monkeypatch.setattr("gruclip.runs.files.sync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    owner = Ownership(tmp_path)
    owner.take()
    assert (tmp_path / ".owner").stat().st_ino in synced
    owner.release()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"host": "a"}'])
def test_a_damaged_mark_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / ".owner").write_text(content)
    with pytest.raises(Exception, match=r"\.owner: damaged .*; remove it if no process is writing this run"):
        Ownership(tmp_path).take()


def test_locks_that_fail_otherwise_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(code: int) -> Callable[..., None]:
        def flock(*arguments: object) -> None:
            raise OSError(code, os.strerror(code))

        return flock

    monkeypatch.setattr(ownership.fcntl, "flock", failing(errno.EWOULDBLOCK))
    with pytest.raises(LockedError):
        Ownership(tmp_path).take()
    monkeypatch.setattr(ownership.fcntl, "flock", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        Ownership(tmp_path).take()
    assert json.loads(json.dumps(ownership.this_host())).keys() == {"host", "boot"}


# -- jobs of SLURM --------------------------------------------------------------------------------------

IN_JOB = {"SLURM_JOB_ID": "8", "SLURMD_NODENAME": "n2", "SLURM_CLUSTER_NAME": "c"}


def left_by_a_job(folder: Path, seconds: float, **job: object) -> None:
    """The mark of an owner on another host that was a SLURM job, last seen `seconds` ago."""
    record = {"id": "7", "node": "n1", "cluster": "c", "restarts": 0, **job}
    (folder / ".owner").write_text(json.dumps({"host": "n1", "boot": "b", "pid": 1, "token": "t", "job": record}))
    then = time.time() - seconds
    os.utime(folder / ".owner", (then, then))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """This process is job 8, started for the second time; what SLURM answers, by command; None: nothing."""
    for name, value in {**IN_JOB, "SLURM_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    answers: dict[str, str | None] = {"squeue": "", "sinfo": "idle\n"}
    monkeypatch.setattr(scheduler, "_ask", lambda command, *arguments: answers[command])
    return answers


@pytest.mark.parametrize("job", [{"id": "7"}, {"id": "8", "restarts": 0}])
def test_a_run_of_a_job_that_is_over_is_taken_without_waiting_for_the_lease(
    job: dict[str, object], slurm: dict[str, str | None], tmp_path: Path
) -> None:
    left_by_a_job(tmp_path, ownership.SILENCE + 5, **job)
    mine = Ownership(tmp_path)
    mine.take()
    assert read_owner(tmp_path)["job"] == {"id": "8", "node": "n2", "cluster": "c", "restarts": 1}
    mine.release()


@pytest.mark.parametrize(
    ("job", "answers", "seconds"),
    [
        ({}, {"squeue": "7 RUNNING None\n"}, 100),
        ({}, {"squeue": None}, 100),  # SLURM does not answer
        ({}, {"sinfo": "down*\n"}, 100),  # its node may have lost SLURM only
        ({}, {"sinfo": "idle*\n"}, 100),
        ({}, {"sinfo": ""}, 100),  # a node that SLURM does not know
        ({"cluster": "d"}, {}, 100),
        ({"id": "8", "restarts": 1}, {}, 100),  # another process of this very job
        ({}, {}, 20),  # shows signs of life
    ],
)
def test_where_slurm_is_not_sure_the_lease_holds(
    job: dict[str, object],
    answers: dict[str, str | None],
    seconds: float,
    slurm: dict[str, str | None],
    tmp_path: Path,
) -> None:
    slurm.update(answers)
    left_by_a_job(tmp_path, seconds, **job)
    with pytest.raises(LockedError, match="process 1 on n1"):
        Ownership(tmp_path).take()


def test_outside_of_slurm_the_lease_holds(
    slurm: dict[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    left_by_a_job(tmp_path, 100)
    with pytest.raises(LockedError):
        Ownership(tmp_path).take()


@pytest.mark.parametrize(
    ("squeue", "says"),
    [
        ("echo '7 RUNNING None'", {"7": ("RUNNING", "None")}),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", {}),  # long over
        ("echo 'Unable to contact slurm controller' >&2; exit 1", None),
        ("exec sleep 60", None),
    ],
    ids=["in the queue", "forgotten", "no controller", "hangs"],
)
def test_what_squeue_says_is_known_and_where_it_says_nothing_that_nothing_is(
    squeue: str, says: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{squeue}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(scheduler, "SECONDS", 2)
    assert scheduler.states(["7"]) == says


def test_a_task_of_an_array_is_named_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**IN_JOB, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert scheduler.this_job() == {"id": "7_3", "node": "n2", "cluster": "c", "restarts": 0}
