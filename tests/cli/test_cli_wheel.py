"""The wheel, used outside the checkout, and the script that sets the checkout up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def test_the_wheel_is_complete_and_works_outside_the_checkout(tmp_path: Path) -> None:
    source, built, unpacked = tmp_path / "source", tmp_path / "built", tmp_path / "unpacked"
    caches = shutil.ignore_patterns("__pycache__")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, source)
    for name in ("gruclip", "conf"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=caches)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", built, source], check=True)
    (wheel,) = built.glob("gruclip-*-py3-none-any.whl")

    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "gruclip").rglob("*.py")}
    plugins = {name for name in modules if name.startswith("gruclip/hydra_plugin/")}
    conf = {path.relative_to(REPOSITORY / "conf").as_posix() for path in (REPOSITORY / "conf").rglob("*.yaml")}
    kernels = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "gruclip/kernels").glob("*.[ch]*")}
    assert names == (
        (modules - plugins)
        | kernels
        | {name.replace("gruclip/hydra_plugin/", "hydra_plugins/gruclip/") for name in plugins}
        | {f"gruclip/conf/{name}" for name in conf | {"__init__.py"}}
    )

    command = [sys.executable, "-m", "gruclip", "train", "-m", "seed=0,1", "model.hidden_size=2", "trainer.max_steps=1"]
    environment = os.environ | {"PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert len(list((tmp_path / "outputs/demo").iterdir())) == 2
    where = [sys.executable, "-c", "import gruclip, hydra_plugins.gruclip as p; print(gruclip.__file__, p.__file__)"]
    output = subprocess.run(where, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert output.split() == [
        str(unpacked / "gruclip/__init__.py"),
        str(unpacked / "hydra_plugins/gruclip/__init__.py"),
    ]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout on a machine that has only an old Python."""
    checkout, tools = tmp_path / "checkout", tmp_path / "bin"
    (checkout / "scripts").mkdir(parents=True)
    tools.mkdir()
    for name in ("scripts/setup", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, checkout / name)
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        (tools / name).write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2\nexit 1\n')
        (tools / name).chmod(0o755)
    for name in ("bash", "cat", "cksum", "dirname", "env"):
        (tools / name).symlink_to(str(shutil.which(name)))
    return checkout


def _setup(checkout: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(checkout.parent / "bin")}
    return subprocess.run([checkout / "scripts/setup"], env=environment, capture_output=True, text=True, check=False)


def test_setup_says_in_one_line_that_python_is_too_old(checkout: Path) -> None:
    done = _setup(checkout)
    assert done.returncode == 2
    assert done.stderr == "scripts/setup: needs Python 3.11 or newer; found Python 3.9.2\n"
    assert not (checkout / ".venv").exists()


def test_setup_does_nothing_while_the_project_and_the_constraints_are_the_same(checkout: Path) -> None:
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/gruclip").touch(0o755)
    sources = b"".join(
        (checkout / name).read_bytes() for name in ("pyproject.toml", "constraints.txt", "scripts/setup")
    )
    state = subprocess.run(["cksum"], input=sources, capture_output=True, check=True).stdout
    (checkout / ".venv/.gruclip-setup").write_bytes(state)
    assert _setup(checkout).returncode == 0
    with (checkout / "constraints.txt").open("a") as constraints:
        constraints.write("more==1\n")
    assert _setup(checkout).returncode == 2
