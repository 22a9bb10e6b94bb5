"""A model continues a sequence: token after token, or time step after time step, each drawn from what it predicts."""

from __future__ import annotations

import torch
from torch import Tensor

from gruclip.config import ModelConfig
from gruclip.data import Lanes
from gruclip.model.stacked import Parameters, recurrent_outputs, zero_states


@torch.no_grad()
def continued(
    parameters: Parameters, config: ModelConfig, prompt: Tensor, length: int, temperature: float, seed: int
) -> Tensor:
    """`prompt` and the `length` steps that the model draws after it, each given all before.

    parameters: as in `stacked`, of one run. prompt: tokens, int64 (T,), T at least 1, or a piano roll, uint8 (T, 88),
    which may be empty; the state is zero before it. Logits are divided by `temperature` before the softmax, or the
    logistic of each note; the same `seed` gives the same steps.
    """
    generator = torch.Generator().manual_seed(seed)
    words = prompt.dim() == 1
    steps = list(prompt)
    # As in evaluation a tune's first step is predicted from a zero vector.
    inputs = prompt if words else torch.cat([prompt.new_zeros(1, prompt.shape[1]), prompt])
    states = zero_states(config, 1, 1, parameters["output"])
    for _ in range(length):
        window = inputs.unsqueeze(1).unsqueeze(0)  # (1, T, 1, ...)
        outputs, states = recurrent_outputs(parameters, config, Lanes(window, window, None, None), states)
        last = outputs[0, -1, 0]
        logits = (last @ parameters["output"][0] + parameters["output_bias"][0]).double() / temperature
        if words:
            step = torch.multinomial(logits.softmax(0), 1, generator=generator)[0]
        else:
            uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
            step = (uniform < logits.sigmoid()).to(torch.uint8)
        steps.append(step)
        inputs = step.unsqueeze(0)
    return torch.stack(steps)
