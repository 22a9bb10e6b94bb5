"""``gruclip bench step``: a whole training step beside the loops people write, or an epoch of Nottingham."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor

from gruclip.bench import keras_peer
from gruclip.bench import options as command
from gruclip.bench.floor import Work, gru_work, measure_machine, notes, output_work, precision_of, precisions
from gruclip.bench.output import machine_table, number, timing_table, write
from gruclip.bench.peers import LanguageModel, MusicModel, PlainGRU, Recurrent, language_step, music_epoch, torch_gru
from gruclip.bench.timing import WARMUP, Contestant, alone, interleave
from gruclip.config import DatasetConfig, ModelConfig, OptimizerConfig, RunConfig, TrainerConfig
from gruclip.data import MusicCorpus, WordCorpus, load
from gruclip.errors import UserError
from gruclip.gru import GRU
from gruclip.kernels.dropout import min_units, skips_pairs
from gruclip.report.render import Table
from gruclip.training.clock import PARTS
from gruclip.training.engine import Engine

EXAMPLE = "PyTorch example"
TORCH_MUSIC = "torch loop, padded"
DELTA = 0.2

#: T, B, n
SHAPES = {"ptb": (35, 20, 650), "nottingham": (35, 20, 200)}

REPETITIONS = {"ptb": 15, "nottingham": 3}

#: Windows of the random text, read round and round.
WINDOWS = 8


def random_words(steps: int, batch: int, vocabulary: int) -> WordCorpus:
    """Words drawn evenly, `WINDOWS` windows of `steps` for each of `batch` lanes."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(vocabulary, (batch * (WINDOWS * steps + 1),), generator=generator)
    words = tuple(f"word{index}" for index in range(vocabulary))
    return WordCorpus("random", "random", dict.fromkeys(("train", "valid", "test"), text), words)


def lanes_of(corpus: WordCorpus, batch: int) -> Tensor:
    """The random text as tokens (L, B)."""
    return corpus.splits["train"].view(batch, -1).T.contiguous()


def example_seconds(corpus: WordCorpus, shape: tuple[int, int, int], rounds: int, device: torch.device) -> float:
    """Median seconds of the PyTorch example's training step."""
    steps, batch, n = shape
    model = LanguageModel(corpus.num_outputs, n, torch_gru)
    return alone(language_step(model, lanes_of(corpus, batch).to(device), steps), rounds).median


def run_config(dataset: str, model: ModelConfig, lr: float, steps: int, batch: int, precision: str) -> RunConfig:
    """Spectral clipping at delta 0.2."""
    return RunConfig(
        dataset=DatasetConfig(dataset),
        model=model,
        optimizer=OptimizerConfig("spectral_clipping", lr=lr, delta=DELTA),
        trainer=TrainerConfig(bptt=steps, batch_size=batch),
        precision=precision,
    ).check()


def engine_step(engine: Engine) -> Callable[[], float]:
    """One iteration, round and round its epoch; the runs' mean loss in nats per token."""
    iterations, done = engine.begin_epoch([1] * len(engine.configs)), 0

    def step() -> float:
        nonlocal done
        metrics = engine.step(done % iterations, False)
        done += 1
        engine.redone()  # as the runner does, before it reads
        return metrics.loss.mean().item()

    return step


def engine_epoch(engine: Engine) -> Callable[[], float]:
    """One epoch of one run; its last loss in nats per time step."""
    epoch = 0

    def train() -> float:
        nonlocal epoch
        epoch += 1
        return [engine.step(i, False).loss.item() for i in range(engine.begin_epoch([epoch]))][-1]

    return train


def engines(config: Callable[[str], RunConfig], corpus: WordCorpus | MusicCorpus) -> dict[str, Engine]:
    device = torch.device("cpu")
    return {f"gruclip, {precision}": Engine([config(precision)], corpus, device) for precision in precisions()}


def language_contestants(
    corpus: WordCorpus, ours: dict[str, Engine], steps: int, batch: int, n: int
) -> dict[str, Contestant]:
    vocabulary = corpus.num_outputs
    lanes = lanes_of(corpus, batch)
    recurrent: dict[str, Recurrent] = {
        EXAMPLE: torch_gru,
        "the same with gruclip.GRU": lambda inputs, units: GRU(inputs, units, bias=False),
        "the same with the plain cell": PlainGRU,
    }
    contestants: dict[str, Contestant] = {
        name: language_step(LanguageModel(vocabulary, n, layer), lanes, steps) for name, layer in recurrent.items()
    }
    if keras_peer.is_installed():
        contestants["Keras on JAX"] = keras_peer.language_step(lanes.numpy(), vocabulary, steps, n)
    return contestants | {name: engine_step(engine) for name, engine in ours.items()}


def parts_table(ours: dict[str, Engine], calls: int) -> Table:
    """What a step or epoch of gruclip spends where, from the engines' own clocks, warm-up included."""
    rows = [{"contestant": name} | per_call(engine, calls) for name, engine in ours.items()]
    cells = [{"": row["contestant"]} | {part: number(1e3 * float(row[part])) for part in PARTS[:-1]} for row in rows]
    caption = "Where gruclip's time goes, mean in ms, warm-up included."
    return Table("Parts", caption, pd.DataFrame(cells), pd.DataFrame(rows), [])


def per_call(engine: Engine, calls: int) -> dict[str, float]:
    """Mean seconds of each part of so many calls, by the engine's clock."""
    return {part: seconds / calls for part, seconds in engine.clock.read().items()}


def language_tables(shape: tuple[int, int, int], vocabulary: int, rounds: int) -> list[Table]:
    """A training step of the language model on random words."""
    steps, batch, n = shape
    corpus = random_words(steps, batch, vocabulary)
    model = ModelConfig(hidden_size=n)
    ours = engines(lambda precision: run_config("ptb", model, 1.0, steps, batch, precision), corpus)
    rows = steps * batch

    def work_of(precision: str, in_layer: float = 0.0, in_output: float = 0.0) -> Work:
        layer = gru_work(steps, batch, n, n, dropout=in_layer)
        return layer + output_work(rows, n, vocabulary, 2 if precision == "bf16" else 4, in_output)

    works = {precision: work_of(precision) for precision in ("fp32", "bf16")}
    dropped = model.dropout if n >= min_units() else 0.0
    # In bf16 two of the output layer's three products skip pairs of zeros, and the layer's none.
    in_pairs = (dropped + 2 * dropped**2) / 3 if skips_pairs() else 0.0
    spared = {"fp32": work_of("fp32", dropped, dropped), "bf16": work_of("bf16", 0.0, in_pairs)}
    machine = measure_machine(works.values())
    timings = interleave(language_contestants(corpus, ours, steps, batch, n), rounds)
    floors = {}
    for name, precision in zip(timings, map(precision_of, timings), strict=True):
        floors[name] = machine.floor((spared if name in ours else works)[precision], precision)
    title = f"Training step, T={steps}, B={batch}, n={n}, {vocabulary:,} words"
    caption = (
        f"Forward, backward, clipping and update, {works['fp32'].operations / 1e9:.1f} GFLOP; gruclip leaves out "
        f"what dropout set to zero and does {spared['fp32'].operations / 1e9:.1f} in fp32, "
        f"{spared['bf16'].operations / 1e9:.1f} in bf16. It clips spectrally at {DELTA}, the others "
        "clip the gradient. Random words: the projection of a real run is measured by `gruclip bench projection`."
    )
    missing = [*notes(), *keras_peer.notes()]
    table = timing_table(title, caption, timings, EXAMPLE, floors, missing)
    return [table, parts_table(ours, rounds + WARMUP), machine_table(machine)]


def music_tables(corpus: MusicCorpus, shape: tuple[int, int, int], rounds: int) -> list[Table]:
    """An epoch of the two-layer music model."""
    steps, batch, n = shape
    lane = sum(map(len, corpus.splits["train"])) // batch
    windows = lane // steps
    if not windows:
        raise UserError(f"--shape {steps},{batch},{n}: T should be at most {lane}, what {corpus.name} has for B lanes")
    model = ModelConfig(hidden_size=n, num_layers=2)
    ours = engines(lambda precision: run_config(corpus.name, model, 0.1, steps, batch, precision), corpus)
    layers = gru_work(steps, batch, n, n) * 2
    work = (layers + output_work(steps * batch, n, corpus.num_outputs)) * windows
    machine = measure_machine([work])
    epoch = music_epoch(MusicModel(corpus.num_outputs, n), corpus, batch, steps)
    contestants = {TORCH_MUSIC: epoch} | {name: engine_epoch(engine) for name, engine in ours.items()}
    # An epoch of hundreds of windows needs no warming up.
    timings = interleave(contestants, rounds, warmup=0)
    floors = {name: machine.floor(work, precision_of(name)) for name in timings}
    title = f"Epoch of {corpus.name}, T={steps}, B={batch}, n={n}"
    caption = (
        f"{work.operations / 1e9:.0f} GFLOP without padding; gruclip with spectral clipping at {DELTA} on lanes of "
        f"tunes, the torch loop with the gradient clipped on whole tunes, {batch} at a time, padded to the longest."
    )
    table = timing_table(title, caption, timings, TORCH_MUSIC, floors, notes())
    return [table, parts_table(ours, rounds), machine_table(machine)]


def main(argv: list[str]) -> int:
    description = "A training step with spectral clipping at 0.2, or an epoch, beside the loops people write."
    parser = command.parser("step", description, None, ", ".join(f"{n} for {name}" for name, n in REPETITIONS.items()))
    parser.add_argument("--experiment", choices=tuple(SHAPES), default="ptb", help="default: ptb, on random words")
    parser.add_argument("--shape", type=command.shape, metavar="T,B,n", help="default: the experiment's")
    parser.add_argument("--vocabulary", type=command.positive, default=10_000, help="of ptb; default: 10000")
    parser.add_argument("--data", metavar="DIR", help="the folder with Nottingham; default: $GRUCLIP_DATA, the cache")
    arguments = parser.parse_args(argv)
    command.prepare(arguments.threads)
    shape = arguments.shape or SHAPES[arguments.experiment]
    rounds = arguments.repetitions or REPETITIONS[arguments.experiment]
    if arguments.experiment == "ptb":
        command.refuse_idle(parser, arguments, ["data"], "on random words")
        tables = language_tables(shape, arguments.vocabulary, rounds)
    else:
        command.refuse_idle(parser, arguments, ["vocabulary"], f"on {arguments.experiment}")
        corpus = load(arguments.experiment, arguments.data)
        assert isinstance(corpus, MusicCorpus)
        tables = music_tables(corpus, shape, rounds)
    write(f"step_{arguments.experiment}", tables, arguments)
    return 0
