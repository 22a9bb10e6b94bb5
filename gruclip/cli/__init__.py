"""The command ``gruclip``: ``gruclip train`` takes Hydra's overrides, everything else plain arguments."""

from __future__ import annotations

from gruclip.cli.main import main

__all__ = ["main"]
