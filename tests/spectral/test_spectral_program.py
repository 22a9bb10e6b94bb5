"""The tracked subspace as a fixed program: exact where it is certified, honest where not, without waiting."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gruclip.config import ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.data import load
from gruclip.kernels import compiled, fused
from gruclip.kernels.program import coefficients
from gruclip.spectral import (
    SpectralState,
    SubspaceState,
    algorithm_for,
    clip_singular_values_,
    clip_singular_values_deferred_,
    program,
    redo_uncertified_,
)
from gruclip.spectral import deferred as deferred_module
from gruclip.spectral.program import COLUMNS, ROOT, SIGN, widths
from gruclip.spectral.state import gaussian
from gruclip.training.engine import Engine


def projected(weight: Tensor, limit: float) -> Tensor:
    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return U * S.clamp(max=limit) @ Vh


def orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))[0]


def made(m: int, n: int, values: Tensor, generator: torch.Generator) -> Tensor:
    left, right = (orthogonal(size, len(values), generator) for size in (m, n))
    return (left * values @ right.mT).float()


def late(n: int, generator: torch.Generator, above: int = 10) -> Tensor:
    """A limit of 1, reached by `above` values, below them a spectrum that falls off."""
    values = torch.cat((torch.ones(above), torch.linspace(0.97, 0.05, n - above))).double()
    return made(n, n, values, generator)


def crowded(n: int, near: int, generator: torch.Generator) -> Tensor:
    """A limit of 1, reached by ten values, and `near` above 0.9 of it."""
    values = torch.cat((torch.ones(10), torch.linspace(0.999, 0.9, near - 10), torch.linspace(0.88, 0.02, n - near)))
    return made(n, n, values.double(), generator)


def update(n: int, size: float, generator: torch.Generator) -> Tensor:
    """Like a gradient's: 40 directions that fall off, and the first of norm `size`."""
    values = 0.3 * torch.logspace(0, -2, 40, dtype=torch.float64)
    values[0] = size
    return made(n, n, values, generator)


def assert_right(after: Tensor, before: Tensor, limit: float) -> None:
    """As the page promises it."""
    error = float(torch.linalg.matrix_norm(after.double() - projected(before, limit)))
    assert error <= 2e-6 * max(float(torch.linalg.matrix_norm(before.double())), limit)
    assert float(torch.linalg.matrix_norm(after.double(), 2)) <= limit * (1 + 2e-6)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.sampled_from([(70, 70), (120, 90), (90, 120), (150, 150)]),
    rank=st.sampled_from([0, 1, 5, 64, 150]),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    above=st.integers(0, 30),
    jump=st.sampled_from([0.0, 0.1, 6.0, 100.0]),
    seed=st.integers(0, 2**30),
)
def test_what_is_certified_is_right_and_what_is_not_is_left(shape, rank, scale, above, jump, seed):
    generator = torch.Generator().manual_seed(seed)
    rank = min(rank, *shape)
    values = torch.rand(rank, generator=generator, dtype=torch.float64)
    values[:above] += 0.5
    weight, limit = made(*shape, values, generator) * scale, 0.9 * scale
    state, bounds = SubspaceState(weight), torch.tensor(limit, dtype=torch.float64)
    for step in range(5):
        size = (jump if step == 3 else 0.05) * scale
        weight += size * torch.outer(*(orthogonal(rows, 1, generator)[:, 0] for rows in shape)).float()
        before = weight.clone()
        result = clip_singular_values_deferred_(weight, bounds, state)
        assert bool(result.finite)
        if bool(result.certified):
            assert_right(weight, before, limit)
            norm = float(torch.linalg.matrix_norm(before.double(), 2))
            assert float(result.spectral_norm) == pytest.approx(min(norm, limit), rel=1e-4, abs=1e-20)
        else:
            assert torch.equal(weight, before)
        redo_uncertified_(weight, bounds, result, state)
        assert_right(weight, before, limit)


@pytest.mark.parametrize("sizes", [[0.3] * 6, [6.0] * 6, [0.3, 5.0] * 4])
def test_updates_of_late_training_are_certified_from_the_third_step_on(sizes: list[float]):
    generator = torch.Generator().manual_seed(1)
    weight, limit = late(160, generator), torch.tensor(1.0, dtype=torch.float64)
    state, certified = SubspaceState(weight), []
    for size in sizes:
        weight += update(160, size, generator)
        before = weight.clone()
        result = clip_singular_values_deferred_(weight, limit, state)
        certified.append(bool(result.certified))
        redo_uncertified_(weight, limit, result, state)
        assert_right(weight, before, 1.0)
        expected = torch.linalg.svdvals(before.double())
        assert abs(int(result.values_clipped) - int((expected > 1).sum())) <= 10 or not certified[-1]
    assert all(certified[2:])


@pytest.mark.parametrize(("n", "near", "carried"), [(400, 110, 120), (400, 115, 120), (600, 120, 120), (600, 200, 184)])
def test_more_columns_certify_what_crowds_near_the_limit_where_64_do_not(n: int, near: int, carried: int):
    generator = torch.Generator().manual_seed(9)
    weight, limit = crowded(n, near, generator), torch.tensor(1.0, dtype=torch.float64)
    narrow, wide = SubspaceState(weight), SubspaceState(weight, carried)
    certified: dict[int, list[bool]] = {COLUMNS: [], carried: []}
    for size in (0.3, 5.0, 0.3, 5.0, 0.3):
        weight += update(n, size, generator)
        before = weight.clone()
        for columns, state in ((COLUMNS, narrow), (carried, wide)):
            weight = before.clone()
            result = clip_singular_values_deferred_(weight, limit, state)
            certified[columns].append(bool(result.certified))
            if certified[columns][-1]:
                assert_right(weight, before, 1.0)
            redo_uncertified_(weight, limit, result, state)
    assert all(certified[carried][1:])
    assert not any(certified[COLUMNS])


@settings(max_examples=8, deadline=None)
@given(
    shape=st.sampled_from([(200, 200), (170, 140), (140, 170)]),
    carried=st.sampled_from([120, 184]),
    rank=st.sampled_from([0, 1, 64, 130, 200]),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    above=st.integers(0, 80),
    jump=st.sampled_from([0.1, 6.0, 100.0]),
    seed=st.integers(0, 2**30),
)
def test_what_more_columns_certify_is_right(shape, carried, rank, scale, above, jump, seed):
    generator = torch.Generator().manual_seed(seed)
    rank, carried = min(rank, *shape), 120 if min(shape) < 192 else carried
    values = torch.rand(rank, generator=generator, dtype=torch.float64)
    values[:above] += 0.5
    weight, limit = made(*shape, values, generator) * scale, 0.9 * scale
    state, bounds = SubspaceState(weight, carried), torch.tensor(limit, dtype=torch.float64)
    for step in range(4):
        size = (jump if step == 2 else 0.05) * scale
        weight += size * torch.outer(*(orthogonal(rows, 1, generator)[:, 0] for rows in shape)).float()
        before = weight.clone()
        result = clip_singular_values_deferred_(weight, bounds, state)
        if bool(result.certified):
            assert_right(weight, before, limit)
        else:
            assert torch.equal(weight, before)
        redo_uncertified_(weight, bounds, result, state)


def test_a_widened_state_certifies_from_the_second_step_on():
    generator = torch.Generator().manual_seed(10)
    weight = torch.stack([crowded(400, 105, generator), late(400, generator)])
    limits, state, certified = torch.ones(2, dtype=torch.float64), SubspaceState(weight), []
    for step in range(8):
        if step == 4:
            # The share of the last steps, of which one counts a fiftieth.
            assert state.missed.tolist() == pytest.approx([1 - 0.98**4, 0.02 * 0.98**3], abs=0.021)
            before, bulk = state.right.clone(), state.bulk.clone()
            state.widen(120)
            assert state.right.shape == (2, 400, 120)
            assert torch.equal(state.right[..., :56], before)
            assert torch.equal(state.bulk, bulk)
            assert not state.missed.any()
            state.widen(56)
            assert state.carried == 120
        weight += torch.stack([update(400, 0.3 if step % 2 else 5.0, generator) for _ in range(2)])
        before = weight.clone()
        result = clip_singular_values_deferred_(weight, limits, state)
        certified.append(result.certified.tolist())
        redo_uncertified_(weight, limits, result, state)
        for after, one in zip(weight, before, strict=True):
            assert_right(after, one, 1.0)
    assert not any(one for one, _ in certified[:4])
    assert certified[5:] == [[True, True]] * 3


def test_columns_are_whole_tiles_and_at_most_a_third_of_a_matrix():
    assert widths(650, 650) == [56, 120, 184]
    assert widths(650, 400) == [56, 120]
    assert widths(256, 256) == widths(80, 80) == [56]


@pytest.mark.parametrize("carried", [56, 120])
@pytest.mark.parametrize("planted", [1.00001, 1.05, 1.5, 4.0, 1e4])
def test_a_value_above_the_limit_that_the_subspace_does_not_hold_is_never_certified(
    planted: float, carried: int, monkeypatch: pytest.MonkeyPatch
):
    """The program is kept from finding it: no filter, and a state that says nothing has changed."""
    monkeypatch.setattr("gruclip.spectral.program.DEGREES", ())
    generator = torch.Generator().manual_seed(2)
    values = torch.cat((torch.ones(30), torch.linspace(0.6, 0.01, 226))).double()
    left, right = orthogonal(256, 256, generator), orthogonal(256, 256, generator)
    for hidden in (carried, carried + 44, 255):
        values_now = values.clone()
        values_now[hidden] = planted
        weight = (left * values_now @ right.mT).float()
        state = SubspaceState(weight, carried)
        state.right[0] = right[:, :carried].float()
        state.previous[0], state.bulk[0] = weight, 0.6
        before = weight.clone()
        assert not bool(clip_singular_values_deferred_(weight, torch.tensor(1.0).double(), state).certified)
        assert torch.equal(weight, before)
        # Without it there is a certificate.
    weight = (left * values @ right.mT).float()
    state.previous[0], state.bulk[0], state.right[0] = weight, 0.6, right[:, :carried].float()
    assert bool(clip_singular_values_deferred_(weight, torch.tensor(1.0).double(), state).certified)


def test_columns_that_lean_to_each_other_are_not_taken_for_orthonormal(monkeypatch: pytest.MonkeyPatch):
    # Two passes of float32 leave some that lean by 4e-5 where values lie eight limits up, as a fuzzer found.
    generator = torch.Generator().manual_seed(11)
    weight = made(256, 256, torch.cat((torch.tensor([6.0]), torch.linspace(0.5, 0, 255))).double(), generator)
    right = torch.linalg.svd(weight.double())[2][:COLUMNS].mT
    straight, state = program._cholesky_qr_twice, SubspaceState(weight[None])
    # First what is known of a new matrix settles.
    for lean, certified in ((0.0, None), (0.0, True), (1e-5, False), (0.0, True)):
        columns = right.clone()
        columns[:, 0] += lean * columns[:, 30]
        made_so = columns.float()[None]
        monkeypatch.setattr(
            program, "_cholesky_qr_twice", lambda x, made=made_so: straight(x) if x.dtype == torch.float64 else made
        )
        result = clip_singular_values_deferred_(weight[None].clone(), torch.ones(1).double(), state)
        assert certified in (None, bool(result.certified))


def test_matrices_of_a_batch_have_nothing_to_do_with_each_other():
    generator = torch.Generator().manual_seed(3)
    weight = torch.stack([late(100, generator) for _ in range(5)])
    limits = torch.tensor([1.0, 0.8, 1.0, torch.inf, 1.0], dtype=torch.float64)
    state = SubspaceState(weight)
    for step in range(4):
        weight += torch.stack([update(100, 0.3, generator) for _ in range(5)])
        before = weight.clone()
        if step == 2:
            weight[2, 3, 4] = math.nan
        result = clip_singular_values_deferred_(weight, limits, state)
        redone = redo_uncertified_(weight, limits, result, state)
        assert result.finite.tolist() == [True, True, step != 2, True, True]
        assert torch.equal(weight[3], before[3])
        assert float(redone.spectral_norm[3]) == pytest.approx(float(torch.linalg.svdvals(before[3])[0]), rel=1e-4)
        for index in (0, 1, 4) if step == 2 else (0, 1, 2, 4):
            assert_right(weight[index], before[index], float(limits[index]))
        if step == 2:
            assert torch.isnan(weight[2]).sum() == 1
            weight[2] = before[2]
    assert bool(result.certified[[0, 1, 3, 4]].all())


@pytest.mark.parametrize("wild", [30.0, 1e4, 1e10, 3e38, math.nan])
def test_a_step_too_wild_for_it_spoils_no_later_one(wild: float):
    generator = torch.Generator().manual_seed(8)
    weight, limit = late(80, generator), torch.tensor(1.0, dtype=torch.float64)
    state, certified = SubspaceState(weight), []
    for step in range(7):
        weight = weight + update(80, 0.3, generator)
        moved = weight + wild * torch.outer(weight[0], weight[1]).div(10) if step == 3 else weight
        result = clip_singular_values_deferred_(moved, limit, state)
        certified.append(bool(result.certified))
        if step != 3:
            redo_uncertified_(moved, limit, result, state)
            weight = moved
    assert certified[2:] == [True, certified[3], True, True, True][: len(certified) - 2]


def test_a_saved_state_goes_on_with_the_same_bits():
    generator = torch.Generator().manual_seed(4)
    weight, limits = torch.stack([late(80, generator) for _ in range(3)]), torch.ones(3, dtype=torch.float64)
    state = SubspaceState(weight)
    for _ in range(3):
        weight += torch.stack([update(80, 0.3, generator) for _ in range(3)])
        clip_singular_values_deferred_(weight, limits, state)
    whole, single = SubspaceState(weight), SubspaceState(weight)
    whole.load_state_dict(state.state_dict())
    for index in range(3):
        single.load_state_dict(state.index_select(index).state_dict(), index)
    moved = weight + update(80, 0.3, generator)
    results = []
    for one in (state, whole, single):
        after = moved.clone()
        result = clip_singular_values_deferred_(after, limits, one)
        results.append((after, *result, *one.state_dict().values()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    # What another algorithm has left, or nothing, is a state that knows nothing.
    foreign, known = SpectralState(), SubspaceState(weight[:1])
    clip_singular_values_(weight[0].clone(), 1.0, algorithm="block", state=foreign)
    known.load_state_dict(state.index_select(0).state_dict(), 0)
    known.load_state_dict({"0.draws": torch.tensor(3)}, 0)
    fresh = SubspaceState(weight[:1]).state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in known.state_dict().items())


def test_states_of_other_widths_are_taken():
    generator = torch.Generator().manual_seed(11)
    weight, limits = torch.stack([late(200, generator) for _ in range(2)]), torch.ones(2, dtype=torch.float64)
    states = [SubspaceState(weight), SubspaceState(weight, 120)]
    for _ in range(3):
        weight += torch.stack([update(200, 0.3, generator) for _ in range(2)])
        for state in states:
            after = weight.clone()
            result = clip_singular_values_deferred_(after, limits, state)
            redo_uncertified_(after, limits, result, state)
        weight = after
    narrow, wide = states
    # The wider one makes the whole wider; what it says of the other matrix stays, filled up.
    mixed = SubspaceState(weight)
    mixed.load_state_dict(narrow.index_select(0).state_dict(), 0)
    mixed.load_state_dict(wide.index_select(1).state_dict(), 1)
    assert mixed.carried == 120
    assert torch.equal(mixed.right[1], wide.right[1])
    other = SubspaceState(weight, 120)
    other.load_state_dict(narrow.index_select(0).state_dict(), 0)
    other.load_state_dict(wide.index_select(1).state_dict(), 1)
    widened = SubspaceState(weight)
    widened.load_state_dict(narrow.state_dict())
    widened.widen(120)
    assert torch.equal(mixed.right, other.right)
    assert torch.equal(mixed.right[0], widened.right[0])
    assert torch.equal(mixed.previous, torch.stack((narrow.previous[0], wide.previous[1])))
    assert bool(clip_singular_values_deferred_(weight.clone(), limits, mixed).certified.all())
    # A state saved before there was a share of what is missed.
    old = {name: tensor for name, tensor in narrow.state_dict().items() if not name.endswith("missed")}
    known = SubspaceState(weight)
    known.load_state_dict(old)
    assert torch.equal(known.right, narrow.right)
    assert torch.equal(known.draws, narrow.draws)
    # Of matrices of another shape, or more directions than they have: nothing is known.
    for name, tensor in (("right", torch.zeros(200, 201)), ("right", torch.zeros(199, 56)), ("bulk", torch.zeros(3))):
        known = SubspaceState(weight[:1])
        known.load_state_dict(narrow.index_select(0).state_dict() | {f"0.{name}": tensor})
        fresh = SubspaceState(weight[:1]).state_dict()
        assert all(torch.equal(tensor, fresh[name]) for name, tensor in known.state_dict().items())
    # By name, with a state from elsewhere.
    carried = SpectralState()
    carried.load_state_dict(wide.state_dict())
    assert not bool(clip_singular_values_(weight, 1.0, algorithm="program", state=carried).redone.any())
    assert [held["right"].shape[-1] for held in carried.matrices] == [120, 120]


class Counting(TorchDispatchMode):
    """The names of the operations, of which none may make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("by_kernels", [False, True])
def test_the_operations_are_the_same_whatever_the_matrices_hold(by_kernels: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compiled, "takes", lambda *_: False)
    generator = torch.Generator().manual_seed(5)
    weights = [late(80, generator), 5 * late(80, generator), torch.zeros(80, 80), torch.full((80, 80), math.nan)]
    if by_kernels:  # of Triton, which are noted and not run
        monkeypatch.setattr(fused, "INTERPRETED", True)
        monkeypatch.setattr(fused, "launch", lambda name, grid, *_, **__: counting.names.append(f"{name} {grid}"))
        for polynomials in (SIGN, ROOT):
            coefficients(torch.device("cpu"), tuple(polynomials))
    names = []
    for weight in weights:
        state = SubspaceState(weight[None])
        with Counting() as counting:
            clip_singular_values_deferred_(weight[None], torch.ones(1).double(), state)
        names.append(counting.names)
    assert all(other == names[0] for other in names[1:])
    assert any(name.startswith("thin_product") for name in names[0]) is by_kernels


def test_what_the_program_leaves_is_redone_by_products_where_float64_is_fast(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deferred_module, "has_fast_float64", lambda _: True)
    generator = torch.Generator().manual_seed(6)
    for shape in ((80, 80), (3, 80, 80)):
        before = torch.stack([late(80, generator) * 2 for _ in range(3)])[: math.prod(shape[:-2])].reshape(shape)
        limits = torch.ones(shape[:-2], dtype=torch.float64)
        weight, state = before.clone(), SubspaceState(before)
        result = clip_singular_values_deferred_(weight, limits, state)
        refused = result._replace(certified=torch.zeros_like(result.certified))
        weight = before.clone()
        redone = redo_uncertified_(weight, limits, refused, state)
        assert bool(redone.redone.all())
        assert bool(redone.certified.all())
        assert torch.equal(state.previous, weight.reshape(state.previous.shape))
        for after, one in zip(weight.reshape(-1, 80, 80), before.reshape(-1, 80, 80), strict=True):
            assert_right(after, one, 1.0)


def test_by_name_it_takes_any_state_and_any_size():
    generator = torch.Generator().manual_seed(7)
    state = SpectralState()
    weight = late(90, generator)
    redone = []
    for _ in range(4):
        weight += update(90, 0.3, generator)
        before = weight.clone()
        redone.append(bool(clip_singular_values_(weight, 1.0, algorithm="program", state=state).redone))
        assert_right(weight, before, 1.0)
    assert not any(redone[2:])
    small = torch.eye(COLUMNS - 1) * 2
    clip_singular_values_(small, 1.0, algorithm="program")
    torch.testing.assert_close(small, torch.eye(COLUMNS - 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("above", "redone"), [(0, False), (10, False), (100, False), (300, True)])
def test_of_a_matrix_that_nothing_is_known_of_it_takes_two_looks(above: int, redone: bool):
    generator = torch.Generator().manual_seed(8)
    values = torch.cat((torch.linspace(1.3, 1.001, above), torch.linspace(0.9, 0, 600 - above))).double()
    weight = torch.stack([made(600, 620, values, generator), 0.5 * made(600, 620, values.clamp(max=1), generator)])
    before = weight.clone()
    result = clip_singular_values_(weight, 1.0, algorithm="program")
    for after, one in zip(weight, before, strict=True):
        assert_right(after, one, 1.0)
    assert result.redone.tolist() == [redone, False]
    assert result.values_clipped.tolist() == [above, 0]
    torch.testing.assert_close(result.spectral_norm[0], torch.tensor(1.0 if above else 0.9).double(), rtol=1e-4, atol=0)
    assert torch.equal(weight[1], before[1])


@pytest.mark.parametrize(("fast", "chosen"), [(True, ["products", "products", "program"]), (False, ["auto"] * 3)])
def test_on_a_gpu_large_matrices_are_looked_at_before_they_are_taken_by_products(
    fast: bool, chosen: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(deferred_module, "has_fast_float64", lambda _: fast)

    def on_a_gpu(n: int) -> Any:
        return SimpleNamespace(shape=(n, 3 * n), dtype=torch.float32, device=torch.device("cuda"))

    sizes = (650, 2047, 2048)
    assert [algorithm_for(on_a_gpu(n), "auto", followed=False) for n in sizes] == chosen
    assert [algorithm_for(on_a_gpu(n), "auto", followed=True) for n in sizes] == ["program"] * 3
    double = SimpleNamespace(shape=(2048, 2048), dtype=torch.float64, device=torch.device("cuda"))
    assert algorithm_for(double, "auto", followed=False) == ("products" if fast else "auto")


def test_its_random_numbers_are_gaussian_and_others_at_every_draw():
    seeds = torch.arange(4)
    numbers = gaussian(seeds, 500, 21)
    assert numbers.shape == (4, 500, 21)
    assert torch.equal(numbers[2], gaussian(seeds[2:3], 500, 21)[0])
    flat = numbers.flatten(1).double()
    assert (flat.mean(1).abs() < 0.05).all()
    assert ((flat**4).mean(1) - 3).abs().max() < 0.3
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.05
    assert (torch.corrcoef(numbers[0].mT.double()) - torch.eye(21)).abs().max() < 0.25
    # What (9) counts on: small ones are as rare as they should be.
    assert float((flat.abs() < 0.19).double().mean()) == pytest.approx(math.erf(0.19 / 2**0.5), rel=0.05)


def test_training_with_the_program_is_training_with_full_decompositions_and_continues_exactly():
    base = RunConfig(
        model=ModelConfig(hidden_size=100),
        optimizer=OptimizerConfig("spectral_clipping", lr=20.0, delta=0.9, algorithm="program"),
        trainer=TrainerConfig(max_epochs=None, max_steps=40, bptt=5, batch_size=4),
        device="cpu",
    )
    free = dataclasses.replace(base, seed=1, optimizer=OptimizerConfig("sgd", lr=0.5, algorithm="program"))
    full = dataclasses.replace(base, optimizer=dataclasses.replace(base.optimizer, algorithm="full"))
    engine, reference = Engine([base, free], load("pydoc"), torch.device("cpu")), Engine([full], load("pydoc"),
                        torch.device("cpu"))  # fmt: skip
    assert isinstance(engine.projections.states[0], SubspaceState)
    engine.begin_epoch([1, 1])
    reference.begin_epoch([1])
    redone, clipped = 0, 0
    for iteration in range(8):
        metrics, expected = engine.step(iteration, False), reference.step(iteration, False)
        redone += engine.redone()[0] if iteration >= 3 else 0
        clipped += int(metrics.values_clipped[0])
        assert float(metrics.loss[0]) == pytest.approx(float(expected.loss[0]), rel=1e-5)
        assert float(metrics.spectral_norm[0, 0]) <= 1.1 * (1 + 2e-6)
        # Orthogonal a few steps ago: the subspace holds some of many equal values.
        norm = float(torch.linalg.matrix_norm(engine.recurrent_blocks()[0][1].double(), 2))
        assert float(metrics.spectral_norm[0, 1]) == pytest.approx(norm, rel=5e-4)
    assert clipped > 0
    assert redone == 0
    continued = Engine([base, free], load("pydoc"), torch.device("cpu"))
    continued.begin_epoch([1, 1])
    for run in range(2):
        continued.load_run_state(run, engine.run_state(run))
    for iteration in (8, 9):
        engine.step(iteration, False)
        continued.step(iteration, False)
    for run in range(2):
        one, other = engine.run_state(run), continued.run_state(run)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("limit", [1.8, math.inf])
def test_of_matrices_that_shrink_the_norm_is_right_from_the_next_step_on(limit: float):
    """The filter does not go on to end where values were before."""
    generator = torch.Generator().manual_seed(11)
    weight = torch.randn(300, 300, generator=generator) / 300**0.5
    limits, state = torch.tensor(limit, dtype=torch.float64), SubspaceState(weight)
    for step in range(10):
        weight *= 0.2 if step == 4 else 0.5 if step == 7 else 1.0
        weight += update(300, 3.0 if step < 4 else 0.1, generator)
        result = redo_uncertified_(weight, limits, clip_singular_values_deferred_(weight, limits, state), state)
        expected = float(torch.linalg.svdvals(weight.double())[0])
        near = 0.2 if step in (4, 7) and limit < math.inf else 1e-4
        assert float(result.spectral_norm) == pytest.approx(expected, rel=near), step


def test_what_a_call_does_beside_the_program_does_not_grow_with_the_matrices() -> None:
    """On a GPU each operation costs microseconds, however small: a view costs none."""

    class Operations(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.counted = 0

        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            self.counted += not function.is_view
            return function(*arguments, **(named or {}))

    counts = []
    for matrices in (2, 7):
        generator, state = torch.Generator().manual_seed(0), SpectralState()
        weight = torch.linalg.qr(torch.randn(matrices, 100, 100, generator=generator))[0] * 0.9
        for _ in range(3):
            weight[:, :, 0] *= 1.5
            with Operations() as operations:
                result = clip_singular_values_(weight, 1.0, algorithm="program", state=state)
            assert result.certified.all()
            assert not result.redone.any()
        counts.append(operations.counted)
    assert counts[0] == counts[1]


def test_entries_that_are_not_alike_are_taken_one_by_one() -> None:
    weight = torch.stack([torch.eye(80) * 2, torch.eye(80)])
    state = SpectralState()
    clip_singular_values_(weight, 1.0, algorithm="program", state=state)
    whole = SubspaceState.of(weight, state.matrices, 56)
    assert torch.equal(whole.previous, weight)
    for altered in ([{}, state.matrices[1]], [{**state.matrices[0], "right": torch.zeros(80, 3)}, state.matrices[1]]):
        partly = SubspaceState.of(weight, altered, 56)
        assert torch.equal(partly.previous[1], weight[1])
        assert torch.equal(partly.right[1], whole.right[1])
        assert not partly.previous[0].any()
