"""The language model and the music model, as functions on the stacked parameters of several runs.

    x_t = dropout(input_scale * W_in v_t)        v_t: one-hot word or binary note vector
    h_t = recurrent layers, dropout between them
    y_t = W_out dropout(h_t) + b_out             softmax over words, or a logistic for each note

Parameters are a dict of tensors with a leading axis R, one slice a run:

    input           (R V, n): row r V + v is word v of run r, flat since a window uses few rows;
                    for music (R, 88, n)
    weight_ih_l{k}  (R, gates n, n)
    weight_hh_l{k}  (R, gates n, n)
    output          (R, n, outputs): transposed, because the products over it are faster so
    output_bias     (R, outputs)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gruclip.choices import CELLS
from gruclip.config import ModelConfig
from gruclip.data import Lanes
from gruclip.kernels import fused
from gruclip.kernels.dropout import factors, random_bits
from gruclip.kernels.products import product
from gruclip.layers import clipped_block
from gruclip.model.cells import recurrent_layer
from gruclip.model.losses import logistic_nll, softmax_nll

Parameters = dict[str, Tensor]


def initial_parameters(config: ModelConfig, num_outputs: int, generator: torch.Generator) -> Parameters:
    """The weights of one run before training, without the leading axis, float32 on the CPU.

    Normal with mean 0 and variance 1/n; of every recurrent matrix the block that spectral clipping
    acts on (the paper's W_hh) is orthogonal: the left singular vectors of a random matrix; the output
    bias is zero.
    """
    n, parameters = config.hidden_size, {}
    for name, shape in parameter_shapes(config, num_outputs).items():
        if name == "output_bias":
            parameters[name] = torch.zeros(shape)
            continue
        parameters[name] = torch.randn(shape, generator=generator) / n**0.5
        if name.startswith("weight_hh"):
            # In float64, so that sigma_1 = 1 to the last bit of float32 whatever LAPACK does.
            left = torch.linalg.svd(torch.randn(n, n, generator=generator).double())[0]
            parameters[name][clipped_block(config.cell, n)] = left.float()
    return parameters


def parameter_shapes(config: ModelConfig, num_outputs: int) -> dict[str, tuple[int, ...]]:
    """The shapes of `initial_parameters`, by name."""
    n, rows = config.hidden_size, len(CELLS[config.cell].gates) * config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"input": (num_outputs, n)}
    for layer in range(config.num_layers):
        shapes |= {f"weight_{kind}_l{layer}": (rows, n) for kind in ("ih", "hh")}
    return shapes | {"output": (n, num_outputs), "output_bias": (num_outputs,)}


def zero_states(config: ModelConfig, runs: int, batch: int, like: Tensor) -> list[Tensor]:
    """A zero state for every layer, each (R, B, n), for the LSTM (R, B, 2n)."""
    size = CELLS[config.cell].vectors * config.hidden_size
    return [like.new_zeros(runs, batch, size) for _ in range(config.num_layers)]


def nll(
    parameters: Parameters,
    config: ModelConfig,
    window: Lanes,
    states: list[Tensor],
    masks: list[Tensor] | None = None,
    compute: torch.dtype | None = None,
    embedded: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Negative log-likelihood of a window, summed over steps, lanes and notes: nats (R,); and the states after it.

    window: tensors (R, T, B, ...), or (1, T, B, ...) where all runs read the same; states as from
    `zero_states`; masks: dropout factors (R, T, B, n) for each layer's input and for the output layer's,
    None without dropout; embedded: what `embed` gives of the window, where the caller has it.
    """
    x, after = recurrent_outputs(parameters, config, window, states, masks, compute, embedded)
    h, mask = x.flatten(1, 2), None if masks is None else masks[-1].flatten(1, 2)
    output = parameters["output"], parameters["output_bias"]
    targets = window.targets.flatten(1, 2)
    weights = None if window.weight is None else window.weight.flatten(1, 2)
    if targets.dim() == 2:
        return softmax_nll(h, *output, targets, weights, compute, mask), after
    return logistic_nll(h if mask is None else h * mask, *output, targets.to(x.dtype), weights), after


def recurrent_outputs(
    parameters: Parameters,
    config: ModelConfig,
    window: Lanes,
    states: list[Tensor],
    masks: list[Tensor] | None = None,
    compute: torch.dtype | None = None,
    embedded: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """What the last recurrent layer puts out over a window, (R, T, B, n), and all states after it; as in `nll`."""
    if embedded is None:
        embedded = embed(parameters["input"], window.inputs, parameters["output"].shape[0])
    x = config.input_scale * embedded
    keep = None if window.keep is None else window.keep.to(x.dtype)
    after = []
    for layer, state in enumerate(states):
        mask = None if masks is None else masks[layer]
        matrices = parameters[f"weight_ih_l{layer}"], parameters[f"weight_hh_l{layer}"]
        x, state = recurrent_layer(config.cell, x, state, *matrices, keep=keep, compute=compute, mask=mask)
        after.append(state.detach())
    return x, after


def word_rows(inputs: Tensor, runs: int, vocabulary: int) -> Tensor:
    """The rows of the input's weight that words (R or 1, T, B) stand for, in each run: (R, T, B)."""
    return inputs + torch.arange(runs, device=inputs.device).view(-1, 1, 1) * vocabulary


def embed(weight: Tensor, inputs: Tensor, runs: int) -> Tensor:
    """``W_in v_t`` for words or note vectors: (R, T, B, n). The gradient for words is sparse, of the rows in use."""
    if inputs.dim() == 3:
        return torch.nn.functional.embedding(word_rows(inputs, runs, weight.shape[0] // runs), weight, sparse=True)
    notes = inputs.to(weight.dtype).expand(runs, *inputs.shape[1:])
    return product(notes.flatten(1, 2), weight).unflatten(1, inputs.shape[1:3])


def mask_seeds(config: ModelConfig, generators: list[torch.Generator], device: torch.device) -> Tensor | None:
    """A seed of the masks of an iteration for each run, int64 (R,); None without dropout."""
    if config.dropout == 0:
        return None
    seeds = torch.empty(len(generators), dtype=torch.int64)
    for seed, generator in zip(seeds.split(1), generators, strict=True):
        seed.random_(-(2**63), None, generator=generator)
    return seeds.to(device)


def masks_of(config: ModelConfig, seeds: Tensor, steps: int, batch: int, like: Tensor) -> list[Tensor]:
    """Factors 0 and 1/(1-p), one array (R, T, B, n) for each site of dropout.

    A unit is kept where 16 random bits are below (1-p) 2**16: p is met to 2**-17. They are made of a run's seed, seven
    times faster than by the generator itself.
    """
    shape = config.num_layers + 1, steps, batch, config.hidden_size
    numbers, factor = math.prod(shape), 1 / (1 - config.dropout)
    threshold = round((1 - config.dropout) * 2**16) - 2**15
    if fused.takes(like):
        return list(fused.random_factors(seeds, shape, threshold, factor, like).unbind(1))
    bits = random_bits(seeds, -(-numbers // 4))
    halves = bits.view(torch.int16)[:, :numbers].view(len(seeds), *shape)
    return list(factors(halves, threshold, factor, like).unbind(1))
