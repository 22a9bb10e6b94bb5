"""The paper's settings, and what it reported as recollected, not checked against it.

The reported values (the protocol's letter C; only those that it gives) are printed for orientation, and nothing is
tuned to meet them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gruclip.choices import OWN_DATASETS, WORD_DATASETS

HEADING = "paper (recalled, unchecked)"


class Recalled(NamedTuple):
    """One setting's success rate and loss: test perplexity in Table 1, validation nats per time step in Table 2."""

    success: str
    loss: str


#: Which loss the recalled values of a data set are.
LOSS = {"ptb": "test perplexity", "nottingham": "validation loss"}

#: By data set, then by method and its threshold or delta.
VALUES: dict[str, dict[tuple[str, float], Recalled]] = {
    "ptb": {
        ("gradient_clipping", 5): Recalled("100 %", "106.9"),
        ("gradient_clipping", 10): Recalled("40 %", "100.4"),
        ("gradient_clipping", 15): Recalled("0 %", "N/A"),
        ("gradient_clipping", 20): Recalled("0 %", "N/A"),
        ("spectral_clipping", 0.2): Recalled("100 %", "97.6"),
        ("spectral_clipping", 0.5): Recalled("100 %", "98.4"),
        ("spectral_clipping", 0.8): Recalled("100 %", "99.0"),
        ("spectral_clipping", 1.1): Recalled("100 %", "100.3"),
        ("spectral_clipping", 1.4): Recalled("100 %", "102.1"),
    },
    "nottingham": {
        ("gradient_clipping", 15): Recalled("100 %", "3.57"),
        ("gradient_clipping", 30): Recalled("100 %", "3.61"),
        ("gradient_clipping", 45): Recalled("100 %", "3.88"),
        ("gradient_clipping", 60): Recalled("100 %", "5.26 ± 3"),
        ("spectral_clipping", 0.2): Recalled("100 %", "3.46"),
        ("spectral_clipping", 0.5): Recalled("100 %", "3.47"),
        ("spectral_clipping", 0.8): Recalled("100 %", "3.59"),
        ("spectral_clipping", 1.1): Recalled("100 %", "4.58"),
        ("spectral_clipping", 1.4): Recalled("100 %", "4.64"),
    },
}


def paper_rate(dataset: str) -> float | None:
    """The protocol's learning rate at the start of training: 1 for the language model, 0.1 for the music model; None
    for a corpus of one's own, of which it says nothing."""
    if dataset in OWN_DATASETS:
        return None
    return 1.0 if dataset in WORD_DATASETS else 0.1


_BOTH = {
    "model.cell": "gru",
    "model.dropout": 0.5,
    "model.input_scale": 0.01,
    "optimizer.algorithm": "auto",
    "trainer.bptt": 35,
    "trainer.batch_size": 20,
}
_LANGUAGE = _BOTH | {
    "model.hidden_size": 650,
    "model.num_layers": 1,
    "optimizer.lr": 1.0,
    "schedule.name": "exponential",
    "schedule.factor": 1.1,
    "schedule.hold_epochs": 10,
}
_MUSIC = _BOTH | {
    "model.hidden_size": 200,
    "model.num_layers": 2,
    "optimizer.lr": 0.1,
    "schedule.name": "plateau",
    "schedule.factor": 1.25,
    "schedule.patience": 10,
    "schedule.min_lr": 1e-4,
}

#: Epochs of the runs that the recalled values are of; elsewhere as many as the schedule has.
EPOCHS = {"ptb": 75}

#: The settings of Tables 1 and 2 beside method, budget and precision; the demo is ours and has no such.
PROTOCOL: dict[str, dict[str, Any]] = {
    "ptb": _LANGUAGE,
    **dict.fromkeys(("nottingham", "jsb_chorales", "musedata", "piano_midi"), _MUSIC),
}

#: What the protocol has beside those, for every data set of the paper's: a full run in float32, ten seeds.
BESIDE: dict[str, Any] = {"trainer.budget": "full", "precision": "fp32", "seed": range(10)}

#: The letters of a setting's source.
SOURCES = {
    "P": "a public third-party reimplementation",
    "C": "recollected from the paper, unchecked",
    "D": "decided here",
}


def source(setting: str, dataset: str) -> str:
    """The letter of the source of a setting that the protocol of a data set has."""
    if setting in BESIDE or setting == "optimizer.algorithm":
        return "D"
    return "P" if dataset in WORD_DATASETS else "C"
