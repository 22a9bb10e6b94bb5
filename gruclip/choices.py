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


class Cell(NamedTuple):
    """A recurrent cell: what the rows of its matrices are, its state, and where it is stable."""

    gates: str  #: stacked in the rows of weight_hh, in torch's order; h is the tanh RNN's only one
    candidate: str  #: the one through which the state is fed back, whose matrix is clipped
    vectors: int = 1  #: of size n in a layer's state: the LSTM carries (h, c)
    #: Of sigma_1(W_hh), below which it is stable at the origin without biases (why: `gruclip.dynamics`).
    bias_free_limit: float = 2.0


CELLS = {
    "gru": Cell("rzn", "n"),
    "gru_reset_after": Cell("rzn", "n"),
    "lstm": Cell("ifgo", "g", vectors=2),
    "tanh_rnn": Cell("h", "h", bias_free_limit=1.0),
}

#: Share of a stability limit that delta is from both its ends, at least: a value may be left 2e-6 above where it is
#: clipped, and should be below the limit all the same.
MIN_DELTA = 2e-6


def is_delta(delta: float, limit: float) -> bool:
    """Whether delta is inside (0, limit), by `MIN_DELTA`."""
    return MIN_DELTA * limit <= delta <= (1 - MIN_DELTA) * limit


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
