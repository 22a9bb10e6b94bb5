"""The loss of stacked weights on all of a split."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gruclip.config import RunConfig
from gruclip.data import Lanes, MusicCorpus, WordCorpus, eval_lanes, predictions
from gruclip.kernels.graphs import Capture, Phase
from gruclip.model.device import COMPUTE_DTYPES
from gruclip.model.stacked import Parameters, nll, zero_states

#: Steps of a window in evaluation: longer than in training, since there is nothing to remember for a gradient.
EVALUATION_STEPS = 70


class Evaluation:
    """The loss of stacked `parameters`, which are always the same tensors, on all of a split.

    Without dropout: nats per token or time step, one a run. Words: `trainer.batch_size` lanes from a zero state, each
    token but a lane's first predicted; music: every tune whole, from a zero state. `capture`: how a window is captured
    after the first one, and then replayed for every whole one of all evaluations.
    """

    def __init__(
        self,
        parameters: Parameters,
        config: RunConfig,
        corpus: WordCorpus | MusicCorpus,
        split: str,
        capture: Capture | None = None,
    ) -> None:
        like = parameters["output"]
        self._parameters, self._config, self._split, self._capture = parameters, config, split, capture
        lanes = eval_lanes(corpus, split, config.trainer.batch_size)
        self._predicted, self._expected = lanes.predicted, predictions(corpus, split, config.trainer.batch_size)
        self._lanes = lanes.stacked(like.device)
        self.states = zero_states(config.model, like.shape[0], self._lanes.inputs.shape[2], like)
        self.total = torch.zeros(like.shape[0], dtype=torch.float64, device=like.device)
        self._held: tuple[Lanes, Phase] | None = None

    @torch.no_grad()
    def losses(self, after_window: Callable[[], object] | None = None) -> list[float]:
        """Raises `RuntimeError` where not every target of the split was predicted once."""
        for tensor in (*self.states, self.total):
            tensor.zero_()
        length, steps = self._lanes.inputs.shape[1], 0
        for start in range(0, length, EVALUATION_STEPS):
            window = self._lanes.window(start, EVALUATION_STEPS, axis=1)
            whole = window.inputs.shape[1] == EVALUATION_STEPS
            if self._capture is not None and whole and start:
                self._replay(window, self._capture)
            else:
                self._read(window)
            steps += window.inputs.shape[1]
            if after_window is not None:
                after_window()
        if steps != length or self._predicted != self._expected:
            raise RuntimeError(
                f"{self._split}: {self._predicted} predictions in {steps} steps, which are not the split's"
            )
        return (self.total / self._predicted).tolist()

    def _read(self, window: Lanes) -> None:
        compute = COMPUTE_DTYPES[self._config.precision]
        window_nll, states = nll(self._parameters, self._config.model, window, self.states, compute=compute)
        self.total += window_nll
        for held, new in zip(self.states, states, strict=True):
            held.copy_(new)

    def _replay(self, window: Lanes, capture: Capture) -> None:
        if self._held is None:
            held = window.clone()
            self._held = held, capture([partial(self._read, held)])[0]
        held, replay = self._held
        held.copy_(window)
        replay()


def evaluate(
    parameters: Parameters,
    config: RunConfig,
    corpus: WordCorpus | MusicCorpus,
    split: str,
    after_window: Callable[[], object] | None = None,
) -> list[float]:
    """`Evaluation` of these parameters once."""
    return Evaluation(parameters, config, corpus, split).losses(after_window)


def evaluate_weights(
    tensors: Parameters,
    config: RunConfig,
    corpus: WordCorpus | MusicCorpus,
    split: str,
    device: torch.device,
    after_window: Callable[[], object] | None = None,
) -> float:
    """`evaluate` for the weights of one run, without the leading axis, as checkpoints hold them."""
    parameters = {name: tensor.to(device) for name, tensor in tensors.items()}
    return evaluate(stacked_parameters(parameters, corpus), config, corpus, split, after_window)[0]


def stacked_parameters(tensors: Parameters, corpus: WordCorpus | MusicCorpus) -> dict[str, Tensor]:
    """The weights of one run, without the leading axis, as those of a stack of one."""
    parameters = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
    if isinstance(corpus, WordCorpus):
        parameters["input"] = parameters["input"][0]
    return parameters
