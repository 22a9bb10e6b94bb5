"""``gruclip bench transformer``: what clipping every Linear of a small transformer adds to a training step."""

from __future__ import annotations

import time

import pandas as pd
import torch
from torch import Tensor, nn

from gruclip.bench import options as command
from gruclip.bench.output import number, timing_table, write
from gruclip.bench.timing import Timing
from gruclip.clipping import SpectralClipping
from gruclip.data import WordCorpus, load
from gruclip.errors import UserError
from gruclip.report.render import Table

#: T, B, n
SHAPE = (64, 32, 256)
LAYERS, HEADS = 2, 4
STEP, CLIPPING = "step without clipping", "clipping"


class Transformer(nn.Module):
    """A language model: learned positions, pre-norm layers with 4 n units between, an output layer of its own."""

    def __init__(self, vocabulary: int, length: int, n: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, n), nn.Embedding(length, n)
        layer = nn.TransformerEncoderLayer(n, HEADS, 4 * n, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.output = nn.Linear(n, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, vocabulary) of the word after each of `tokens` (B, T)."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        states = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        logits: Tensor = self.output(self.layers(states, mask=mask, is_causal=True))
        return logits


class Training:
    """AdamW on windows drawn from a text, the clipping apart so that it is timed apart."""

    def __init__(self, corpus: WordCorpus, shape: tuple[int, int, int], lr: float, limit: float) -> None:
        (self.length, self.batch, n), self.text = shape, corpus.splits["train"]
        self.model = Transformer(corpus.num_outputs, self.length, n)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr)
        self.clipping = SpectralClipping(self.model, limit=limit)
        self.generator = torch.Generator().manual_seed(0)
        self.clipping.clip()

    def step(self) -> float:
        """Without the clipping; the loss in nats per token."""
        starts = torch.randint(len(self.text) - self.length, (self.batch, 1), generator=self.generator)
        window = self.text[starts + torch.arange(self.length + 1)]
        logits = self.model(window[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def tables(corpus: WordCorpus, shape: tuple[int, int, int], lr: float, limit: float, warmup: int, rounds: int) -> list:
    """Step and clipping in turns, `warmup` of them untimed, and where the values are at the end."""
    training = Training(corpus, shape, lr, limit)
    seconds: dict[str, list[float]] = {STEP: [], CLIPPING: []}
    clipped = [0] * len(training.clipping.parameters)
    loss = float("nan")
    for turn in range(warmup + rounds):
        started = time.perf_counter()
        loss = training.step()
        between = time.perf_counter()
        training.clipping.clip()
        if turn >= warmup:
            seconds[STEP].append(between - started)
            seconds[CLIPPING].append(time.perf_counter() - between)
            clipped = [before + now for before, now in zip(clipped, training.clipping.last_clipped, strict=True)]
    timings = {name: Timing(name, tuple(taken)) for name, taken in seconds.items()}
    length, batch, n = shape
    title = f"Transformer, T={length}, B={batch}, n={n}, {LAYERS} layers, {corpus.num_outputs:,} words"
    caption = (
        f"AdamW at a rate of {lr:g}, every Linear and attention block at {limit:g}, iterations {warmup + 1} to "
        f"{warmup + rounds}; the last loss {number(loss)} nats."
    )
    rows = [
        {
            "parameter": line.name,
            "shape": " x ".join(map(str, training.model.get_parameter(line.name).shape)),
            "clipped": total / rounds,
        }
        for line, total in zip(training.clipping.report(), clipped, strict=True)
    ]
    cells = [row | {"clipped": f"{row['clipped']:.1f}"} for row in rows]
    counts = Table("Values clipped", "Mean of an iteration.", pd.DataFrame(cells), pd.DataFrame(rows), [])
    return [timing_table(title, caption, timings, STEP), counts]


def main(argv: list[str]) -> int:
    parser = command.parser("transformer", "What clipping every Linear of a small transformer adds to a step.", 60)
    parser.add_argument("--shape", type=command.shape, metavar="T,B,n", default=SHAPE, help="default: 64,32,256")
    parser.add_argument("--lr", type=command.number_above_0, default=1e-3, help="AdamW's; default: %(default)s")
    parser.add_argument("--limit", type=command.number_above_0, default=1.5, help="default: %(default)s")
    parser.add_argument("--warmup", type=command.positive, default=60, help="iterations before; default: %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.shape[2] % HEADS:
        raise UserError(f"--shape {','.join(map(str, arguments.shape))}: n should be a multiple of {HEADS}, the heads")
    command.prepare(arguments.threads)
    corpus = load("pydoc", None)
    assert isinstance(corpus, WordCorpus)
    done = tables(corpus, arguments.shape, arguments.lr, arguments.limit, arguments.warmup, arguments.repetitions)
    write("transformer", done, vars(arguments), arguments.out)
    return 0
