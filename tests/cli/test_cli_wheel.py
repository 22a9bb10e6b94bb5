"""The wheel, used outside the checkout, and the script that sets the checkout up."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from gruclip.kernels import build, cache

#: On one worker, so that the wheel is built once.
pytestmark = pytest.mark.xdist_group("wheel")

REPOSITORY = Path(__file__).parents[2]


#: What a wheel's kernels compute, for each level that this processor has; without a compiler, so that only they can.
COMPUTE = """
import re, sys, torch
from pathlib import Path
from gruclip.gru import gru_layer
from gruclip.kernels import build, compiled
from gruclip.model.losses import softmax_nll
torch.set_num_threads(2)
made = {}
flags = build.processor_flags()
for level in build.levels_of(flags):
    build.processor_flags = lambda: build.LEVELS[level].processor
    compiled.loaded.cache_clear()
    torch.manual_seed(0)
    x, h, a, b, c = (torch.randn(s) / 8 for s in ((1, 7, 20, 50), (1, 20, 70), (1, 210, 50), (1, 210, 70), (1, 210)))
    states = gru_layer(x, h, a, b.requires_grad_(), c)
    weight, targets = torch.randn(1, 70, 99), torch.randint(99, (1, 140))
    loss = softmax_nll(states.flatten(1, 2), weight, torch.randn(1, 99), targets)
    made[compiled.loaded().origin] = [states.detach(), loss.detach(), *torch.autograd.grad(loss.sum(), b)]
torch.save(made, sys.argv[1])
maps = Path("/proc/self/maps").read_text()
print(len(set(re.findall(r"/.*/lib(?:gomp|iomp5|omp)[-.\\w]*$", maps, re.MULTILINE))))
"""


#: The compiled ones in their place.
COMPILED = """
from gruclip.kernels import build
build.levels_of = lambda flags: ["x86-64-v3"]
"""


def built(folder: Path, **variables: str) -> tuple[Path, Path]:
    """The wheel of a copy of the sources, and a folder with what is in it."""
    source, unpacked = folder / "source", folder / "unpacked"
    caches = shutil.ignore_patterns("__pycache__")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        source.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, source)
    for name in ("gruclip", "conf"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=caches)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [*pip, "--wheel-dir", folder / "built", source]
    subprocess.run(command, env=os.environ | variables, check=True)
    (wheel,) = (folder / "built").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    return wheel, unpacked


def names_in(unpacked: Path) -> set[str]:
    """The files of a wheel, without those that describe it."""
    files = (path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file())
    return {name for name in files if ".dist-info/" not in name}


def names_of_the_checkout() -> set[str]:
    """What a wheel has of it, prebuilt kernels apart."""
    modules = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "gruclip").rglob("*.py")}
    plugins = {name for name in modules if name.startswith("gruclip/hydra_plugin/")}
    conf = {path.relative_to(REPOSITORY / "conf").as_posix() for path in (REPOSITORY / "conf").rglob("*.yaml")}
    page = {"gruclip/report/page.html"}
    kernels = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "gruclip/kernels").glob("*.[ch]*")}
    return (
        (modules - plugins)
        | kernels
        | page
        | {name.replace("gruclip/hydra_plugin/", "hydra_plugins/gruclip/") for name in plugins}
        | {f"gruclip/conf/{name}" for name in conf | {"__init__.py"}}
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return built(tmp_path_factory.mktemp("wheel"))


def test_one_worker_has_all_of_these(request: pytest.FixtureRequest) -> None:
    # pytest-xdist 3.8 does not group under pytest 9.2, and says nothing.
    if request.config.getoption("loadgroup", False):
        assert request.node.nodeid.endswith("@wheel")


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="wheels are prebuilt for another")
def test_the_wheel_holds_the_sources_and_the_kernels_for_every_level(wheel: tuple[Path, Path]) -> None:
    path, unpacked = wheel
    assert path.name.endswith("-py3-none-linux_x86_64.whl")
    names = names_in(unpacked)
    prebuilt = {name for name in names if name.startswith("gruclip/kernels/prebuilt/")}
    assert names - prebuilt == names_of_the_checkout()
    contents = {Path(name).name: (unpacked / name).read_bytes() for name in prebuilt}
    assert {name.rpartition("-")[0] for name in contents} == set(build.LEVELS)
    assert all(cache.damage(name, content) is None for name, content in contents.items())
    assert len(set(contents.values())) == len(build.LEVELS)


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="wheels are prebuilt for another")
def test_prebuilt_kernels_need_no_compiler_and_share_torchs_threads_and_compute_the_same(
    wheel: tuple[Path, Path], tmp_path: Path
) -> None:
    environment = os.environ | {"PYTHONPATH": str(wheel[1]), "CXX": "no-such-compiler"}
    command = [sys.executable, "-W", "error", "-c", COMPUTE, tmp_path / "made.pt"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    made = torch.load(tmp_path / "made.pt", weights_only=True)
    levels = build.levels_of(build.processor_flags())
    assert list(made) == [f"prebuilt for {level}" for level in levels]
    # Here the same sources, compiled for this processor; another level adds in another order.
    subprocess.run([sys.executable, "-c", COMPILED + COMPUTE, tmp_path / "here.pt"], cwd=tmp_path, check=True)
    (here,) = torch.load(tmp_path / "here.pt", weights_only=True).values()
    for level in levels:
        for one, other in zip(made[f"prebuilt for {level}"], here, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_wheel_made_without_a_compiler_is_of_every_platform_and_holds_sources(tmp_path: Path) -> None:
    path, unpacked = built(tmp_path, CXX="no-such-compiler")
    assert path.name.endswith("-py3-none-any.whl")
    assert names_in(unpacked) == names_of_the_checkout()


def test_the_wheel_works_outside_the_checkout(wheel: tuple[Path, Path], tmp_path: Path) -> None:
    unpacked = wheel[1]
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
    return _checkout(tmp_path, "3.9.2")


def _checkout(tmp_path: Path, version: str) -> Path:
    checkout, tools = tmp_path / "checkout", tmp_path / "bin"
    (checkout / "scripts").mkdir(parents=True)
    tools.mkdir()
    for name in ("scripts/setup", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, checkout / name)
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        # It says that it is of this version, and is asked with -c for no more.
        pretended = f"import sys; sys.version_info = {(*map(int, version.split('.')),)}; "
        (tools / name).write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && {{ echo Python {version}; exit; }}\n'
            f'[ "$1" = -c ] && exec {sys.executable} -c "{pretended}$2"\nexit 1\n'
        )
        (tools / name).chmod(0o755)
    for name in ("bash", "cat", "cksum", "dirname", "env"):
        (tools / name).symlink_to(str(shutil.which(name)))
    return checkout


def _setup(checkout: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(checkout.parent / "bin")}
    return subprocess.run([checkout / "scripts/setup"], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", ["3.9.2", "3.10.14", "3.14.0"])
def test_setup_says_in_one_line_that_it_has_no_sums_for_this_python(version: str, tmp_path: Path) -> None:
    checkout = _checkout(tmp_path, version)
    done = _setup(checkout)
    assert done.returncode == 2
    needed = "needs Python 3.11, 3.12 or 3.13, of which constraints.txt has the sums"
    assert done.stderr == f"scripts/setup: {needed}; found Python {version}\n"
    assert not (checkout / ".venv").exists()


def test_setup_does_nothing_while_the_project_and_the_constraints_are_the_same(checkout: Path) -> None:
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/gruclip").touch(0o755)
    sources = b"".join(
        (checkout / name).read_bytes() for name in ("pyproject.toml", "constraints.txt", "scripts/setup")
    )
    state = subprocess.run(["cksum"], input=sources, capture_output=True, check=True).stdout
    (checkout / ".venv/.gruclip-setup").write_bytes(state)
    assert _setup(checkout).returncode == 2  # pip install . has put a copy into the place of what is here
    (checkout / ".venv/lib/python3.11/site-packages").mkdir(parents=True)
    (checkout / ".venv/lib/python3.11/site-packages/__editable__.gruclip-0.1.0.pth").touch()
    assert _setup(checkout).returncode == 0
    with (checkout / "constraints.txt").open("a") as constraints:
        constraints.write("more==1\n")
    assert _setup(checkout).returncode == 2
