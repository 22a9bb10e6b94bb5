"""What is done with a finished run: load its model, evaluate it on a split."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gruclip.choices import OWN_DATASETS, WORD_DATASETS
from gruclip.config import ModelConfig, RunConfig
from gruclip.data import MusicCorpus, WordCorpus
from gruclip.data import load as load_corpus
from gruclip.errors import ConfigError, DataError, UserError
from gruclip.gru import GRU
from gruclip.model.device import choose_device, round_products
from gruclip.model.evaluation import evaluate_weights, stacked_parameters
from gruclip.model.stacked import Parameters, parameter_shapes
from gruclip.runs.checkpoints import DamagedCheckpoint, read_checkpoint
from gruclip.runs.records import MOVE_AWAY, read_config

LAYERS: Mapping[str, type[nn.Module]] = {"gru": GRU, "gru_reset_after": nn.GRU, "lstm": nn.LSTM, "tanh_rnn": nn.RNN}


class RecurrentModel(nn.Module):
    """A trained language or music model: logits of the next word or of each note.

    ``model(inputs, state)`` takes words (T, B) or note vectors (T, B, 88) and gives logits (T, B, outputs) and the
    state, as `torch.nn.GRU` does. `input` maps words or notes to n units, `recurrent` is the GRU (or another
    cell), `output` a linear layer. Dropout acts in training mode as it did in training.
    """

    def __init__(self, config: ModelConfig, num_outputs: int, words: bool) -> None:
        super().__init__()
        n = config.hidden_size
        self.input_scale = config.input_scale
        self.input: nn.Module = nn.Embedding(num_outputs, n) if words else nn.Linear(num_outputs, n, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        between = config.dropout if config.num_layers > 1 else 0.0
        self.recurrent = LAYERS[config.cell](n, n, config.num_layers, bias=False, dropout=between)
        self.output = nn.Linear(n, num_outputs)

    def forward(self, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits (T, B, outputs) and the state after the last step, for words (T, B) or notes (T, B, 88)."""
        x = self.input(inputs if isinstance(self.input, nn.Embedding) else inputs.to(self.output.weight.dtype))
        states, state = self.recurrent(self.dropout(self.input_scale * x), state)
        return self.output(self.dropout(states)), state


def load(folder: str | Path) -> RecurrentModel:
    """The model of a run's best epoch, on the CPU, in float32 whatever the run's precision, and in evaluation mode.

    Raises `UserError` where `folder` is no run's, or has no checkpoint. With a run that `gruclip.train` has finished,
    ``logits, state = load(result.folder)(words)``.
    """
    config, _, tensors = _read(folder)
    words = config.dataset.name in WORD_DATASETS
    num_outputs = tensors["output_bias"].shape[0]
    model = RecurrentModel(config.model, num_outputs, words)
    weights = {
        "input.weight": tensors["input"] if words else tensors["input"].T,
        "output.weight": tensors["output"].T,
        "output.bias": tensors["output_bias"],
    }
    weights |= {f"recurrent.{name}": tensor for name, tensor in tensors.items() if name.startswith("weight_")}
    model.load_state_dict(weights)
    return model.eval()


def evaluate_run(folder: str | Path, split: str, device: str = "auto", root: str | None = None) -> dict[str, Any]:
    """Loss of a run's best epoch on all of a split, in nats per token or time step, and the perplexity of words.

    `split`: train, valid or test; `root`: where the corpus lies now, if not where the run had it. Keys ``split``,
    ``loss``, ``unit``, and for words ``perplexity``. Raises `ConfigError` for another split and a device that is not
    there, `DataError` where the corpus cannot be read, and `UserError` where `folder` is no run's, has no checkpoint,
    or was trained on other data than is found here.
    """
    config, checksum, tensors = _read(folder)
    if split not in ("train", "valid", "test"):
        raise ConfigError(f"--split {split}: should be one of train, valid, test")
    config = dataclasses.replace(config, device=device)
    target = choose_device(config.check())
    corpus = _corpus(folder, config, checksum, root)
    round_products(config.precision)
    loss = evaluate_weights(tensors, config, corpus, split, target)
    result = {"split": split, "loss": loss, "unit": corpus.unit}
    return result | ({"perplexity": math.exp(loss)} if config.dataset.name in WORD_DATASETS else {})


def read_trained(folder: str | Path, root: str | None = None) -> tuple[RunConfig, WordCorpus | MusicCorpus, Parameters]:
    """Configuration and corpus of a run, and its best epoch's parameters as `gruclip.model.stacked` has them, R = 1.

    `root` as for `evaluate_run`. Raises `UserError` and `DataError` as `evaluate_run`.
    """
    config, checksum, tensors = _read(folder)
    corpus = _corpus(folder, config, checksum, root)
    return config, corpus, stacked_parameters(tensors, corpus)


def _corpus(folder: str | Path, config: RunConfig, checksum: str, root: str | None) -> WordCorpus | MusicCorpus:
    settings = vars(config.dataset) | ({} if root is None else {"root": root})
    if root is not None and config.dataset.name == "pydoc":
        raise UserError(f"--root {root}: does nothing for a run on pydoc, which comes with Python; leave it out")
    try:
        corpus = load_corpus(**settings)
    except DataError as error:
        raise error if root is not None else DataError(f"{error}; --root says where the corpus lies now") from None
    if corpus.checksum != checksum:
        own = config.dataset.name in OWN_DATASETS
        remedy = "give --root the corpus as it was" if own else "point --root or $GRUCLIP_DATA to the same files"
        raise UserError(
            f"{folder}: was trained on other data ({config.dataset.name} {checksum[:12]}, "
            f"here {corpus.checksum[:12]}); {remedy}"
        )
    return corpus


def _read(folder: str | Path) -> tuple[RunConfig, str, dict[str, Tensor]]:
    """Configuration, the data's checksum, and the best epoch's parameters, without the leading axis.

    The parameters are named as in `gruclip.model.stacked`. Raises `UserError` where they are not the configuration's.
    """
    config, record = read_config(Path(folder))
    path = Path(folder) / "checkpoint" / "best.safetensors"
    try:
        tensors = read_checkpoint(path, record["identity"]).tensors
    except DamagedCheckpoint as error:
        raise UserError(f"{error}; {MOVE_AWAY}") from None
    shapes = parameter_shapes(config.model, tensors["output_bias"].shape[0]) if "output_bias" in tensors else {}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
        raise UserError(f"{path}: holds other parameters than {Path(folder) / 'config.yaml'} asks for; {MOVE_AWAY}")
    return config, record["data_sha256"], tensors
