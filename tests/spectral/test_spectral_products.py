"""The projection by products alone: right, without waiting for the device, and honest about what it cannot certify."""

from __future__ import annotations

import dataclasses
import gc
import math
import weakref
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from gruclip.config import ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.data import load
from gruclip.spectral import (
    clip_singular_values_,
    clip_singular_values_deferred_,
    deferred,
    exact,
    redo_uncertified_,
)
from gruclip.spectral import stages as stages_module
from gruclip.spectral.products import (
    MAX_RATIO,
    RESOLUTION,
    ROOT_POLYNOMIALS,
    SIGN_POLYNOMIALS,
    radii_by_products,
    roots,
)
from gruclip.spectral.stages import Stages, _rounded
from gruclip.training.engine import Engine
from gruclip.training.runner import train


def with_norm(generator: torch.Generator, norm: float, *shape: int) -> Tensor:
    matrix = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return matrix * norm / torch.linalg.matrix_norm(matrix, 2)


def projected(weight: Tensor, limit: float) -> Tensor:
    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return U * S.clamp(max=limit) @ Vh


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-9), (torch.float64, 1e-14)])
def test_the_polynomials_take_every_resolved_number_to_its_sign(dtype: torch.dtype, error: float):
    x = torch.logspace(math.log10(RESOLUTION[dtype]), 0, 5000, dtype=torch.float64)
    s = torch.cat((x, -x))
    for a, b, c in SIGN_POLYNOMIALS[dtype]:
        s = s * (a + s * s * (b + c * s * s))
    assert (s - torch.cat((torch.ones_like(x), -torch.ones_like(x)))).abs().max() < error


@pytest.mark.parametrize("n", [1, 2, 50, 200])
def test_the_radius_is_that_of_the_eigenvalues(n: int):
    generator = torch.Generator().manual_seed(n)
    matrices = torch.randn(5, n, n, generator=generator) / n**0.5
    matrices[1] += 3 * torch.randn(n, 1, generator=generator) @ torch.randn(1, n, generator=generator) / n**0.5
    matrices[2] = matrices[2].tril(-1)  # of one eigenvalue, whose powers underflow beside what is below the diagonal
    matrices[3] *= 1e-20
    matrices = matrices / 4 + torch.eye(n) * torch.tensor([0.5, 0.5, 0.5, 0.0, 1e10])[:, None, None]
    expected = torch.linalg.eigvals(matrices.double()).abs().amax(-1)
    torch.testing.assert_close(radii_by_products(matrices), expected, rtol=1e-6, atol=1e-15)
    jordan = 0.9 * torch.eye(n) + torch.ones(n - 1).diag(1)
    assert float(radii_by_products(jordan)) == pytest.approx(0.9, rel=1e-5)
    assert float(radii_by_products(torch.ones(n, n).tril(-1))) == 0  # nilpotent
    assert radii_by_products(torch.zeros(2, n, n)).tolist() == [0, 0]


@pytest.mark.parametrize("farthest", [1.0, 1.3, MAX_RATIO])
def test_the_roots_are_those_of_a_matrix(farthest: float):
    a = torch.linspace(0, farthest**2 - 1, 200, dtype=torch.float64)
    V = torch.linalg.qr(torch.randn(200, 200, generator=torch.Generator().manual_seed(0)).double())[0]
    inverse, root = roots(V * a @ V.mT, torch.tensor(farthest, dtype=torch.float64), ROOT_POLYNOMIALS)
    assert (inverse - V * (1 + a).rsqrt() @ V.mT).abs().max() < 1e-13
    assert (root - V * (1 + a).sqrt() @ V.mT).abs().max() < 1e-13 * farthest


@pytest.mark.parametrize("shape", [(30, 30), (40, 25), (25, 40)])
def test_a_batch_is_projected_where_it_is_certified_and_left_where_it_is_not(shape):
    generator = torch.Generator().manual_seed(0)
    norms, limits = [0.9, 1.1, 3.0, 7.0, 2.0, 2.0], torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, torch.inf]).double()
    before = torch.stack([with_norm(generator, norm, *shape) for norm in norms]).float()
    before[4, 3, 7] = math.nan
    weight = before.clone()
    result = clip_singular_values_deferred_(weight, limits)
    assert result.finite.tolist() == [True, True, True, True, False, True]
    assert result.certified.tolist() == [True, True, True, False, False, True]
    for index in (0, 3, 4, 5):
        assert torch.equal(weight[index].nan_to_num(), before[index].nan_to_num())
    for index in (1, 2):
        assert (weight[index] - projected(before[index], 1.0)).norm() <= 2e-6 * before[index].norm()
        assert int(result.values_clipped[index]) == int((torch.linalg.svdvals(before[index].double()) > 1).sum())
    redone = redo_uncertified_(weight, limits, result)
    assert redone.redone.tolist() == [False, False, False, True, False, False]
    assert redone.certified.tolist() == [True, True, True, True, False, True]
    assert (weight[3] - projected(before[3], 1.0)).norm() <= 2e-6 * before[3].norm()
    assert float(redone.spectral_norm[3]) == 1.0
    assert torch.isnan(weight[4]).sum() == 1


@pytest.mark.parametrize("batch", [(), (3, 2)])
@pytest.mark.parametrize("far", [9.0, 1e3, 1e6, 1e13])
def test_values_far_above_the_limit_are_redone_in_stages_without_a_decomposition(far, batch, monkeypatch):
    """As on a GPU with fast float64; what is left after the last stage is decomposed."""
    svd, decomposed = exact.svd, []
    monkeypatch.setattr(deferred, "has_fast_float64", lambda device: True)
    monkeypatch.setattr(exact, "svd", lambda weight: decomposed.append(weight) or svd(weight))
    generator = torch.Generator().manual_seed(0)
    values = torch.linspace(0, 1.9, 60, dtype=torch.float64)
    values[-3:] = torch.tensor([3.0, far / 20, far])
    left, right = (torch.linalg.qr(torch.randn(60, 60, generator=generator).double())[0] for _ in range(2))
    matrix = ((left * values) @ right.mT).float()
    weight = torch.stack([matrix] * 6).reshape(*batch, 60, 60) if batch else matrix.clone()
    limit = torch.full(batch, 1.8, dtype=torch.float64)
    result = clip_singular_values_deferred_(weight, limit)
    assert not bool(result.certified.any())
    redone = redo_uncertified_(weight, limit, result)
    assert bool(redone.redone.all() & redone.certified.all())
    assert bool(decomposed) == (far > 1e7)
    expected = projected(matrix, 1.8)
    for one in weight.reshape(-1, 60, 60):
        assert (one - expected).norm() <= 2e-6 * matrix.norm()
        assert float(torch.linalg.matrix_norm(one.double(), 2)) <= 1.8 * (1 + 2e-6)
    assert set(redone.spectral_norm.reshape(-1).tolist()) == {1.8}
    assert set(redone.values_clipped.reshape(-1).tolist()) == {int((torch.linalg.svdvals(matrix.double()) > 1.8).sum())}


def test_matrices_that_need_different_numbers_of_stages_are_counted_and_left_inside_as_they_are(monkeypatch):
    monkeypatch.setattr(deferred, "has_fast_float64", lambda device: True)
    generator = torch.Generator().manual_seed(1)
    values = torch.linspace(0, 1.7, 60, dtype=torch.float64).repeat(3, 1)
    values[0, -2:], values[1, -3:] = torch.tensor([3.0, 8.0]), torch.tensor([2.0, 500.0, 9000.0])
    values[2] = 1.8 * (1 + 1.4e-6)  # inside up to the tolerance, but not for products' first certificate
    left, right = (torch.linalg.qr(torch.randn(60, 60, generator=generator).double())[0] for _ in range(2))
    before = ((left * values[:, None]) @ right.mT).float()
    weight, limit = before.clone(), torch.full((3,), 1.8, dtype=torch.float64)
    redone = redo_uncertified_(weight, limit, clip_singular_values_deferred_(weight, limit))
    assert redone.values_clipped.tolist() == [2, 3, 0]
    assert torch.equal(weight[2], before[2])


@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(0, 2**20))
def test_stages_that_are_replayed_give_what_they_give_at_once(counts, seed):
    """Whatever the batches before held, which lie in the same memory."""
    captured, generator = [], torch.Generator().manual_seed(seed)
    stages = Stages(lambda phases: captured.append(len(phases)) or [partial(phase) for phase in phases])
    for count in counts:
        limit = torch.rand(count, generator=generator).double() + 0.5
        before = torch.stack([with_norm(generator, 0.3 + 40 * float(one), 12, 9) for one in limit])
        one, other = before.clone(), before.clone()
        expected, found = Stages()(one, limit, 1.9e-6), stages(other, limit, 1.9e-6)
        assert torch.equal(other, one)
        for name in ("values_clipped", "spectral_norm", "certified"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
    sizes = [_rounded(count) for count in counts]
    assert all(size >= count for count, size in zip(counts, sizes, strict=True))
    assert captured == [2] * sum(times > 1 for times in Counter(sizes).values())


def test_what_is_captured_for_one_tolerance_is_not_replayed_for_a_smaller_one():
    """As for matrices of float32, and then for as many of float64."""
    stages, limit = Stages(lambda phases: [partial(phase) for phase in phases]), torch.ones(1, dtype=torch.float64)
    for tolerance in (1.9e-6, 5e-10):
        weight = torch.diag(torch.tensor([1 + 1e-6, 0.5], dtype=torch.float64))[None]
        assert bool(stages(weight, limit, tolerance).certified)
        assert float(weight.max()) <= 1 + tolerance


def test_a_batch_that_is_not_captured_is_gone_after_its_call(monkeypatch):
    """And not when Python looks for cycles, which a GPU that runs out of memory does not wait for."""
    made, real = [], stages_module._Batch
    monkeypatch.setattr(stages_module, "_Batch", lambda *given: made.append(weakref.ref(one := real(*given))) or one)
    gc.disable()
    try:
        Stages()(torch.eye(5, dtype=torch.float64)[None], torch.ones(1, dtype=torch.float64), 1.9e-6)
        assert [one() for one in made] == [None]
    finally:
        gc.enable()


def test_in_float64_clipping_is_idempotent():
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.linalg.qr(torch.randn(60, 60, generator=generator).double())[0] for _ in range(2))
    weight = (left * torch.linspace(0, 3.9, 60, dtype=torch.float64)) @ right.mT
    assert not clip_singular_values_(weight, 1.0, algorithm="products").redone
    again = weight.clone()
    clip_singular_values_(again, 1.0, algorithm="products")
    assert torch.equal(again, weight)


def test_nothing_in_it_waits_for_the_device():
    """A fake tensor has no numbers: whatever asks for one raises."""
    with FakeTensorMode():
        weight, limits = torch.empty(3, 20, 16), torch.empty(3, dtype=torch.float64)
        result = clip_singular_values_deferred_(weight, limits)
        assert result.certified.shape == (3,)
        with pytest.raises(DynamicOutputShapeException):
            redo_uncertified_(weight, limits, result)


def test_the_norm_of_what_is_inside_is_right():
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-30, 1.0, 1e30):
        weight = with_norm(generator, 0.9 * scale, 50, 50)
        result = clip_singular_values_deferred_(weight, torch.tensor(scale, dtype=torch.float64))
        assert float(result.spectral_norm) == pytest.approx(0.9 * scale, rel=1e-4)


def run(tmp_path: Path, precision: str = "fp32", **optimizer: object) -> RunConfig:
    return RunConfig(
        model=ModelConfig(hidden_size=12, num_layers=2),
        optimizer=OptimizerConfig("spectral_clipping", **{"lr": 1.0, "delta": 1.05, **optimizer}),  # type: ignore[arg-type]
        trainer=TrainerConfig(max_epochs=None, max_steps=40, bptt=10, radius_every=10),
        output_dir=str(tmp_path),
        device="cpu",
        precision=precision,
    )


def test_training_with_products_is_training_with_full_decompositions(tmp_path: Path):
    engines = [
        Engine([run(tmp_path, "fp64", algorithm=algorithm)], load("pydoc"), torch.device("cpu"))
        for algorithm in ("products", "full")
    ]
    for engine in engines:
        engine.begin_epoch([1])
    clipped = 0
    for iteration in range(40):
        one, other = (engine.step(iteration, False) for engine in engines)
        assert float(one.loss) == pytest.approx(float(other.loss), rel=1e-7)
        clipped += int(other.values_clipped)
    assert clipped > 40


def test_runs_that_are_not_clipped_are_measured_beside_those_that_are(tmp_path: Path):
    spectral = run(tmp_path, "fp64", algorithm="products")
    free = dataclasses.replace(spectral, seed=1, optimizer=OptimizerConfig("sgd", lr=0.5, algorithm="products"))
    stacks = [[free, spectral, free], [free], [spectral]]
    engines = [Engine(stack, load("pydoc"), torch.device("cpu")) for stack in stacks]
    for engine, stack in zip(engines, stacks, strict=True):
        engine.begin_epoch([1] * len(stack))
    for iteration in range(10):
        stacked, *alone = (engine.step(iteration, False) for engine in engines)
        for position, one in ((0, alone[0]), (1, alone[1]), (2, alone[0])):
            for name in ("values_clipped", "spectral_norm", "loss"):
                values = getattr(stacked, name)[..., position], getattr(one, name)[..., 0]
                torch.testing.assert_close(*values, rtol=1e-9, atol=0)
    assert int(stacked.values_clipped[1]) > 0
    norms = torch.linalg.matrix_norm(engines[0].recurrent_blocks()[0], 2)
    torch.testing.assert_close(stacked.spectral_norm[0], norms, rtol=1e-4, atol=0)
    assert norms[1] <= 0.95 * (1 + 1e-9) < norms[0]


def test_what_is_not_certified_is_redone_in_full_before_the_next_step_and_counted(tmp_path: Path):
    # A rate at which an update takes sigma_1 to more than MAX_RATIO times the limit.
    (result,) = train([run(tmp_path, lr=300.0, algorithm="products", delta=1.9)], quiet=True)
    assert result.summary["projections_redone"] > 0
    made = run(tmp_path, lr=300.0, algorithm="products", delta=1.9)
    engine = Engine([made, dataclasses.replace(made, optimizer=OptimizerConfig("sgd", lr=1e38))], load("pydoc"),
                    torch.device("cpu"))  # fmt: skip
    engine.begin_epoch([1, 1])
    redone = 0
    for iteration in range(8):
        metrics = engine.step(iteration, False)
        redone += engine.redone()[0]
        assert (metrics.spectral_norm[:, 0] <= 0.1 * (1 + 1e-5)).all()
        for weight in engine.recurrent_blocks():
            assert torch.linalg.matrix_norm(weight[0], 2) <= 0.1 * (1 + 1e-5)
    assert redone > 0
    assert not all(torch.isfinite(weight[1]).all() for weight in engine.recurrent_blocks())
