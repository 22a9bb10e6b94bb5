"""A Python without the packages that a lent machine lacks: run as ``python bare_machine.py MODULE ARGUMENT...``.

Whatever imports one of them fails with the ImportError that it would meet there.
"""

from __future__ import annotations

import runpy
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

HIDDEN = ("hydra", "hydra_plugins", "omegaconf", "antlr4", "pooch", "platformdirs", "yaml", "jinja2", "keras", "jax")


class Hiding(MetaPathFinder):
    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def command(*arguments: str) -> list[str]:
    """To be run as a subprocess."""
    return [sys.executable, str(Path(__file__).resolve()), *arguments]


if __name__ == "__main__":
    sys.meta_path.insert(0, Hiding())
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
