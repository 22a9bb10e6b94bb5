"""`clip_singular_values`: the projection out of place, with its derivative.

For X (m, n) = U diag(s) V^T, r = min(m, n), the projection is P(X) = U diag(f(s)) V^T with f(s) = min(s, limit), a
spectral operator. With A = U^T H V (r, r), its derivative is

    DP(X)[H] = U (G o (A + A^T) / 2 + K o (A - A^T) / 2) V^T
               + (I - U U^T) H V diag(q) V^T + U diag(q) U^T H (I - V V^T)

    G_ij = (f(s_i) - f(s_j)) / (s_i - s_j), or f'(s_i) where s_i = s_j
    K_ij = (f(s_i) + f(s_j)) / (s_i + s_j), and q_i = f(s_i) / s_i, both 1 where the values are at most the limit

(Lewis and Sendov, "Twice differentiable spectral functions", 2001, for symmetric matrices; Ding, Sun, Sun and Toh,
"Spectral operators of matrices", 2018, Theorem 3, for these.) It is self-adjoint, so that a gradient goes back through
the same formula. f is piecewise linear: between values on one side of the limit G_ij is 1 or 0 without a division;
across it G_ij = (limit - s_j) / (s_i - s_j), s_i > limit >= s_j, is in [0, 1].

Where a value equals the limit P has no derivative (except along H that do not move it). f' = 1 is used, as in
`torch.clamp`: the limit of the derivatives at matrices inside, an element of Clarke's generalised Jacobian. A value up
to half of the projection's tolerance above the limit, which rounding reaches, counts as equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gruclip.errors import UserError
from gruclip.spectral import check_algorithm, check_matrices, clip_singular_values_, limits_of_batch
from gruclip.spectral.deferred import tolerance_for
from gruclip.spectral.eager import eagerly


@eagerly
def clip_singular_values(weight: Tensor, limit: float | Tensor, *, algorithm: str = "auto") -> Tensor:
    """A copy of each matrix whose singular values sigma_i are min(sigma_i, limit), with its derivative.

    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> clipped = clip_singular_values(weight, 2.0)
    >>> clipped.detach()
    tensor([[2., 0.],
            [0., 1.]])
    >>> clipped.sum().backward()
    >>> weight.grad  # none along the first value, half of what turns its vectors
    tensor([[0.0000, 0.5000],
            [0.5000, 1.0000]])

    weight (..., m, n), float32 or float64; limit a positive number, or a tensor broadcastable to the batch shape (...),
    which has a gradient, too. Value, `algorithm` and errors are those of `clip_singular_values_`; the derivative takes
    a decomposition in float64 of each matrix, where any is clipped. A matrix left as it is, inside its limit up to the
    tolerance, has the derivative of the identity. For a singular value at the limit see the module. Works
    under `torch.func.grad`, `jvp` and `vmap`, and breaks the graph of `torch.compile`, so that `torch.export` refuses
    it. First derivatives only: differentiating twice raises `UserError`.
    """
    check_algorithm(algorithm)
    check_matrices(weight)
    limits = limits_of_batch(limit, weight.shape[:-2], weight.device)
    clipped: Tensor = _Projection.apply(weight, limits, algorithm)  # type: ignore[no-untyped-call]
    return clipped


class _Projection(torch.autograd.Function):
    """(weight, limits, algorithm) to P(weight)."""

    @staticmethod
    def forward(weight: Tensor, limits: Tensor, algorithm: str) -> Tensor:
        clipped = weight.clone(memory_format=torch.contiguous_format)
        clip_singular_values_(clipped, limits, algorithm=algorithm)
        return clipped

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        weight, limits, _ = inputs
        ctx.save_for_backward(weight, limits, output)
        ctx.save_for_forward(weight, limits, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        of_weight, of_limits = _Derivative.apply(*ctx.saved_tensors, grad)  # type: ignore[no-untyped-call]
        return of_weight, of_limits, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, of_limits: Tensor | None, _: None) -> Tensor:
        weight, limits, output = ctx.saved_tensors
        tangent = torch.zeros_like(weight) if tangent is None else tangent
        of_limits = torch.zeros_like(limits) if of_limits is None else of_limits
        moved: Tensor = _Tangent.apply(weight, limits, output, tangent, of_limits)  # type: ignore[no-untyped-call]
        return moved

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, int | None, None], weight: Tensor, limits: Tensor, algorithm: str
    ) -> tuple[Tensor, int]:
        weight, limits = _batched(info.batch_size, in_dims, weight, limits)
        return _Projection.apply(weight, limits, algorithm), 0  # type: ignore[no-untyped-call]


class _FirstOrder(torch.autograd.Function):
    """It has no second derivative."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise UserError("clip_singular_values has first derivatives only; differentiate it once")

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> None:
        raise UserError("clip_singular_values has first derivatives only; differentiate it once")


class _Derivative(_FirstOrder):
    """(weight, limits, P(weight), gradient) to the gradients of weight and limits."""

    @staticmethod
    def forward(weight: Tensor, limits: Tensor, output: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """They are the gradient through DP, which is self-adjoint, and the sum of u_i v_i^T over s_i > limit."""
        if torch.equal(output, weight):
            return grad.clone(), limits.new_zeros(grad.shape[:-2])
        parts, wide = _Decomposed(weight, limits, output), grad.double()
        along = ((parts.U.mT @ wide) * parts.Vh).sum(-1)
        return parts.apply(wide).to(weight.dtype), torch.where(parts.above, along, 0.0).sum(-1)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[tuple[Tensor, Tensor], tuple]:
        return _Derivative.apply(*_directions(info.batch_size, in_dims, *tensors)), (0, 0)  # type: ignore[no-untyped-call]


class _Tangent(_FirstOrder):
    """(weight, limits, P(weight), tangent, that of limits) to the tangent of P(weight)."""

    @staticmethod
    def forward(weight: Tensor, limits: Tensor, output: Tensor, tangent: Tensor, of_limits: Tensor) -> Tensor:
        parts = _Decomposed(weight, limits, output)
        moved = parts.apply(tangent.double())
        moved = moved + (parts.U * torch.where(parts.above, of_limits[..., None], 0.0)[..., None, :]) @ parts.Vh
        return moved.to(weight.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        return _Tangent.apply(*_directions(info.batch_size, in_dims, *tensors)), 0  # type: ignore[no-untyped-call]


def _batched(size: int, in_dims: tuple[int | None, ...], *tensors: Tensor) -> list[Tensor]:
    """The tensors with the axis of vmap first."""
    placed = zip(tensors, in_dims, strict=False)
    return [one.expand(size, *one.shape) if dim is None else one.movedim(dim, 0) for one, dim in placed]


def _directions(size: int, in_dims: tuple[int | None, ...], *tensors: Tensor) -> list[Tensor]:
    """`_batched`, but of directions alone where only they are mapped: the weight is then decomposed once.

    Where the weight is mapped about that, as by `vmap` of `jacrev`, it has no axis of the directions: it gets one.
    """
    if in_dims[:3] == (None, None, None):
        return [*tensors[:3], *_batched(size, in_dims[3:], *tensors[3:])]
    placed = _batched(size, in_dims, *tensors)
    axes = (slice(None), *[None] * (placed[3].dim() - placed[0].dim()))
    return [*(one[axes] for one in placed[:3]), *placed[3:]]


class _Decomposed:
    """The factors of DP, from an SVD in float64."""

    def __init__(self, weight: Tensor, limits: Tensor, output: Tensor) -> None:
        changed = (output != weight).any(-1).any(-1)
        self.U, s, self.Vh = torch.linalg.svd(weight.double(), full_matrices=False)
        limit = limits[..., None]
        # Up to rounding at the limit is at the limit.
        self.above = (s > limit * (1 + tolerance_for(weight.dtype, "auto") / 2)) & changed[..., None]
        f = torch.minimum(s, limit)
        either = self.above[..., :, None] | self.above[..., None, :]
        both = self.above[..., :, None] & self.above[..., None, :]
        apart, total = s[..., :, None] - s[..., None, :], s[..., :, None] + s[..., None, :]
        slope = (f[..., :, None] - f[..., None, :]) / torch.where(either & ~both, apart, 1.0)
        chord = (f[..., :, None] + f[..., None, :]) / torch.where(either, total, 1.0)
        self.lost_G = torch.where(either, 1 - torch.where(both, 0.0, slope), 0.0)
        self.lost_K = torch.where(either, 1 - chord, 0.0)
        self.lost_q = torch.where(self.above, 1 - f / torch.where(self.above, s, 1.0), 0.0)

    def apply(self, H: Tensor) -> Tensor:
        """DP[H] as H minus a correction: where that is zero nothing is rounded."""
        UH, HV = self.U.mT @ H, H @ self.Vh.mT
        A = UH @ self.Vh.mT
        inner = self.lost_G * (A + A.mT) / 2 + self.lost_K * (A - A.mT) / 2
        right = (HV - self.U @ A) * self.lost_q[..., None, :]
        lower = self.lost_q[..., :, None] * (UH - A @ self.Vh)
        return H - (self.U @ inner + right) @ self.Vh - self.U @ lower
