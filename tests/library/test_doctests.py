"""Every public name has a docstring, and every example in one gives what it says."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gruclip

MODULES = (
    "gruclip", "gruclip.clipping", "gruclip.clipping.functional", "gruclip.clipping.updates",
    "gruclip.clipping.weights", "gruclip.config", "gruclip.dynamics", "gruclip.gru", "gruclip.layers",
    "gruclip.runs.trained", "gruclip.spectral", "gruclip.spectral.clip", "gruclip.spectral.state",
    "gruclip.training.runner",
)  # fmt: skip


def public(module: ModuleType) -> dict[str, Any]:
    """The classes and functions that a module offers, and the methods and properties that these define themselves."""
    names = getattr(module, "__all__", None) or [
        name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__
    ]
    found = {f"{module.__name__}.{name}": getattr(module, name) for name in names if not name.startswith("_")}
    found = {name: value for name, value in found.items() if inspect.isclass(value) or inspect.isroutine(value)}
    for name, value in list(found.items()):
        if inspect.isclass(value):
            members = {f"{name}.{member}": part for member, part in vars(value).items() if not member.startswith("_")}
            found |= {
                member: part
                for member, part in members.items()
                if inspect.isfunction(part) or isinstance(part, property | classmethod)
            }
    return found


def is_written(value: Any) -> bool:
    """Whether a docstring is somebody's, and not made by `dataclasses` or `typing.NamedTuple`."""
    own = value.__doc__ if not inspect.isclass(value) else vars(value).get("__doc__")
    made = inspect.isclass(value) and (dataclasses.is_dataclass(value) or issubclass(value, tuple))
    return bool(own) and not (made and own.startswith(f"{value.__name__}("))


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name: str) -> None:
    found = public(importlib.import_module(name))
    assert found
    assert not [one for one, value in found.items() if not is_written(value)]


@pytest.mark.parametrize("name", MODULES)
def test_every_example_gives_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    done = doctest.testmod(module)
    assert done.failed == 0


@pytest.mark.parametrize("name", [name for name in gruclip.__all__ if name != "load"])
def test_every_public_name_has_an_example(name: str) -> None:
    assert ">>> " in (getattr(gruclip, name).__doc__ or "")


def test_pydoc_shows_the_package_as_a_manual() -> None:
    text = subprocess.run(
        [sys.executable, "-m", "pydoc", "gruclip"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    shown = {line.split("(")[0].removeprefix("    ").removeprefix("class ") for line in text if "(" in line}
    assert set(gruclip.__all__) <= shown


def test_the_names_of_the_corpora_are_listed_before_they_are_loaded() -> None:
    code = "import sys, gruclip.data as data; sys.exit(not {*data.__all__} <= {*dir(data)} or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_version_is_told_without_torch() -> None:
    code = "import sys, gruclip; dir(gruclip); gruclip.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
