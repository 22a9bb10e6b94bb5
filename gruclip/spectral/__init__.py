"""The projection onto {W : sigma_1(W) <= limit} and the algorithms for it."""

from gruclip.spectral.clip import (
    ALGORITHMS,
    ClipResult,
    clip_singular_values_,
    clip_singular_values_deferred_,
    has_fast_float64,
    redo_uncertified_,
    spectral_norm,
)
from gruclip.spectral.state import SpectralState

__all__ = [
    "ALGORITHMS",
    "ClipResult",
    "SpectralState",
    "clip_singular_values_",
    "clip_singular_values_deferred_",
    "has_fast_float64",
    "redo_uncertified_",
    "spectral_norm",
]
