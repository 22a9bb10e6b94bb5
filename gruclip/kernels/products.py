"""Matrix products by the fastest kernel that there is for this processor.

torch's default float32 product on x86 is MKL's, which takes a slow path on processors that are not Intel's. Measured
on two cores each of three of them (torch 2.13, GFLOP/s):

- AMD EPYC with AVX-512 (Zen 5): MKL 201, oneDNN, inside the same torch, 473 for (700, 650) @ (650, 10000); 133 against
  267 for (20, 650) @ (650, 650) with packed weights.
- The same (Zen 4): 124 and 200; 93 and 160 for (20, 650) @ (650, 1300).
- AMD EPYC with AVX2 (Zen 3): MKL 86, oneDNN 92, ours (`dense.cpp`) 120 for the transposed (1300, 700) @
  (700, 650); 90, 137 and 118 for (700, 650) @ (650, 1950). oneDNN has to copy what is neither row-major nor the
  transpose of that, and both divide the work evenly among cores that other work slows down unevenly.

In bf16 torch calls oneDNN itself.

The choice is a rule and not a measurement, so that a run repeats to the same bits wherever it is started. For float32
on x86 processors other than Intel's: with AVX-512 oneDNN, but ours where the left factor is a transpose, of which
torch makes a copy for it (an iteration on Nottingham takes 0.95 of the time without, on Penn Treebank 0.99); with AVX2
ours for products of a layer's size. Torch's default everywhere else. A batch of such products is taken one by one.

Where a processor has no bf16 products (torch's then reach 2 GFLOP/s), operands are rounded to bf16 and multiplied as
float32: the same sums.
"""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gruclip.kernels import compiled, derivatives

#: Multiply-adds of a product from which the compiled kernel is worth the packing of both factors, and up to which it
#: beats MKL: by a tenth to a third in between, while MKL is a tenth faster at (700, 650) @ (650, 10000).
LARGE, LARGEST = 200_000_000, 1_500_000_000
#: The same where it saves the copy of a left factor for oneDNN.
LARGE_TURNED = 10_000_000
#: Multiply-adds of a product up to which a batch of them is faster by one call.
BATCHED = 4_000_000
#: The same where the lower half is wanted: 0.6 of oneDNN's time and half of MKL's.
LARGE_GRAM = 2_000_000
#: Rows whose products are added up by a library, which may take equal terms one by one (`RUN` in panels.h); and rows
#: whose sums are added up in float32.
GRAM_TERMS, GRAM_ROWS = 64, 1024
#: Elements of a recurrent weight from which packing it for oneDNN pays: below, the call costs more than it saves.
PACKED_ELEMENTS = 100_000


@functools.cache
def processor() -> str:
    """What this processor can do, "AVX512", "AVX2" or other, if it is an x86 processor and not Intel's."""
    cpuinfo = Path("/proc/cpuinfo")
    processor = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else platform.processor()
    return "" if "GenuineIntel" in processor else torch.backends.cpu.get_cpu_capability().split("_")[0]


@functools.cache
def onednn_is_faster() -> bool:
    """Whether float32 products on this CPU go to oneDNN (see above)."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return processor() == "AVX512" and there


def _is_float32_matrix(a: Tensor) -> bool:
    return a.dim() == 2 and a.dtype == torch.float32 and a.device.type == "cpu"


@functools.cache
def has_bf16_products(device: torch.device) -> bool:
    """Whether products of bf16 operands are faster than those of float32 on a device."""
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _takes_onednn(a: Tensor) -> bool:
    # Of a depth of 0 oneDNN makes no product.
    return _is_float32_matrix(a) and a.numel() > 0 and onednn_is_faster()


def smallest_of_ours(turned: bool) -> float:
    """Multiply-adds from which float32 products on this CPU go to the compiled kernel, up to `LARGEST`; infinity where
    none does. `turned`: of a left factor that is a transpose (see above)."""
    if compiled.library() is None:
        return math.inf
    return {"AVX2": LARGE, "AVX512": LARGE_TURNED if turned else math.inf}.get(processor(), math.inf)


def _takes_ours(a: Tensor, b: Tensor) -> bool:
    if not _is_float32_matrix(a) or a.numel() * b.shape[1] > LARGEST:
        return False
    turned = a.stride(0) == 1 and a.stride(1) != 1
    return a.numel() * b.shape[1] >= smallest_of_ours(turned) and compiled.takes(a, b)


def _dense(a: Tensor) -> Tensor:
    """Contiguous, or the transpose of that: of other operands oneDNN makes a thousandfold slower product."""
    return a.t().contiguous().t() if a.stride(0) == 1 else a.contiguous()


def operand(x: Tensor, compute: torch.dtype | None) -> Tensor:
    """`x` rounded to `compute` (None: as it is), in that dtype where its products are faster, else in its own."""
    if compute is None or compute == x.dtype:
        return x
    return x.to(compute) if has_bf16_products(x.device) else x.to(compute).to(x.dtype)


def matmul(a: Tensor, b: Tensor, compute: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
    """``a @ b`` for (m, k) and (k, n), or for batches of both with one leading axis. `product` has a gradient.

    The operands are rounded to `compute` first (None: left as they are), products are summed in float32
    or better, and the result, which goes to `out` if that is given, has the dtype of `a`.
    """
    dtype, a, b = a.dtype, operand(a, compute), operand(b, compute)
    if a.dtype != dtype:
        product = torch.matmul(a, b)
        return product.to(dtype) if out is None else out.copy_(product)
    if a.dim() == 3 and a[0].numel() * b.shape[2] >= BATCHED and (_takes_onednn(a[0]) or _takes_ours(a[0], b[0])):
        out = a.new_empty(*a.shape[:2], b.shape[2]) if out is None else out
        for one, other, result in zip(a, b, out, strict=True):
            matmul(one, other, out=result)
        return out
    if _takes_ours(a, b):
        return our_product(a, b, out)
    if _takes_onednn(a):
        product = onednn_product(a, b)
        return product if out is None else out.copy_(product)
    return torch.matmul(a, b, out=out)


class _Product(torch.autograd.Function):
    @staticmethod
    @derivatives.forward
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(a, b)
        return matmul(a, b)

    @staticmethod
    @derivatives.backward
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        a, b = ctx.saved_tensors
        d_a, d_b = ctx.needs_input_grad
        return matmul(grad, b.mT) if d_a else None, matmul(a.mT, grad) if d_b else None


def product(a: Tensor, b: Tensor) -> Tensor:
    """`matmul` of two tensors of one dtype, with a gradient."""
    found: Tensor = _Product.apply(a, b)
    return found


def our_product(a: Tensor, b: Tensor, out: Tensor | None = None, lower: bool = False) -> Tensor:
    """``a @ b`` for two float32 matrices on the CPU, with a common dimension, by the compiled kernel; to `out`, whose
    rows are contiguous, if that is given. `lower`: what is above the diagonal need not be computed."""
    out = a.new_empty(a.shape[0], b.shape[1]) if out is None else out
    counts = [*a.shape, b.shape[1], out.stride(0), *a.stride(), *b.stride()]
    compiled.call("gruclip_product", [out, a, b], counts, lower, torch.get_num_threads())
    return out


def lower_gram(x: Tensor) -> Tensor:
    """``x.mT @ x`` for (m, n), of which what is above the diagonal may be anything, in sums of few terms."""
    first, *others = map(_lower_gram, x.split(GRAM_ROWS))
    total = first if len(others) < 2 else first.double()  # one more sum in float32 does no harm
    for other in others:
        total += other
    return total.to(x.dtype)


def _lower_gram(x: Tensor) -> Tensor:
    if compiled.takes(x) and x.numel() * x.shape[1] >= LARGE_GRAM:
        return our_product(x.mT, x, lower=True)
    first, *others = (matmul(part.mT, part) for part in x.split(GRAM_TERMS))
    for other in others:
        first += other
    return first


def onednn_product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` for two float32 matrices by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(_dense(a), _dense(b).t(), None, "none", [], "")


def repeated_product(
    weight: Tensor, rows: int, compute: torch.dtype | None = None
) -> Callable[[Tensor, Tensor | None], Tensor]:
    """``f(x, c) = c + x @ weight`` for many ``x`` of shape (rows, k) and one weight (k, n); c may be None.

    `f` may leave its result in `c`. With a leading axis on all of them, the product is taken for each index.
    `compute` as in `matmul`. The weight may be repacked here, so `f` must not outlive a change of it.
    """
    # A weight that is rounded already is multiplied by rounded `x`, too, whose dtype the result has.
    if compute is not None and (compute != weight.dtype or compute == torch.bfloat16):
        weight = operand(weight, compute)
        return lambda x, c: (
            (operand(x, compute) @ weight).to(x.dtype) if c is None else c.add_(operand(x, compute) @ weight)
        )
    if weight.dim() == 3:
        return lambda x, c: torch.bmm(x, weight) if c is None else c.baddbmm_(x, weight)
    if _takes_onednn(weight) and weight.numel() >= PACKED_ELEMENTS:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.t(), rows)
        linear = torch.ops.mkldnn._linear_pointwise
        return lambda x, c: (
            linear(x, packed, None, "none", [], "") if c is None else linear.binary(x, c, packed, None, "add")
        )
    return lambda x, c: torch.mm(x, weight) if c is None else c.addmm_(x, weight)
