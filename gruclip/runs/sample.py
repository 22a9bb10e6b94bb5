"""What a trained model makes of itself: text, or a tune."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gruclip.data import MusicCorpus, WordCorpus
from gruclip.data.words import EOS, UNK, tokens
from gruclip.errors import ConfigError
from gruclip.model.sampling import continued
from gruclip.rules import SEED
from gruclip.runs.trained import read_trained

#: Steps of a sample, at most.
MAX_STEPS = 100_000


@dataclass(frozen=True)
class Sample:
    """One sample: `text`, or a piano roll (time steps, 88) with the `steps_per_beat` of its corpus."""

    text: str | None
    roll: Tensor | None
    prompt_steps: int
    steps_per_beat: int


def sample(
    folder: str | Path,
    length: int = 200,
    temperature: float = 1.0,
    seed: int = 0,
    prompt: str | None = None,
    root: str | None = None,
) -> Sample:
    """`length` tokens or time steps drawn from the best epoch of a run, after the `prompt`.

    prompt: a text whose words (or characters) the run's vocabulary has; of a music model ``TUNE`` or ``TUNE:STEPS``,
    the first STEPS (32) of a tune of the test split, counted from 0. Without one, a text begins after the end of a
    sentence and a tune from nothing. `root` as for `evaluate_run`. Raises `ConfigError` for a value that cannot be,
    `UserError` as `evaluate_run`.
    """
    if not 1 <= length <= MAX_STEPS:
        raise ConfigError(f"--length {length}: should be a whole number from 1 to {MAX_STEPS:,}")
    if not 0.01 <= temperature <= 100:
        raise ConfigError(f"--temperature {temperature:g}: should be a number from 0.01 to 100")
    if not SEED.holds(seed):
        raise ConfigError(f"--seed {seed}: should be {SEED.right}")
    config, corpus, parameters = read_trained(folder, root)
    steps_per_beat = config.dataset.steps_per_beat
    start = _tokens(corpus, prompt) if isinstance(corpus, WordCorpus) else _steps(corpus, prompt)
    drawn = continued(parameters, config.model, start, length, temperature, seed)
    if isinstance(corpus, WordCorpus):
        shown = drawn if prompt else drawn[1:]
        text = _text([corpus.vocabulary[token] for token in shown.tolist()], corpus.token_unit)
        return Sample(text, None, len(start), steps_per_beat)
    return Sample(None, drawn, len(start), steps_per_beat)


def _tokens(corpus: WordCorpus, prompt: str | None) -> Tensor:
    pieces = tokens(prompt.split("\n"), corpus.token_unit)[:-1] if prompt else [EOS]
    numbers = {word: index for index, word in enumerate(corpus.vocabulary)}
    strange = [piece for piece in pieces if piece not in numbers]
    if not pieces or (strange and UNK not in numbers):
        raise ConfigError(f"--prompt {prompt!r}: {strange[0] if strange else 'nothing in it'}: not in the vocabulary")
    return torch.tensor([numbers.get(piece, numbers.get(UNK, -1)) for piece in pieces])


def _text(words: list[str], unit: str) -> str:
    if unit == "character":
        return "".join("\n" if word == EOS else word for word in words)
    lines: list[list[str]] = [[]]
    for word in words:
        if word == EOS:
            lines.append([])
        else:
            lines[-1].append(word)
    return "\n".join(" ".join(line) for line in lines)


def _steps(corpus: MusicCorpus, prompt: str | None) -> Tensor:
    tunes = corpus.splits["test"]
    if prompt is None:
        return tunes[0][:0]
    tune, colon, steps = prompt.partition(":")
    count = steps if colon else "32"
    small = all(re.fullmatch(r"[0-9]{1,9}", number) for number in (tune, count))
    if not small or int(tune) >= len(tunes) or int(count) < 1:
        raise ConfigError(
            f"--prompt {prompt}: should be TUNE or TUNE:STEPS, a tune of the test split from 0 to {len(tunes) - 1} and "
            "how many of its first time steps, e.g. 0:32"
        )
    start = tunes[int(tune)]
    if colon and int(count) > len(start):
        raise ConfigError(
            f"--prompt {prompt}: tune {int(tune)} has {len(start)} time steps; give {len(start)} or fewer"
        )
    return start[: int(count)]
