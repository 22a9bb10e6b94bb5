"""What products read: the parameters, or copies rounded to their operands' dtype, so that no product casts a weight."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gruclip.data import MusicCorpus, WordCorpus
from gruclip.kernels.products import has_bf16_products
from gruclip.model.stacked import Parameters


def parameters_of(state: dict[str, Tensor]) -> Parameters:
    """The parameters alone of what `Engine.run_state` gave, under their own names."""
    prefix = "parameters/"
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def operands_of(parameters: Parameters, compute: torch.dtype, corpus: WordCorpus | MusicCorpus) -> Parameters:
    """`parameters` with copies of those that are factors of products, where the device has them in `compute`."""
    if not has_bf16_products(parameters["output"].device):
        return parameters
    # The product of the music models' output layer is in float32, and the input's is the choice of rows.
    factors = [name for name in parameters if name.startswith("weight")]
    if isinstance(corpus, WordCorpus):
        factors.append("output")
    copies = {name: parameters[name].detach().to(compute).requires_grad_() for name in factors}
    return {**parameters, **copies}


@torch.no_grad()
def round_to_(operands: Parameters, parameters: Parameters, names: Iterable[str]) -> None:
    """Update the rounded copies of parameters that something other than the SGD step changed."""
    for name in names:
        if operands[name] is not parameters[name]:
            operands[name].copy_(parameters[name])
