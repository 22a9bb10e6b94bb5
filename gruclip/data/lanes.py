"""Corpora cut into lanes: B streams side by side, read in windows with the hidden state carried along.

Training drops what does not fill the lanes, so no padding enters a gradient; evaluation predicts every target
of a split exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gruclip.data.music import MusicCorpus
from gruclip.data.words import WordCorpus
from gruclip.errors import ConfigError

#: Lanes that tunes are dealt to in evaluation, at most.
MAX_EVALUATION_LANES = 64


@dataclass(frozen=True)
class Lanes:
    """L steps of B lanes. Step t of lane b predicts `targets[t, b]` from `inputs[t, b]` and the state."""

    inputs: Tensor  #: tokens, int64 (L, B), or note vectors, uint8 (L, B, 88)
    targets: Tensor  #: as `inputs`
    keep: Tensor | None  #: bool (L, B), False where the state is set to zero before the step; None: nowhere
    weight: Tensor | None  #: float32 (L, B), 0 where the target is padding and does not count; None: all count

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def predicted(self) -> int:
        """The number of targets that count."""
        if self.weight is None:
            return self.targets.shape[0] * self.targets.shape[1]
        return int(self.weight.count_nonzero())

    def window(self, start: int, length: int, axis: int = 0) -> Lanes:
        """Steps start ... start + length, fewer at the end, as views; `axis` 1 where the tensors are those of several
        runs, with a leading axis for these."""

        def part(tensor: Tensor) -> Tensor:
            return tensor.narrow(axis, start, min(length, tensor.shape[axis] - start))

        return self._map(part)

    def stacked(self, device: torch.device | str) -> Lanes:
        """With a leading axis for runs, of one, on a device."""
        return self._map(lambda tensor: tensor[None].to(device))

    def clone(self) -> Lanes:
        return self._map(torch.clone)

    def copy_(self, other: Lanes) -> None:
        """Take the values of lanes of the same shape."""
        for name, tensor in vars(self).items():
            if tensor is not None:
                tensor.copy_(getattr(other, name))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Lanes:
        keep, weight = (None if tensor is None else function(tensor) for tensor in (self.keep, self.weight))
        return Lanes(function(self.inputs), function(self.targets), keep, weight)


def check_window(corpus: WordCorpus | MusicCorpus, batch_size: int, bptt: int) -> None:
    """Raise `ConfigError` where `batch_size` lanes are more than the data fill, or shorter than a window of `bptt`."""
    most = _most_lanes(corpus)
    if batch_size > most:
        raise ConfigError(f"trainer.batch_size={batch_size}: {corpus.name} has data for {most} lanes at most")
    if isinstance(corpus, WordCorpus):
        steps = len(corpus.splits["train"]) // batch_size - 1
    else:
        steps = sum(map(len, corpus.splits["train"])) // batch_size
    if bptt > steps:
        raise ConfigError(
            f"trainer.bptt={bptt}: longer than a lane of {steps} steps (trainer.batch_size={batch_size}); "
            f"take a window of {steps} at most, or fewer lanes"
        )


def _most_lanes(corpus: WordCorpus | MusicCorpus) -> int:
    """Words: two tokens a lane, the one predicted from the other, in every split; music: one training step a lane."""
    if isinstance(corpus, WordCorpus):
        return min(len(text) for text in corpus.splits.values()) // 2
    return sum(map(len, corpus.splits["train"]))


class TrainingSplit:
    """The training split on a device, cut anew for each epoch into `batch_size` equal lanes, the remainder dropped;
    every target counts.

    Words: the text in its order, whatever seed and epoch; L = tokens // B - 1. Music: the tunes shuffled by
    (seed, epoch) and joined, L = time steps // B; the state is zero at each tune's and each lane's start, and a
    tune's first step is predicted from a zero vector.
    """

    def __init__(self, corpus: WordCorpus | MusicCorpus, batch_size: int, device: torch.device | str = "cpu") -> None:
        self._batch_size = batch_size
        self._text: Lanes | None = None
        if isinstance(corpus, WordCorpus):
            lanes = _cut(corpus.splits["train"], batch_size)
            self._text = Lanes(lanes[:-1], lanes[1:], None, None).stacked(device)
            return
        tunes = corpus.splits["train"]
        self._lengths = np.array([len(tune) for tune in tunes])
        self._starts = self._lengths.cumsum() - self._lengths
        first = torch.zeros(int(self._lengths.sum()), dtype=torch.bool)
        first[torch.from_numpy(self._starts)] = True
        self._frames, self._first = torch.cat(list(tunes)).to(device), first.to(device)

    def lanes(self, runs: Sequence[tuple[int, int]]) -> Lanes:
        """Of runs, each a seed and an epoch, (R, L, B, ...); of words, which are the same for all, (1, L, B)."""
        if self._text is not None:
            return self._text
        # The host orders the tunes, and the device fetches their frames.
        places = torch.stack([_cut(self._shuffled(seed, epoch), self._batch_size) for seed, epoch in runs])
        places = places.to(self._frames.device)
        keep, targets = ~self._first[places], self._frames[places]
        inputs = self._frames[places - 1].masked_fill_(~keep[..., None], 0)
        keep[:, :1] = False
        return Lanes(inputs, targets, keep, None)

    def _shuffled(self, seed: int, epoch: int) -> Tensor:
        """The places of all steps, those of each tune in their order."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self._lengths))
        lengths = self._lengths[order]
        moved = self._starts[order] - (lengths.cumsum() - lengths)
        return torch.from_numpy(moved.repeat(lengths) + np.arange(lengths.sum()))


def eval_lanes(corpus: WordCorpus | MusicCorpus, split: str, batch_size: int) -> Lanes:
    """A split with each of its targets predicted once.

    Words: `batch_size` lanes from a zero state, the remainder in the last lane, each token but a lane's first
    predicted. Music: every tune whole, from a zero state and a zero vector; `batch_size` plays no part, the tunes
    are dealt to as many lanes (64 at most) as the longest tune lets be filled evenly.
    """
    if isinstance(corpus, WordCorpus):
        return _eval_words(corpus.splits[split], batch_size)
    return _eval_tunes(corpus.splits[split])


def predictions(corpus: WordCorpus | MusicCorpus, split: str, batch_size: int) -> int:
    """How many targets a split has in evaluation: tokens but the first of each lane, or time steps."""
    if isinstance(corpus, WordCorpus):
        return len(corpus.splits[split]) - batch_size
    return sum(map(len, corpus.splits[split]))


def _eval_words(text: Tensor, batch_size: int) -> Lanes:
    size = len(text) // batch_size
    sizes = [size] * (batch_size - 1)
    lanes = text.split([*sizes, len(text) - sum(sizes)])
    return _side_by_side([lane[:-1] for lane in lanes], [lane[1:] for lane in lanes], None)


def _eval_tunes(tunes: Sequence[Tensor]) -> Lanes:
    steps = sum(map(len, tunes))
    count = min(MAX_EVALUATION_LANES, steps // max(map(len, tunes)))
    lanes: list[list[Tensor]] = [[] for _ in range(count)]
    filled = [0] * count
    for tune in sorted(tunes, key=len, reverse=True):
        shortest = filled.index(min(filled))
        lanes[shortest].append(tune)
        filled[shortest] += len(tune)
    inputs, targets, keep = zip(*map(_join, lanes), strict=True)
    return _side_by_side(inputs, targets, keep)


def _join(tunes: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Tunes one after another: each step's previous frame (zero at a tune's start), its frame, is the state kept."""
    targets = torch.cat(list(tunes))
    starts = torch.tensor([0, *map(len, tunes)]).cumsum(0)[:-1]
    inputs = targets.roll(1, 0)
    inputs[starts] = 0
    keep = torch.ones(len(targets), dtype=torch.bool)
    keep[starts] = False
    return inputs, targets, keep


def _cut(stream: Tensor, batch_size: int) -> Tensor:
    """(N, ...) as lanes (N // B, B, ...), the remainder dropped."""
    steps = len(stream) // batch_size
    return stream[: steps * batch_size].unflatten(0, (batch_size, steps)).transpose(0, 1).contiguous()


def _side_by_side(inputs: Sequence[Tensor], targets: Sequence[Tensor], keep: Sequence[Tensor] | None) -> Lanes:
    """Lanes of different lengths as one, the shorter padded at the end with steps of weight 0."""
    lengths = torch.tensor([len(lane) for lane in targets])
    counts = torch.arange(int(lengths.max()))[:, None] < lengths
    return Lanes(
        pad_sequence(list(inputs)),
        pad_sequence(list(targets)),
        None if keep is None else pad_sequence(list(keep), padding_value=1),
        None if counts.all() else counts.float(),
    )
