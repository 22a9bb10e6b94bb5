"""gruclip: spectral clipping for recurrent networks, and the experiments of Kanai, Fujiwara and Iwamura (2017).

A GRU can explode when the spectral radius of its linearisation at the origin, J = I/2 + W_hh/4, passes 1. Spectral
clipping keeps it below: after each step of the optimizer every W_hh is replaced by the nearest matrix whose singular
values are at most 2 - delta.

>>> import torch
>>> from gruclip import SpectralClipping, jacobian_at_origin, spectral_radius
>>> model = torch.nn.GRU(8, 64, bias=False)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> clipping = SpectralClipping(model, delta=0.2).attach(optimizer)
>>> states, _ = model(torch.ones(50, 16, 8))
>>> states.square().mean().backward()
>>> optimizer.step()  # and then the projection
>>> [bool(spectral_radius(J) < 1) for J in jacobian_at_origin(model).values()]
[True]

The projection           `clip_singular_values_`, `spectral_norm`, `SpectralState`
                         `clip_singular_values`, out of place and with a gradient
In training              `SpectralClipping` of any torch module's weights, `clip_updates` of any optimizer's steps
The linearised cells     `jacobian_at_origin`, `spectral_radius`, `stability_limit`
The paper's cell         `GRU`, with the reset gate before the recurrent product
The paper's experiments  `compose`, `RunConfig`, `train`, `load`, `read_runs`; on the command line ``gruclip train``

Bad input raises `gruclip.errors.UserError`, a ValueError whose one line says what is wrong and what would be right.
Shapes name hidden units n, batch B, time steps T; losses are in nats, times in seconds.

The names are loaded when they are first used, so that ``gruclip --version`` need not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gruclip.cli.library import compose, train
    from gruclip.clipping import SpectralClipping, clip_singular_values, clip_updates
    from gruclip.config import RunConfig
    from gruclip.dynamics import jacobian_at_origin, spectral_radius, stability_limit
    from gruclip.gru import GRU
    from gruclip.report.reading import read_runs
    from gruclip.runs.trained import load
    from gruclip.spectral import SpectralState, clip_singular_values_, spectral_norm

__version__ = "0.1.0"

_HOMES = {
    "GRU": "gru",
    "RunConfig": "config",
    "SpectralClipping": "clipping",
    "SpectralState": "spectral",
    "clip_singular_values": "clipping",
    "clip_singular_values_": "spectral",
    "clip_updates": "clipping",
    "compose": "cli.library",
    "jacobian_at_origin": "dynamics",
    "load": "runs.trained",
    "read_runs": "report.reading",
    "spectral_norm": "spectral",
    "spectral_radius": "dynamics",
    "stability_limit": "dynamics",
    "train": "cli.library",
}

__all__ = [
    "GRU",
    "RunConfig",
    "SpectralClipping",
    "SpectralState",
    "clip_singular_values",
    "clip_singular_values_",
    "clip_updates",
    "compose",
    "jacobian_at_origin",
    "load",
    "read_runs",
    "spectral_norm",
    "spectral_radius",
    "stability_limit",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gruclip' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gruclip.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """With the names that are not loaded yet, for `pydoc` and completion."""
    return sorted({*globals(), *__all__})
