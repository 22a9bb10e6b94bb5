"""Hides from every Python that starts with this folder in PYTHONPATH the packages that a lent machine lacks.

Nothing finds them, as if they were not installed; so it is in the processes that it starts.
"""

from __future__ import annotations

import sys
from typing import Any

HIDDEN = ("hydra", "hydra_plugins", "omegaconf", "antlr4", "pooch", "platformdirs", "yaml", "jinja2", "keras", "jax")
#: Of the package itself, where it is not installed.
NOT_INSTALLED = "gruclip.conf"


class Hiding:
    """A finder of modules, but for those."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(self, name: str, *others: Any) -> Any:
        hidden = name.partition(".")[0] in HIDDEN or name == NOT_INSTALLED
        return None if hidden else self._finder.find_spec(name, *others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
