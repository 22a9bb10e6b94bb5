"""What gruclip is measured against on torch: idiomatic training loops around `torch.nn.GRU`, and the plain cell.

Written the way the PyTorch examples are (``word_language_model`` above all). Each function returns a
contestant: a callable that does one training step, or one epoch, and returns its loss.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gruclip.data import MusicCorpus
from gruclip.gru import plain_gru

Recurrent = Callable[[int, int], nn.Module]  #: from input and hidden size to a module with `torch.nn.GRU`'s call


def torch_gru(inputs: int, n: int) -> nn.Module:
    return nn.GRU(inputs, n, bias=False)


class PlainGRU(nn.Module):
    """The paper's cell as `plain_gru` has it, differentiated by autograd, with `torch.nn.GRU`'s call."""

    def __init__(self, inputs: int, n: int) -> None:
        super().__init__()
        bound = n**-0.5
        self.weight_ih_l0 = nn.Parameter(torch.empty(3 * n, inputs).uniform_(-bound, bound))
        self.weight_hh_l0 = nn.Parameter(torch.empty(3 * n, n).uniform_(-bound, bound))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.weight_ih_l0.unsqueeze(0), self.weight_hh_l0.unsqueeze(0)
        states = plain_gru(x.unsqueeze(0), h, *weights)[0]
        return states, states[-1:]


def layer_step(
    layer: nn.Module, steps: int, batch: int, n: int, device: torch.device | None = None
) -> Callable[[], Tensor]:
    """Forward and backward of one layer of n inputs and n units, its input's gradient included."""
    layer.to(device)
    x = torch.randn(steps, batch, n, device=device, requires_grad=True)
    h, grad = torch.zeros(1, batch, n, device=device), torch.randn(steps, batch, n, device=device)
    wanted = [x, *layer.parameters()]

    def step() -> Tensor:
        out, _ = layer(x, h)
        return torch.autograd.grad(out, wanted, grad)[0]

    return step


class LanguageModel(nn.Module):
    """Embedding, dropout, GRU, dropout, linear, log-softmax."""

    def __init__(self, vocabulary: int, n: int, recurrent: Recurrent, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.Embedding(vocabulary, n)
        self.rnn = recurrent(n, n)
        self.decoder = nn.Linear(n, vocabulary)

    def forward(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        output, hidden = self.rnn(self.dropout(self.encoder(tokens)), hidden)
        logits = self.decoder(self.dropout(output)).flatten(0, 1)
        return nn.functional.log_softmax(logits, dim=1), hidden


def language_step(
    model: LanguageModel, lanes: Tensor, steps: int, lr: float = 1.0, clip: float = 5.0
) -> Callable[[], float]:
    """A training step on the next `steps` of the tokens (L, B), round and round, on their device; the loss in nats
    per token."""
    criterion = nn.NLLLoss()
    starts = cycle(range(0, len(lanes) - steps, steps))
    hidden = torch.zeros(1, lanes.shape[1], model.decoder.in_features, device=lanes.device)
    model.to(lanes.device).train()

    def step() -> float:
        nonlocal hidden
        start = next(starts)
        data, targets = lanes[start : start + steps], lanes[start + 1 : start + 1 + steps].flatten()
        model.zero_grad()
        hidden = hidden.detach()
        output, hidden = model(data, hidden)
        loss = criterion(output, targets)
        loss.backward()
        descend(model, lr, clip)
        return loss.item()

    return step


def descend(model: nn.Module, lr: float, clip: float) -> None:
    """Plain SGD, the gradient clipped at the global norm `clip`."""
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    with torch.no_grad():
        for p in model.parameters():
            assert p.grad is not None
            p.add_(p.grad, alpha=-lr)


class MusicModel(nn.Module):
    """Linear, dropout, two GRU layers with dropout between them, dropout, linear: the logits of 88 notes."""

    def __init__(self, keys: int, n: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.Linear(keys, n, bias=False)
        self.rnn = nn.GRU(n, n, num_layers=2, bias=False, dropout=dropout)
        self.decoder = nn.Linear(n, keys)

    def forward(self, notes: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        output, hidden = self.rnn(self.dropout(self.encoder(notes)), hidden)
        return self.decoder(self.dropout(output)), hidden


def music_epoch(
    model: MusicModel, corpus: MusicCorpus, batch_size: int, steps: int, lr: float = 0.1, clip: float = 15.0
) -> Callable[[], float]:
    """An epoch over whole tunes, shuffled, `batch_size` at a time and padded to the longest; nats per time step.

    Each batch is read in windows of `steps` with the state carried along; padding is masked out of the loss.
    """
    criterion = nn.BCEWithLogitsLoss(reduction="none")
    tunes = corpus.splits["train"]
    model.train()

    def epoch() -> float:
        total, count = 0.0, 0
        for chosen in torch.randperm(len(tunes)).split(batch_size):
            batch = [tunes[i].float() for i in chosen.tolist()]
            targets = pad_sequence(batch)
            inputs = torch.cat((torch.zeros_like(targets[:1]), targets[:-1]))
            mask = pad_sequence([torch.ones(len(tune)) for tune in batch])
            hidden = None
            for start in range(0, len(targets), steps):
                window = slice(start, start + steps)
                model.zero_grad()
                hidden = None if hidden is None else hidden.detach()
                logits, hidden = model(inputs[window], hidden)
                nll = (criterion(logits, targets[window]).sum(-1) * mask[window]).sum()
                (nll / batch_size).backward()
                descend(model, lr, clip)
                total += nll.item()
                count += int(mask[window].sum())
        return total / count

    return epoch
