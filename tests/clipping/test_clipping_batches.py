"""Matrices of one shape that are clipped at once: as each alone, and of each what it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gruclip import SpectralClipping, clip_updates
from gruclip.clipping import batches as module
from gruclip.clipping import rounding
from gruclip.clipping.batches import Stack, batches, clip_stacks_
from gruclip.spectral import SpectralState


def layers(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Three matrices of 96 x 80, one of them in two names, four of 80 x 80, and others."""
    torch.manual_seed(0)
    square = [nn.Linear(80, 96) for _ in range(3)]
    attention = nn.MultiheadAttention(80, 2)
    made = nn.Sequential(*square, square[0], nn.Linear(96, 80), attention, nn.Linear(80, 1))
    for place, parameter in enumerate(made.parameters()):
        if parameter.dim() == 2:
            nn.init.orthogonal_(parameter, gain=0.9)
            with torch.no_grad():
                parameter += 0.3 * torch.randn(parameter.shape[0], 1) @ torch.randn(1, parameter.shape[1]) * (place % 3)
    return made.to(dtype)


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what is projected from now on."""
    called: list[tuple[int, ...]] = []
    clip = rounding.clip_singular_values_

    def counted(weight, *others, **named):
        called.append(tuple(weight.shape))
        return clip(weight, *others, **named)

    monkeypatch.setattr(rounding, "clip_singular_values_", counted)
    return called


@pytest.mark.parametrize("algorithm", ["program", "products"])
def test_weights_of_a_shape_are_clipped_at_once_to_what_each_alone_becomes(algorithm, monkeypatch) -> None:
    together, alone = layers(), layers()
    clipping, one_by_one = (
        SpectralClipping(net, limit=1.0, algorithm=how) for net, how in ((together, algorithm), (alone, "full"))
    )
    called = calls_of(monkeypatch)
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        called.clear()
        clipping.clip()
        assert called == [(3, 96, 80), (1, 80, 96), (4, 80, 80)]
        one_by_one.clip()
        for mine, other in zip(together.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=3e-6 * float(other.detach().norm()))
        if step == 0:
            assert clipping.last_clipped == one_by_one.last_clipped
        with torch.no_grad():
            for mine, other in zip(together.parameters(), alone.parameters(), strict=True):
                change = torch.randn(mine.shape, generator=generator) / 60
                mine += change
                other.copy_(mine)
    assert sum(clipping.total_clipped) > 8


def test_continued_from_what_was_saved_a_batch_goes_on_with_the_same_bits() -> None:
    first, second = layers(), layers()
    clipping, other = (SpectralClipping(net, limit=1.0, algorithm="program") for net in (first, second))
    clipping.clip()
    second.load_state_dict(first.state_dict())
    other.load_state_dict(clipping.state_dict())
    for net in (first, second):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter *= 1.02
    clipping.clip()
    other.clip()
    assert clipping.last_clipped == other.last_clipped
    assert all(torch.equal(*pair) for pair in zip(first.parameters(), second.parameters(), strict=True))
    assert any(state.matrices and "right" in state.matrices[0] for state in clipping.states)


def test_in_16_bits_they_are_inside_after_rounding() -> None:
    net = layers(torch.bfloat16)
    clipping = SpectralClipping(net, limit=1.0, algorithm="program")
    clipping.clip()
    assert sum(clipping.last_clipped) > 0
    assert all(line.spectral_norm <= 1.0 * (1 + 2e-6) for line in clipping.report())


def test_updates_of_a_shape_are_clipped_at_once(monkeypatch) -> None:
    found = []
    for algorithm in ("program", "auto"):
        net = layers()
        optimizer = torch.optim.SGD(net.named_parameters(), lr=1.0)
        clipping = clip_updates(optimizer, 0.05, algorithm=algorithm)
        called = calls_of(monkeypatch)
        generator = torch.Generator().manual_seed(2)
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator) / 20
        optimizer.step()
        found.append([parameter.detach().clone() for parameter in net.parameters()])
        shapes = [shape for shape in called if shape[1:] == (96, 80)]
        assert shapes == ([(3, 96, 80)] if algorithm == "program" else [(1, 96, 80)] * 3)
        assert all(line.last_clipped > 0 for line in clipping.report() if "bias" not in line.name)
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


def test_a_batch_has_no_more_elements_than_there_is_room_for(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_AT_ONCE", 100)
    stacks = [torch.empty(shape) for shape in ((1, 6, 8), (2, 6, 8), (1, 6, 8), (1, 8, 6), (5, 6, 8), (1, 6, 8))]
    assert batches(stacks, "program") == [[0], [1], [2], [4], [5], [3]]
    monkeypatch.setattr(module, "MAX_AT_ONCE", 200)
    assert batches(stacks, "program") == [[0, 1, 2], [4], [5], [3]]
    assert batches(stacks, "auto") == [[0], [1], [2], [3], [4], [5]]
    mixed = [*stacks, stacks[0].double()]
    assert [6] in batches(mixed, "products")


def test_what_one_stack_knows_and_another_does_not_stays_with_each() -> None:
    generator = torch.Generator().manual_seed(3)
    known, new = (torch.randn(1, 80, 80, generator=generator) / 4 for _ in range(2))
    state, fresh = SpectralState(), SpectralState()
    clip_stacks_([Stack(known, [1.0], state)], "program")
    before = state.matrices[0]["previous"].clone()
    known += 0.001
    counts = clip_stacks_([Stack(known, [1.0], state), Stack(new, [0.5], fresh)], "program")
    assert len(counts) == 2
    assert not torch.equal(state.matrices[0]["previous"], before)
    assert torch.equal(state.matrices[0]["previous"], known[0])
    assert torch.equal(fresh.matrices[0]["previous"], new[0])
    for matrix, limit in ((known, 1.0), (new, 0.5)):
        assert float(torch.linalg.matrix_norm(matrix.double(), 2).max()) <= limit * (1 + 2e-6)
