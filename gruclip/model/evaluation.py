"""The loss of stacked weights on all of a split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gruclip.config import RunConfig
from gruclip.data import Lanes, MusicCorpus, WordCorpus, eval_lanes, predictions
from gruclip.model.device import COMPUTE_DTYPES
from gruclip.model.stacked import Parameters, nll, zero_states

#: Steps of a window in evaluation: longer than in training, since there is nothing to remember for a gradient.
EVALUATION_STEPS = 70


def evaluate(parameters: Parameters, config: RunConfig, corpus: WordCorpus | MusicCorpus, split: str) -> list[float]:
    """Loss of stacked `parameters` on all of a split, without dropout: nats per token or time step, one a run.

    Words: `trainer.batch_size` lanes from a zero state, each token but a lane's first predicted; music:
    every tune whole, from a zero state. Raises `RuntimeError` where not every target of the split was predicted once.
    """
    like = parameters["output"]
    runs = like.shape[0]
    lanes = eval_lanes(corpus, split, config.trainer.batch_size)
    stacked = stack_lanes([lanes], like.device)
    states = zero_states(config.model, runs, stacked.inputs.shape[2], like)
    total, steps = torch.zeros(runs, dtype=torch.float64, device=like.device), 0
    with torch.no_grad():
        for start in range(0, stacked.inputs.shape[1], EVALUATION_STEPS):
            window = stacked.window(start, EVALUATION_STEPS, axis=1)
            window_nll, states = nll(parameters, config.model, window, states, compute=COMPUTE_DTYPES[config.precision])
            total += window_nll
            steps += window.inputs.shape[1]
    if steps != stacked.inputs.shape[1] or lanes.predicted != predictions(corpus, split, config.trainer.batch_size):
        raise RuntimeError(f"{split}: {lanes.predicted} predictions in {steps} steps, which are not the split's")
    return (total / lanes.predicted).tolist()


def evaluate_weights(
    tensors: Parameters, config: RunConfig, corpus: WordCorpus | MusicCorpus, split: str, device: torch.device
) -> float:
    """`evaluate` for the weights of one run, without the leading axis, as checkpoints hold them."""
    parameters = {name: tensor.to(device) for name, tensor in tensors.items()}
    return evaluate(stacked_parameters(parameters, corpus), config, corpus, split)[0]


def stacked_parameters(tensors: Parameters, corpus: WordCorpus | MusicCorpus) -> dict[str, Tensor]:
    """The weights of one run, without the leading axis, as those of a stack of one."""
    parameters = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
    if isinstance(corpus, WordCorpus):
        parameters["input"] = parameters["input"][0]
    return parameters


def stack_lanes(lanes: Sequence[Lanes], device: torch.device) -> Lanes:
    """Lanes (L, B, ...) of several runs as one with a leading axis, (R, L, B, ...), on `device`."""

    def stack(tensors: list[Tensor | None]) -> Tensor | None:
        present = [tensor for tensor in tensors if tensor is not None]
        return torch.stack(present).to(device) if present else None

    inputs, targets = stack([lane.inputs for lane in lanes]), stack([lane.targets for lane in lanes])
    assert inputs is not None
    assert targets is not None
    keep, weight = stack([lane.keep for lane in lanes]), stack([lane.weight for lane in lanes])
    return Lanes(inputs, targets, keep, weight)
