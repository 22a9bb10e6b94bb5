"""Products with a factor that dropout has thinned out: what is zero takes no time."""

from __future__ import annotations

import torch
from torch import Tensor

from gruclip.kernels import compiled, products

#: The share that may be left where skipping pays.
MAX_KEPT = 0.75
#: SplitMix64's numbers, as int64.
STEP = 0x9E3779B97F4A7C15 - 2**64
SCRAMBLING = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


def min_units() -> int:
    """Units from which skipping pays: with fewer a library's product is as fast.

    On AMD's processors with AVX-512 two rows are worked on at a time: on Zen 4 it pays from 64 on (0.5 to 0.8 of
    oneDNN's time at 200, in bf16 0.8 to 0.95); Zen 5 was measured with one row at a time alone, from 256 on.
    """
    return 192 if products.processor() == "AVX512" else 256


def pays(mask: Tensor | None, *others: Tensor | None) -> bool:
    """Whether products with a factor thinned out by `mask` (..., n) are faster by the functions here.

    The mask has dropout's factors, 0 and 1 / (1 - p), so that its largest says what share is left.
    """
    if mask is None or not mask.numel() or mask.shape[-1] < min_units() or not compiled.takes(mask, *others):
        return False
    return MAX_KEPT * float(mask.max()) >= 1


def skips_pairs() -> bool:
    """Whether there are products of bfloat16 here that skip pairs of zeros, and are faster than torch's library.

    Where the compiled kernels multiply pairs, on processors that are not Intel's: beside those of AMX, which torch's
    library has, half of the work is no gain. (On Zen 4 0.66 to 0.85 of the library's time.)
    """
    return products.processor() == "AVX512" and compiled.has_pairs()


def pays_in_bf16(mask: Tensor | None, *others: Tensor | None) -> bool:
    """`pays` for products of bfloat16; `others` are matrices (..., m, k), of which pairs along both axes are made."""
    if not skips_pairs() or not pays(mask, *others):
        return False
    return not any(size % 2 for x in (mask, *others) if x is not None for size in x.shape[-2:])


def random_bits(seeds: Tensor, words: int) -> Tensor:
    """64 random bits in each of `words` numbers, int64, for each seed (R,): (R, words), the same on every device.

    By SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), which scrambles a
    count: multiplications and shifts, of which none waits for another number's.
    """
    if seeds.device.type == "cpu" and compiled.takes():
        bits = seeds.new_empty(len(seeds), words)
        compiled.call("gruclip_random_bits", [bits, seeds.contiguous()], [len(seeds), words], torch.get_num_threads())
        return bits
    z = seeds[:, None] + torch.arange(1, words + 1, device=seeds.device) * STEP
    for shift, factor in SCRAMBLING:
        z = (z ^ _shifted(z, shift)) * factor
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, shift: int) -> Tensor:
    """To the right, with zeros from the left: torch's own shift repeats the sign."""
    return (z >> shift) & ((1 << 64 - shift) - 1)


def factors(bits: Tensor, threshold: int, factor: float, like: Tensor) -> Tensor:
    """`factor` where the random bits, int16, are below `threshold` and zero elsewhere, in the dtype of `like`."""
    if compiled.takes(like) and bits.is_contiguous():
        mask, number = like.new_empty(bits.shape), like.new_tensor(factor)
        compiled.call("gruclip_mask", [mask, bits, number], [bits.numel(), threshold], torch.get_num_threads())
        return mask
    # A bound beyond int16, of a share below 2**-17, would be taken for a negative one.
    kept = bits < threshold if threshold < 2**15 else torch.ones_like(bits, dtype=torch.bool)
    return kept.to(like.dtype) * factor


def product_of_kept(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """``left @ right`` for (m, k) and (k, n) on the CPU, both float32, of any strides; pays where `left` is half zeros.

    Zeros of `left` are skipped, even against an infinity of `right`. The result goes to `out`, if that is given.

    Both may be bfloat16 where `pays_in_bf16`: pairs of zeros side by side are skipped; `right`, or its transpose, is
    contiguous, k is even, and `out` may be float32.
    """
    (m, depth), n = left.shape, right.shape[1]
    out = left.new_empty(m, n) if out is None else out
    threads = torch.get_num_threads()
    if left.dtype == torch.bfloat16:
        counts, to_bf16 = [m, depth, n, *out.stride(), *right.stride()], out.dtype == torch.bfloat16
        compiled.call("gruclip_product_of_kept_pairs", [out, left.contiguous(), right], counts, to_bf16, threads)
        return out
    counts = [m, depth, n, *out.stride(), *left.stride(), *right.stride()]
    compiled.call("gruclip_product_of_kept", [out, left, right], counts, threads)
    return out


def product_where_kept(left: Tensor, right: Tensor, mask: Tensor) -> Tensor:
    """``mask * (left @ right)`` for (m, k), (k, n), both float32, of any strides, and (m, n) on the CPU.

    Only where the mask is not zero is anything computed. Both may be bfloat16 where `pays_in_bf16`: k is even, and
    `right` is copied unless its transpose is contiguous. The result is float32.
    """
    (m, depth), n = left.shape, right.shape[1]
    out, left, mask, threads = mask.new_empty(m, n), left.contiguous(), mask.contiguous(), torch.get_num_threads()
    if left.dtype == torch.bfloat16:
        right = right.mT.contiguous().mT
        counts = [m, depth, n, right.stride(1)]
        compiled.call("gruclip_product_where_kept_pairs", [out, left, right, mask], counts, threads)
        return out
    counts = [m, depth, n, *reversed(right.stride())]
    compiled.call("gruclip_product_where_kept", [out, left, right, mask], counts, threads)
    return out
