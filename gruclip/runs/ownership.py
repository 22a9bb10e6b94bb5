"""Who writes a run's folder: one process at a time, on this host and on every other one that sees the folder.

On one host the kernel's lock on ``.lock`` says so (`flock`), and goes with the process that held it. On a network file
system that lock may hold on one host only, or not at all. So the owner also has ``.owner``, a second name that only one
process can give (`link`), and shows there that it lives: it sets the file's time anew every `BEAT` seconds. Another
host takes the folder once there was no sign for `LEASE` seconds, both times being the file server's; sooner, after
`SILENCE` seconds, where the owner was a SLURM job of which SLURM knows that it is over. An owner that comes back after
that finds the file another's, and stops before it writes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from gruclip.errors import UserError
from gruclip.runs import scheduler
from gruclip.runs.files import PARTIAL, told_by_name, write_whole

LOCK, OWNER = ".lock", ".owner"
BEAT, LEASE = 30.0, 300.0
#: More than a living owner lets pass while it trains: SLURM may be wrong about a node that it did not hear of.
SILENCE = 2 * BEAT


class LockedError(UserError):
    """Another process is writing the run."""


class Ownership:
    """A folder that belongs to this process from `take` to `release`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / OWNER
        self.record = {**this_host(), "pid": os.getpid(), "token": uuid.uuid4().hex, "job": scheduler.this_job()}
        self._lock: IO[str] | None = None
        self._last_beat = 0.0

    def take(self) -> None:
        """Take the folder, which exists. Raises `LockedError` where another process has it."""
        with told_by_name(self.folder):
            lock = (self.folder / LOCK).open("a")
        try:
            locks_here = _flock(lock, self.folder)
            with told_by_name(self.folder):
                self._claim(locks_here)
        except BaseException:
            lock.close()
            raise
        self._lock, self._last_beat = lock, _now()

    def _claim(self, locks_here: bool) -> None:
        mine = self.path.with_name(f"{OWNER}.{self.record['token']}{PARTIAL}")
        write_whole(mine, json.dumps(self.record) + "\n")  # a mark that a power cut left empty would name nobody
        try:
            for _ in range(3):
                try:
                    os.link(mine, self.path)
                    return
                except FileExistsError:
                    self._remove_left(mine, locks_here)
            raise LockedError(f"{self.folder}: other processes are taking this run; wait for them")
        finally:
            mine.unlink()

    def _remove_left(self, mine: Path, locks_here: bool) -> None:
        """Move away the mark of an owner that is no more; `LockedError` where it may be there still."""
        try:
            other, age = read_owner(self.folder), mine.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return
        # Where the kernel's lock holds, this process would not have it if the other one of this host were there.
        if _is_here(other):
            lives = not locks_here and _is_alive(other["pid"])
        else:
            lives = age < LEASE and not (age > SILENCE and scheduler.is_over(other["job"]))
        if lives:
            raise LockedError(
                f"{self.folder}: another process is writing this run (process {other['pid']} on {other['host']}, last "
                f"seen {max(age, 0):.0f} seconds ago); wait for it or stop it"
            )
        aside = mine.with_name(f"{mine.name.removesuffix(PARTIAL)}.left{PARTIAL}")
        with suppress(FileNotFoundError):
            os.replace(self.path, aside)  # of several processes one can
            if json.loads(aside.read_text()).get("token") != other["token"]:
                os.link(aside, self.path)  # another one was faster, and this is its mark
            aside.unlink()

    def beat(self) -> None:
        """Show that this process lives, where that is due. Raises `LockedError` where the folder was taken over."""
        if _now() - self._last_beat < BEAT:
            return
        with told_by_name(self.path):
            if not self._is_mine():
                raise LockedError(
                    f"{self.folder}: was taken over by another process after {_now() - self._last_beat:.0f} seconds "
                    "without a sign of life from this one; it is left to that one"
                )
            os.utime(self.path)
        self._last_beat = _now()

    def _is_mine(self) -> bool:
        try:
            return read_owner(self.folder)["token"] == self.record["token"]
        except FileNotFoundError:
            return False

    def release(self) -> None:
        if self._lock is not None:
            with suppress(OSError):
                if self._is_mine():
                    self.path.unlink()
            self._lock.close()
            self._lock = None


def read_owner(folder: Path) -> dict[str, Any]:
    """Host, boot, process, token and SLURM job (None: in none) of the owner.

    FileNotFoundError where there is none, `UserError` for no record.
    """
    path = folder / OWNER
    try:
        record = json.loads(path.read_text())
        job = record.get("job") and {
            **{name: str(record["job"][name]) for name in ("id", "node", "cluster")},
            "restarts": int(record["job"]["restarts"]),
        }
        return {"host": str(record["host"]), "boot": str(record["boot"]), "pid": int(record["pid"]),
                "token": str(record["token"]), "job": job}  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it if no process is writing this run") from None


def living_owner(folder: Path) -> dict[str, Any] | None:
    """The owner of a folder where it shows signs of life, seen from here; None where there is none."""
    try:
        owner, seen = read_owner(folder), (folder / OWNER).stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    # A process that has begun since is another one, with the same number.
    here = _is_here(owner)
    lives = _is_alive(owner["pid"]) and _began(owner["pid"]) < seen + BEAT if here else time.time() - seen < LEASE
    return owner if lives else None


def this_host() -> dict[str, str]:
    """This host's name, and the number of its present life: containers and clones may share the name."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {"host": socket.gethostname(), "boot": boot.read_text().strip() if boot.exists() else ""}


def _is_here(owner: dict[str, Any]) -> bool:
    return {name: owner[name] for name in ("host", "boot")} == this_host()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _began(pid: int) -> float:
    """When a process began, as files are timed; 0 where that is not known."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0.0
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def _flock(file: IO[str], folder: Path) -> bool:
    """Whether the file system has locks; `LockedError` where another process holds this one."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise LockedError(f"{folder}: another process is writing this run; wait for it or stop it") from None
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
            return False
        raise
    return True


def _now() -> float:
    """Seconds that go on while this process is stopped and its host asleep."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
