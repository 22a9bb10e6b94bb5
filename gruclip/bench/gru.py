"""``gruclip bench gru``: one layer, forward and backward, beside `torch.nn.GRU` and the paper's cell elsewhere."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from gruclip.bench import keras_peer
from gruclip.bench import options as command
from gruclip.bench.floor import gru_work, measure_machine, notes, precision_of, precisions
from gruclip.bench.output import machine_table, timing_table, write
from gruclip.bench.peers import PlainGRU, layer_step, torch_gru
from gruclip.bench.timing import Contestant, interleave
from gruclip.gru import GRU, gru_layer
from gruclip.kernels.graphs import capture_on

#: T, B, n: Penn Treebank, a music model read in long windows, and the paper's music model.
SHAPES = ((35, 20, 650), (200, 20, 200), (35, 20, 200))
BASE = "torch.nn.GRU"


class Bf16GRU(nn.Module):
    """The layer as the runner calls it with ``precision=bf16``: products in bfloat16, all else in float32."""

    def __init__(self, gru: GRU) -> None:
        super().__init__()
        self.gru = gru

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        weight_ih, weight_hh = (weight.unsqueeze(0) for weight in self.gru.parameters())
        states = gru_layer(x.unsqueeze(0), h, weight_ih, weight_hh, compute=torch.bfloat16)[0]
        return states, states[-1:]


def contestants(steps: int, batch: int, n: int, device: torch.device) -> dict[str, Contestant]:
    """Layers of n inputs and n units without biases; on a CPU Keras last, where it is installed; on a GPU ours also
    as the runner calls them, replayed."""
    ours = GRU(n, n, bias=False)
    layers = {
        BASE: torch_gru(n, n),
        "gruclip.GRU, fp32": ours,
        "plain cell, autograd": PlainGRU(n, n),
    }
    if "bf16" in precisions(device):
        layers["gruclip.GRU, bf16"] = Bf16GRU(ours)
    callables: dict[str, Contestant] = {
        name: layer_step(layer, steps, batch, n, device) for name, layer in layers.items()
    }
    if capture := capture_on(device):
        for name in [name for name in callables if name.startswith("gruclip")]:
            callables[name]()  # libraries set themselves up, which a graph cannot hold
            callables[f"{name}, replayed"] = capture([callables[name]])[0]
        return {name: partial(_to_the_end, step) for name, step in callables.items()}
    if keras_peer.is_installed():
        callables["Keras on JAX"] = keras_peer.layer_step(steps, batch, n)
    return callables


def _to_the_end(step: Contestant) -> None:
    step()
    torch.cuda.synchronize()


def main(argv: list[str]) -> int:
    parser = command.parser("gru", "One layer, forward and backward: gruclip.GRU beside its peers.", 15)
    parser.add_argument("--shapes", nargs="+", type=command.shape, default=SHAPES, metavar="T,B,n")
    command.add_device(parser, "cpu")
    arguments = parser.parse_args(argv)
    command.prepare(arguments.threads)
    device = command.device_of(arguments)
    missing = [*notes(device), *(keras_peer.notes() if device.type == "cpu" else [])]
    works = {shape: gru_work(shape[0], shape[1], shape[2], shape[2]) for shape in arguments.shapes}
    machine = measure_machine(works.values(), device)
    tables = []
    for (steps, batch, n), work in works.items():
        timings = interleave(contestants(steps, batch, n, device), arguments.repetitions)
        floors = {name: machine.floor(work, precision_of(name)) for name in timings}
        title = f"Layer, T={steps}, B={batch}, n={n}"
        caption = f"Forward and backward, {work.operations / 1e9:.2f} GFLOP, {n} inputs, no biases."
        tables.append(timing_table(title, caption, timings, BASE, floors, missing))
    write("gru", [*tables, machine_table(machine)], arguments, device)
    return 0
