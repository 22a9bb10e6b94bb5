"""What may be chosen by name: corpora, cells, methods, schedules, and what each is called in captions."""

from __future__ import annotations

from typing import NamedTuple

#: Each corpus with its name in captions.
DATASET_NAMES = {
    "pydoc": "Python's pydoc topics",
    "ptb": "Penn Treebank",
    "nottingham": "Nottingham",
    "jsb_chorales": "JSB Chorales",
    "musedata": "MuseData",
    "piano_midi": "Piano-midi.de",
    "text": "own text",
    "piano_roll": "own piano rolls",
}
DATASETS = tuple(DATASET_NAMES)
WORD_DATASETS = ("pydoc", "ptb", "text")

#: Corpora of the user's own, in `dataset.root`, and the settings that they alone have.
OWN_DATASETS = {
    "text": ("dataset.vocabulary", "dataset.unit"),
    "piano_roll": ("dataset.steps_per_beat",),
}


def foreign_settings(dataset: str) -> set[str]:
    """The settings that other corpora alone have."""
    return {name for owner, names in OWN_DATASETS.items() if owner != dataset for name in names}


CELLS = ("gru", "gru_reset_after", "lstm", "tanh_rnn")

#: Of sigma_1(W_hh), below which a cell without biases is stable at the origin (why: `gruclip.dynamics`).
BIAS_FREE_LIMIT = {"gru": 2.0, "gru_reset_after": 2.0, "lstm": 2.0, "tanh_rnn": 1.0}

#: Algorithms of the projection (what each is: `gruclip.spectral.clip_singular_values_`).
ALGORITHMS = ("auto", "full", "truncated", "gram", "block", "products", "program")


class Method(NamedTuple):
    """An optimizer as tables name it, and which of the two parameters it takes."""

    name: str
    threshold: bool = False
    delta: bool = False


METHODS = {
    "gradient_clipping": Method("gradient clipping", threshold=True),
    "spectral_clipping": Method("spectral clipping", delta=True),
    "combined_clipping": Method("combined clipping", threshold=True, delta=True),
    "sgd": Method("SGD"),
}
OPTIMIZERS = tuple(METHODS)
SCHEDULES = ("exponential", "plateau", "constant")
BUDGETS = ("full", "short", "smoke")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "tf32", "bf16", "fp64")
RESUMES = ("strict", "anyway")
LOGGERS = ("csv", "tensorboard", "mlflow", "wandb")
