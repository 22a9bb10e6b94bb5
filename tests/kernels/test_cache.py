"""Compiled kernels are loaded from this user's own folder, whole, or not at all; whatever lies there, they work."""

from __future__ import annotations

import logging
import os
import pwd
import random
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from gruclip.kernels import build, cache, compiled

#: A library of somebody else's: to load it makes a file.
FOREIGN = """
#include <stdio.h>
__attribute__((constructor)) static void began(void) { fclose(fopen("MARK", "w")); }
"""


@pytest.fixture(scope="module")
def whole() -> bytes:
    """The kernels, compiled."""
    where = compiled.loaded()
    assert where.file is not None, where
    return where.file.read_bytes()


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: bytes) -> Iterator[list[Path]]:
    """An empty cache, and where the kernels were compiled to, which here takes no time."""
    times: list[Path] = []

    def compile_to(made: Path, command: list[str]) -> None:
        times.append(made)
        # Another one each time: the same file is never opened twice.
        made.write_bytes(whole + os.urandom(8))

    monkeypatch.setattr(build, "compile_for_this_processor", compile_to)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled.loaded.cache_clear()
    yield times
    monkeypatch.undo()
    compiled.loaded.cache_clear()


def again() -> tuple[compiled.Loaded, str]:
    """What a new process would load, and its warnings."""
    compiled.loaded.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = compiled.loaded()
    assert found.library is not None
    return found, "\n".join(str(one.message) for one in caught)


def kept() -> Path:
    """The library that was loaded, in the cache."""
    found, said = again()
    assert found.file is not None
    assert found.file.is_file()
    assert not said
    return found.file


def put(path: Path, content: bytes) -> None:
    """A new file in the place of one that is loaded, whose memory is the file's."""
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o600)


def foreign(tmp_path: Path) -> tuple[bytes, Path]:
    """A library without our functions, and the file it makes when it is loaded."""
    mark = tmp_path / "loaded"
    (tmp_path / "foreign.c").write_text(FOREIGN.replace("MARK", str(mark)))
    command = [*build.compiler(), "-x", "c", "-shared", "-fPIC", "-o", tmp_path / "foreign.so", tmp_path / "foreign.c"]
    subprocess.run(command, check=True)
    return (tmp_path / "foreign.so").read_bytes(), mark


def test_who_waits_for_the_compiler_is_told_so_once(times: list[Path]) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("gruclip")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        for _ in range(2):
            again()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert len(times) == len(said) == 1
    assert said[0].startswith("compiling gruclip's kernels")
    assert str(times[0].parents[1]) in said[0]


def test_what_is_compiled_is_kept_in_a_folder_of_the_users_alone(times: list[Path], tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        path = kept()
    finally:
        os.umask(old)
    assert kept() == path
    assert len(times) == 1
    assert path.parent == tmp_path / "cache/gruclip/native"
    assert [path.parent.stat().st_mode & 0o777, path.parent.parent.stat().st_mode & 0o777] == [0o700, 0o700]
    assert path.stat().st_mode & 0o077 == 0
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("length", [0, 1, 64, 4096, 20_000, 50_000, -1])
def test_a_library_cut_short_is_compiled_again(length: int, times: list[Path]) -> None:
    path = kept()
    content = path.read_bytes()
    put(path, content[:length])
    _, said = again()
    assert "is damaged" in said
    assert str(path) in said
    assert len(times) == 2
    assert not path.exists()
    kept()


def test_every_flipped_bit_is_noticed(times: list[Path]) -> None:
    path = kept()
    content, picked = path.read_bytes(), random.Random(0)
    for _ in range(500):
        damaged = bytearray(content)
        damaged[picked.randrange(len(content))] ^= 1 << picked.randrange(8)
        assert cache.damage(path.name, bytes(damaged))
    put(path, bytes(damaged))
    assert "is damaged" in again()[1]
    assert len(times) == 2


def test_a_foreign_library_under_our_name_is_not_loaded(times: list[Path], tmp_path: Path) -> None:
    content, mark = foreign(tmp_path)
    put(kept(), content)
    assert "is damaged" in again()[1]
    assert not mark.exists()


def test_a_library_without_our_functions_is_compiled_again(times: list[Path], tmp_path: Path) -> None:
    content, mark = foreign(tmp_path)
    path = kept()
    path.unlink()
    planted = path.with_name(cache.file_name(path.name.partition("-")[0], content))
    planted.write_bytes(content)
    planted.chmod(0o600)
    assert "has no function gruclip_" in again()[1]
    assert mark.exists()  # in a folder that is to be trusted it is taken: what the tests below rely on
    assert not planted.exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722])
@pytest.mark.parametrize("above", [False, True])
def test_nothing_is_loaded_where_others_can_write(mode: int, above: bool, times: list[Path], tmp_path: Path) -> None:
    content, mark = foreign(tmp_path)
    path = kept()
    path.with_name(cache.file_name(path.name.partition("-")[0], content)).write_bytes(content)
    folder = path.parent.parent if above else path.parent
    folder.chmod(mode)
    before = set(path.parent.iterdir())
    found, said = again()
    assert f"{folder} can be written to by others (mode {mode:o}); remove it, or set XDG_CACHE_HOME" in said
    assert not mark.exists()
    assert found.file is not None
    assert not found.file.exists()  # its folder went with the loading of it
    assert found.file.parent.parent != path.parent
    assert set(path.parent.iterdir()) == before


def test_nothing_is_loaded_from_a_folder_of_another_user(
    times: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kept().parent
    me = os.geteuid()
    if me == 0:
        os.chown(folder, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert "belongs to another user (uid" in again()[1]
    assert len(times) == 2


def test_nothing_is_loaded_that_another_user_made_or_may_alter_or_that_is_a_link(times: list[Path]) -> None:
    path = kept()
    path.chmod(0o622)
    assert "can be written to by others (mode 622)" in again()[1]
    path = kept()
    elsewhere = path.parent.parent / path.name
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert "cannot be read" in again()[1]
    path = kept()
    path.unlink()
    os.mkfifo(path)
    assert "is not a regular file" in again()[1]
    kept()


def test_a_library_of_another_user_in_our_folder_is_not_loaded(
    times: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kept()
    real = os.fstat

    def of_another(descriptor: int) -> os.stat_result:
        fields = list(real(descriptor))
        fields[4] += 1
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", of_another)
    assert "belongs to another user" in str(cache.fault(path))


@pytest.mark.parametrize("named", ["", "here", "./here", "../here"])
def test_a_cache_without_an_absolute_name_is_the_one_at_home(
    named: str, times: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert kept().parent == tmp_path / "home/.cache/gruclip/native"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "work"]
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("home", [None, "relative"])
def test_without_a_home_the_kernels_are_compiled_for_the_process(
    home: str | None, times: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_entry(_: int) -> pwd.struct_passwd:
        raise KeyError("no such user")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.chdir(tmp_path)
    _, said = again()
    assert "this user has no home folder to keep them in; set XDG_CACHE_HOME" in said
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_folders_place_is_told_and_left(times: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache/gruclip").mkdir(parents=True)
    (tmp_path / "cache/gruclip/native").write_text("mine")
    assert "for this process alone" in again()[1]
    assert (tmp_path / "cache/gruclip/native").read_text() == "mine"


def test_what_a_killed_compilation_left_is_removed_after_an_hour(times: list[Path]) -> None:
    folder = kept().parent
    for name in ("building-old", "tmpold", "building-new", "mine"):
        (folder / name).mkdir()
        (folder / name / "made.so").touch()
        if not name.endswith("new"):
            os.utime(folder / name, (time.time() - 4000, time.time() - 4000))
    (folder / "building-link").symlink_to(folder / "mine")
    again()
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".so") == [
        "building-link",
        "building-new",
        "mine",
    ]
    assert (folder / "mine/made.so").exists()


def test_a_damaged_library_of_a_wheel_is_told_and_not_loaded(
    times: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bytes
) -> None:
    monkeypatch.setattr(compiled, "PREBUILT", tmp_path / "prebuilt")
    monkeypatch.setattr(build, "processor_flags", lambda: list(build.LEVELS["x86-64-v4"].processor))
    (tmp_path / "prebuilt").mkdir()
    path = tmp_path / "prebuilt" / cache.file_name("x86-64-v4", whole)
    path.write_bytes(whole)
    found, said = again()
    assert (found.file, found.description[: len("prebuilt x86-64-v4-")], said) == (path, "prebuilt x86-64-v4-", "")
    path.unlink()
    path.write_bytes(whole[:-1])
    found, said = again()
    assert f"{path} is damaged: its checksum is another one; install gruclip again" in said
    assert found.origin == "compiled for this processor"
    assert found.refused == (f"not prebuilt: {path} is damaged: its checksum is another one",)
    shutil.rmtree(tmp_path / "prebuilt")


def test_a_library_s_key_is_of_all_that_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = build.compiler()
    keys = [build.key(command), build.key([*command, "-g"])]
    for name in (*build.SOURCES, *build.HEADERS):
        shutil.copy(build.HERE / name, tmp_path)
    with (tmp_path / build.HEADERS[-1]).open("a") as header:
        header.write("// changed\n")
    for name, other in (
        ("HERE", tmp_path),
        ("FLAGS", (*build.FLAGS, "-g")),
        ("_run", lambda _: "another version"),
        ("_processor", lambda: "another one"),
        ("openmp_runtime", lambda: tmp_path / "libgomp.so"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(build, name, other)
            keys.append(build.key(command))
    assert len(set(keys)) == len(keys)


def test_torch_s_openmp_runtime_may_lie_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, folder = build.openmp_runtime(), tmp_path / "Lab, 2nd floor"
    assert runtime is not None
    folder.mkdir()
    (folder / runtime.name).symlink_to(runtime)
    (folder / "tiny.cpp").write_text("void tiny() {\n#pragma omp parallel\n    {}\n}\n")
    monkeypatch.setattr(build, "HERE", folder)
    monkeypatch.setattr(build, "SOURCES", ("tiny.cpp",))
    monkeypatch.setattr(build, "openmp_runtime", lambda: folder / runtime.name)
    build.compile_for_this_processor(folder / "made.so", build.compiler())
    assert b"Lab, 2nd floor" in (folder / "made.so").read_bytes()


def test_a_processor_gets_the_best_level_that_it_can_run() -> None:
    v3, v4, bf16 = (build.LEVELS[name].processor for name in ("x86-64-v3", "x86-64-v4", "x86-64-v4-bf16"))
    assert build.levels_of(bf16) == ["x86-64-v4-bf16", "x86-64-v4", "x86-64-v3"]
    assert build.levels_of(v4 | {"avx_vnni"}) == ["x86-64-v4", "x86-64-v3"]
    assert build.levels_of(v3 | {"avx512f", "avx512_bf16"}) == ["x86-64-v3"]
    assert build.levels_of(v3 - {"fma"}) == []
