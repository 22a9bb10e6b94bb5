"""What each kernel is called with, and the check of it: no call reads or writes beyond its tensors.

A kernel gets addresses, then counts, then flags. From the counts follows what each tensor must be: so many elements
one after the other, or a matrix of a shape and strides; and torch guarantees that such a tensor lies in its memory.
Two things are not checked here: what indices a tensor holds (`gruclip.model.losses` checks its targets), and whether
outputs overlap inputs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import NoReturn

import torch
from torch import Tensor

#: Elements of a contiguous tensor; or shape and strides.
Layout = int | tuple[tuple[int, int], tuple[int, int]]
#: A pair: for a first flag of 0 and of 1.
Dtype = torch.dtype | tuple[torch.dtype, torch.dtype]
F32, F64, BF16, I64, I16 = torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int16


class Kernel:
    """One kernel's arguments.

    tensors: a name that ends in "?" may be None. layouts: a function from the counts to the tensors' layouts.
    allows: a predicate of counts and flags, beyond the layouts. values: how many of the last counts are not sizes, and
    may be negative.
    """

    def __init__(
        self,
        tensors: dict[str, Dtype],
        layouts: Callable[..., tuple[Layout, ...]],
        flags: tuple[str, ...] = ("threads",),
        allows: Callable[..., bool] = lambda *_: True,
        values: int = 0,
    ) -> None:
        self.tensors, self.layouts, self.flags, self.allows = tensors, layouts, flags, allows
        self.counts = layouts.__code__.co_varnames[: layouts.__code__.co_argcount]
        self.dtypes = tuple(tensors.values())
        self.sizes = len(self.counts) - values
        self.optional = tuple(name.endswith("?") for name in tensors)
        self.threads = flags.index("threads") if "threads" in flags else None
        self.signature: list[type] = [ctypes.c_void_p] * len(tensors)
        self.signature += [ctypes.c_long] * len(self.counts) + [ctypes.c_int] * len(flags)


def check(name: str, tensors: Sequence[Tensor | None], counts: Sequence[int], flags: Sequence[int]) -> None:
    """Raises ValueError, naming kernel and argument, where a call of it would not be safe."""
    kernel = KERNELS[name]
    if len(tensors) != len(kernel.dtypes) or len(counts) != len(kernel.counts) or len(flags) != len(kernel.flags):
        raise ValueError(f"{name} takes {', '.join((*kernel.tensors, *kernel.counts, *kernel.flags))}")
    if min(counts[: kernel.sizes]) < 0 or not kernel.allows(*counts, *flags):
        _refuse_numbers(name, kernel, counts, flags)
    if kernel.threads is not None and flags[kernel.threads] < 1:
        _refuse_numbers(name, kernel, counts, flags)
    for index, layout in enumerate(kernel.layouts(*counts)):
        tensor, dtype = tensors[index], kernel.dtypes[index]
        if tensor is None:
            if not kernel.optional[index]:
                raise ValueError(f"{name}: {list(kernel.tensors)[index]} is None")
        else:
            if type(dtype) is tuple:
                dtype = dtype[flags[0]]
            if tensor.dtype is not dtype or not tensor.is_cpu:
                _refuse(name, kernel, index, tensor, layout)
            if type(layout) is int:
                if tensor.numel() != layout or not tensor.is_contiguous():
                    _refuse(name, kernel, index, tensor, layout)
            elif (tensor.shape, tensor.stride()) != layout:
                _refuse(name, kernel, index, tensor, layout)


def _refuse(name: str, kernel: Kernel, index: int, tensor: Tensor, layout: Layout) -> NoReturn:
    wanted = f"{layout} elements one after the other"
    if not isinstance(layout, int):
        wanted = f"shape {layout[0]} with strides {layout[1]}"
    dtype = kernel.dtypes[index]
    raise ValueError(
        f"{name}: {list(kernel.tensors)[index].removesuffix('?')} is {tensor.dtype} on {tensor.device}, shape "
        f"{tuple(tensor.shape)} with strides {tensor.stride()}; should be "
        f"{' or '.join(map(str, dtype)) if isinstance(dtype, tuple) else dtype} on cpu, {wanted}"
    )


def _refuse_numbers(name: str, kernel: Kernel, counts: Sequence[int], flags: Sequence[int]) -> NoReturn:
    numbers = zip(kernel.counts + kernel.flags, (*counts, *flags), strict=True)
    raise ValueError(f"{name} cannot be called with {', '.join(f'{key} = {int(value)}' for key, value in numbers)}")


def _single(names: str) -> dict[str, Dtype]:
    """Tensors of float32."""
    return dict.fromkeys(names.split(), F32)


def _rows(m: int, n: int, down: int) -> Layout:
    return (m, n), (down, 1)


#: Of gruclip_band and gruclip_eigenpairs: diagonals from the main one down, and floats from a row's end to the next row
#: at least.
WIDTH, ROOM = 5, 16


def band_rows(n: int) -> int:
    """How many rows gruclip_band needs room for: `place_of` in band.h lays them out."""
    return -(-n // 64) * 64


KERNELS: dict[str, Kernel] = {
    "gruclip_band": Kernel(
        {"a": F32, "band": F64, "scales": F32, "size": F64, "matrix": F32},
        lambda n, stride: (band_rows(n) * stride, n * WIDTH, n, 1, n * n),
        allows=lambda n, stride, threads: stride >= n + ROOM,
    ),
    "gruclip_chebyshev": Kernel(
        {"x": F32, "before": F32, "largest": F64, "weight": F32, "scale": F64},
        lambda m, n, count, k, steps, down: (n * count, n * count, 1, _rows(m, n, down), 1),
        allows=lambda m, n, count, k, steps, down, threads: count > 0,
    ),
    "gruclip_column_squares": Kernel(
        {"squares": F64, "a": F32},
        lambda m, n, down, across: (n, ((m, n), (down, across))),
        allows=lambda m, n, down, across, threads: 1 in (down, across),
    ),
    "gruclip_count_above": Kernel(
        {"counts": I64, "band": F64, "thresholds": F64}, lambda n, most: (most, n * WIDTH, most), flags=()
    ),
    "gruclip_eigenpairs": Kernel(
        {"values": F64, "vectors": F32, "a": F32, "band": F64, "scales": F32},
        lambda n, stride, wanted: (wanted, n * wanted, band_rows(n) * stride, n * WIDTH, n),
        flags=("rough", "threads"),
        allows=lambda n, stride, wanted, rough, threads: n > 0 and stride >= n + ROOM and wanted <= n,
    ),
    "gruclip_gram": Kernel({"gram": F64, "image": F32}, lambda m, q: (q * q, m * q)),
    "gruclip_gru_forward": Kernel(
        _single("sums states keep? weight"),
        lambda steps, batch, n: (steps * batch * 3 * n, (steps + 1) * batch * n, steps * batch, 3 * n * n),
        flags=("threads", "in_bf16"),
        allows=lambda steps, batch, n, threads, in_bf16: steps > 0 and batch > 0,
    ),
    "gruclip_gru_backward": Kernel(
        _single("grad gates states keep? weight d_sums h_before rh_before d_h0"),
        lambda steps, batch, n: (
            steps * batch * n,
            steps * batch * 3 * n,
            (steps + 1) * batch * n,
            steps * batch,
            3 * n * n,
            steps * batch * 3 * n,
            steps * batch * n,
            steps * batch * n,
            batch * n,
        ),
        flags=("threads", "in_bf16"),
        allows=lambda steps, batch, n, threads, in_bf16: batch > 0,
    ),
    # The threshold is below zero where more than half is dropped: random bits are int16.
    "gruclip_mask": Kernel(
        {"mask": F32, "bits": I16, "factor": F32}, lambda count, threshold: (count, count, 1), values=1
    ),
    "gruclip_orthonormalise": Kernel(
        _single("columns"),
        lambda n, count, rounds: (n * count,),
        allows=lambda n, count, rounds, threads: 0 < count <= n and rounds > 0,
    ),
    "gruclip_mirror": Kernel({"a": F32}, lambda n: (n * n,)),
    "gruclip_product": Kernel(
        _single("result left right"),
        lambda m, depth, n, down, left_down, left_across, right_down, right_across: (
            _rows(m, n, down),
            ((m, depth), (left_down, left_across)),
            ((depth, n), (right_down, right_across)),
        ),
        flags=("lower", "threads"),
        allows=lambda m, depth, n, *rest: min(m, depth, n) > 0,
    ),
    "gruclip_product_of_kept": Kernel(
        _single("result left right"),
        lambda m, depth, n, down, across, left_down, left_across, right_down, right_across: (
            ((m, n), (down, across)),
            ((m, depth), (left_down, left_across)),
            ((depth, n), (right_down, right_across)),
        ),
        allows=lambda m, depth, n, *rest: min(m, depth, n) > 0,
    ),
    "gruclip_product_of_kept_pairs": Kernel(
        {"result": (F32, BF16), "left": BF16, "right": BF16},
        lambda m, depth, n, down, across, right_down, right_across: (
            ((m, n), (down, across)),
            m * depth,
            ((depth, n), (right_down, right_across)),
        ),
        flags=("to_bf16", "threads"),
        # Pairs lie side by side, or are made of two rows.
        allows=lambda m, depth, n, down, across, right_down, right_across, *flags: (
            min(m, depth, n) > 0
            and depth % 2 == 0
            and (right_across == 1 or (right_down == 1 and right_across % 2 == 0))
        ),
    ),
    "gruclip_product_where_kept": Kernel(
        _single("result left right mask"),
        lambda m, depth, n, right_down, right_across: (
            m * n,
            m * depth,
            ((depth, n), (right_across, right_down)),
            m * n,
        ),
        allows=lambda m, depth, n, *rest: min(m, depth, n) > 0,
    ),
    "gruclip_product_where_kept_pairs": Kernel(
        {"result": F32, "left": BF16, "right": BF16, "mask": F32},
        lambda m, depth, n, right_down: (m * n, m * depth, ((depth, n), (1, right_down)), m * n),
        allows=lambda m, depth, n, right_down, threads: min(m, depth, n) > 0 and depth % 2 == right_down % 2 == 0,
    ),
    "gruclip_random_bits": Kernel({"bits": I64, "seeds": I64}, lambda runs, words: (runs * words, runs)),
    "gruclip_ritz_triplets": Kernel(
        {**_single("left right residual"), "sizes": F64, **_single("columns image back"), "turns": F64, "values": F64},
        lambda m, n, q, down, across: (m * q, n * q, n * q, q, n * q, m * q, n * q, ((q, q), (down, across)), q),
    ),
    "gruclip_softmax_nll": Kernel(
        {"logits": (F32, BF16), "bias": F32, "targets": I64, "nll": F32, "d_bias?": F32},
        lambda rows, width: (rows * width, width, rows, rows, width),
        flags=("in_bf16", "threads"),
        allows=lambda rows, width, in_bf16, threads: width > 0 and in_bf16 in (0, 1),
    ),
    "gruclip_there_and_back": Kernel(
        _single("image back matrix columns"),
        lambda m, n, width, down: (m * width, n * width, _rows(m, n, down), n * width),
    ),
    "gruclip_take_off": Kernel(
        _single("matrix left right"),
        lambda m, n, width, down, left_down, left_across, right_down, right_across: (
            _rows(m, n, down),
            ((m, width), (left_down, left_across)),
            ((n, width), (right_down, right_across)),
        ),
    ),
    "gruclip_thin_product": Kernel(
        _single("result matrix columns"),
        lambda m, n, width, down, across, run: (m * width, ((m, n), (down, across)), n * width),
        allows=lambda m, n, width, down, across, run, threads: run > 0,
    ),
    "gruclip_squared_distance": Kernel(
        {"result": F64, "a": F32, "b?": F32},
        lambda m, n, a_down, b_down: (1, _rows(m, n, a_down), _rows(m, n, b_down)),
    ),
}
