"""The projection onto {W : sigma_1(W) <= limit}, by several algorithms, exact to float32 and certified.

- `clip`: `clip_singular_values_`, of a batch; `one`: which algorithm takes a matrix; start here, with ``README.md`` for
  the mathematics.
- `exact`: full decompositions, the reference; `truncated`: the paper's; `single`: leading eigenvectors in float32, with
  `eigen`; `products`: matrix products alone, for GPUs.
- `tracked`: clipping by a subspace that is followed, with `subspace` (Rayleigh-Ritz and the filter), `certificate` and
  the `bound` for it, and `state` (what is carried from step to step); `thin`: products with a few columns.
- `eager`: guards every call against compilation and autocast; `arguments`: checks what it is given.
- `deferred`: clipping on a GPU without waiting for the host, by `products` or `program` (a tracked subspace each);
  `stages`: the redo.

Imports torch and the standard library, and of gruclip `kernels`, `choices` and `errors`.
"""

from gruclip.choices import ALGORITHMS
from gruclip.spectral.arguments import are_finite, check_matrices, check_writable, limits_of_batch
from gruclip.spectral.clip import check_algorithm, clip_singular_values_, spectral_norm
from gruclip.spectral.deferred import (
    ClipResult,
    algorithm_for,
    clip_singular_values_deferred_,
    redo_uncertified_,
    spectral_norm_deferred,
)
from gruclip.spectral.state import SpectralState, SubspaceState

__all__ = [
    "ALGORITHMS",
    "ClipResult",
    "SpectralState",
    "SubspaceState",
    "algorithm_for",
    "are_finite",
    "check_algorithm",
    "check_matrices",
    "check_writable",
    "clip_singular_values_",
    "clip_singular_values_deferred_",
    "limits_of_batch",
    "redo_uncertified_",
    "spectral_norm",
    "spectral_norm_deferred",
]
