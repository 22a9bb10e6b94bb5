"""The stack: R runs of one shape trained as one batched program on one device.

Every tensor of training state has a leading axis R; a single run is R = 1. What a run computes depends
on its own seed and settings alone. On a CPU the runner gives each run an engine of its own, since a stack
costs there what its runs cost: so a run's numbers are the same bits alone and in any stack.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from gruclip.choices import CELLS
from gruclip.config import RunConfig
from gruclip.data import Lanes, MusicCorpus, TrainingSplit, WordCorpus
from gruclip.dynamics import cell_jacobian, spectral_radius
from gruclip.kernels.graphs import Capture, Phase, capture_on, captures_projections
from gruclip.kernels.memory import keep_freed_memory
from gruclip.model.device import COMPUTE_DTYPES
from gruclip.model.evaluation import Evaluation
from gruclip.model.stacked import (
    initial_parameters,
    mask_seeds,
    masks_of,
    nll,
    word_rows,
    zero_states,
)
from gruclip.model.width import Width
from gruclip.spectral import ClipResult, are_finite
from gruclip.training.clock import Clock, phase_parts
from gruclip.training.iteration import Iteration, StepMetrics
from gruclip.training.operands import operands_of, parameters_of, round_to_
from gruclip.training.optimizers import clipping_factors, gradient_norms, row_gradient, sgd_step_
from gruclip.training.projections import Projected, Projections
from gruclip.training.widening import WIDEN_EVERY

#: Iterations before one is captured: libraries set themselves up in the first.
WARM_UP = 3


class Engine:
    """Trains `configs`, all of one shape, side by side on `device`.

    `capture`: how to capture iterations, by default `capture_on(device)`. `states`: `run_state` or None of each.
    """

    def __init__(
        self,
        configs: Sequence[RunConfig],
        corpus: WordCorpus | MusicCorpus,
        device: torch.device,
        capture: Capture | None = None,
        states: Sequence[dict[str, Tensor] | None] | None = None,
    ) -> None:
        keep_freed_memory()
        self.configs, self.corpus, self.device = list(configs), corpus, device
        self.model, self.trainer = configs[0].model, configs[0].trainer
        self.compute = COMPUTE_DTYPES[configs[0].precision]
        self.dtype = torch.float64 if configs[0].precision == "fp64" else torch.float32
        self.clock = Clock(device)
        self._data = TrainingSplit(corpus, self.trainer.batch_size, device)
        self._lanes: Lanes | None = None
        # torch's layers are called once for every stretch without a reset, which the host has to find.
        self._capture = (capture or capture_on(device)) if self.model.cell == "gru" else None
        self._width = Width(self.model, padded=self._capture is not None)
        runs = len(configs)
        initial, self.generators = [], []
        states = states or [None] * runs
        for config, state in zip(configs, states, strict=True):
            generator = torch.Generator().manual_seed(config.seed)
            drawn = parameters_of(state) if state else initial_parameters(self.model, corpus.num_outputs, generator)
            initial.append(drawn)
            # On the CPU, so that a seed gives the same weights and masks on every device. Torch ignores all but a
            # seed's low 32 bits, so this repeats the weights' stream; masks are SplitMix64 of its numbers.
            self.generators.append(torch.Generator().manual_seed(config.seed + 2**32))
        self.parameters = self._width.stacked(initial, corpus.num_outputs, device, self.dtype)
        if isinstance(corpus, WordCorpus):
            self.parameters["input"] = self.parameters["input"].flatten(0, 1)
        for parameter in self.parameters.values():
            parameter.requires_grad_()
        self.states = zero_states(self._width.stored, runs, self.trainer.batch_size, self.parameters["output"].detach())
        #: The last step's metrics and the deferred projections of each layer, whose flags have not been read.
        self._reported: tuple[StepMetrics, list[ClipResult]] | None = None

        optimizers = [config.optimizer for config in configs]
        self.thresholds = self._vector([o.threshold if o.threshold is not None else torch.inf for o in optimizers])
        limits = [config.spectral_limit for config in configs]
        again = self._capture if captures_projections() else None
        self.projections = Projections(limits, self.recurrent_blocks(), optimizers[0].algorithm, again)
        self._parts = phase_parts(any(o.threshold is not None for o in optimizers), self.projections.any_limit)
        self.rates = self._vector([o.lr for o in optimizers])
        self._captured: tuple[Iteration, list[Phase]] | None = None
        self._iterations = 0
        rounded = self._capture is not None and self.compute == torch.bfloat16
        self.operands = operands_of(self.parameters, self.compute, corpus) if rounded else self.parameters
        self._evaluations: dict[str, Evaluation] = {}
        for index, state in enumerate(states):
            if state is not None:
                self.load_run_state(index, state)

    def _vector(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    # -- an epoch -------------------------------------------------------------------------------------

    def begin_epoch(self, epochs: Sequence[int], fresh_states: bool = True) -> int:
        """Cut the training data for the epoch each run is in; returns the number of iterations in it."""
        seeds = [config.seed for config in self.configs]
        self._lanes = self._data.lanes(list(zip(seeds, epochs, strict=True)))
        if fresh_states:
            for state in self.states:
                state.zero_()
        return -(-self._lanes.inputs.shape[1] // self.trainer.bptt)

    def step(self, iteration: int, with_radius: bool) -> StepMetrics:
        """Iteration `iteration` (from 0) of the epoch, for every run: forward, backward, update, clipping."""
        assert self._lanes is not None
        self._read_flags()
        clock = self.clock
        clock.start()
        if iteration % WIDEN_EVERY == 0:
            self.projections.adapt(self.recurrent_blocks())
            clock.book(self._parts[-1])
        window = self._lanes.window(iteration * self.trainer.bptt, self.trainer.bptt, axis=1)
        steps, batch = window.inputs.shape[1:3]
        done, phases = self._program(window, mask_seeds(self.model, self.generators, self.device))
        clock.book("data")
        for part, phase in zip(self._parts, phases, strict=True):
            phase()
            clock.book(part)
        radius = self.spectral_radii() if with_radius else None
        loss = done.total.detach() / (steps * batch)
        # A replay writes to the same memory again.
        norms, clipped = done.projected.spectral_norm.clone(), done.projected.values_clipped.clone()
        metrics = StepMetrics(steps, loss, done.grad_norm.clone(), norms, radius, clipped)
        self._reported = metrics, done.projected.deferred
        clock.book("metrics")
        return metrics

    def _program(self, window: Lanes, seeds: Tensor | None) -> tuple[Iteration, list[Phase]]:
        """The phases of an iteration on this window, and the `Iteration` they fill.

        Full windows are captured after `WARM_UP` iterations, and then replayed on memory of their own. The
        projection is captured, too, if the host decides nothing in it.
        """
        self._iterations += 1
        if self.projections.pop_moved():
            self._captured, self._iterations = None, min(self._iterations, WARM_UP)
        full = window.inputs.shape[1] == self.trainer.bptt
        if self._capture is None or not full or self._iterations <= WARM_UP:
            iteration = Iteration(window, seeds)
            return iteration, self._phases(iteration)
        if self._captured is None:
            iteration = Iteration(window.clone(), None if seeds is None else seeds.clone())
            phases = self._phases(iteration)
            with_projection = self.projections.needs_no_host and captures_projections()
            self._captured = iteration, self._capture(phases if with_projection else phases[:-1])
        iteration, replays = self._captured
        iteration.window.copy_(window)
        if iteration.seeds is not None and seeds is not None:
            iteration.seeds.copy_(seeds)
        # Uncaptured phases are not kept: they refer to the engine, whose memory must be freed with its owner.
        return iteration, [*replays, *self._phases(iteration)[len(replays) :]]

    def _phases(self, iteration: Iteration) -> list[Phase]:
        every = (self._forward, self._backward, self._measure, self._update, self._clip)
        return [partial(phase, iteration) for phase in every]

    def _forward(self, it: Iteration) -> None:
        steps, batch = it.window.inputs.shape[1:3]
        like = self.parameters["output"]
        masks = None if it.seeds is None else self._width.fit(masks_of(self.model, it.seeds, steps, batch, like))
        if self._capture is not None and it.window.inputs.dim() == 3:
            runs = len(self.configs)
            it.rows = word_rows(it.window.inputs, runs, self.parameters["input"].shape[0] // runs)
            it.embedded = self.parameters["input"].detach()[it.rows].requires_grad_()
        it.total, it.states = nll(self.operands, self.model, it.window, self.states, masks, self.compute, it.embedded)

    def _backward(self, it: Iteration) -> None:
        # Sum over the steps of the mean over the batch: the divisor is the number of lanes.
        objective = (it.total / it.window.inputs.shape[2]).sum()
        leaves = self.operands if it.embedded is None else {**self.operands, "input": it.embedded}
        gradients = torch.autograd.grad(objective, list(leaves.values()))
        it.gradients = [g.coalesce() if g.is_sparse else g for g in gradients]
        if it.embedded is not None:
            place, it.embedded = list(leaves).index("input"), None
            it.gradients[place] = row_gradient(it.rows.flatten(1), gradients[place].flatten(1, 2))
        # Without its graph, which belongs to the stream of the capture.
        it.total = it.total.detach()

    def _measure(self, it: Iteration) -> None:
        it.grad_norm = gradient_norms(it.gradients, len(self.configs), waits=self._capture is None)

    def _update(self, it: Iteration) -> None:
        step_sizes = self.rates * clipping_factors(it.grad_norm, self.thresholds)
        sgd_step_(list(self.parameters.values()), it.gradients, step_sizes, list(self.operands.values()))
        it.gradients = []
        for held, new in zip(self.states, it.states, strict=True):
            held.copy_(new)
        it.states = []  # views that keep the outputs of all steps

    def _clip(self, it: Iteration) -> None:
        it.projected = self.projections.project(self.recurrent_blocks())
        self._round_recurrent()

    def _round_recurrent(self) -> None:
        round_to_(self.operands, self.parameters, [f"weight_hh_l{k}" for k in range(self.model.num_layers)])

    def _recurrent_weights(self) -> list[Tensor]:
        """Each layer's weight_hh, (R, gates, n, n), as a view."""
        names = [f"weight_hh_l{k}" for k in range(self.model.num_layers)]
        return [self._width.cut(name, self.parameters[name].detach()) for name in names]

    def recurrent_blocks(self) -> list[Tensor]:
        """Each layer's block of weight_hh that is clipped, (R, n, n), as views."""
        cell = CELLS[self.model.cell]
        return [weight[:, cell.gates.index(cell.candidate)] for weight in self._recurrent_weights()]

    def _read_flags(self) -> None:
        """Redo what the last step's deferred projections could not certify, and mend its metrics; the host waits."""
        if self._reported is None:
            return
        self.clock.start()
        (metrics, deferred), self._reported = self._reported, None
        projected = Projected(metrics.values_clipped, metrics.spectral_norm, deferred)
        if self.projections.redo(self.recurrent_blocks(), projected):
            self._round_recurrent()
            if metrics.spectral_radius is not None:
                metrics.spectral_radius.copy_(self.spectral_radii())
        self.clock.book(self._parts[-1])

    def redone(self) -> list[int]:
        """How many matrices of each run had no certificate and were redone, since the last call.

        To be called before the step's metrics are read: where a matrix was redone only now, they change in place.
        """
        self._read_flags()
        return self.projections.pop_redone()

    def spectral_radii(self) -> Tensor:
        """Spectral radius of each layer's Jacobian at the origin, (layers, R); NaN where a weight is not finite."""
        weights = [weight.flatten(1, 2) for weight in self._recurrent_weights()]
        radii = [spectral_radius(cell_jacobian(self.model.cell, weight)).double() for weight in weights]
        # Also where only a gate's rows are not finite, which the Jacobian does not hold.
        finite = [are_finite(weight) for weight in weights]
        return torch.where(torch.stack(finite), torch.stack(radii), torch.nan)

    # -- between epochs -------------------------------------------------------------------------------

    def set_rates(self, rates: Sequence[float]) -> None:
        self.rates.copy_(self._vector(rates))

    def run_state(self, index: int) -> dict[str, Tensor]:
        """Everything of one run that its continuation depends on, as tensors without the leading axis."""
        self._read_flags()
        state = {"generator": self.generators[index].get_state()}
        for name, parameter in self.parameters.items():
            part = self._slice(name, parameter.detach(), index).clone(memory_format=torch.contiguous_format)
            state[f"parameters/{name}"] = part.flatten(0, 1) if part.dim() == 3 else part
        for layer, hidden in enumerate(self.states):
            state[f"hidden/{layer}"] = self._width.cut("hidden", hidden[index]).clone()
        return state | self.projections.run_state(index)

    def load_run_state(self, index: int, state: dict[str, Tensor]) -> None:
        """Put back what `run_state` gave."""
        self.generators[index].set_state(state["generator"])
        for name, parameter in self.parameters.items():
            part = self._slice(name, parameter.detach(), index)
            part.copy_(state[f"parameters/{name}"].view(part.shape))
        for layer, hidden in enumerate(self.states):
            self._width.cut("hidden", hidden[index]).copy_(state[f"hidden/{layer}"])
        round_to_(self.operands, self.parameters, self.parameters)
        self.projections.load_run_state(index, state)

    def _slice(self, name: str, stacked: Tensor, index: int) -> Tensor:
        """Run `index`'s part of a stacked parameter, as `Width.cut` gives it."""
        if name == "input" and stacked.dim() == 2:
            stacked = stacked.unflatten(0, (len(self.configs), -1))
        return self._width.cut(name, stacked[index])

    def evaluate(self, split: str, after_window: Callable[[], object] | None = None) -> list[float]:
        """Loss of each run on all of a split: nats per token or per time step; after training steps checks the
        limits, too: raises `ProjectionError` where one is exceeded."""
        self._read_flags()
        self.clock.start()
        if self._iterations:
            self.projections.check(self.recurrent_blocks())
        if split not in self._evaluations:
            detached = {name: parameter.detach() for name, parameter in self.parameters.items()}
            config = replace(self.configs[0], model=self._width.stored)
            self._evaluations[split] = Evaluation(detached, config, self.corpus, split, self._capture)
        losses = self._evaluations[split].losses(after_window)
        self.clock.book("evaluation")
        return losses
