"""What a run's folder is called: the optimizer with its parameters, rate and seed, then what is not as usual."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gruclip.choices import OWN_DATASETS
from gruclip.config import ADDED, RunConfig

NAME_LENGTH = 150

#: Named first in a folder's name, in this order, where they are set.
LEADING_SETTINGS = ("optimizer.threshold", "optimizer.delta", "optimizer.lr", "seed")


def folder_name(config: RunConfig, default: RunConfig, identity: str) -> str:
    """E.g. ``spectral_clipping,delta=0.2,lr=1,seed=3``: the optimizer with its own parameters, rate and seed, then
    every identity setting that differs from `default`, the experiment file's, and the name of a corpus of one's own."""
    settings, usual = config.identity_settings(), default.flat()
    settings |= {name: value for name, value in config.flat().items() if name in ADDED and value != usual[name]}
    if config.dataset.name in OWN_DATASETS:  # of which there may be several: by the last part of where they lie
        settings["dataset.root"] = Path(str(config.dataset.root)).expanduser().resolve().name
    parts = [config.optimizer.name]
    parts += [f"{_short(name)}={_text(settings[name])}" for name in LEADING_SETTINGS if settings.get(name) is not None]
    named = (*LEADING_SETTINGS, "optimizer.name")
    parts += [
        f"{_short(name)}={_text(value)}"
        for name, value in settings.items()
        if name not in named and value != usual[name]
    ]
    name = ",".join(parts)
    return name if len(name) <= NAME_LENGTH else f"{name[:NAME_LENGTH]}-{identity[:8]}"


def _short(name: str) -> str:
    """The last part of a dotted name, where that says enough: ``delta``, but ``dataset.name``."""
    last = name.rpartition(".")[2]
    return name if last == "name" else last


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "null" if value is None else str(value)
