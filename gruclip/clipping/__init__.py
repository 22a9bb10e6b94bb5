"""Singular-value clipping for any matrix of any module: its weights, its updates, and a function with a gradient.

- `weights`: `SpectralClipping`, the projection after each step of an optimizer; start here, with ``README.md``.
- `updates`: `clip_updates`, what a step changes, projected; `functional`: `clip_singular_values`, out of place.
- `matrices`: which matrices the parameters of a module are; `selection`: by names, patterns or a predicate.
- `batches`: what a GPU clips at once; `rounding`: the projection in any dtype; `saved`: what a checkpoint holds.

Imports torch and the standard library, and of gruclip `dynamics`, `layers`, `gru`, `spectral`, `kernels`, `choices` and
`errors`.
"""

from gruclip.clipping.functional import clip_singular_values
from gruclip.clipping.updates import ClippedUpdate, UpdateClipping, clip_updates
from gruclip.clipping.weights import ClippedMatrix, SpectralClipping

__all__ = [
    "ClippedMatrix",
    "ClippedUpdate",
    "SpectralClipping",
    "UpdateClipping",
    "clip_singular_values",
    "clip_updates",
]
