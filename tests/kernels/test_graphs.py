"""An iteration is a fixed program on fixed memory, so that a GPU can replay it as CUDA graphs.

No GPU is needed for most of this: `Recording` keeps the operations that phases start, with their very tensors, refuses
every operation for which the host would wait, and repeats them as a CUDA graph does. The tests at the end run where
torch finds a GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from gruclip.config import DatasetConfig, ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.data import load
from gruclip.kernels import compiled, fused, products
from gruclip.kernels.graphs import Phase, capture_on, cuda_graphs
from gruclip.kernels.products import has_bf16_products
from gruclip.model.evaluation import Evaluation, evaluate
from gruclip.spectral import SubspaceState, clip_singular_values_deferred_, redo_uncertified_
from gruclip.training import operands
from gruclip.training.engine import WARM_UP, Engine, StepMetrics

#: Operations whose result the host needs, by value or for a shape, or that copy from its memory.
WAITING = (
    "_local_scalar_dense", "nonzero", "unique", "_unique", "masked_select", "_coalesce", "equal", "is_nonzero",
    "bincount", "lift_fresh", "repeat_interleave", "embedding_dense_backward", "_linalg_",
)  # fmt: skip

fused_launch = fused.launch

NAMES = ("loss", "grad_norm", "spectral_norm", "values_clipped")


class Recording(TorchDispatchMode):
    """The operations of a phase, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        masks = name.startswith(("index", "_index_put")) and any(
            isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8) for leaf in tree_leaves(args[1])
        )
        waits = masks or name.startswith(WAITING)
        assert not waits, f"the host waits for {func.name()}"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def launch(self, *args: Any, **kwargs: Any) -> None:
        """A Triton kernel, of which the dispatcher knows nothing."""
        with _disable_current_modes():
            fused_launch(*args, **kwargs)
        self.calls.append((fused_launch, args, kwargs, None))

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for held, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                # What came to lie elsewhere goes to where it lay; views and results in place are there already.
                if isinstance(held, Tensor) and held.numel() and held.data_ptr() != new.data_ptr():
                    held.detach().copy_(new)


def recorded(changed: Sequence[Tensor], phases: Sequence[Phase]) -> list[Phase]:
    """As `cuda_graphs`: to record the phases they have to be run, so that what they have changed is put back."""
    before = [tensor.detach().clone() for tensor in changed]
    recordings = []
    for phase in phases:
        with Recording() as recording, pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused, "launch", recording.launch)
            phase()
        recordings.append(recording)
    with torch.no_grad():
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)
    return [recording.replay for recording in recordings]


def written(state: SubspaceState) -> list[Tensor]:
    """What a step writes of a state."""
    return [state.right, state.previous, state.bulk, state.draws, state.missed]


class RecordedEngine(Engine):
    """Captures on the CPU by `recorded`."""

    phases_captured = 0

    def __init__(self, configs: Sequence[RunConfig], corpus: Any) -> None:
        def capture(phases: Sequence[Phase]) -> list[Phase]:
            self.phases_captured += len(phases)
            subspaces = [state for state in self.projections.states if isinstance(state, SubspaceState)]
            followed = [tensor for state in subspaces for tensor in written(state)]
            return recorded([*self.parameters.values(), *self.operands.values(), *self.states, *followed], phases)

        super().__init__(configs, corpus, torch.device("cpu"), capture)


@pytest.fixture(autouse=True)
def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, and so that the dispatcher sees all of it."""
    monkeypatch.setattr(compiled, "takes", lambda *_: False)


def runs_of(
    data_root: Path, dataset: str, algorithm: str = "products", cell: str = "gru", precision: str = "fp64"
) -> list[RunConfig]:
    """Two runs: spectral and gradient clipping, with dropout."""
    words = dataset == "pydoc"
    base = RunConfig(
        dataset=DatasetConfig(dataset, None if words else str(data_root)),
        model=ModelConfig(hidden_size=12, num_layers=1 if words else 2, cell=cell),
        trainer=TrainerConfig(max_epochs=None, max_steps=40, bptt=10),
        precision=precision,
        device="cpu",
    )
    optimizers = [
        OptimizerConfig("spectral_clipping", lr=0.2, delta=1.05, algorithm=algorithm),
        OptimizerConfig("gradient_clipping", lr=0.1, threshold=2.0, algorithm=algorithm),
    ]
    return [dataclasses.replace(base, seed=seed, optimizer=o) for seed, o in enumerate(optimizers)]


def numbers(metrics: StepMetrics) -> dict[str, Tensor]:
    return {name: getattr(metrics, name).clone() for name in NAMES}


@pytest.mark.parametrize("dataset", ["pydoc", "jsb_chorales"])
def test_a_replayed_iteration_computes_what_the_iteration_computes(data_root: Path, dataset: str) -> None:
    runs = runs_of(data_root, dataset)
    corpus = load(dataset, runs[0].dataset.root)
    engines = [Engine(runs, corpus, torch.device("cpu")), RecordedEngine(runs, corpus)]
    iterations, _ = (engine.begin_epoch([1, 1]) for engine in engines)
    for iteration in range(20):
        if iteration == 10:  # what is set between iterations reaches those that are replayed
            for engine in engines:
                engine.set_rates([0.05, 0.3])
                engine.load_run_state(0, engine.run_state(1))
        plain, replayed = (numbers(engine.step(iteration, with_radius=False)) for engine in engines)
        torch.testing.assert_close(replayed, plain, rtol=1e-9, atol=1e-12)
    # The last window of an epoch is shorter, and is not replayed.
    last = [numbers(engine.step(iterations - 1, with_radius=True)) for engine in engines]
    torch.testing.assert_close(*last, rtol=1e-9, atol=1e-12)
    engine = engines[1]
    assert isinstance(engine, RecordedEngine)
    assert engine.phases_captured == 5
    assert engine._captured is not None
    assert engine._captured[0].total.grad_fn is None
    assert int(plain["values_clipped"][0]) > 0


@pytest.mark.parametrize("dataset", ["pydoc", "jsb_chorales"])
def test_in_bf16_products_read_copies_that_the_update_writes(data_root: Path, dataset: str) -> None:
    runs = runs_of(data_root, dataset, precision="bf16")
    corpus = load(dataset, runs[0].dataset.root)
    engines = [Engine(runs, corpus, torch.device("cpu")), RecordedEngine(runs, corpus)]
    for engine in engines:
        engine.begin_epoch([1, 1])
    for iteration in range(WARM_UP + 5):
        if iteration == WARM_UP + 3:
            for engine in engines:
                engine.load_run_state(0, engine.run_state(1))
        plain, replayed = (numbers(engine.step(iteration, with_radius=False)) for engine in engines)
        # The same roundings, in sums of another order.
        torch.testing.assert_close(replayed, plain, rtol=2e-3, atol=1e-6)
    engine = engines[1]
    copies = {name: copy for name, copy in engine.operands.items() if copy is not engine.parameters[name]}
    names = {"weight_ih_l0", "weight_hh_l0", *(["output"] if dataset == "pydoc" else ["weight_ih_l1", "weight_hh_l1"])}
    assert set(copies) == (names if has_bf16_products(torch.device("cpu")) else set())
    for name, copy in copies.items():
        assert torch.equal(copy, engine.parameters[name].bfloat16())


@pytest.mark.parametrize(("dataset", "precision"), [("pydoc", "bf16"), ("jsb_chorales", "fp32")])
def test_a_replayed_iteration_with_triton_s_kernels_computes_what_it_computes_without(
    data_root: Path, dataset: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, bptt=4, batch_size=3))
        for run in runs_of(data_root, dataset, precision=precision)
    ]
    corpus = load(dataset, runs[0].dataset.root)
    found = []
    for kernels in (True, False):
        monkeypatch.setattr(fused, "INTERPRETED", kernels)
        for room in (products, operands):  # as a GPU has, whatever this CPU has
            monkeypatch.setattr(room, "has_bf16_products", lambda _: True)
        engine = RecordedEngine(runs, corpus)
        engine.begin_epoch([1, 1])
        found.append([numbers(engine.step(iteration, with_radius=False)) for iteration in range(WARM_UP + 2)])
        assert engine.phases_captured == 5
    # Bf16's roundings in another order, and the interpreter's casts cut off.
    for one, other in zip(*found, strict=True):
        del one["values_clipped"], other["values_clipped"]
        torch.testing.assert_close(one, other, rtol=1e-5 if precision == "fp32" else 2e-2, atol=1e-6)


def test_a_measure_alone_is_captured_too(data_root: Path) -> None:
    runs = runs_of(data_root, "pydoc")[1:] * 2
    engines = [Engine(runs, load("pydoc"), torch.device("cpu")), RecordedEngine(runs, load("pydoc"))]
    for engine in engines:
        engine.begin_epoch([1, 1])
    for iteration in range(WARM_UP + 3):
        plain, replayed = (numbers(engine.step(iteration, with_radius=False)) for engine in engines)
        torch.testing.assert_close(replayed, plain, rtol=1e-9, atol=1e-12)
        expected = torch.linalg.matrix_norm(engines[0].recurrent_blocks()[0], 2)
        torch.testing.assert_close(plain["spectral_norm"][0], expected, rtol=1e-4, atol=0)
    assert engines[1].phases_captured == 5  # type: ignore[attr-defined]


def test_a_projection_that_asks_the_host_is_not_captured(data_root: Path) -> None:
    engine = RecordedEngine(runs_of(data_root, "pydoc", algorithm="auto"), load("pydoc"))
    engine.begin_epoch([1, 1])
    for iteration in range(WARM_UP + 2):
        metrics = engine.step(iteration, with_radius=False)
    assert engine.phases_captured == 4
    norms = torch.linalg.matrix_norm(engine.recurrent_blocks()[0], 2)
    assert norms[0] <= 0.95 * (1 + 1e-9)
    torch.testing.assert_close(metrics.spectral_norm[0], norms, rtol=1e-4, atol=0)


def test_a_replayed_projection_without_a_certificate_is_redone_before_the_next_step(data_root: Path) -> None:
    spectral = runs_of(data_root, "pydoc")[0]
    # A rate at which an update takes sigma_1 to more than four times the limit.
    wild = dataclasses.replace(spectral, optimizer=dataclasses.replace(spectral.optimizer, lr=300.0, delta=1.9))
    engine = RecordedEngine([wild, wild], load("pydoc"))
    engine.begin_epoch([1, 1])
    redone = 0
    for iteration in range(WARM_UP + 6):
        metrics = engine.step(iteration, with_radius=False)
        if iteration > WARM_UP:
            redone += sum(engine.redone())
        else:
            engine.redone()
        assert (metrics.spectral_norm <= 0.1 * (1 + 1e-9)).all()
        assert (torch.linalg.matrix_norm(engine.recurrent_blocks()[0], 2) <= 0.1 * (1 + 1e-9)).all()
    assert redone > 0


@pytest.mark.parametrize(("n", "carried"), [(80, 56), (200, 120), (210, 184)])
def test_a_replayed_program_follows_its_subspaces_as_one_that_is_not_replayed(n: int, carried: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def made(count: int, *sizes: float) -> Tensor:
        values = torch.cat((torch.tensor(sizes), torch.linspace(0.9, 0, n - len(sizes))))
        bases = [torch.linalg.qr(torch.randn(count, n, n, generator=generator))[0] for _ in range(2)]
        return bases[0] * values @ bases[1]

    # Inside, above and far above the limit, and one that is only measured.
    memory = torch.stack([made(1, size)[0] for size in (0.95, 1.5, 9.0, 2.0)])
    limits = torch.tensor([1.0, 1.0, 1.0, torch.inf], dtype=torch.float64)
    state, plain_state = SubspaceState(memory, carried), SubspaceState(memory, carried)
    results = []
    (replay,) = recorded(
        [memory, *written(state)], [lambda: results.append(clip_singular_values_deferred_(memory, limits, state))]
    )
    certified = 0
    for _ in range(5):
        plain = memory.clone()
        expected = clip_singular_values_deferred_(plain, limits, plain_state)
        replay()
        assert torch.equal(memory, plain)
        assert all(torch.equal(one, other) for one, other in zip(results[0], expected, strict=True))
        certified += int(expected.certified.sum())
        redo_uncertified_(memory, limits, results[0], state)
        redo_uncertified_(plain, limits, expected, plain_state)
        memory += 0.05 * made(4, 6.0)
    assert certified >= 16


def test_an_engine_that_redoes_too_much_widens_and_captures_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    every = 8
    monkeypatch.setattr("gruclip.training.engine.WIDEN_EVERY", every)
    n, limit, generator = 400, 1.8, torch.Generator().manual_seed(0)
    base = RunConfig(
        model=ModelConfig(hidden_size=n),
        optimizer=OptimizerConfig("spectral_clipping", lr=2.0, delta=0.2, algorithm="program"),
        trainer=TrainerConfig(max_epochs=None, max_steps=40, bptt=3, batch_size=4),
        device="cpu",
    )
    runs, corpus = [base, dataclasses.replace(base, seed=1)], load("pydoc")
    engines = [Engine(runs, corpus, torch.device("cpu")), RecordedEngine(runs, corpus)]
    # From late in training: 140 values near the limit.
    values = torch.cat((torch.ones(10), torch.linspace(0.999, 0.9, 130), torch.linspace(0.88, 0.02, n - 140)))
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for _ in "UV")
    for engine in engines:
        engine.begin_epoch([1, 1])
        for block in engine.recurrent_blocks():
            block.copy_(left * (limit * values) @ right)
    redone: list[list[int]] = [[], []]
    for iteration in range(2 * every):
        found = []
        for engine, counts in zip(engines, redone, strict=True):
            metrics = engine.step(iteration, with_radius=False)
            counts.append(sum(engine.redone()))
            found.append(numbers(metrics))
        # Values that are at the limit but for rounding count or do not.
        torch.testing.assert_close(*(one.pop("values_clipped") for one in found), rtol=0, atol=10)
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
        widths = [
            state.carried
            for engine in engines
            for state in engine.projections.states
            if isinstance(state, SubspaceState)
        ]
        assert widths == [56 if iteration < every else 120] * 2
        # One iteration of the new width sets libraries up.
        assert engines[1].phases_captured == (0 if iteration < WARM_UP else 5 if iteration <= every else 10)  # type: ignore[attr-defined]
    assert redone[0] == redone[1]
    assert min(redone[0][:every]) == 2
    assert not any(redone[0][every + 2 :])
    for engine in engines:
        assert (torch.linalg.matrix_norm(engine.recurrent_blocks()[0], 2) <= limit * (1 + 3e-6)).all()
    # As wide from its checkpoint.
    continued = Engine(runs, corpus, torch.device("cpu"), states=[engines[0].run_state(run) for run in range(2)])
    continued.begin_epoch([1, 1], fresh_states=False)
    for engine in (engines[0], continued):
        engine.step(2 * every, with_radius=False)
    for run in range(2):
        one, other = engines[0].run_state(run), continued.run_state(run)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dataset", ["pydoc", "jsb_chorales"])
def test_a_replayed_evaluation_gives_the_same_bits_of_other_weights_too(data_root: Path, dataset: str) -> None:
    runs = runs_of(data_root, dataset)
    corpus = load(dataset, runs[0].dataset.root)
    engine = Engine(runs, corpus, torch.device("cpu"))
    parameters = {name: parameter.detach() for name, parameter in engine.parameters.items()}
    captured = 0

    def capture(phases: Sequence[Phase]) -> list[Phase]:
        nonlocal captured
        captured += 1
        return recorded([*evaluation.states, evaluation.total], phases)

    evaluation = Evaluation(parameters, runs[0], corpus, "valid", capture)
    for _ in range(2):
        assert evaluation.losses() == evaluate(parameters, runs[0], corpus, "valid")
        for parameter in parameters.values():
            parameter.mul_(1.5)
    assert captured == 1


def test_layers_that_ask_the_host_where_the_resets_are_are_not_captured(data_root: Path) -> None:
    engine = RecordedEngine(runs_of(data_root, "jsb_chorales", cell="lstm"), load("jsb_chorales", str(data_root)))
    engine.begin_epoch([1, 1])
    for iteration in range(WARM_UP + 1):
        engine.step(iteration, with_radius=False)
    assert engine.phases_captured == 0


def test_graphs_are_for_gpus_and_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRUCLIP_GRAPHS", raising=False)
    assert capture_on(torch.device("cpu")) is None
    assert capture_on(torch.device("cuda")) is cuda_graphs
    monkeypatch.setenv("GRUCLIP_GRAPHS", "0")
    assert capture_on(torch.device("cuda")) is None


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: x[x > 0],
        lambda x: torch.tensor(3.0),
        lambda x: torch.linalg.eigh(x),
        lambda x: torch.ones(3).repeat_interleave(torch.ones(3, dtype=torch.int64)),
    ],
)
def test_the_recording_refuses_what_the_host_has_to_wait_for(wait: Any) -> None:
    x = torch.eye(3)
    with pytest.raises(AssertionError, match="the host waits"), Recording():
        wait(x)


@pytest.mark.parametrize("read", [Tensor.tolist, Tensor.numpy])
def test_an_iteration_reads_no_array_on_the_host(data_root: Path, monkeypatch: pytest.MonkeyPatch, read: Any) -> None:
    """By a way that the dispatcher does not see."""
    engine = RecordedEngine(runs_of(data_root, "jsb_chorales"), load("jsb_chorales", str(data_root)))
    engine.begin_epoch([1, 1])
    for iteration in range(WARM_UP):
        engine.step(iteration, with_radius=False)
    real = engine._capture
    assert real is not None

    def watched(phases: Sequence[Phase]) -> list[Phase]:
        with monkeypatch.context() as patch:
            patch.setattr(Tensor, read.__name__, lambda *_: pytest.fail(f"the host waits for {read.__name__}"))
            return real(phases)

    engine._capture = watched
    engine.step(WARM_UP, with_radius=False)
    assert engine.phases_captured == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: CUDA graphs themselves are not tested")
@pytest.mark.parametrize("dataset", ["pydoc", "jsb_chorales"])
def test_on_a_gpu_captured_iterations_agree_with_those_that_are_not(data_root: Path, dataset: str) -> None:
    runs = runs_of(data_root, dataset)
    corpus, device = load(dataset, runs[0].dataset.root), torch.device("cuda")
    captured, free = Engine(runs, corpus, device), Engine(runs, corpus, device)
    free._capture = None
    for engine in (captured, free):
        engine.begin_epoch([1, 1])
    for iteration in range(50):
        one, other = (numbers(engine.step(iteration, with_radius=False)) for engine in (captured, free))
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert captured._captured is not None
