"""What the projection can be given: checked before anything is done."""

from __future__ import annotations

import torch
from torch import Tensor

from gruclip.errors import UserError


def check_matrices(weight: Tensor, name: str = "weight") -> None:
    """Raise `UserError` unless `weight` is a dense float32 or float64 batch (..., m, n), m and n at least 1."""
    if is_a(weight, "DTensor"):
        raise UserError(f"{name} is a DTensor: singular values are those of a whole matrix; give its full_tensor()")
    if weight.is_nested:
        raise UserError(f"{name} is a nested tensor: should be dense; call to_padded_tensor(0) first")
    shape = tuple(weight.shape)
    if weight.layout != torch.strided:
        raise UserError(f"{name} of layout {weight.layout}: should be dense; call to_dense() first")
    if weight.dtype not in (torch.float32, torch.float64):
        raise UserError(f"{name} of {weight.dtype}: should be float32 or float64")
    if weight.is_meta:
        raise UserError(f"{name} is on the meta device, where nothing has a value; give it one first")
    if weight.dim() < 2 or 0 in shape[-2:]:
        raise UserError(f"{name} of shape {shape}: should be matrices (..., m, n) of a row and a column at least")


def is_a(thing: object, name: str) -> bool:
    """Whether it is of a class of torch.distributed, which need not be imported for that."""
    return any(
        kind.__name__ == name and kind.__module__.startswith("torch.distributed") for kind in type(thing).__mro__
    )


def check_writable(name: str, weight: Tensor) -> None:
    """Raise `UserError` where elements share memory (an expanded tensor) or cannot be changed in place, or where a
    gradient would not know of it.

    name: what to call it.
    """
    if type(weight).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise UserError(
            f"{name} of {type(weight).__name__}: has operations of its own (__torch_dispatch__), as a quantized or "
            "traced tensor has; clip the plain tensor before it is made one, or leave it out"
        )
    if torch._C._functorch.is_batchedtensor(weight):
        raise UserError(f"{name} is under torch.func.vmap: give the whole batch (..., m, n) at once instead")
    if weight.is_inference() and not torch.is_inference_mode_enabled():
        raise UserError(f"{name} was made under torch.inference_mode, outside of which it cannot be changed; clone it")
    if weight.requires_grad and torch.is_grad_enabled() and not _whole(weight).is_leaf:
        raise UserError(
            f"{name} is computed from others, whose gradients would leave the clipping out; use clip_singular_values, "
            "or detach it"
        )
    reach = 0  # largest offset in the axes of smaller stride
    for stride, size in sorted(zip(weight.stride(), weight.shape, strict=True)):
        if size > 1 and stride <= reach:
            raise UserError(
                f"{name} of shape {tuple(weight.shape)}: elements share their memory, as where it is expanded or "
                "unfolded; clone it first"
            )
        reach += stride * (size - 1)


def _whole(weight: Tensor) -> Tensor:
    """What it is a view of, or itself."""
    return weight if weight._base is None else weight._base


def are_finite(weight: Tensor) -> Tensor:
    """Whether each matrix of a batch (..., m, n) holds no NaN or infinity."""
    return torch.isfinite(weight).all(-1).all(-1)


def limits_of_batch(limit: float | Tensor, batch: torch.Size, device: torch.device) -> Tensor:
    """A limit for each matrix of a batch, float64, with the gradient of `limit`; not checked yet.

    Raises `UserError` unless it is a number or a tensor that broadcasts.
    """
    try:
        if isinstance(limit, bool | complex) or (isinstance(limit, Tensor) and (limit.is_complex() or limit.is_meta)):
            raise TypeError
        return torch.as_tensor(limit, dtype=torch.float64, device=device).expand(batch)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        shown = repr(limit)[:40]
        raise UserError(f"limit={shown}: should be a number, or a tensor that broadcasts to {tuple(batch)}") from error


def check_limits(values: list[float]) -> None:
    """Raise `UserError` for one that is not positive."""
    for value in values:
        if not value > 0:
            raise UserError(f"limit={value}: should be a positive number")
