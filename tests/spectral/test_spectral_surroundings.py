"""Whatever surrounds a call, compilers, autocast, a default device, inference, threads, it does what it does alone."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gruclip import SpectralState, clip_singular_values_, spectral_norm
from gruclip.errors import UserError
from gruclip.spectral import bound, eigen, tracked

SIZES = [20, 90, 200, 650]


def far_outside(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, n, generator=torch.Generator().manual_seed(seed)) * (1.5 / n**0.5)


def clipped(n: int, steps: int = 3) -> list[Any]:
    """What some steps give, with a state: weights and reports."""
    weight, state, found = far_outside(n), SpectralState(), []
    for step in range(steps):
        result = clip_singular_values_(weight, 2.0, state=state)
        found += [weight.clone(), result.values_clipped, result.spectral_norm, spectral_norm(weight)]
        weight += 0.3 * far_outside(n, step + 1)
    return found


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("algorithm", ["auto", "products", "program"])
def test_autocast_changes_no_bit(n: int, algorithm: str, kernels_or_not: None) -> None:
    if algorithm == "auto":
        alone = clipped(n)
        with torch.autocast("cpu", torch.bfloat16):
            assert all(map(torch.equal, clipped(n), alone))
    else:
        weights = [far_outside(n), far_outside(n)]
        done = [clip_singular_values_(weights[0], 2.0, algorithm=algorithm, state=SpectralState())]
        with torch.autocast("cpu", torch.bfloat16):
            done.append(clip_singular_values_(weights[1], 2.0, algorithm=algorithm, state=SpectralState()))
        assert torch.equal(*weights)
        assert all(torch.equal(*pair) for pair in zip(*done, strict=True))


@pytest.mark.parametrize("n", SIZES)
def test_a_default_device_changes_no_bit(n: int, kernels_or_not: None) -> None:
    alone, weights = clipped(n), [far_outside(n, seed) for seed in range(2)]
    with torch.device("meta"):
        weight, state = weights[0], SpectralState()
        result = clip_singular_values_(weight, 2.0, state=state)
        again = clip_singular_values_(weight, 1.5, state=state)
    assert result.values_clipped.is_cpu
    assert torch.equal(result.spectral_norm, alone[2])
    assert again.values_clipped > 0


def test_it_can_be_imported_under_a_default_device() -> None:
    code = 'import torch\nwith torch.device("meta"):\n    import gruclip.spectral, gruclip.clipping, gruclip.gru'
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("first", [clip_singular_values_, spectral_norm])
def test_a_state_made_under_inference_serves_afterwards(n: int, first: Callable[..., Any]) -> None:
    weight, state = far_outside(n), SpectralState()
    with torch.inference_mode():
        for _ in range(2):
            first(weight, **({"limit": 3.0} if first is clip_singular_values_ else {}), state=state)
    for step in range(2):
        clip_singular_values_(weight, 1.0, state=state)
        assert torch.linalg.matrix_norm(weight.double(), 2) <= 1 + 2e-6
        weight += 0.1 * far_outside(n, step)


@pytest.mark.parametrize("n", [*SIZES, 1024])
def test_autograd_knows_that_a_weight_was_written_to(n: int, kernels_or_not: None) -> None:
    weight = far_outside(n).requires_grad_()
    loss = (torch.ones(1, n, requires_grad=True) @ weight).sum()
    clip_singular_values_(weight, 1.9)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("n", SIZES)
def test_a_view_of_the_opposite_numbers_is_clipped(n: int) -> None:
    negative = torch.complex(torch.zeros(n, n), -far_outside(n)).conj().imag
    assert negative.is_neg()
    expected = far_outside(n)
    assert torch.equal(clip_singular_values_(negative, 1.0)[0], clip_singular_values_(expected, 1.0)[0])
    assert torch.equal(negative.resolve_neg(), expected)


@pytest.mark.parametrize("n", SIZES)
def test_a_compiled_function_clips_as_it_does_by_itself(n: int, fresh_compiler: None) -> None:
    def train(weight: Tensor, change: Tensor, state: SpectralState) -> Tensor:
        clip_singular_values_(weight, 1.0, state=state)
        weight += change
        return spectral_norm(weight) + weight.sum()

    both = [(far_outside(n), SpectralState(), step) for step in (train, torch.compile(train, backend="eager"))]
    for seed in range(4):
        assert torch.equal(*(step(weight, 0.1 * far_outside(n, seed), state) for weight, state, step in both))


def test_threads_of_python_clip_at_once() -> None:
    torch.set_num_threads(2)
    alone, found = clipped(200), []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    eigen._PACES.clear()
    try:
        workers = [threading.Thread(target=lambda: found.append(clipped(200))) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(before)
    assert len(found) == 4
    assert all(torch.equal(*pair) for one in found for pair in zip(one, alone, strict=True))


def test_no_random_number_is_drawn_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by two steps, nor by the sketch of a step and its bound: (9) holds for vectors that W does not know."""
    drawn: list[Tensor] = []

    def probes(*arguments: Any, **options: Any) -> Tensor:
        drawn.append(bound.probes(*arguments, **options))
        return drawn[-1].clone()

    monkeypatch.setattr(tracked, "probes", probes)
    monkeypatch.setattr("gruclip.spectral.certificate.probes", probes)
    weight, state = 0.2 * far_outside(650), SpectralState()
    # What another algorithm leaves of the state says how far the numbers are used up, too.
    for step, algorithm in enumerate(
        [*["block"] * 4, "gram", *["block"] * 3, "truncated", "truncated", *["block"] * 3]
    ):
        clip_singular_values_(weight, 1.0, algorithm=algorithm, state=state)
        left, right = far_outside(650, step + 1)[:2, :, None]
        weight += left @ right.mT + 0.01 * far_outside(650, step + 100)
    numbers = torch.cat([one.flatten() for one in drawn])
    assert len(drawn) > 8
    assert len(numbers.unique()) > 0.99 * len(numbers)  # of float32 some are equal by chance


def test_what_is_no_tensor_and_what_has_no_values_is_refused() -> None:
    with pytest.raises(UserError, match="weight of list: should be a tensor"):
        clip_singular_values_([[1.0]], 1.0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="weight is on the meta device"):
        clip_singular_values_(torch.empty(3, 3, device="meta"), 1.0)
    assert copy.deepcopy(SpectralState()).matrices == []


@pytest.mark.parametrize("call", [lambda x: clip_singular_values_(x, 1.0).spectral_norm, lambda x: spectral_norm(x)])
@pytest.mark.parametrize("trace", [partial(torch.jit.trace, check_trace=False), lambda call, x: make_fx(call)(x)])
def test_what_is_traced_is_refused_since_a_trace_keeps_one_inputs_result(call: Any, trace: Any) -> None:
    with pytest.raises(UserError, match=r"^torch\.jit\.trace, make_fx and torch\.export would keep what is done"):
        trace(call, torch.eye(4) * 3)


@pytest.mark.parametrize("part", [slice(None), slice(2)])
def test_what_is_computed_with_a_gradient_is_refused_and_a_parameter_is_not(part: slice) -> None:
    parameter = torch.nn.Parameter(torch.eye(4) * 3)
    computed = parameter * 2
    with pytest.raises(
        UserError, match=r"^weight is computed from others, whose gradients would leave the clipping out"
    ):
        clip_singular_values_(computed[part], 1.0)
    for weight in (parameter, computed.detach()):
        clip_singular_values_(weight[part], 1.0)
        assert torch.equal(weight.detach()[part], torch.eye(4)[part])
    with torch.no_grad():
        clip_singular_values_(computed[part], 0.5)


@pytest.mark.parametrize("call", [lambda x, state: clip_singular_values_(x, 1.0, state=state), spectral_norm])
def test_a_state_of_another_kind_is_refused(call: Any) -> None:
    with pytest.raises(UserError, match="state of dict: should be a SpectralState"):
        call(torch.eye(4), {})
