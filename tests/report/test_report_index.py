"""What was read before is not read again, and never believed of a folder that has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from made_runs import DEMO, PTB, config, frame, summary, write_run

from gruclip.errors import DataError
from gruclip.report import folders, index, origins, reading, tables


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, in which files that have just been written count as settled."""
    monkeypatch.setattr(index, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(index, "_SETTLED_NS", -(10**12))
    return tmp_path / "cache" / "runs"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the folders that were really read."""
    names: list[str] = []
    really = folders.read_folder
    monkeypatch.setattr(folders, "read_folder", lambda folder: names.append(folder.name) or really(folder))
    return names


def test_three_hundred_folders_are_read_once_and_give_the_same_rows(
    tmp_path: Path, cache: Path, read: list[str]
) -> None:
    for seed in range(300):
        write_run(tmp_path, config(DEMO, "sgd", seed=seed), summary(max_grad_norm="inf" if seed % 2 else "nan"))
    first = reading.read_runs(tmp_path, "demo")
    assert len(read) == 300
    pd.testing.assert_frame_equal(reading.read_runs(tmp_path, "demo"), first)
    assert len(read) == 300


def test_a_folder_whose_records_changed_is_read_again_even_with_its_old_times(
    tmp_path: Path, cache: Path, read: list[str]
) -> None:
    names = [write_run(tmp_path, config(DEMO, "sgd", seed=seed), summary()).name for seed in range(3)]
    reading.read_runs(tmp_path, "demo")
    read.clear()
    path = tmp_path / "demo" / names[1] / "summary.json"
    before = path.stat()
    path.write_text(path.read_text().replace("4.5", "4.7"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert reading.read_runs(tmp_path, "demo")["test_loss"].tolist() == [4.5, 4.7, 4.5]
    (tmp_path / "demo" / names[2] / "summary.json").unlink()
    assert reading.read_runs(tmp_path, "demo")["status"].tolist() == ["success", "success", "unfinished"]
    assert read == names[1:]


def test_without_a_home_for_a_cache_folders_are_read_each_time(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise DataError("~/.cache: this user has no home folder")

    monkeypatch.setattr(index, "cache_folder", no_home)
    monkeypatch.setattr(index, "_SETTLED_NS", -(10**12))
    write_run(tmp_path, config(DEMO, "sgd"), summary())
    for times in (1, 2):
        reading.read_runs(tmp_path, "demo")
        assert len(read) == times


def test_what_was_just_written_is_not_yet_kept(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_SETTLED_NS", 10**12)
    write_run(tmp_path, config(DEMO, "sgd"), summary())
    reading.read_runs(tmp_path, "demo")
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": [1, 2]}', "\udcff"])
def test_a_damaged_index_is_one_that_is_empty(tmp_path: Path, cache: Path, read: list[str], content: str) -> None:
    write_run(tmp_path, config(DEMO, "sgd"), summary())
    reading.read_runs(tmp_path, "demo")
    (path,) = cache.iterdir()
    path.write_text(content, errors="surrogateescape")
    assert len(reading.read_runs(tmp_path, "demo")) == 1
    assert len(read) == 2


def test_an_index_that_others_can_write_is_not_read(tmp_path: Path, cache: Path, read: list[str]) -> None:
    write_run(tmp_path, config(DEMO, "sgd"), summary())
    for _ in range(2):
        reading.read_runs(tmp_path, "demo")
        cache.chmod(0o777)
    assert len(read) == 2


def test_a_table_says_in_what_its_runs_differ(tmp_path: Path) -> None:
    base = {"processor": "p", "device": "cpu", "threads": 1, "versions": {"torch": "2.13"}}
    for seed, revision in enumerate(("abc", "def", "abc", None)):
        folder = write_run(tmp_path, config(PTB, "sgd", seed=seed), summary())
        kernels = {"native": "x" if seed else "y", "cpu_capability": "AVX2"}
        environment = {**base, "revision": revision, "kernels": kernels, "threads": 1 + seed // 3}
        (folder / "environment.json").write_text(json.dumps(environment))
    text = tables.table("1", reading.read_runs(tmp_path, "ptb"))
    assert text.splitlines()[-5:] == [
        "Runs of 3 revisions: abc (2 runs); def (1 run); unknown (1 run).",
        "",
        "Runs of 2 choices of kernels: native x (3 runs); native y (1 run).",
        "",
        "Runs of 2 machines: p, 1 thread (3 runs); p, 2 threads (1 run).",
    ]


def test_of_a_run_continued_with_other_kernels_the_note_says_which() -> None:
    made = [(config(DEMO, "sgd", seed=seed), summary()) for seed in range(3)]
    both = (
        '{"native": "x", "float32_products": "oneDNN"}',
        '{"native": "y", "float32_products": "oneDNN", "new": [1, 2]}',
    )
    runs = frame(made).assign(kernels=[both[0], " then ".join(both), None])
    (note,) = (note for note in origins.notes(runs) if "kernels" in note)
    assert note == (
        "Runs of 3 choices of kernels: unknown (1 run); native x (1 run); native x then native y, new [1, 2] (1 run)."
    )
