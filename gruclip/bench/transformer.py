"""``gruclip bench transformer``: what clipping every Linear of a small transformer adds to a training step."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from gruclip.bench import options as command
from gruclip.bench.output import number, timing_table, write
from gruclip.bench.timing import Timing, seconds_of
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

    def __init__(self, vocabulary: int, length: int, n: int, layers: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, n), nn.Embedding(length, n)
        layer = nn.TransformerEncoderLayer(n, HEADS, 4 * n, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.output = nn.Linear(n, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, vocabulary) of the word after each of `tokens` (B, T)."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        states = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        logits: Tensor = self.output(self.layers(states, mask=mask, is_causal=True))
        return logits


class Training:
    """AdamW on windows drawn from a text, the clipping apart so that it is timed apart."""

    def __init__(
        self,
        corpus: WordCorpus,
        shape: tuple[int, int, int],
        layers: int,
        lr: float,
        limit: float,
        device: torch.device,
    ) -> None:
        (self.length, self.batch, n), self.text = shape, corpus.splits["train"].to(device)
        self.model = Transformer(corpus.num_outputs, self.length, n, layers).to(device)
        self.layers, self.lr, self.limit = layers, lr, limit
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr)
        self.clipping = SpectralClipping(self.model, limit=limit)
        self.generator = torch.Generator().manual_seed(0)
        self.clipping.clip()

    def step(self) -> float:
        """Without the clipping; the loss in nats per token."""
        starts = torch.randint(len(self.text) - self.length, (self.batch, 1), generator=self.generator)
        window = self.text[(starts + torch.arange(self.length + 1)).to(self.text.device)]
        logits = self.model(window[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def tables(training: Training, warmup: int, rounds: int) -> list[Table]:
    """Step and clipping in turns, `warmup` of them untimed, and where the values are at the end."""
    device = training.text.device
    seconds: dict[str, list[float]] = {STEP: [], CLIPPING: []}
    clipped = [0] * len(training.clipping.parameters)
    losses: list[float] = []
    for turn in range(warmup + rounds):
        step = seconds_of(lambda: losses.append(training.step()), device)
        clipping = seconds_of(training.clipping.clip, device)
        if turn >= warmup:
            seconds[STEP].append(step)
            seconds[CLIPPING].append(clipping)
            clipped = [before + now for before, now in zip(clipped, training.clipping.last_clipped, strict=True)]
    timings = {name: Timing(tuple(taken)) for name, taken in seconds.items()}
    words, n = training.model.words.weight.shape
    title = f"Transformer, T={training.length}, B={training.batch}, n={n}, {training.layers} layers, {words:,} words"
    caption = (
        f"AdamW at a rate of {training.lr:g}, every Linear and attention block at {training.limit:g}, iterations "
        f"{warmup + 1} to {warmup + rounds}; the last loss {number(losses[-1])} nats."
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
    parser.add_argument("--layers", type=command.positive, default=LAYERS, help="default: %(default)s")
    command.add_device(parser, "cpu")
    parser.add_argument("--lr", type=command.number_above_0, default=1e-3, help="AdamW's; default: %(default)s")
    parser.add_argument("--limit", type=command.number_above_0, default=1.5, help="default: %(default)s")
    parser.add_argument("--warmup", type=command.positive, default=60, help="iterations before; default: %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.shape[2] % HEADS:
        raise UserError(f"--shape {','.join(map(str, arguments.shape))}: n should be a multiple of {HEADS}, the heads")
    device = command.device_of(arguments)
    command.prepare(arguments.threads)
    corpus = load("pydoc", None)
    assert isinstance(corpus, WordCorpus)
    if arguments.shape[0] >= (tokens := len(corpus.splits["train"])):
        raise UserError(
            f"--shape {','.join(map(str, arguments.shape))}: T should be less than the text's {tokens} tokens"
        )
    training = Training(corpus, arguments.shape, arguments.layers, arguments.lr, arguments.limit, device)
    done = tables(training, arguments.warmup, arguments.repetitions)
    write("transformer", done, arguments, device)
    return 0
