"""The projection onto {W : sigma_1(W) <= limit} and the algorithms for it."""

from gruclip.spectral.clip import ALGORITHMS, ClipResult, clip_singular_values_, spectral_norm
from gruclip.spectral.state import SpectralState

__all__ = ["ALGORITHMS", "ClipResult", "SpectralState", "clip_singular_values_", "spectral_norm"]
