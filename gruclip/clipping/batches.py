"""Matrices of several parameters clipped at once: a GPU takes many of a shape in the time of few."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gruclip.clipping.rounding import clip_matrices_
from gruclip.spectral import SpectralState

#: Elements that are clipped at once, at most: they are copied together, and the algorithms hold a few arrays as large.
MAX_AT_ONCE = 1 << 26
#: Algorithms that take a batch at once on any device.
BATCHED = ("products", "program")


class Stack(NamedTuple):
    """The matrices of one parameter."""

    matrices: Tensor  #: (blocks, m, n)
    limits: Sequence[float]  #: one for each
    state: SpectralState


def batches(shapes: Sequence[Tensor], algorithm: str) -> list[list[int]]:
    """Groups of stacks (blocks, m, n) that are clipped at once: lists of their indices, each in one list."""
    kinds: dict[object, list[int]] = {}
    for place, like in enumerate(shapes):
        at_once = like.device.type == "cuda" or algorithm in BATCHED
        kinds.setdefault((like.shape[1:], like.dtype, like.device) if at_once else place, []).append(place)
    return [batch for places in kinds.values() for batch in _of_a_size(places, shapes)]


def _of_a_size(places: list[int], shapes: Sequence[Tensor]) -> list[list[int]]:
    """Split so that each has `MAX_AT_ONCE` elements at most, or is one stack."""
    parted: list[list[int]] = []
    room = 0
    for place in places:
        room -= shapes[place].numel()
        if room < 0:
            parted.append([])
            room = MAX_AT_ONCE - shapes[place].numel()
        parted[-1].append(place)
    return parted


def clip_stacks_(stacks: Sequence[Stack], algorithm: str) -> list[int]:
    """Clip the matrices of one of the `batches` in place; how many values of each stack were."""
    if len(stacks) == 1:
        [(matrices, limits, state)] = stacks
        return [sum(clip_matrices_(matrices, limits, algorithm, state))]
    sizes = [len(stack.matrices) for stack in stacks]
    every = torch.cat([stack.matrices for stack in stacks])
    held = [matrix for stack, size in zip(stacks, sizes, strict=True) for matrix in stack.state.resize(size)]
    state = SpectralState(held if any(held) else ())
    clipped = clip_matrices_(every, [limit for stack in stacks for limit in stack.limits], algorithm, state)
    ends = list(itertools.accumulate(sizes))
    counts = [sum(clipped[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    for stack, size, end, count in zip(stacks, sizes, ends, counts, strict=True):
        stack.state.matrices = state.matrices[end - size : end]
        if count:
            stack.matrices.copy_(every[end - size : end])
    return counts
