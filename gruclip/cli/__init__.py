"""The command ``gruclip``: ``gruclip train`` takes Hydra's overrides, everything else plain arguments.

- `main`: from a command line to an exit code, errors in one line; start here. `arguments`: what may be typed.
- `training`: ``train``, through Hydra; `allowed`: what of Hydra's is taken; `explain`: Hydra's errors in one line.
- `reproduce`: a sweep and its tables. `library`: `gruclip.compose` and `gruclip.train`, the same for Python.
- `commands`: ``table``, ``figure``, ``report``, ``collect``, ``status``, ``eval``, ``sample``, ``verify``, ``data``.
- `version`: what is in use.

The top of the house: may import everything. Together with `hydra_plugin` the only room that knows Hydra and OmegaConf.
"""

from __future__ import annotations

from gruclip.cli.main import main

__all__ = ["main"]
