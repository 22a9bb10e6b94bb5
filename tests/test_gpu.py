"""What a GPU has to compute as a CPU does. Skipped where torch finds none; `scripts/gpu` runs them where one is."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from gruclip import GRU, SpectralClipping
from gruclip.bench.projection_stacks import deferred
from gruclip.config import ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.data import load
from gruclip.kernels.graphs import cuda_graphs
from gruclip.spectral import (
    ClipResult,
    SpectralState,
    SubspaceState,
    clip_singular_values_,
    clip_singular_values_deferred_,
    redo_uncertified_,
    spectral_norm,
)
from gruclip.spectral.deferred import MIN_SIZE_PROGRAM
from gruclip.spectral.stages import Stages
from gruclip.training.engine import Engine, StepMetrics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: what runs on one is not tested")

DEVICE = torch.device("cuda")


def runs(count: int) -> list[RunConfig]:
    """In float64, with dropout; every second one clipped spectrally."""
    base = RunConfig(
        model=ModelConfig(hidden_size=24),
        trainer=TrainerConfig(max_epochs=None, max_steps=50, bptt=10),
        precision="fp64",
        device=DEVICE.type,
    )
    optimizers = [OptimizerConfig("spectral_clipping", lr=0.2, delta=1.05), OptimizerConfig("sgd", lr=0.1)]
    return [dataclasses.replace(base, seed=seed, optimizer=optimizers[seed % 2]) for seed in range(count)]


def numbers(metrics: StepMetrics) -> dict[str, Tensor]:
    names = ("loss", "grad_norm", "spectral_norm", "values_clipped")
    return {name: getattr(metrics, name).clone() for name in names}


def with_values(values: Tensor) -> Tensor:
    """(n, n) in float64, with these singular values and random vectors."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(len(values), len(values), generator=generator).double())[0] for _ in "UV"
    )
    return (left * values) @ right.mT


def spectra(n: int) -> dict[str, Tensor]:
    """Around a limit of 1."""
    spread = torch.linspace(0, 0.9, n, dtype=torch.float64)
    few = spread.clone()
    few[-3:] = torch.tensor([1.01, 1.2, 3.0])
    near = 1 + 1e-2 * torch.randn(n, generator=torch.Generator().manual_seed(1)).double()
    return {"inside": spread, "few above": few, "all near": near, "all at": torch.ones(n).double(), "zero": 0 * spread}


def test_a_run_in_a_stack_agrees_with_the_run_alone_to_1e_9_over_50_iterations() -> None:
    stack = Engine(runs(5), load("pydoc"), DEVICE)
    alone = [Engine([config], load("pydoc"), DEVICE) for config in runs(5)]
    for engine in (stack, *alone):
        engine.begin_epoch([1] * len(engine.configs))
    for iteration in range(50):
        together = numbers(stack.step(iteration, with_radius=False))
        for position, engine in enumerate(alone):
            for name, values in numbers(engine.step(iteration, with_radius=False)).items():
                torch.testing.assert_close(together[name][..., position], values[..., 0], rtol=1e-9, atol=1e-12)


def test_training_is_that_of_the_cpu_masks_included() -> None:
    engines = [Engine(runs(2), load("pydoc"), device) for device in (torch.device("cpu"), DEVICE)]
    for engine in engines:
        engine.begin_epoch([1, 1])
    for iteration in range(20):
        expected, found = (numbers(engine.step(iteration, with_radius=False)) for engine in engines)
        for name in ("loss", "grad_norm"):
            torch.testing.assert_close(found[name].cpu(), expected[name], rtol=1e-7, atol=0)


def test_in_bf16_replayed_iterations_are_those_that_are_not() -> None:
    """With the Triton kernels and the rounded copies of the weights in both."""
    configs = [dataclasses.replace(run, precision="bf16") for run in runs(4)]
    replayed, plain = (Engine(configs, load("pydoc"), DEVICE, *capture) for capture in ((), (list,)))
    for engine in (replayed, plain):
        engine.begin_epoch([1] * 4)
    for iteration in range(20):
        one, other = (numbers(engine.step(iteration, with_radius=False)) for engine in (replayed, plain))
        for name in ("loss", "grad_norm"):
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=0)
    assert replayed.evaluate("valid") == pytest.approx(plain.evaluate("valid"), rel=1e-3)
    assert set(replayed.operands) == set(replayed.parameters)
    assert replayed.operands["output"].dtype == torch.bfloat16


@pytest.mark.parametrize("n", [12, 200, 650])
@pytest.mark.parametrize("spectrum", ["inside", "few above", "all near", "all at", "zero"])
def test_a_projection_is_that_of_float64(n: int, spectrum: str) -> None:
    before = with_values(spectra(n)[spectrum]).float()
    left, values, right = torch.linalg.svd(before.double())
    expected = (left * values.clamp(max=1)) @ right
    after = before.to(DEVICE, copy=True)
    result = clip_singular_values_(after, 1.0, state=SpectralState())
    assert torch.linalg.vector_norm(after.cpu().double() - expected) <= 2e-6 * max(float(values.norm()), 1)
    assert float(torch.linalg.matrix_norm(after.cpu().double(), 2)) <= 1 + 1e-5
    # Of a matrix of which nothing is known, whose values lie close by each other, a subspace holds the largest nearly.
    near = 1e-3 if n >= MIN_SIZE_PROGRAM else 1e-4
    assert float(result.spectral_norm) == pytest.approx(min(float(values[0]), 1.0), rel=near, abs=1e-30)
    assert torch.equal(after.cpu(), before) or float(values[0]) > 1
    assert float(spectral_norm(before.to(DEVICE))) == pytest.approx(float(values[0]), rel=1e-4, abs=1e-30)


def test_a_captured_projection_is_the_same_as_one_that_is_not() -> None:
    matrices = torch.stack([with_values(values) for values in spectra(100).values()]).float().to(DEVICE)
    captured, project = matrices.clone(), deferred(1.0)
    project(captured)
    expected = matrices.clone()
    clip_singular_values_(expected, 1.0, algorithm="products")
    torch.testing.assert_close(captured, expected, rtol=0, atol=1e-6)
    again = matrices.flip(0).clone()
    project(again)
    torch.testing.assert_close(again, captured.flip(0), rtol=0, atol=1e-6)


def test_the_layer_s_outputs_and_gradients_are_those_of_the_cpu() -> None:
    made = []
    for device in (torch.device("cpu"), DEVICE):
        torch.manual_seed(0)
        layer = GRU(7, 9, num_layers=2).double().to(device)
        x = torch.randn(11, 4, 7, generator=torch.Generator().manual_seed(1)).double().to(device).requires_grad_()
        output, hidden = layer(x)
        gradients = torch.autograd.grad(output.square().sum() + hidden.sum(), [x, *layer.parameters()])
        made.append([part.cpu() for part in (output, hidden, *gradients)])
    torch.testing.assert_close(*made, rtol=1e-9, atol=1e-12)


def test_cudnn_s_flattened_weights_stay_where_they_are() -> None:
    torch.manual_seed(0)
    rnn = torch.nn.GRU(8, 32, num_layers=2, bias=False).to(DEVICE)
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            if "weight_hh" in name:
                parameter.mul_(20)
    optimizer = torch.optim.SGD(rnn.parameters(), lr=1e-3)
    SpectralClipping(rnn, delta=0.2).attach(optimizer)
    places = [parameter.data_ptr() for parameter in rnn.parameters()]
    for _ in range(3):
        loss = rnn(torch.randn(5, 3, 8, device=DEVICE))[0].square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [parameter.data_ptr() for parameter in rnn.parameters()] == places
    # The candidate's block is what is clipped.
    for weight in (rnn.weight_hh_l0, rnn.weight_hh_l1):
        assert float(torch.linalg.matrix_norm(weight[-32:].detach().double(), 2)) <= 1.8 * (1 + 1e-5)


def test_a_transformer_s_weights_are_clipped_in_batches_as_each_alone_on_the_cpu() -> None:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(256, 4, 512, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    copied = copy.deepcopy(model).to(DEVICE)
    clipping, reference = SpectralClipping(copied, limit=1.5), SpectralClipping(model, limit=1.5, algorithm="full")
    for _ in range(3):
        with torch.no_grad():
            for mine, other in zip(copied.parameters(), model.parameters(), strict=True):
                if other.dim() == 2:
                    other += 0.5 * torch.randn(other.shape[0], 1) @ torch.randn(1, other.shape[1]) / 16
                mine.copy_(other)
        for one in (clipping, reference):
            one.clip()
        for mine, other in zip(copied.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine.cpu(), other, rtol=0, atol=4e-6 * float(other.detach().norm()))
    assert sum(reference.total_clipped) > 12
    assert all(line.spectral_norm <= 1.5 * (1 + 1e-5) for line in clipping.report())


@pytest.mark.parametrize(("n", "carried"), [(256, 56), (400, 120), (600, 184)])
def test_the_program_captured_follows_ninety_matrices_with_the_accuracy_of_the_page(n: int, carried: int) -> None:
    count, generator = 90, torch.Generator().manual_seed(0)
    values = torch.cat((torch.ones(10), torch.linspace(0.97, 0.05, n - 10))).double()
    memory = with_values(values).float().expand(count, n, n).contiguous().to(DEVICE)
    limits = torch.ones(count, dtype=torch.float64, device=DEVICE)
    state = SubspaceState(memory, carried)
    held: list[ClipResult] = []

    def project() -> None:
        held.append(clip_singular_values_deferred_(memory, limits, state))

    project()  # libraries set themselves up, which a graph cannot hold
    redo_uncertified_(memory, limits, held[-1], state)
    (replay,) = cuda_graphs([project])
    for step in range(6):
        left, right = (torch.linalg.qr(torch.randn(count, n, 20, generator=generator))[0] for _ in "UV")
        sizes = torch.logspace(0, -2, 20) * (5 if step % 2 else 0.3)
        memory += ((left * sizes) @ right.mT).to(DEVICE)
        before = memory.cpu().double()
        replay()
        result = held[-1]
        certified = result.certified.cpu()
        redo_uncertified_(memory, limits, result, state)
        U, S, Vh = torch.linalg.svd(before)
        error = torch.linalg.matrix_norm(memory.cpu().double() - (U * S.clamp(max=1)[:, None]) @ Vh)
        assert (error <= 2e-6 * torch.linalg.matrix_norm(before)).all()
        assert (torch.linalg.matrix_norm(memory.cpu().double(), 2) <= 1 + 2e-6).all()
        assert step < 2 or certified.double().mean() >= 0.9


def test_stages_captured_are_those_that_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    stages = Stages(cuda_graphs)
    for count in (5, 6, 5, 6, 3, 6):
        before = torch.stack([with_values(40 * torch.rand(120, generator=generator).double()) for _ in range(count)])
        one, other = before.to(DEVICE, copy=True), before.to(DEVICE, copy=True)
        limit = torch.ones(count, dtype=torch.float64, device=DEVICE)
        expected, found = Stages()(one, limit, 1.9e-6), stages(other, limit, 1.9e-6)
        torch.testing.assert_close(other, one, rtol=0, atol=1e-9)
        assert bool(found.certified.all())
        assert torch.equal(found.values_clipped, expected.values_clipped)
