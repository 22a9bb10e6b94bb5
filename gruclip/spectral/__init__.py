"""The projection onto {W : sigma_1(W) <= limit} and the algorithms for it."""

from gruclip.algorithms import ALGORITHMS
from gruclip.spectral.clip import (
    ClipResult,
    algorithm_on,
    check_algorithm,
    clip_singular_values_,
    clip_singular_values_deferred_,
    redo_uncertified_,
    spectral_norm,
    spectral_norm_deferred,
)
from gruclip.spectral.state import SpectralState

__all__ = [
    "ALGORITHMS",
    "ClipResult",
    "SpectralState",
    "algorithm_on",
    "check_algorithm",
    "clip_singular_values_",
    "clip_singular_values_deferred_",
    "redo_uncertified_",
    "spectral_norm",
    "spectral_norm_deferred",
]
