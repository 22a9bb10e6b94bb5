"""An iteration recorded once and replayed: CUDA graphs.

A small model's iteration starts a thousand kernels that take the GPU less time than the host needs to start them. They
are the same ones on the same memory every time, as long as the host decides nothing on the way; so they are
captured, and from then on the host starts whole phases.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch

Phase = Callable[[], object]
#: Takes the phases of an iteration and gives those that repeat them, to be called in the same order; runs nothing.
Capture = Callable[[Sequence[Phase]], list[Phase]]


def capture_on(device: torch.device) -> Capture | None:
    """How iterations are captured on a device: None on a CPU, and everywhere with ``GRUCLIP_GRAPHS=0``."""
    off = os.environ.get("GRUCLIP_GRAPHS") == "0"
    return None if off or device.type != "cuda" else cuda_graphs


def captures_projections() -> bool:
    """Whether the projection is captured too: not with ``GRUCLIP_GRAPHS=unclipped``, for where cuSOLVER refuses it."""
    return os.environ.get("GRUCLIP_GRAPHS") != "unclipped"


def cuda_graphs(phases: Sequence[Phase]) -> list[Phase]:
    """Each phase as the replay of a CUDA graph of its own, so that the time of each can still be measured.

    They share a pool of memory, for a phase hands tensors to the next ones: a replay is right in the order of the
    capture only. What is read on the host afterwards, or by anything else than these phases, must be kept alive.
    """
    pool = torch.cuda.graph_pool_handle()
    graphs = []
    for phase in phases:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            phase()
        graphs.append(graph)
    return [graph.replay for graph in graphs]
