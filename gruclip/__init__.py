"""gruclip: spectral clipping for recurrent networks, and the experiments of Kanai, Fujiwara and Iwamura (2017).

The names below are loaded when they are first used, so that ``gruclip --version`` need not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gruclip.clipping import SpectralClipping
    from gruclip.config import RunConfig
    from gruclip.dynamics import jacobian_at_origin, spectral_radius, stability_limit
    from gruclip.gru import GRU
    from gruclip.runs.trained import load
    from gruclip.spectral import SpectralState, clip_singular_values_, spectral_norm
    from gruclip.training.runner import train

__version__ = "0.1.0"

_HOMES = {
    "GRU": "gru",
    "RunConfig": "config",
    "SpectralClipping": "clipping",
    "SpectralState": "spectral",
    "clip_singular_values_": "spectral",
    "jacobian_at_origin": "dynamics",
    "load": "runs.trained",
    "spectral_norm": "spectral",
    "spectral_radius": "dynamics",
    "stability_limit": "dynamics",
    "train": "training.runner",
}

__all__ = [
    "GRU",
    "RunConfig",
    "SpectralClipping",
    "SpectralState",
    "clip_singular_values_",
    "jacobian_at_origin",
    "load",
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
