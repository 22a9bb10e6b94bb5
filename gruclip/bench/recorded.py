"""W_hh as training presents it to the projection: recorded in the iterations that follow a run's last checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gruclip.bench.sequences import MatrixSequence
from gruclip.data import load
from gruclip.errors import UserError
from gruclip.runs.checkpoints import read_checkpoint
from gruclip.runs.records import read_config
from gruclip.training.engine import Engine, Iteration
from gruclip.training.progress import Progress


class _Recorder(Engine):
    """Keeps every layer's recurrent block, (n, n), as it is before each projection."""

    recorded: list[list[Tensor]]

    def _clip(self, it: Iteration) -> None:
        for matrices, block in zip(self.recorded, self.recurrent_blocks(), strict=True):
            matrices.append(block[0].clone())
        super()._clip(it)


def record(run: Path, keep: int, root: str | None = None) -> list[MatrixSequence]:
    """The recurrent block of each layer before clipping, in the `keep` iterations after a run's last checkpoint.

    Trained on from there on the CPU, at the learning rate that the checkpoint has, over the ends of epochs; nothing is
    written to the run's folder, which may be finished, interrupted or in training. `root`: the folder of its data,
    where that is not the run's own any more. Raises `UserError` for a folder that is no run's or has no checkpoint, for
    a run that clips no singular values, for one that has diverged, and for other data than it was trained on.
    """
    run = Path(run)
    config, identity = read_config(run)
    limit = config.spectral_limit
    if limit is None:
        raise UserError(f"{run}: clips no singular values (optimizer={config.optimizer.name}); give another run")
    checkpoint = read_checkpoint(run / "checkpoint" / "last.safetensors", identity["identity"])
    progress = Progress.from_json(checkpoint.progress)
    if progress.diverged:
        raise UserError(f"{run}: has diverged, so that no iteration follows its last checkpoint; give another run")
    corpus = load(**{**vars(config.dataset), "root": root or config.dataset.root})
    if corpus.checksum != identity["data_sha256"]:
        raise UserError(f"{run}: was trained on other data than is found here; point --data to the same files")
    engine = _Recorder([replace(config, device="cpu")], corpus, torch.device("cpu"))
    engine.recorded = [[] for _ in range(config.model.num_layers)]
    engine.load_run_state(0, checkpoint.tensors)
    engine.set_rates([progress.schedule.lr])
    epoch, iteration = progress.epoch, progress.totals.iterations
    available = engine.begin_epoch([epoch], fresh_states=False)
    place = f"epoch {epoch} from iteration {iteration + 1}" if iteration < available else f"after epoch {epoch}"
    for _ in range(keep):
        if iteration == available:
            epoch, iteration = epoch + 1, 0
            available = engine.begin_epoch([epoch])
        engine.step(iteration, False)
        iteration += 1
    layers = [f", layer {layer}" if len(engine.recorded) > 1 else "" for layer in range(len(engine.recorded))]
    return [
        MatrixSequence(f"{run.resolve().name}, {place}{layer}", limit, torch.stack(matrices))
        for layer, matrices in zip(layers, engine.recorded, strict=True)
    ]


def save_recorded(sequence: MatrixSequence, folder: Path) -> Path:
    path = folder / f"recorded {sequence.name}.safetensors".replace(", ", "_").replace(" ", "_")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"name": sequence.name, "limit": repr(sequence.limit)}
        save_file({"matrices": sequence.matrices}, path, metadata=metadata)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror or error})") from error
    return path


def load_recorded(folder: Path) -> Iterator[MatrixSequence]:
    """Every recorded sequence in `folder`, in the order of their names."""
    for path in sorted(folder.glob("recorded_*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                sequence = MatrixSequence(metadata["name"], float(metadata["limit"]), file.get_tensor("matrices"))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: is no recorded sequence ({error}); move it away") from error
        yield sequence
