"""What others write to clip singular values: the SVD, and the matrix sign by a Newton-Schulz iteration.

For W (m, n), m <= n, the limit beta and msign(W) = U V^T where W = U Sigma V^T,

    P(W) = (beta O + W - (beta O - W) msign(beta O - W)^T O) / 2,        O = msign(W),

since min(sigma, beta) = (beta + sigma - (beta - sigma) sign(beta - sigma)) / 2 ("Training Transformers with Enforced
Lipschitz Bounds", Newhouse et al., 2025; Cesista, "Fast, Numerically Stable, and Auto-Differentiable Spectral Clipping
via Newton-Schulz Iteration", 2025). A value near 0 or near the limit has no sign that a few steps could find, and what
they leave of it is in the result.

geotorch cannot do the same: it parametrises a weight whose singular values lie in an interval, and refuses a matrix
outside (`InManifoldError`) instead of taking it to the nearest one inside.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gruclip.bench.floor import notes
from gruclip.kernels.products import has_bf16_products

#: a, b and c of a s + b s^3 + c s^5, each the best for what the last has left of [1e-3, 1] ("The Polar Express", Amsel
#: et al., 2025). Eight steps of three products, as many as `emerging_optimizers` takes.
QUINTIC = (
    (8.4703, -25.1081, 18.6293),
    (4.1828, -3.1087, 0.5806),
    (3.9619, -2.9541, 0.5630),
    (3.2866, -2.4647, 0.5074),
    (2.2737, -1.6447, 0.4162),
    (1.8887, -1.2652, 0.3765),
    (1.8750, -1.2500, 0.3750),
    (1.8750, -1.2500, 0.3750),
)

#: By so much the arguments of all steps but the last are made smaller: rounding, in bf16 above all, takes values beyond
#: 1, from where the first polynomials lead away.
SAFETY = 1.01

#: What people write: torch's float32 SVD of the whole matrix.
NAIVE = "torch SVD"

EMERGING = "spectral_hardcap"
MISSING = (
    "`spectral_hardcap` of emerging-optimizers is not installed and was left out: pip install 'gruclip[bench]', with "
    "Python 3.12 or later."
)

Projection = Callable[[Tensor], object]  #: clips a matrix in place


def svd_clip(weight: Tensor, limit: float, driver: str | None = None) -> None:
    left, values, right = torch.linalg.svd(weight, full_matrices=False, driver=driver)
    weight.copy_((left * values.clamp(max=limit)) @ right)


def newton_schulz_clip(weight: Tensor, limit: float, dtype: torch.dtype) -> None:
    """The formula above, with the iteration's products in `dtype` and all others in the weight's own."""
    if weight.shape[0] > weight.shape[1]:
        newton_schulz_clip(weight.mT, limit, dtype)
        return
    sign = matrix_sign(weight, dtype)
    below = limit * sign - weight
    weight.copy_((limit * sign + weight - below @ matrix_sign(below, dtype).mT @ sign) / 2)


def matrix_sign(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """msign(W) of W (m, n), m <= n, as far as `QUINTIC` finds it."""
    x = (weight / torch.linalg.vector_norm(weight).clamp(min=torch.finfo(weight.dtype).tiny)).to(dtype)
    for step, (a, b, c) in enumerate(QUINTIC, 1):
        if step < len(QUINTIC):
            a, b, c = a / SAFETY, b / SAFETY**3, c / SAFETY**5
        square = x @ x.mT
        x = a * x + torch.addmm(square, square, square, beta=b, alpha=c) @ x
    return x.to(weight.dtype)


def has_emerging() -> bool:
    return importlib.util.find_spec("emerging_optimizers") is not None


def emerging_clip(weight: Tensor, limit: float) -> None:
    """NVIDIA's, as their package has it."""
    module = importlib.import_module("emerging_optimizers.orthogonalized_optimizers.spectral_clipping_utils")
    weight.copy_(module.spectral_hardcap(weight, limit))


def missing(device: torch.device) -> list[str]:
    """What a table should say of those that are not among the `peers`."""
    return [*notes(device), *([] if has_emerging() else [MISSING])]


def peers(limit: float, device: torch.device) -> dict[str, Projection]:
    """Every peer that can be had here, by name."""
    found: dict[str, Projection] = {
        NAIVE: partial(svd_clip, limit=limit),
        "Newton-Schulz, float32": partial(newton_schulz_clip, limit=limit, dtype=torch.float32),
    }
    if has_bf16_products(device):  # else one clip takes seconds
        found["Newton-Schulz, bf16"] = partial(newton_schulz_clip, limit=limit, dtype=torch.bfloat16)
    if device.type == "cuda":
        found["torch SVD, gesvdj"] = partial(svd_clip, limit=limit, driver="gesvdj")
    if has_emerging():
        found[EMERGING] = partial(emerging_clip, limit=limit)
    return found
